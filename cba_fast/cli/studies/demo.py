"""``cba-fast demo``."""

import time
from pathlib import Path

import click

from ..options import PATH, SEED, option, overwrite_option
from ..tables import new_table, print_tables


@click.command()
@option("--output", type=PATH, default=Path("cba_fast_demo"), help="Folder of all files.")
@option("--seed", type=SEED, default=0, help="Seed of the images and of the training.")
@option("--quick", is_flag=True, help="Fewer epochs: two models learn, two only run.")
@overwrite_option()
def command(output, seed, quick, overwrite):
    """Run the whole study on generated data: no download, no GPU, minutes on two cores.

    Draws a CUB-like data set, trains small models of three families from scratch, and takes them
    through heatmaps, MaxBoxAcc and ERF to the scatter plot and a report.
    """
    from ...experiments.demo import FULL, QUICK, run_demo

    start = time.perf_counter()
    result = run_demo(
        output,
        seed=seed,
        scale=QUICK if quick else FULL,
        overwrite=overwrite,
        step=lambda text: click.echo(f"-- {text}"),
    )
    _print_table(result)
    if quick:
        click.echo(
            f"--quick: models whose top-1 is near {100 / QUICK.classes:.0f} % had too few epochs to"
            " learn; their other figures\nmean nothing."
        )
    for line in result.analysis:
        click.echo(line)
    click.echo(f"All files    : {output} ({time.perf_counter() - start:.0f} s)")
    sheets = ", ".join(str(result.sheets / f"{kind}.png") for kind in ("worst", "best"))
    click.echo(f"Pictures     : {sheets}, {output / 'erf_vs_wsol.png'}")
    click.echo(f"Open in a browser: {result.report}")


def _print_table(result) -> None:
    from ...experiments.demo import INPUT_SIZE

    title = f"Small models on generated images of {INPUT_SIZE}x{INPUT_SIZE}: a demonstration"
    columns = ("top-1", "CAM", "PC1", "CAM V2", "PC1 V2", "ERF size", "ERF area", "training")
    table = new_table("model", right=columns, title=title, title_justify="center")
    table.columns[0].no_wrap = True
    for row in result.rows:
        scores = [row.top1, *row.max_box_acc.values(), *row.max_box_acc_v2.values()]
        size = f"{row.erf_mean:.0f} +- {row.erf_std:.0f}"
        area = "-" if row.erf_area is None else f"{row.erf_area:.0%}"
        cells = [*[f"{s:.1f}" for s in scores], size, area, f"{row.seconds:.0f} s"]
        table.add_row(row.title, *cells)
    table.add_section()
    b = result.baselines
    table.add_row(f"centred box ({b.centred_share:.0%})", "", f"{b.centred_box:.1f}")
    table.add_row("full image", "", f"{b.full_image:.1f}")
    print_tables(table, width=110)
    click.echo(
        "CAM, PC1: MaxBoxAcc in percent (V2: MaxBoxAccV2), baselines at IoU 0.5. ERF size: pixels "
        "with 20 % of the\ninput gradient. ERF area: share of the image with 50 % of the ERF map."
    )
