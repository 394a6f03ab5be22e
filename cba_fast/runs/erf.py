"""The commands ``erf-compute`` and ``erf-map``: measure and write ERF sizes and maps."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import nn

from .. import resume
from ..choices import CHECKPOINT
from ..data import ImageDataset, ImageRecord, ImageSet, erf_map_transform
from ..data.preprocessing import ERF_MAP
from ..data.reading import cut, transform
from ..data.textlines import counted
from ..erf import (
    ErfMap,
    Partial,
    Walk,
    choose_checkpoint,
    measure_erf_maps,
    measure_erf_sizes,
    sample_indices,
)
from ..erf.report import DepthRun, MapRun, json_beside, with_figures, write_map
from ..erf.sizes import SizeResult
from ..errors import CbaError, ImageError, InputError
from ..files import open_regular, write_npy
from ..models.anatomy import named_layer
from ..models.feature_layers import layers_of
from ..resume import Outputs
from ..shapes import Size, map_shape, point_of
from ..short import Short
from .inference import report_on
from .outputs import describe_run
from .ranks import ALONE, Ranks
from .runtime import Runtime
from .settings import (
    DataConfig,
    ErfMapConfig,
    ModelConfig,
    RunConfig,
    SizeConfig,
    settings,
)
from .size_stats import SizeStats, size_stats


@dataclass(repr=False)
class SizeRun(Short):
    """The result of a measurement of ERF sizes.

    Attributes:
        stats: the statistics of the sizes by share p.
        notes: lines to print at the end.
        map: the mean over the images of the gradients that the sizes are measured on, or None.
    """

    stats: dict[float, SizeStats]
    notes: list[str]
    map: MapRun | None = None


def check_precision(run: RunConfig) -> None:
    """Refuse a precision whose input gradients mean nothing.

    Raises:
        InputError: fp16, in which gradients of probabilities become zero, because they are often
            below its smallest normal number, 6e-5.
    """
    if run.precision == "fp16":
        raise InputError("precision fp16: input gradients underflow; use fp32 or bf16")


def compute_sizes(
    model: nn.Module,
    images: ImageSet,
    model_config: ModelConfig,
    data: DataConfig,
    run: RunConfig | Runtime,
    config: SizeConfig,
    output: str | os.PathLike,
    *,
    save_map: str | os.PathLike | None = None,
    checkpoint: str = CHECKPOINT,
    overwrite: bool = False,
    progress: Callable = lambda steps, count: steps,
) -> SizeRun:
    """Measure ERF sizes on a sample of `images` and write them to `output`.

    The file is float32, (N,) for one share and (N,P) for several, with one row per sampled image
    that could be measured, in the order of the sample. Until it is written, the finished part of
    the run lies beside it, from which the same run continues. If the run has ended before, its
    files are read instead.

    With `save_map` the mean over the images of |gradient|, averaged over the channels, is written
    as well: (H,W) float64, with a JSON file beside it as :func:`compute_map` writes it.

    Args:
        model: the model in its inference form, on the run's device.
        images: the data set.
        model_config, data, run: the settings of the model, the images and the computation.
        config: sample, shares and score.
        output: the ``.npy`` file.
        save_map: a second ``.npy`` file, or None.
        checkpoint: whose activations are recomputed in the backward pass: ``none``, ``block``,
            ``stage``, or ``auto`` for the first of these whose activations fit into half of the
            free memory. The numbers do not depend on it.
        overwrite: start anew and replace what an earlier run wrote. Otherwise a run with the same
            settings, weights and images is continued, and any other is refused.
        progress: called with the iterable of steps and their number, returns an iterable.

    Raises:
        ImageError: no image could be measured, or, with `run.strict`, one could not.
        InputError: fp16 (see :func:`check_precision`).
        OtherRunError: another run wrote there; see `resume.Outputs.check`.
    """
    records, run = images.records, Runtime.of(run)
    indices = sample_indices(len(records), config.num_samples, config.seed)
    used = {"sizes": asdict(config), "with_map": save_map is not None}
    described = run_description(model_config, data, run, [records[i] for i in indices], used)
    outputs = [resume.beside(output, described)]
    if save_map is not None:
        outputs.append(_map_outputs(save_map, described))
    ended = _claim(outputs, overwrite, run)
    mapped = None
    if ended is not None:
        found = Measured(_read(output), [*ended["notes"], _kept_note(output)])
        if save_map is not None:
            found.map = _read(save_map)
    else:
        partial = Partial(output)
        options = {"with_map": save_map is not None, "checkpoint": checkpoint}
        found = measure_sizes(model, records, data, run, config, partial, progress, **options)
        write_npy(output, found.sizes)
    if save_map is not None:
        mapped = with_figures(ErfMap(found.map, len(found.sizes), []), [])
    if ended is None:
        if mapped is not None:
            write_map(save_map, mapped, "study", {"score": config.score, **as_json(described)})
        for each in outputs:
            each.finish(notes=found.notes, failed=found.failed)
        found.notes[:0] = _continued_note(found.resumed)
    columns = found.sizes.reshape(len(found.sizes), -1).T
    stats = {share: size_stats(c) for share, c in zip(config.shares, columns, strict=True)}
    return SizeRun(stats, found.notes, mapped)


@dataclass(repr=False)
class Measured(Short):
    """ERF sizes and what to report about them.

    Attributes:
        sizes: float32 (N,) or (N,P).
        notes: lines to print at the end of the run.
        map: (H,W) float64, the mean gradient, if it was asked for.
        failed: name and reason of the first image that could not be measured, or "".
        resumed: how many images an earlier, killed run had visited.
    """

    sizes: np.ndarray
    notes: list[str]
    map: np.ndarray | None = None
    failed: str = ""
    resumed: int = 0


def measure_sizes(
    model: nn.Module,
    records: Sequence[ImageRecord],
    data: DataConfig,
    run: RunConfig | Runtime,
    config: SizeConfig,
    partial: Partial | None = None,
    progress: Callable = lambda steps, count: steps,
    *,
    with_map: bool = False,
    checkpoint: str = CHECKPOINT,
    ranks: Ranks = ALONE,
) -> Measured:
    """Measure ERF sizes on a sample of `records`; see :func:`compute_sizes` for what is not here.

    Args:
        records: the images of the data set.
        partial: keeps the finished part, from which a killed run continues; None keeps nothing.
        with_map: also average the gradients that the sizes are measured on.
        ranks: from `cba_fast.runs.ranks.join` where several processes share the images, which
            excludes `partial` and `with_map`; each of them returns the result.
    """
    run = Runtime.of(run)
    check_precision(run.config)
    indices = sample_indices(len(records), config.num_samples, config.seed)
    pixels = transform(data.input_size, data.preprocessing)
    # Only the last batch may be short, so each process cuts its images into these batches again.
    mine = [i for batch in ranks.mine(cut(indices, run.config.batch_size)) for i in batch]
    walk = _walk(records, data.input_size, pixels, mine, run, progress)
    walk.partial = partial
    p = config.shares[0] if len(config.shares) == 1 else list(config.shares)
    level = checkpoint_level(checkpoint, model, data.input_size, run)
    where = {"layer": one_layer(config.layer, model), "point": point_of(config.point)}
    options = {"with_map": with_map, "checkpoint": level}
    try:
        with run.autocast():
            found = measure_erf_sizes(model, walk, p, config.score, **where, **options)
    except CbaError as e:
        ranks.share(e)
        raise
    sizes, num_zero = _sizes_of_all(ranks.share(found), indices)
    report = ranks.merged(walk.report)
    place = {index: n for n, index in enumerate(indices.tolist())}
    report.failed.sort(key=lambda failed: place[failed[0]])
    report.truncated.sort(key=place.get)
    report.check_any(len(sizes))
    notes = []
    if len(records) < config.num_samples:
        notes.append(f"{config.num_samples} samples asked for, the set has {len(records)}")
    if num_zero:
        notes.append(
            f"zero gradient (size 0) of {counted(num_zero, 'image')}: the score is saturated;"
            " `score` logit does not saturate"
        )
    notes += report.lines()
    return Measured(sizes, notes, found.map, report.first_failure(), walk.resumed)


def _sizes_of_all(
    parts: Sequence[SizeResult | CbaError], sample: np.ndarray
) -> tuple[np.ndarray, int]:
    """Return the sizes that all processes measured, in the order of the sample, and the zero ones.

    Raises:
        CbaError: that of the first process which could not measure its images.
    """
    for part in parts:
        if isinstance(part, CbaError):
            raise part
    place = {index: n for n, index in enumerate(sample.tolist())}
    visited = [place[i] for part in parts for i in part.indices.tolist()]
    sizes = np.concatenate([part.sizes for part in parts])[np.argsort(visited)]
    return sizes, sum(part.num_zero for part in parts)


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
    outputs = _map_outputs(output, described)
    ended = _claim([outputs], overwrite, run)
    several = config.layer is not None and (config.layer == "all" or "," in config.layer)
    if ended is not None:
        notes, layers = [*ended["notes"], _kept_note(output)], ended["layers"]
        stored = _read(output)
        maps = [ErfMap(each, ended["count"], []) for each in (stored if several else [stored])]
        return _figures(maps, layers, notes, config)
    walk.partial = Partial(output)
    if several:
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
    found = _figures(maps, layers, [*_continued_note(walk.resumed), *notes], config)
    write_map(output, found, "replknet", as_json(described))
    failed = walk.report.first_failure()
    outputs.finish(notes=notes, failed=failed, count=maps[0].count, layers=layers)
    return found


def one_layer(text: str | None, model: nn.Module) -> str | int | None:
    """Return the layer that a setting names: digits are the number of a map, unless a name."""
    if text and text.isdecimal() and text not in dict(model.named_children()):
        return int(text)
    return text


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


def checkpoint_level(
    checkpoint: str, model: nn.Module, input_size: Size, run: Runtime, *, features: bool = False
) -> str:
    """Return the level of recomputing: `checkpoint`, or what ``auto`` means in this run.

    With `features` the run computes the model's features only.
    """
    if checkpoint != "auto":
        return checkpoint
    has = features and hasattr(model, "forward_features")
    return choose_checkpoint(
        model,
        (run.config.batch_size, 3, *map_shape(input_size)),
        device=run.device,
        run=(lambda m, x: m.forward_features(x)) if has else None,
    )


def map_walk(
    records: Sequence[ImageRecord],
    input_size: Size,
    run: Runtime,
    progress: Callable = lambda steps, count: steps,
) -> Walk:
    """Return the walk of an ERF map: all images in order, preprocessed as in RepLKNet's script."""
    pixels = erf_map_transform(input_size)
    return _walk(records, input_size, pixels, range(len(records)), run, progress)


def _walk(
    records: Sequence[ImageRecord],
    input_size: Size,
    pixels: Callable,
    indices: Sequence[int],
    run: Runtime,
    progress: Callable,
) -> Walk:
    return Walk(
        ImageDataset(records, input_size=input_size, transform=pixels),
        indices,
        batch_size=run.config.batch_size,
        num_workers=run.config.num_workers,
        device=run.device,
        memory_format=run.memory_format,
        progress=progress,
        report=report_on(records, run.config.strict),
    )


def run_description(
    model: ModelConfig,
    data: DataConfig,
    run: Runtime,
    records: Sequence[ImageRecord],
    more: dict,
) -> dict:
    """Return the record of everything that the numbers depend on, which includes `more`.

    The number of workers and strictness are not part of it.
    """
    how = replace(run.config, device=str(run.device), num_workers=0, strict=False)
    return describe_run({**settings(model, data, how), **more}, model.weights, records)


def as_json(described: dict) -> dict:
    """Return the part of a :func:`run_description` that a JSON file of results repeats."""
    inputs, versions = described["inputs"], described["versions"]
    return {**described["settings"], "inputs": inputs, "versions": versions}


def _map_outputs(path: str | os.PathLike, described: dict) -> Outputs:
    return resume.beside(path, described, json_beside(path).name)


def _claim(outputs: Sequence[Outputs], overwrite: bool, run: Runtime) -> dict | None:
    """Take the outputs for this run; return the notes of its end if it has ended before."""
    ended = resume.claim(outputs, overwrite)
    if ended and ended["failed"] and run.config.strict:
        raise ImageError(ended["failed"])  # the run that has ended was not strict
    return ended


def _read(path: str | os.PathLike) -> np.ndarray:
    try:
        with open_regular(path) as f:
            return np.load(f, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise InputError(f"{path}: not what its run wrote ({e}); `overwrite` starts anew") from e


def _kept_note(output: str | os.PathLike) -> str:
    return f"{output} was there: the same run has ended before"


def _continued_note(images: int) -> list[str]:
    return [f"continued after {counted(images, 'image')}"] if images else []


def as_rows(stats: dict[float, SizeStats]) -> list[str]:
    """Return a line to print for each share p."""
    return [
        f"ERF size (p = {p:g}): mean {s.mean:.2f}, std {s.std:.2f}, min {s.min:.0f},"
        f" max {s.max:.0f} pixels ({s.count} images)"
        for p, s in stats.items()
    ]
