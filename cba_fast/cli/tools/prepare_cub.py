"""``cba-fast prepare-cub``: CUB_200_2011 (.tgz, .zip or folder) as the study reads it."""

import click

from ...choices import CUB_FOLDER
from ..options import option


@click.command()
@option(
    "--source",
    required=True,
    type=click.Path(),
    help="CUB_200_2011.tgz (or .tar, .zip) or the extracted folder.",
)
@option("--output", default=CUB_FOLDER, type=click.Path(), help="The data set's folder.")
@option(
    "--link/--copy",
    default=True,
    help="Link the images (hard links, where the file system has them) or copy them.",
)
def command(source: str, output: str, link: bool) -> None:
    """Lay out CUB_200_2011 for the other commands.

    Makes OUTPUT/CUB_200_2011 with images_splitted/train and images_splitted/test (the official
    split), which train-wsol reads by default. Nothing is downloaded: get CUB_200_2011.tgz from
    https://www.vision.caltech.edu/datasets/cub_200_2011/. Running it again changes nothing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

    from ...datasets.prepare import prepare_cub

    tasks: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description:>14}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        result = prepare_cub(source, output, copy=not link, progress=progress)
    images = " + ".join(f"{count} {split}" for split, count in result.counts.items())
    click.echo(f"CUB_200_2011 : {result.cub_root} ({result.classes} classes)")
    click.echo(f"split        : {result.split_root} ({images} images)")
    click.echo(f"use          : --data_root {result.split_root} (training)")
    click.echo(f"               --test_dataset {result.split_root / 'test'} (heatmaps, ERF)")
    click.echo(f"               --cub_root {result.cub_root} (boxes)")
