"""``cba-fast generate-heatmap``."""

import time
from pathlib import Path

import click

from ..options import (
    PATH,
    data_options,
    map_options,
    model_options,
    option,
    overwrite_option,
    profile_option,
    resolved,
    run_options,
    tell_advice,
)
from ..progress import bar, continuable, warn
from .scores import print_source


@click.command()
@model_options()
@data_options()
@map_options()
@run_options(with_compile=True)
@option(
    "--heatmap_output",
    type=PATH,
    default=Path("heatmap_output"),
    help="Folder of the overlays; np_ before its name: that of the score maps.",
)
@overwrite_option("resume")
@option(
    "--store",
    type=PATH,
    help="Put the score maps into this store (one uint8 array) instead of .npy files.",
)
@option("--no_overlay", is_flag=True, help="Write the score maps only.")
@profile_option()
def command(
    model_config, data_config, map_config, run_config, heatmap_output, overwrite, store, no_overlay
):
    """Make CAM or PC1 heatmaps of an image folder.

    Writes overlays to HEATMAP_OUTPUT/heatmap_<number>.png and score maps (float64, 0 to 1) to
    np_HEATMAP_OUTPUT/<class>/<stem>.npy, or as --map_names says. The same command, started again,
    goes on where it was.
    """
    from ...runs import ranks
    from ...runs.generate import generate_heatmaps

    start = time.perf_counter()
    model_config, data_config = resolved(model_config, data_config)
    tell_advice(model_config, data_config, run_config)
    with continuable():
        result = generate_heatmaps(
            model_config,
            data_config,
            run_config,
            map_config,
            heatmap_output,
            overwrite=overwrite,
            overlay=not no_overlay,
            store=store,
            progress=bar("heatmaps"),
            ranks=ranks.join(),
        )
    seconds = time.perf_counter() - start
    warn(result.notes)
    kept = f", {result.kept} were there" if result.kept else ""
    rate = f"{seconds / result.made:.2f} s per image, " if result.made else ""
    print_source("Images of", result.source)
    click.echo(f"Heatmaps     : {result.made} made{kept} ({rate}{seconds:.1f} s in all)")
    click.echo(f"Score maps   : {result.map_folder}")
    if result.overlay_folder is not None:
        click.echo(f"Overlays     : {result.overlay_folder}")
