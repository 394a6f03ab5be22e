"""``cba-fast report``."""

from pathlib import Path

import click

from ...runs.settings import BoxConfig, ReportConfig
from ..options import FILE, PATH, config_options, option, sized, threads_option
from ..progress import bar, warn


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
@option(
    "--images",
    type=PATH,
    group="Images",
    help="Folder of the images, below which they lie under their ids.  [default: those of"
    " --cub_root; else the gallery shows the maps alone]",
)
@config_options(BoxConfig, "box_config", without=("contours", "threshold"), make=sized(BoxConfig))
@config_options(ReportConfig, "report_config")
@threads_option()
@option("--output", type=FILE, default=Path("report.html"), help="HTML file to write.")
def command(scoremaps, images, box_config, report_config, num_workers, output):
    """Show what stored heatmaps are worth: one HTML page that opens without a network.

    The page has the scores with their intervals and differences, accuracy against threshold, causes
    of failures, a gallery whose slider moves the boxes through all thresholds, and a table of
    classes. The maps may come from any method.
    """
    from ...report import write_report

    made = write_report(
        named(scoremaps),
        output,
        box_config,
        report_config,
        images=images,
        num_workers=num_workers,
        progress=bar,
    )
    for run in made.runs:
        warn(f"{run.name}: {note}" for note in run.notes)
        click.echo(
            f"{run.name}: MaxBoxAcc {run.result.max_box_acc:.2f}%, "
            f"MaxBoxAccV2 {run.result.max_box_acc_v2:.2f}%"
        )
    click.echo(f"Report       : {output}")


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
