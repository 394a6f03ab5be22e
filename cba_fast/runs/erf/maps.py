"""The command ``erf-map``: measure and write ERF maps."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch
from torch import nn

from ... import locks
from ...choices import CHECKPOINT
from ...data import ImageRecord, ImageSet, erf_map_transform
from ...data.preprocessing import ERF_MAP
from ...erf import ErfMap, Partial, Walk, measure_erf_maps
from ...erf.report import DepthRun, MapRun, with_figures, write_map
from ...errors import InputError
from ...models.anatomy.layers import layers_of
from ...models.anatomy.parts import named_layer
from ...shapes import Size, map_shape, point_of
from ..runtime import Runtime
from ..settings import DataConfig, ErfMapConfig, ModelConfig, RunConfig
from .shared import (
    as_json,
    check_precision,
    checkpoint_level,
    claim,
    continued_note,
    kept_note,
    map_outputs,
    one_layer,
    read_array,
    run_description,
    walk_over,
)


@locks.released()
def compute_map(
    model: nn.Module,
    images: ImageSet,
    model_config: ModelConfig,
    data: DataConfig,
    run: RunConfig | Runtime,
    config: ErfMapConfig,
    output: str | os.PathLike,
    *,
    checkpoint: str = CHECKPOINT,
    overwrite: bool = False,
    progress: Callable = lambda steps, count: steps,
) -> MapRun | DepthRun:
    """Measure the ERF map over the first images of `images` and write it to `output`.

    The file is (H,W) float64, the mean of the images' contributions without a logarithm. A JSON
    file of the same name beside it holds area ratios, shape descriptors and settings. Where
    `config.layer` means several layers, the file is (L,H,W), and the JSON file has the figures of
    each. Arguments and errors are those of :func:`compute_sizes`; a map that is zero everywhere is
    an `InputError`.
    """
    run = Runtime.of(run)
    check_precision(run.config)
    size, records = config.input_size, images.records
    data = replace(data, preprocess=None, preprocessing=ERF_MAP)
    walk = map_walk(records, size, run, progress)
    described = run_description(model_config, data, run, records, {"map": asdict(config)})
    outputs = map_outputs(output, described)
    ended = claim([outputs], overwrite, run)
    several = config.layer is not None and (config.layer == "all" or "," in config.layer)
    if ended is not None:
        notes, layers = [*ended["notes"], kept_note(output)], ended["layers"]
        stored = read_array(output)
        maps = [ErfMap(each, ended["count"], []) for each in (stored if several else [stored])]
        return _figures(maps, layers, notes, config)
    walk.partial = Partial(output)
    if config.layer is not None and several:
        layers = layers_asked(config.layer, model, size, run)
    else:
        layers = [one_layer(config.layer, model)]
    level = checkpoint_level(checkpoint, model, size, run, features=True)
    try:
        with run.autocast():
            maps = measure_erf_maps(
                model,
                walk,
                layers,
                config.num_images,
                point=point_of(config.point),
                checkpoint=level,
            )
    except ValueError as e:
        walk.report.check_any(0)
        raise InputError(f"no ERF map: {e}") from e
    notes = []
    if maps[0].count < config.num_images:
        notes.append(f"the ERF map averages {maps[0].count} images, {config.num_images} asked for")
    notes += walk.report.lines()
    layers = layers if several else None
    found = _figures(maps, layers, [*continued_note(walk.resumed), *notes], config)
    write_map(output, found, "replknet", as_json(described))
    failed = walk.report.first_failure()
    outputs.finish(notes=notes, failed=failed, count=maps[0].count, layers=layers)
    return found


def layers_asked(text: str, model: nn.Module, input_size: Size, run: Runtime) -> list[str]:
    """Return the names of the layers that the setting means: ``all``, or names with commas.

    Raises:
        InputError: there is no layer of such a name, or none gives a feature map.
    """
    if text != "all":
        return [named_layer(model, name.strip())[0] for name in text.split(",")]
    image = torch.zeros(1, 3, *map_shape(input_size), device=run.device)
    with run.autocast():
        return layers_of(model, image.to(memory_format=run.memory_format))


def _figures(maps, layers: list[str] | None, notes: list[str], config) -> MapRun | DepthRun:
    central = config.point is None
    if layers is None:
        return with_figures(maps[0], notes, central=central)
    runs = [with_figures(m, [], central=central) if m.map.any() else None for m in maps]
    if not any(runs):
        raise InputError("no ERF map: the maps of all layers are zero everywhere")
    return DepthRun(dict(zip(layers, runs, strict=True)), notes)


def map_walk(
    records: Sequence[ImageRecord],
    input_size: Size,
    run: Runtime,
    progress: Callable = lambda steps, count: steps,
) -> Walk:
    """Return the walk of an ERF map: all images in order, preprocessed as in RepLKNet's script."""
    pixels = erf_map_transform(input_size)
    return walk_over(records, input_size, pixels, range(len(records)), run, progress)
