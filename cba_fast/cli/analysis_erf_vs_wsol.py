"""``cba-fast analysis-erf-vs-wsol``: correlate ERF size and MaxBoxAcc over models."""

import click


@click.command("analysis-erf-vs-wsol")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    required=True,
    help='JSON list of {"name", "erf_path", "maxboxacc"}; erf_path is relative to the working'
    " directory, maxboxacc a fraction (up to 1) or percent.",
)
@click.option("--save_fig", type=click.Path(dir_okay=False), help="Write the scatter plot here.")
@click.option("--show", is_flag=True, help="Open the scatter plot in a window.")
def command(config: str, save_fig: str | None, show: bool) -> None:
    """Correlate mean ERF size and MaxBoxAcc: Pearson, linear fit and R2 over the models."""
    from cba_fast.study.analysis import fit_models, load_config, report_lines

    if save_fig:
        from cba_fast.study.plots import check_picture

        check_picture(save_fig)
    models = load_config(config)
    fit = fit_models(models)
    for line in report_lines(models, fit):
        click.echo(line)
    if not (save_fig or show):
        return
    from cba_fast.study.plots import plot_analysis, save_figure, show_figures

    figure = plot_analysis(models, fit, show=show)
    if save_fig:
        save_figure(figure, save_fig)
        click.echo(f"figure: {save_fig}")
    if show:
        show_figures()
