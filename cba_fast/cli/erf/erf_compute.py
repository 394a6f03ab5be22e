"""``cba-fast erf-compute``."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...runs.settings import ErfMapConfig, SizeConfig
from ..options import (
    comma_lists,
    config_options,
    erf_options,
    option,
    overwrite_option,
    profile_option,
    resolved,
)
from ..progress import bar, continuable, warn
from .erf_map import FILE, draw, measure_map, npy_file, tell_map, title_of

if TYPE_CHECKING:
    from .erf_map import Used


@click.command()
@erf_options()
@config_options(
    SizeConfig,
    "config",
    **comma_lists(SizeConfig, "shares"),
)
@option(
    "--output",
    type=FILE,
    help="The .npy file of the sizes.  [default: erf_sizes_<family or model>.npy]",
)
@option(
    "--save_map",
    type=FILE,
    help="Also write the mean |gradient| of the sampled images, a map, to this .npy file.",
)
@option("--save_fig", type=FILE, help="Picture of --save_map.  [default: beside it, .png]")
@overwrite_option("resume", "no_resume")
@profile_option()
@option("--map", "map_path", type=FILE, hidden=True)  # these four: for one release
@option("--map_images", type=int, hidden=True)
@option("--map_input_size", type=int, hidden=True)
@option("--map_fig", type=FILE, hidden=True)
def command(
    model_config,
    data_config,
    run_config,
    checkpoint,
    config,
    output,
    save_map,
    save_fig,
    overwrite,
    map_path,
    map_images,
    map_input_size,
    map_fig,
):
    """Measure the ERF size on sampled images.

    The ERF size is the number of pixels that hold the share p of the gradient of the top-1 score.
    The default batch size of 1 is the study's; others are as exact but round differently, which
    moves some sizes by a few pixels. The map of --save_map comes with its area ratios and shape
    descriptors, also in a JSON file beside it, and a picture (docs/erf.md has the definitions).
    `erf-map` measures the ERF map of RepLKNet's paper.
    """
    from ...files import check_distinct
    from ...runs import ranks
    from ...runs.erf.shared import check_precision
    from ...runs.inference import load_model, open_images

    _tell_earlier(map_path, map_images, map_input_size, map_fig)
    if map_path is None:
        save_fig = save_fig or map_fig
    map_input_size = map_input_size or data_config.input_size or ErfMapConfig.input_size
    model_config, data_config = resolved(model_config, data_config)
    output = npy_file(output or Path(f"erf_sizes_{model_config.title}"))
    save_map, map_path = save_map and npy_file(save_map), map_path and npy_file(map_path)
    check_distinct(output=output, save_map=save_map, map=map_path)
    _check_pictures(save_map, save_fig, map_fig)
    check_precision(run_config)
    processes = ranks.join()  # chooses this process's GPU
    if map_path is not None and processes.count > 1:
        raise click.UsageError("--map is made by one process: leave out torchrun")
    start = time.perf_counter()
    images = open_images(data_config)
    inside = map_path is not None or config.layer is not None
    model = load_model(model_config, run_config, data_config.input_size, keep_layers=inside)
    used = (model, images, model_config, data_config, run_config)
    options = {"checkpoint": checkpoint, "overwrite": overwrite}
    with continuable():
        _measure_sizes(used, config, output, save_map, save_fig, {**options, "ranks": processes})
        if map_path is not None:
            map_config = ErfMapConfig(map_images or ErfMapConfig.num_images, map_input_size)
            mapped = measure_map(used, map_config, map_path, options)
            draw({title_of(model_config): mapped}, map_fig or map_path.with_suffix(".png"))
    click.echo(f"ERF sizes: {output} ({time.perf_counter() - start:.1f} s in all)")


def _measure_sizes(used: "Used", config, output, save_map, save_fig, options) -> None:
    from ...runs.erf.sizes import as_rows, compute_sizes

    found = compute_sizes(
        *used, config, output, save_map=save_map, progress=bar("ERF sizes"), **options
    )
    warn(found.history + found.notes)
    for row in as_rows(found.stats):
        click.echo(row)
    if found.map:
        tell_map(found.map, save_map)
        draw({title_of(used[2]): found.map}, save_fig or save_map.with_suffix(".png"))


def _tell_earlier(map_path, map_images, map_input_size, map_fig) -> None:
    """Say what replaces the options of the map, and refuse those without a map."""
    if map_path is not None:
        click.echo(
            "Warning: --map is a command of its own now: cba-fast erf-map, with --output,"
            " --num_images, --input_size and --save_fig",
            err=True,
        )
    elif map_images or map_input_size:
        raise click.UsageError("--map_images and --map_input_size are for `erf-map`, not for sizes")
    elif map_fig is not None:
        click.echo("Warning: --map_fig is called --save_fig now", err=True)


def _check_pictures(save_map, save_fig, map_fig) -> None:
    """Refuse unusable file names before anything runs."""
    from ...analysis.plots import check_picture
    from ...errors import InputError

    if save_fig is not None and save_map is None:
        raise InputError("--save_fig is the picture of --save_map, which is not given")
    for picture in (save_fig, map_fig):
        if picture is not None:
            check_picture(picture)
