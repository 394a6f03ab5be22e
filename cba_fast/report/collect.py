"""What a report tells of a run: its scores, their intervals, and every image's box and IoU."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..choices import READERS
from ..data.boxes import Boxes
from ..data.textlines import counted
from ..errors import InputError
from ..ops import box_sweep
from ..runs.scoring.boxes import fill_evaluator, make_evaluator, open_boxes
from ..runs.settings import BoxConfig, ReportConfig
from ..short import Short
from ..wsol import (
    BootstrapResult,
    BoxEvaluator,
    BoxResult,
    MapReading,
    bootstrap,
    compare,
    find_maps,
    open_maps,
    read_maps,
)
from ..wsol.map_reading import Found, MapSource
from .causes import Judged, judge
from .erf import RunErf, Together, check_names, together


@dataclass(repr=False)
class ReportRun(Short):
    """A scored run of one method.

    Attributes:
        name: what the report calls it.
        source, found: where its maps are.
        evaluator, result: the scores in both contour modes.
        intervals: bootstrap intervals of the scores.
        threshold: the best threshold of the largest contour at the report's IoU threshold.
        judged: by image, the box at `threshold` and how well it fits.
        map_sizes: by image, width and height of the map as it is scored.
        notes: what the report says about this run.
    """

    name: str
    source: MapSource
    found: Found
    evaluator: BoxEvaluator
    result: BoxResult
    intervals: BootstrapResult
    threshold: float
    judged: dict[str, Judged] = field(default_factory=dict)
    map_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(repr=False)
class Collected(Short):
    """All runs of a report, and what they share.

    Attributes:
        runs: in the order in which they were given.
        differences: of the first run and each other run, by the other's name; or the reason why
            the two cannot be compared.
        erf: the effective receptive fields of those runs of which they are known.
    """

    boxes: Boxes
    config: BoxConfig
    report: ReportConfig
    reading: MapReading
    runs: list[ReportRun]
    differences: dict[str, BootstrapResult | str] = field(default_factory=dict)
    erf: Mapping[str, RunErf] = field(default_factory=dict)

    def erf_and_scores(self) -> Together | None:
        """Return ERF sizes and MaxBoxAcc of the runs that have both; None for fewer than two."""
        scores = {run.name: run.result.max_box_acc for run in self.runs}
        return together(self.erf, scores, self.report.confidence)


def collect(
    score_maps: Mapping[str, str | os.PathLike],
    config: BoxConfig,
    report: ReportConfig,
    num_workers: int = READERS,
    progress: Callable[[str], Callable] | None = None,
    erf: Mapping[str, RunErf] | None = None,
) -> Collected:
    """Score stored maps of one or more methods for a report.

    Args:
        score_maps: the folder or store of each run's maps, by the name of the run.
        config: ground truth and protocol; both contour modes are run.
        report: the intervals' settings.
        num_workers: number of threads that read.
        progress: called with what is done, returns ``progress(iterable, total)``.
        erf: the effective receptive field by the name of the run, where it is known.

    Raises:
        InputError: an ERF of no run.
        ScoreMapError, InputError: as `cba_fast.runs.scoring.boxes.score_folder`.

    Example:
        >>> from pathlib import Path
        >>> from cba_fast.report import collect
        >>> from cba_fast.runs.settings import BoxConfig, ReportConfig
        >>> runs = {"sharp": "maps", "wide": "other_maps"}
        >>> collected = collect(runs, BoxConfig(cub_root=Path("CUB_200_2011")), ReportConfig())
        >>> [run.name for run in collected.runs], list(collected.differences)
        (['sharp', 'wide'], ['wide'])
    """
    if not score_maps:
        raise InputError("a report needs the score maps of at least one run")
    check_names(erf or {}, score_maps)
    config = replace(config, contours="both")
    reading = MapReading(
        config.eval_size, config.resize_maps, workers=num_workers, clip=config.clip
    )
    boxes = open_boxes(config)
    sources = {name: open_maps(root) for name, root in score_maps.items()}
    found = Collected(boxes, config, report, reading, [], erf=dict(erf or {}))
    for name, source in sources.items():
        found.runs.append(_read_run(name, source, found, num_workers, progress))
    first, *others = found.runs
    for other in others:
        found.differences[other.name] = _difference(first, other, found)
    return found


def _read_run(
    name: str,
    source: MapSource,
    common: Collected,
    num_workers: int,
    progress: Callable[[str], Callable] | None,
) -> ReportRun:
    config = common.config
    evaluator = make_evaluator(common.boxes, config)
    shown = progress(f"scoring {name}") if progress else None
    notes = fill_evaluator([evaluator], source, config, shown, num_workers)
    result = evaluator.compute(missing_as_miss=config.missing_as_miss)
    if result.missing:
        counts = "count as misses" if config.missing_as_miss else "are left out"
        notes.append(
            f"{counted(len(result.missing), 'image')} of the ground truth without a map {counts}, "
            f"such as {result.missing[0]}"
        )
    at = result.iou_thresholds.index(config.iou_thr)
    run = ReportRun(
        name,
        source,
        find_maps(source, common.boxes.image_ids),
        evaluator,
        result,
        bootstrap(evaluator, missing_as_miss=config.missing_as_miss, **_resampling(common)),
        result.modes["largest"].optimal_threshold[at],
        notes=notes,
    )
    shown = progress(f"boxes of {name}") if progress else None
    for ids, maps in read_maps(source, run.found, common.reading, shown):
        predicted = box_sweep(maps, [run.threshold]).numpy()[:, 0]
        for image_id, box in zip(ids, predicted, strict=True):
            run.map_sizes[image_id] = maps.shape[:0:-1]
            truth = common.boxes.scaled(image_id, maps.shape[:0:-1])
            run.judged[image_id] = judge(box, truth, config.iou_thr)
    return run


def _resampling(common: Collected) -> dict:
    report = common.report
    return {
        "num_resamples": report.num_resamples,
        "confidence": report.confidence,
        "seed": report.seed,
    }


def _difference(a: ReportRun, b: ReportRun, common: Collected) -> BootstrapResult | str:
    """Compare two runs image by image; return the reason where they hold different images."""
    missing_as_miss = common.config.missing_as_miss
    try:
        return compare(
            a.evaluator, b.evaluator, missing_as_miss=missing_as_miss, **_resampling(common)
        )
    except InputError as e:
        return str(e)


def class_names(boxes: Boxes, labels: Sequence[int]) -> dict[int, str]:
    """Return a name for each class: the folder of its images, where they share one of their own."""
    folders: dict[int, set[str]] = {label: set() for label in labels}
    for image_id, label in (boxes.labels or {}).items():
        if label in folders:
            folders[label].add(image_id.rpartition("/")[0].rpartition("/")[2])
    names = {n: next(iter(f)) if len(f) == 1 else "" for n, f in folders.items()}
    once = [name for name in names.values() if name]
    unique = len(set(once)) == len(names)
    return {n: name if unique else f"class {n}" for n, name in names.items()}
