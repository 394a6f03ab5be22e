"""``cba-fast plot-erf-vs-wsol``: scatter plot of the collected points, coloured by family."""

import click

from ..options import option
from ..progress import warn


@click.command()
@option(
    "--csv",
    "csv_path",
    type=click.Path(exists=True, dir_okay=False),
    required=True,
    help="CSV with the columns model_name,family,erf_path,wsol (wsol from 0 to 1; erf_path relative"
    " to the working directory), or the list of analysis-erf-vs-wsol.",
)
@option(
    "--save_fig",
    "--save",  # the name in the study
    "save_fig",
    type=click.Path(dir_okay=False),
    default="erf_vs_wsol_scatter.png",
    help="Write the plot here.",
)
@option("--show", is_flag=True, help="Open the plot in a window, too.")
def command(csv_path: str, save_fig: str, show: bool) -> None:
    """Plot mean ERF size (x) against MaxBoxAcc (y), one colour per family."""
    from ...analysis.models import load_models
    from ...analysis.plots import (
        MOST_NAMES,
        check_picture,
        plot_points,
        save_figure,
        show_figures,
    )

    check_picture(save_fig)
    models = load_models(csv_path)
    figure = plot_points(models, show=show)
    save_figure(figure, save_fig)
    if len(models) > MOST_NAMES:
        warn([f"{len(models)} points: the picture names those at the ends alone"])
    click.echo(f"{len(models)} points: {save_fig}")
    if show:
        show_figures()
