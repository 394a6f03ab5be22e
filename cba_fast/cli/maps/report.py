"""``cba-fast report``."""

from pathlib import Path

import click

from ...runs.settings import BoxConfig, ReportConfig
from ..options import (
    PATH,
    config_options,
    images_option,
    option,
    sheets_option,
    sized,
    tables_option,
    threads_option,
)
from ..progress import bar, warn
from ..tables import tell_tables


@click.command()
@option(
    "--scoremaps",
    "scoremaps",
    group="Map",
    multiple=True,
    default=["np_heatmap_output"],
    metavar="[NAME=]DIR",
    help="Folder of maps, or a store of them; repeat it to compare runs, such as"
    " --scoremaps CAM=np_cam --scoremaps PC1=np_pc1.",
)
@images_option()
@option(
    "--erf",
    "erf_files",
    group="ERF",
    multiple=True,
    metavar="[NAME=]FILE",
    help="ERF sizes or an ERF map of a run's network, as erf-compute and erf-map write them; repeat"
    " it, such as --erf CAM=erf_sizes.npy --erf CAM=erf_map.npy.",
)
@config_options(BoxConfig, "box_config", without=("contours", "threshold"), make=sized(BoxConfig))
@config_options(ReportConfig, "report_config")
@threads_option()
@option(
    "--output",
    type=PATH,
    default=Path("report.html"),
    help="HTML file to write, or a folder for report.html.",
)
@tables_option()
@sheets_option()
def command(
    scoremaps, images, erf_files, box_config, report_config, num_workers, output, tables, sheets
):
    """Show what stored heatmaps are worth: one HTML page that opens without a network.

    The page has the scores with their intervals and differences, accuracy against threshold, causes
    of failures, a gallery whose slider moves the boxes through all thresholds, and a table of
    classes. The maps may come from any method.
    """
    from ...report import write_report

    runs = named(scoremaps)
    made = write_report(
        runs,
        output,
        box_config,
        report_config,
        images=images,
        erf=erf_of(erf_files, list(runs)),
        tables=tables,
        sheets=sheets,
        num_workers=num_workers,
        progress=bar,
    )
    for run in made.runs:
        warn(f"{run.name}: {note}" for note in run.notes)
        click.echo(
            f"{run.name}: MaxBoxAcc {run.result.max_box_acc:.2f}%, "
            f"MaxBoxAccV2 {run.result.max_box_acc_v2:.2f}%"
        )
    tell_written(output, tables, sheets)


def tell_written(output: Path | None, tables: Path | None, sheets: Path | None) -> None:
    """Print where a report, its tables and its contact sheets are."""
    from ...report.render import page_path

    if output is not None:
        click.echo(f"Report       : {page_path(output)}")
    if tables is not None:
        tell_tables(tables)
    if sheets is not None:
        click.echo(f"Sheets       : {sheets} (.png, .pdf)")


def erf_of(files: tuple[str, ...], runs: list[str]) -> dict:
    """Return the effective receptive field of each run that files are given for."""
    from ...report import read_erf

    found: dict[str, list[Path]] = {}
    for text in files:
        name, equals, file = text.partition("=")
        if not equals or Path(text).exists():
            if len(runs) > 1:
                raise click.UsageError(f"--erf {text}: say whose it is, such as {runs[0]}={text}")
            name, file = runs[0], text
        found.setdefault(name, []).append(Path(file))
    return {name: read_erf(*paths) for name, paths in found.items()}


def named(scoremaps: tuple[str, ...]) -> dict[str, Path]:
    """Return the folders of score maps by the names of their runs.

    A folder without a name has its own; what is no name before "=" belongs to the folder.
    """
    found: dict[str, Path] = {}
    for text in scoremaps:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).exists() or "/" in name:
            name, folder = Path(text).resolve().name, text
        if not name or not folder:
            raise click.UsageError(f"--scoremaps {text}: give a folder, or NAME=folder")
        if name in found:
            raise click.UsageError(
                f"--scoremaps: two runs are called {name!r}; name them, such as A={folder}"
            )
        found[name] = Path(folder)
    return found
