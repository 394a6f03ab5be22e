"""``cba-fast pixel-eval``."""

import click

from ...runs.settings import PixelConfig
from ..options import config_options, json_option, np_root_option, sized, threads_option
from ..progress import bar, warn
from .scores import print_counts, print_end, print_source, write_scores


@click.command()
@np_root_option("Folder of floating maps.")
@config_options(
    PixelConfig, "config", make=sized(PixelConfig), eval_size={"otherwise": "224, the official"}
)
@threads_option()
@json_option()
def command(np_root, config, num_workers, json_path):
    """Score stored heatmaps against pixel masks, such as those of OpenImages: PxAP.

    The maps are <class>/<stem>.npy or <image_id>.npy below NP_ROOT. The metadata's localization.txt
    names the masks of each image. `wsol-eval` scores against boxes.
    """
    from ...data.metadata import find_folder
    from ...runs.scoring.boxes import versions
    from ...runs.scoring.pixels import score_pixels
    from ...runs.settings import settings

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
