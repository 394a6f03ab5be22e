"""``cba-fast erf-map``."""

import time
from pathlib import Path

import click

from ...runs.settings import ErfMapConfig
from ..options import (
    FILE,
    config_option,
    erf_options,
    option,
    overwrite_option,
    resolved,
)
from ..progress import bar, continuable, warn


@click.command()
@erf_options(input_size={"default": ErfMapConfig.input_size, "otherwise": None})
@config_option(ErfMapConfig, "num_images")
@option("--output", type=FILE, help="The .npy file.  [default: erf_map_<family>.npy]")
@option("--save_fig", type=FILE, help="The picture.  [default: beside --output, .png]")
@overwrite_option("resume", "no_resume")
def command(
    model_config, data_config, run_config, checkpoint, num_images, output, save_fig, overwrite
):
    """Measure the ERF map: where the central feature of the last layer looks.

    The map is the mean, over the first images, of the positive gradient of that feature, as in
    RepLKNet's paper. A JSON file and a picture beside it tell its area ratios and its shape
    (docs/erf.md has the definitions). `erf-compute` measures the study's ERF sizes.
    """
    from ...analysis.plots import check_picture
    from ...runs.erf import check_precision
    from ...runs.inference import load_model, open_images

    model_config, data_config = resolved(model_config, data_config)
    output = npy_file(output or Path(f"erf_map_{model_config.family}"))
    if save_fig is not None:
        check_picture(save_fig)
    check_precision(run_config)
    start = time.perf_counter()
    images = open_images(data_config)
    used = (load_model(model_config, run_config), images, model_config, data_config, run_config)
    options = {"checkpoint": checkpoint, "overwrite": overwrite}
    with continuable():
        config = ErfMapConfig(num_images, data_config.input_size)
        measure_map(used, config, output, save_fig, options)
    click.echo(f"ERF map: {output} ({time.perf_counter() - start:.1f} s in all)")


def measure_map(used, config: ErfMapConfig, output: Path, picture: Path | None, options):
    """Measure the map of ``(model, images, *configs)``, write it, print and draw what it tells."""
    from ...runs.erf import compute_map

    found = compute_map(*used, config, output, progress=bar("ERF map"), **options)
    warn(found.notes)
    show_map(found, output, picture, used[2])


def show_map(found, path: Path, picture: Path | None, model_config) -> None:
    """Print what is told about a map, and draw it."""
    from ...analysis.plots import save_figure
    from ...analysis.plots_erf import plot_map
    from ...data.textlines import counted
    from ...erf.report import json_beside, map_rows

    for row in map_rows(found):
        click.echo(row)
    height, width = found.erf.map.shape
    images = f"{counted(found.erf.count, 'image')} of {height}x{width}"
    click.echo(f"ERF map: {path} ({images}), {json_beside(path)}")
    picture = picture or path.with_suffix(".png")
    save_figure(plot_map(found, _title(model_config)), picture)
    click.echo(f"ERF map, drawn: {picture}")


def _title(model_config) -> str:
    """Return the model's name, with its mixture if one was given."""
    mixing = {"alpha": model_config.alpha, "beta": model_config.beta}
    parts = [f"{name} {value:g}" for name, value in mixing.items() if value is not None]
    return ", ".join([model_config.name or model_config.family, *parts])


def npy_file(path: Path) -> Path:
    """Return the name with the ending ``.npy``, which NumPy's save adds where it is missing."""
    return path if path.suffix == ".npy" else path.with_name(f"{path.name}.npy")
