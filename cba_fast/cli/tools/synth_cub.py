"""``cba-fast synth-cub``: the generated data set in the layouts of CUB_200_2011."""

from pathlib import Path

import click

from ...choices import SYNTH_CLASSES, SYNTH_IMAGES, SYNTH_SIZE, SYNTH_TEST
from ..options import POSITIVE, option, overwrite_option


@click.command()
@option(
    "--root",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to be made.",
)
@option("--classes", type=POSITIVE, default=SYNTH_CLASSES, help="Kinds of animals.")
@option(
    "--images_per_class",
    type=POSITIVE,
    default=SYNTH_IMAGES,
    help="Training and test together.",
)
@option(
    "--test_per_class",
    type=click.IntRange(min=0),
    default=SYNTH_TEST,
    help="How many of them are for the test.",
)
@option("--size", type=POSITIVE, default=SYNTH_SIZE, help="Side of the images.")
@option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the drawing.")
@option("--num_workers", type=POSITIVE, help="Threads; one per core, 8 at most, if absent.")
@overwrite_option()
@option("--split/--no_split", default=True, help="Make images_splitted/{train,test}, too.")
def command(
    root, classes, images_per_class, test_per_class, size, seed, num_workers, overwrite, split
):
    """Draw a CUB_200_2011 folder of animals with tight boxes: no download.

    The same options and library versions give the same files; an interrupted run is taken up. With
    images_splitted (links) it is ready for train-wsol. A centred box and the full image score
    badly on it: the baselines printed at the end are what any model must beat.
    """
    from rich.console import Console
    from rich.progress import Progress

    from ...data import load_boxes
    from ...datasets.prepare import split_images
    from ...datasets.synth import generate
    from ...experiments.baselines import fixed_box_baselines

    with Progress(console=Console(stderr=True)) as bars:
        task = bars.add_task("drawing", total=None)
        generate(
            root,
            classes=classes,
            images_per_class=images_per_class,
            test_per_class=test_per_class,
            size=size,
            seed=seed,
            num_workers=num_workers,
            overwrite=overwrite,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    num_test = classes * test_per_class
    num_train = classes * images_per_class - num_test
    click.echo(f"CUB_200_2011 : {root} ({classes} classes, {num_train} train + {num_test} test)")
    if split:
        split_root = split_images(root).split_root
        click.echo(f"split        : {split_root}")
        click.echo(f"use          : --data_root {split_root} (training)")
    click.echo(f"use          : --test_dataset {root} (heatmaps, evaluate, ERF)")
    name = "test" if num_test else "all"
    found = fixed_box_baselines(load_boxes(cub_root=root, split=name))
    click.echo(f"Baselines    : IoU 0.5, {name} images")
    share = f"{found.centred_share:.0%} of width and height"
    click.echo(f"  centred box: {found.centred_box:.2f}% (the best one: {share})")
    click.echo(f"  full image : {found.full_image:.2f}%")
