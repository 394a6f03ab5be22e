"""``cba-fast analysis-erf-vs-wsol``: correlate ERF size and localization, one point per model."""

from pathlib import Path

import click

from ..options import option, tables_option
from ..progress import warn
from ..tables import tell_tables


@click.command()
@option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    required=True,
    help='JSON or YAML list of {"name", "erf_path", "maxboxacc"}, or the CSV of collect-erf-wsol;'
    " erf_path is relative to the working directory, maxboxacc a fraction (up to 1) or percent.",
)
@option("--save_fig", type=click.Path(dir_okay=False), help="Write the scatter plot here.")
@option("--show", is_flag=True, help="Open the picture in a window.")
@tables_option()
def command(config: str, save_fig: str | None, show: bool, tables: Path | None) -> None:
    """Correlate mean ERF size and MaxBoxAcc over models, as the study.

    Prints Pearson's correlation, the linear fit and R2 of one point per model. `analysis-per-image`
    asks image by image.
    """
    from ...analysis.models import fit_models, load_models, models_table, report_lines
    from ...analysis.plots import (
        MOST_NAMES,
        check_display,
        check_picture,
        plot_analysis,
        save_figure,
        show_figures,
    )
    from ...analysis.tables import write_tables

    if save_fig:
        check_picture(save_fig)
    if show:
        check_display()
    models = load_models(config)
    fit = fit_models(models)
    for line in report_lines(models, fit):
        click.echo(line)
    if tables is not None:
        write_tables(tables, [models_table(models, fit)])
        tell_tables(tables)
    if not (save_fig or show):
        return
    if len(models) > MOST_NAMES:
        warn([f"{len(models)} models: the picture names those at the ends alone"])
    figure = plot_analysis(models, fit, show=show)
    if save_fig:
        save_figure(figure, save_fig)
        click.echo(f"figure: {save_fig}")
    if show:
        show_figures()
