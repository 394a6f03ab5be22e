"""``cba-fast demo``."""

import time
from pathlib import Path

import click


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("cba_fast_demo"))
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0)
def command(output, seed):
    """Run the whole chain on generated data: no download, no GPU.

    Draws a small CUB-like data set and takes small models of random weights through heatmaps,
    MaxBoxAcc and ERF. It shows that the chain works; the numbers mean nothing yet.
    """
    from rich.console import Console
    from rich.table import Table

    from cba_fast.study.demo import INPUT_SIZE, run_demo

    start = time.perf_counter()
    result = run_demo(output, seed=seed, step=lambda text: click.echo(f"-- {text}"))
    table = Table(title="Random weights: the numbers mean nothing yet")
    table.add_column("model", no_wrap=True)
    for column in ("CAM", "PC1", "CAM V2", "PC1 V2"):
        table.add_column(column, justify="right")
    table.add_column(f"ERF size of {INPUT_SIZE}x{INPUT_SIZE}", justify="right")
    for row in result.rows:
        scores = [*row.max_box_acc.values(), *row.max_box_acc_v2.values()]
        size = f"{row.erf_mean:.0f} +- {row.erf_std:.0f}"
        table.add_row(row.title, *[f"{s:.1f}" for s in scores], size)
    table.add_section()
    b = result.baselines
    table.add_row(f"centred box ({b.centred_share:.0%})", f"{b.centred_box:.1f}")
    table.add_row("full image", f"{b.full_image:.1f}")
    Console(width=100).print(table)
    click.echo("MaxBoxAcc in percent (V2: MaxBoxAccV2); baselines at IoU 0.5.")
    for line in result.analysis:
        click.echo(line)
    click.echo(f"All files    : {output} ({time.perf_counter() - start:.1f} s)")
