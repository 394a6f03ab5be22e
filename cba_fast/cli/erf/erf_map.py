"""``cba-fast erf-map``."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...runs.settings import ErfMapConfig, ModelConfig
from ..options import (
    FILE,
    config_option,
    erf_options,
    option,
    overwrite_option,
    resolved,
)
from ..progress import bar, continuable, warn

if TYPE_CHECKING:
    from torch import nn

    from ...data import ImageSet
    from ...runs.settings import DataConfig, RunConfig

    Used = tuple[nn.Module, ImageSet, ModelConfig, DataConfig, RunConfig]


@click.command()
@erf_options(
    without=("preprocess",), input_size={"default": ErfMapConfig.input_size, "otherwise": None}
)
@config_option(ErfMapConfig, "num_images")
@config_option(ErfMapConfig, "layer")
@config_option(ErfMapConfig, "point")
@option(
    "--compare",
    group="ERF",
    help="Measure further networks on the same images, for one picture: random, this network with"
    " random weights; or names of models, with timm's weights if --pretrained is given; such as"
    " random,convnext_tiny.",
)
@option("--output", type=FILE, help="The .npy file.  [default: erf_map_<family or model>.npy]")
@option("--save_fig", type=FILE, help="The picture.  [default: beside --output, .png]")
@overwrite_option("resume", "no_resume")
def command(
    model_config,
    data_config,
    run_config,
    checkpoint,
    num_images,
    layer,
    point,
    compare,
    output,
    save_fig,
    overwrite,
):
    """Measure the ERF map: where one position of a feature map looks.

    The map is the mean, over the first images, of the positive gradient of the features at the
    centre of the last feature map, as in RepLKNet's paper, or of any other --layer and --point. A
    JSON file and a picture beside it tell its area ratios and its shape (docs/erf.md has the
    definitions). With --layers all it is a curve over the depth of the network. `erf-compute`
    measures the study's ERF sizes.
    """
    from ...analysis.plots import check_picture
    from ...runs.erf.shared import check_precision
    from ...runs.inference import load_model, open_images

    size, named = data_config.input_size, {"": resolved(model_config, data_config)[0]}
    for name, other in _compared(named[""], compare).items():
        named[name] = resolved(other, data_config)[0]
    output = npy_file(output or Path(f"erf_map_{named[''].title}"))
    if save_fig is not None:
        check_picture(save_fig)
    check_precision(run_config)
    start = time.perf_counter()
    images = open_images(data_config)
    options = {"checkpoint": checkpoint, "overwrite": overwrite}
    config = ErfMapConfig(num_images, size, layer, point)
    found: dict = {}
    with continuable():
        for name, model_config in named.items():
            added = f"_{name.replace('/', '_')}" if name else ""
            path = output.with_stem(f"{output.stem}{added}")
            title = f"{title_of(model_config)}{', random weights' * (name == 'random')}"
            title += f" ({len(found) + 1})" * (title in found)
            if len(named) > 1:
                click.echo(f"{title}:")
            model = load_model(model_config, run_config, size, keep_layers=True)
            used = (model, images, model_config, data_config, run_config)
            found[title] = measure_map(used, config, path, options)
    draw(found, save_fig or output.with_suffix(".png"))
    click.echo(f"ERF map: {output} ({time.perf_counter() - start:.1f} s in all)")


def _compared(model_config: ModelConfig, compare: str | None) -> dict[str, ModelConfig]:
    """Return the networks that `compare` names, by what is added to the names of their files."""
    names = [name for text in (compare or "").split(",") if (name := text.strip())]
    return {
        name: replace(model_config, weights=None, pretrained=False)
        if name == "random"
        else ModelConfig(name=name, pretrained=model_config.pretrained)
        for name in names
    }


def measure_map(used: "Used", config: ErfMapConfig, output: Path, options):
    """Measure the map of ``(model, images, *configs)``, write it, and print what it tells."""
    from ...runs.erf.maps import compute_map

    found = compute_map(*used, config, output, progress=bar("ERF map"), **options)
    warn(found.notes)
    tell_map(found, output)
    return found


def tell_map(found, path: Path) -> None:
    """Print what is told about a map, or about those of several layers."""
    from ...data.textlines import counted
    from ...erf.report import json_beside

    erf = next(run.erf for run in _runs(found).values() if run is not None)
    _print_figures(found)
    height, width = erf.map.shape
    images = f"{counted(erf.count, 'image')} of {height}x{width}"
    click.echo(f"ERF map: {path} ({images}), {json_beside(path)}")


def _runs(found) -> dict:
    return getattr(found, "layers", {"": found})


def _print_figures(found) -> None:
    from ...erf.report import depth_rows, map_rows
    from ..tables import new_table, print_tables

    if not hasattr(found, "layers"):
        for row in map_rows(found):
            click.echo(row)
        return
    heads = ("20 % in pixels", "50 % in pixels", "50 % square", "99 % square", "sigma, pixels")
    table = new_table("layer", right=heads)
    for cells in depth_rows(found):
        table.add_row(*cells)
    print_tables(table, width=130)


def draw(found: dict, picture: Path) -> None:
    """Draw one map with its figures, several beside each other, or curves over the depth."""
    from ...analysis import plots_erf
    from ...analysis.plots import save_figure

    ((title, first), *others) = found.items()
    if hasattr(first, "layers"):
        figure = plots_erf.plot_depth(found)
    else:
        figure = plots_erf.plot_side_by_side(found) if others else plots_erf.plot_map(first, title)
    save_figure(figure, picture)
    click.echo(f"ERF map, drawn: {picture}")


def title_of(model_config) -> str:
    """Return the model's name, with its mixture if one was given."""
    mixing = {"alpha": model_config.alpha, "beta": model_config.beta}
    parts = [f"{name} {value:g}" for name, value in mixing.items() if value is not None]
    return ", ".join([model_config.name or model_config.family, *parts])


def npy_file(path: Path) -> Path:
    """Return the name with the ending ``.npy``, which NumPy's save adds where it is missing."""
    return path if path.suffix == ".npy" else path.with_name(f"{path.name}.npy")
