"""``cba-fast pixel-eval``."""

from pathlib import Path

import click

from .options import _METADATA_OPTIONS, EVAL_SIZE, INTERVAL, clip_option
from .progress import bar, warn
from .scores import print_counts, print_end, print_source, write_scores

PATH = click.Path(path_type=Path)


def _metadata(command):
    for option in reversed(_METADATA_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.option(
    "--np_root", type=PATH, default=Path("np_heatmap_output"), help="Folder of floating maps."
)
@click.option(
    "--mask_root", type=PATH, required=True, help="Folder of the mask paths in the metadata."
)
@_metadata
@click.option(
    "--cam_curve_interval",
    type=INTERVAL,
    default=0.01,
    help="Step between score thresholds; 0.001 in the paper's runs.",
)
@click.option(
    "--eval_size", type=EVAL_SIZE, help="Demand maps of this size.  [default: 224, the official]"
)
@click.option("--resize_maps", is_flag=True, help="Resize maps to --eval_size instead.")
@click.option("--missing_as_miss", is_flag=True, help="Count images without a map as misses.")
@clip_option()
@click.option("--num_workers", type=click.IntRange(1, 64), default=2, help="Threads that read.")
@click.option("--json", "json_path", type=PATH, help="Write everything here.")
def command(np_root, num_workers, json_path, **protocol):
    """Score stored heatmaps against pixel masks, such as those of OpenImages: PxAP.

    The maps are <class>/<stem>.npy or <image_id>.npy below NP_ROOT. The metadata's localization.txt
    names the masks of each image. `wsol-eval` scores against boxes.
    """
    from ..data.metadata import find_folder
    from ..runs.score import versions
    from ..runs.score_pixels import PixelConfig, score_pixels
    from ..runs.settings import settings

    if protocol["resize_maps"] and protocol["eval_size"] is None:
        raise click.UsageError("--resize_maps needs --eval_size, the side to resize to")
    if protocol["metadata_root"] is None:
        raise click.UsageError("--mask_root needs --metadata_root")
    config = PixelConfig(**protocol)
    result, notes = score_pixels(np_root, config, bar("scoring"), num_workers)
    warn(notes)
    folder = find_folder(config.metadata_root, config.dataset_name, config.split)
    click.echo(f"PxAP         : {result.px_ap:.2f}%")
    print_counts(result)
    print_source("Ground truth", str(folder))
    if json_path:
        used = settings(config) | {"np_root": str(np_root)}
        write_scores(json_path, result, {"settings": used, "versions": versions()})
    print_end(result, json_path)
