"""``cba-fast boxes``."""

from pathlib import Path

import click

from ...runs.settings import DataConfig
from ..options import FILE, box_options, config_option, np_root_option, option, threads_option
from ..progress import bar, warn


@click.command()
@np_root_option()
@option(
    "--threshold",
    group="Score",
    default="0.15",
    metavar="T|optimal|percentile:Q|otsu",
    help="A share of each map's maximum, e.g. 0.15; the share with the best accuracy against the"
    " ground truth; the Q-th percentile of each map, e.g. percentile:90; or Otsu's threshold.",
)
@option(
    "--test_dataset",
    group="Images",
    help="The images, for their names and sizes, without ground truth.",
)
@config_option(DataConfig, "follow_links")
@box_options(with_metadata=True, contours=True, scored=False)
@option(
    "--pixels",
    type=click.Choice(["image", "map"]),
    help="Pixels of the boxes.  [default: image where the sizes of the images are known]",
)
@threads_option()
@option(
    "--output",
    "outputs",
    type=FILE,
    multiple=True,
    default=[Path("boxes.csv")],
    help="File to write: .csv, or .json for COCO's format; may be repeated.",
)
def command(
    np_root, threshold, test_dataset, follow_links, box_config, pixels, num_workers, outputs
):
    """Write the boxes that stored heatmaps predict, as MaxBoxAcc counts them.

    The CSV has the columns image_id, x0, y0, x1, y1, width, height (of what the box lies in) and
    threshold. Ids and sizes come from --cub_root, --metadata_root or --test_dataset; without them
    all maps below NP_ROOT are taken by their names, and the boxes are in pixels of the maps.
    """
    from ...runs.boxes import check_suffix, predict_boxes, threshold_rule, write_boxes
    from ...runs.settings import settings

    for path in outputs:
        check_suffix(path)
    predicted = predict_boxes(
        np_root,
        threshold_rule(threshold),
        box_config,
        test_dataset=test_dataset,
        follow_links=follow_links,
        pixels=pixels,
        num_workers=num_workers,
        progress=bar("boxes"),
    )
    warn(predicted.notes)
    used = settings(box_config) | {"np_root": str(np_root), "threshold": threshold}
    images = len({box.image_id for box in predicted.boxes})
    click.echo(f"Boxes        : {len(predicted.boxes)}, images: {images}")
    found = {box.threshold for box in predicted.boxes}
    value = f" ({found.pop():g})" if threshold == "optimal" and len(found) == 1 else ""
    click.echo(f"  threshold  : {threshold}{value}")
    click.echo(f"  pixels     : of the {predicted.pixels}s")
    for path in outputs:
        write_boxes(path, predicted, used)
        click.echo(f"Results      : {path}")
