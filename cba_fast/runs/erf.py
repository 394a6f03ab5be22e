"""``erf-compute``: ERF sizes and ERF maps of a data set, written to files, continued if killed."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .. import __version__
from ..data import ImageDataset, ImageRecord, ImageSet, erf_map_transform
from ..data.textlines import counted
from ..erf import (
    ErfMap,
    Partial,
    Walk,
    choose_checkpoint,
    measure_erf_map,
    measure_erf_sizes,
    sample_indices,
)
from ..erf.report import MapRun, with_figures, write_map
from ..errors import InputError
from ..files import write_npy
from .inference import autocast, choose_device, memory_format, report_on
from .settings import DataConfig, ModelConfig, RunConfig, settings
from .size_stats import SizeStats, size_stats


@dataclass(frozen=True)
class SizeConfig:
    """What is measured on how many images. `shares` are the values of p."""

    num_samples: int = 200
    shares: tuple[float, ...] = (0.2,)
    seed: int = 0
    score: str = "prob"


@dataclass(frozen=True)
class ErfMapConfig:
    """The ERF map's protocol; the defaults are those of RepLKNet's script."""

    num_images: int = 50
    input_size: int = 1024


@dataclass
class SizeRun:
    """A finished measurement: statistics for each share p, notes for the end, and the map if any.

    The map is the mean over the images of what the sizes are measured on.
    """

    stats: dict[float, SizeStats]
    notes: list[str]
    map: MapRun | None = None


def check_precision(run: RunConfig) -> None:
    """Refuse a precision whose input gradients mean nothing.

    Raises:
        InputError: fp16, in which gradients of probabilities (often below its smallest normal
            number, 6e-5) are flushed to zero.
    """
    if run.precision == "fp16":
        raise InputError("precision fp16: input gradients underflow; use fp32 or bf16")


def compute_sizes(
    model: nn.Module,
    images: ImageSet,
    model_config: ModelConfig,
    data: DataConfig,
    run: RunConfig,
    config: SizeConfig,
    output: str | os.PathLike,
    *,
    save_map: str | os.PathLike | None = None,
    checkpoint: str = "auto",
    resume: bool = True,
    progress: Callable = lambda steps, count: steps,
) -> SizeRun:
    """Measure ERF sizes on a sample of `images` and write them to `output`.

    The file is float32, (N,) for one share and (N,P) for several, one row per sampled image that
    could be measured, in the order of the sample. Until it is written, the finished part lies
    beside it; a run of the same settings goes on from there.

    With `save_map` what the sizes are measured on, the mean over the images of |gradient| averaged
    over the channels, goes to that file, (H,W) float64, as :func:`compute_map` writes its map.

    Args:
        model: in its inference form, on the run's device.
        images: the data set.
        model_config, data, run: how model and images were made; a change of them starts afresh.
        config: sample, shares and score.
        output: the ``.npy`` file.
        save_map: a second ``.npy`` file, or None.
        checkpoint: recompute activations in the backward pass: ``none``, ``block``, ``stage``, or
            ``auto``, the first of these whose activations fit into half of the free memory. The
            numbers do not depend on it.
        resume: go on from the finished part of a killed run.
        progress: called with the iterable of steps and their number, returns an iterable.

    Raises:
        ImageError: no image could be measured, or, with `run.strict`, one could not.
        InputError: fp16 (see :func:`check_precision`).
    """
    records = images.records
    indices = sample_indices(len(records), config.num_samples, config.seed)
    described = run_description(model_config, data, run, [records[i] for i in indices])
    described["sizes"] = asdict(config)
    options = {"with_map": save_map is not None, "checkpoint": checkpoint}
    if save_map is not None:
        described["with_map"] = True
    partial = _partial(output, described, resume)
    found = measure_sizes(model, records, data, run, config, partial, progress, **options)
    write_npy(output, found.sizes)
    mapped = None
    if save_map is not None:
        mapped = with_figures(ErfMap(found.map, len(found.sizes), []), [])
        write_map(save_map, mapped, "study", {"score": config.score, **described})
    partial.remove()
    columns = found.sizes.reshape(len(found.sizes), -1).T
    stats = {share: size_stats(c) for share, c in zip(config.shares, columns, strict=True)}
    return SizeRun(stats, found.notes, mapped)


@dataclass
class Measured:
    """ERF sizes, float32 (N,) or (N,P), notes for the end of the run, and the mean map if any."""

    sizes: np.ndarray
    notes: list[str]
    map: np.ndarray | None = None


def measure_sizes(
    model: nn.Module,
    records: Sequence[ImageRecord],
    data: DataConfig,
    run: RunConfig,
    config: SizeConfig,
    partial: Partial | None = None,
    progress: Callable = lambda steps, count: steps,
    *,
    with_map: bool = False,
    checkpoint: str = "auto",
) -> Measured:
    """Measure ERF sizes on a sample of `records`; arguments and errors as :func:`compute_sizes`.

    Args:
        partial: keeps the finished part, and gives that of a killed run; None for neither.
        with_map: also average what the sizes are measured on.
    """
    check_precision(run)
    indices = sample_indices(len(records), config.num_samples, config.seed)
    walk = _walk(records, data.input_size, None, indices, run, progress)
    walk.partial = partial
    p = config.shares[0] if len(config.shares) == 1 else list(config.shares)
    level = checkpoint_level(checkpoint, model, data.input_size, run)
    with autocast(run):
        found = measure_erf_sizes(model, walk, p, config.score, with_map=with_map, checkpoint=level)
    walk.report.check_any(len(found.sizes))
    notes = [f"continued after {counted(walk.resumed, 'image')}"] if walk.resumed else []
    if len(records) < config.num_samples:
        notes.append(f"{config.num_samples} samples asked for, the set has {len(records)}")
    if found.num_zero:
        notes.append(
            f"zero gradient (size 0) of {counted(found.num_zero, 'image')}: the score is saturated;"
            " --score logit does not saturate"
        )
    return Measured(found.sizes, notes + walk.report.lines(), found.map)


def compute_map(
    model: nn.Module,
    images: ImageSet,
    model_config: ModelConfig,
    data: DataConfig,
    run: RunConfig,
    config: ErfMapConfig,
    output: str | os.PathLike,
    *,
    checkpoint: str = "auto",
    resume: bool = True,
    progress: Callable = lambda steps, count: steps,
) -> MapRun:
    """Measure the ERF map over the first images of `images` and write it to `output`.

    The file is (S,S) float64, the mean of the images' contributions (not log-scaled); a JSON file
    of the same name beside it holds area ratios, shape descriptors and settings. Arguments and
    errors as :func:`compute_sizes`; a map without any gradient is an `InputError`.
    """
    check_precision(run)
    size, records = config.input_size, images.records
    walk = map_walk(records, size, run, progress)
    described = {**run_description(model_config, data, run, records), "map": asdict(config)}
    walk.partial = _partial(output, described, resume)
    level = checkpoint_level(checkpoint, model, size, run, features=True)
    try:
        with autocast(run):
            erf = measure_erf_map(model, walk, config.num_images, checkpoint=level)
    except ValueError as e:
        walk.report.check_any(0)
        raise InputError(f"no ERF map: {e}") from e
    notes = [f"continued after {counted(walk.resumed, 'image')}"] if walk.resumed else []
    if erf.count < config.num_images:
        notes.append(f"the ERF map averages {erf.count} images, {config.num_images} asked for")
    found = with_figures(erf, notes + walk.report.lines())
    write_map(output, found, "replknet", described)
    walk.partial.remove()
    return found


def checkpoint_level(
    checkpoint: str, model: nn.Module, input_size: int, run: RunConfig, *, features: bool = False
) -> str:
    """Return the checkpoint level that ``auto`` stands for in a run; others as they are."""
    if checkpoint != "auto":
        return checkpoint
    return choose_checkpoint(
        model,
        (run.batch_size, 3, input_size, input_size),
        device=choose_device(run),
        run=(lambda m, x: m.forward_features(x)) if features else None,
    )


def map_walk(
    records: Sequence[ImageRecord],
    input_size: int,
    run: RunConfig,
    progress: Callable = lambda steps, count: steps,
) -> Walk:
    """Return the walk of an ERF map: all images in order, preprocessed as RepLKNet's script."""
    transform = erf_map_transform(input_size)
    return _walk(records, input_size, transform, range(len(records)), run, progress)


def _walk(
    records: Sequence[ImageRecord],
    input_size: int,
    transform: Callable | None,
    indices: Sequence[int],
    run: RunConfig,
    progress: Callable,
) -> Walk:
    return Walk(
        ImageDataset(records, input_size=input_size, transform=transform),
        indices,
        batch_size=run.batch_size,
        num_workers=run.num_workers,
        device=choose_device(run),
        memory_format=memory_format(run),
        progress=progress,
        report=report_on(records, run),
    )


def _partial(output: str | os.PathLike, described: dict, resume: bool) -> Partial:
    partial = Partial(output, described)
    if not resume:
        partial.remove()
    return partial


def run_description(
    model: ModelConfig, data: DataConfig, run: RunConfig, records: Sequence[ImageRecord]
) -> dict:
    """Return all that the numbers depend on; workers and strictness do not count."""
    run = replace(run, device=str(choose_device(run)), num_workers=0, strict=False)
    digest = hashlib.sha256()
    for record in records:
        digest.update(repr((record.image_id, _stamp(record.path))).encode())
    return {
        **settings(model, data, run),
        "weights_stamp": _stamp(model.weights),
        "images_sha256": digest.hexdigest(),
        "versions": [__version__, torch.__version__],
    }


def _stamp(path: Path | None) -> list[int] | None:
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns] if found else None


def as_rows(stats: dict[float, SizeStats]) -> list[str]:
    """Return one printed line per share p."""
    return [
        f"ERF size (p = {p:g}): mean {s.mean:.2f}, std {s.std:.2f}, min {s.min:.0f},"
        f" max {s.max:.0f} pixels ({s.count} images)"
        for p, s in stats.items()
    ]
