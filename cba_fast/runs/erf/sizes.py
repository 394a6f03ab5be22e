"""The command ``erf-compute``: measure and write ERF sizes."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ... import locks, resume
from ...choices import CHECKPOINT
from ...data import ImageRecord, ImageSet
from ...data.reading import transform
from ...data.textlines import counted
from ...erf import ErfMap, Partial, measure_erf_sizes, sample_indices
from ...erf.report import MapRun, with_figures, write_map
from ...erf.sizes import SizeResult
from ...errors import CbaError, InputError
from ...files import write_npy
from ...shapes import point_of
from ...short import Short
from ..ranks import ALONE, Ranks
from ..runtime import Runtime
from ..settings import DataConfig, ModelConfig, RunConfig, SizeConfig
from .shared import (
    as_json,
    check_precision,
    checkpoint_level,
    claim,
    continued_note,
    deal,
    kept_note,
    map_outputs,
    one_layer,
    read_array,
    run_description,
    walk_over,
)
from .statistics import SizeStats, size_stats


@dataclass(repr=False)
class SizeRun(Short):
    """The result of a measurement of ERF sizes.

    Attributes:
        stats: the statistics of the sizes by share p.
        notes: lines to print at the end, which belong to the result.
        map: the mean over the images of the gradients that the sizes are measured on, or None.
        history: lines to print about what an earlier run had left. A file of results must not hold
            them: it would differ from that of a run that was never interrupted.
    """

    stats: dict[float, SizeStats]
    notes: list[str]
    map: MapRun | None = None
    history: list[str] = field(default_factory=list)


@locks.released()
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
    ranks: Ranks = ALONE,
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
        ranks: from `cba_fast.runs.ranks.join` where several processes share the images; each of
            them returns the result, and the first writes it.

    Raises:
        ImageError: no image could be measured, or, with `run.strict`, one could not.
        InputError: fp16 (see :func:`check_precision`), or `save_map` with several processes, whose
            sums of gradients would round differently.
        OtherRunError: another run wrote there; see `resume.Outputs.check`.
    """
    if save_map is not None and ranks.count > 1:
        raise InputError(
            "`save_map` needs one process: a map is a sum over all images, whose last bits would"
            " depend on the number of processes; leave out torchrun"
        )
    records, run = images.records, Runtime.of(run)
    ranks.agree(records, model_config.weights)
    indices = sample_indices(len(records), config.num_samples, config.seed)
    used = {"sizes": asdict(config), "with_map": save_map is not None}
    described = run_description(model_config, data, run, [records[i] for i in indices], used)
    outputs = [resume.beside(output, described)]
    if save_map is not None:
        outputs.append(map_outputs(save_map, described))
    ended = ranks.from_first(lambda: claim(outputs, ranks.anew(overwrite, outputs), run))
    mapped = None
    if ended is not None:
        found, history = Measured(read_array(output), ended["notes"]), [kept_note(output)]
        if save_map is not None:
            found.map = read_array(save_map)
    else:
        partial = Partial(output, ranks.rank)
        options: dict[str, Any] = {"with_map": save_map is not None, "checkpoint": checkpoint}
        options["ranks"] = ranks
        found = measure_sizes(model, records, data, run, config, partial, progress, **options)
        if ranks.leads:
            write_npy(output, found.sizes)
        history = continued_note(found.resumed)
    if found.map is not None:
        mapped = with_figures(ErfMap(found.map, len(found.sizes), []), [])
    if ended is None:
        if mapped is not None and save_map is not None:
            write_map(save_map, mapped, "study", {"score": config.score, **as_json(described)})
        for each in outputs if ranks.leads else ():
            each.finish(notes=found.notes, failed=found.failed)
    columns = found.sizes.reshape(len(found.sizes), -1).T
    stats = {share: size_stats(c) for share, c in zip(config.shares, columns, strict=True)}
    return SizeRun(stats, found.notes, mapped, history)


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
        partial: keeps this process's finished part, from which a killed run continues; None keeps
            nothing.
        with_map: also average the gradients that the sizes are measured on.
        ranks: from `cba_fast.runs.ranks.join` where several processes share the images, which
            excludes `with_map`; each of them returns the result.
    """
    run = Runtime.of(run)
    check_precision(run.config)
    indices = sample_indices(len(records), config.num_samples, config.seed)
    pixels = transform(data.input_size, data.preprocessing)
    walk = walk_over(records, data.input_size, pixels, indices.tolist(), run, progress)
    deal(walk, partial, ranks)
    p = config.shares[0] if len(config.shares) == 1 else list(config.shares)
    level = checkpoint_level(checkpoint, model, data.input_size, run)
    where: dict[str, Any] = {
        "layer": one_layer(config.layer, model),
        "point": point_of(config.point),
    }
    options: dict[str, Any] = {"with_map": with_map, "checkpoint": level}
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
    report.truncated.sort(key=place.__getitem__)
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
    measured = []
    for part in parts:
        if isinstance(part, CbaError):
            raise part
        measured.append(part)
    place = {index: n for n, index in enumerate(sample.tolist())}
    visited = [place[i] for part in measured for i in part.indices.tolist()]
    sizes = np.concatenate([part.sizes for part in measured])[np.argsort(visited)]
    return sizes, sum(part.num_zero for part in measured)


def as_rows(stats: dict[float, SizeStats]) -> list[str]:
    """Return a line to print for each share p."""
    return [
        f"ERF size (p = {p:g}): mean {s.mean:.2f}, std {s.std:.2f}, min {s.min:.0f},"
        f" max {s.max:.0f} pixels ({s.count} images)"
        for p, s in stats.items()
    ]
