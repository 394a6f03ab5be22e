"""The command ``wsol-eval``: score stored maps against boxes."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ... import __version__
from ...choices import READERS
from ...data import load_boxes
from ...data.boxes import Boxes
from ...data.metadata import find_folder
from ...errors import InputError
from ...files import read_json
from ...short import Short
from ...stages import WAITING, stage, staged
from ...wsol import BoxEvaluator, BoxResult, MapReading, find_maps, open_maps, read_maps
from ...wsol.map_reading import MapSource, ambiguous_lines
from ...wsol.scoring.box_result import MODES
from ..settings import BoxConfig, settings
from .statistics import FoundStatistics, Statistics, find_statistics, read_all_predictions


@dataclass(repr=False)
class ScoreResult(Short):
    """The scores of a run.

    Attributes:
        result: the box scores.
        evaluator: the evaluator with the rows of all images.
        fixed: the accuracies at a threshold that was asked for, see `fixed_accuracies`; or None.
        transferred: the accuracies at thresholds of another run, see `transferred_accuracies`; or
            None.
        notes: lines to print at the end.
        statistics: further statistics that were asked for, or None.
    """

    result: BoxResult
    evaluator: BoxEvaluator
    fixed: list[dict] | None = None
    transferred: list[dict] | None = None
    notes: list[str] = field(default_factory=list)
    statistics: FoundStatistics | None = None


@dataclass(frozen=True, repr=False)
class Tuned(Short):
    """The thresholds that another run found best, by contour mode and IoU threshold.

    `source` is the file that they come from.
    """

    source: Path
    best: dict[tuple[str, float], float]


def make_evaluator(boxes: Boxes, config: BoxConfig, tuned: Tuned | None = None) -> BoxEvaluator:
    """Return the evaluator of the protocol in `config`.

    Raises:
        InputError: as :func:`check_tuned`, if `tuned` is given.
    """
    evaluator = BoxEvaluator(
        boxes,
        cam_curve_interval=config.cam_curve_interval,
        iou_thresholds=[config.iou_thr],
        contours=config.contours,
    )
    if tuned:
        check_tuned(tuned, evaluator)
    return evaluator


def fixed_evaluator(boxes: Boxes, config: BoxConfig) -> BoxEvaluator | None:
    """Return an evaluator of ``config.threshold`` alone, or None if there is none.

    It is a separate evaluator, because among the other thresholds this one could become the best.

    Raises:
        InputError: a threshold outside of [0, 1).
    """
    if config.threshold is None:
        return None
    return BoxEvaluator(
        boxes,
        thresholds=[config.threshold],
        iou_thresholds=[config.iou_thr],
        contours=config.contours,
    )


def fixed_accuracies(fixed: BoxEvaluator | None, result: BoxResult) -> list[dict] | None:
    """Return the accuracies at the threshold of `fixed`, in the form of `transferred_accuracies`.

    Args:
        fixed: from `fixed_evaluator`, with the images of `result`; None gives None.
        result: the scores, whose number of images counts.
    """
    if fixed is None:
        return None
    threshold = float(fixed.thresholds[0])
    return [
        {
            "contours": mode,
            "iou": iou,
            "threshold": threshold,
            "box_acc": 100.0 * int(fixed.hits(mode, iou, threshold).sum()) / result.num_images,
            "max_box_acc": best,
        }
        for mode, here in result.modes.items()
        for iou, best in zip(result.iou_thresholds, here.max_box_acc)
    ]


def open_boxes(config: BoxConfig) -> Boxes:
    """Load the ground truth of `config`.

    Raises:
        InputError: not exactly one of `cub_root` and `metadata_root`, or bad files.
    """
    if (config.cub_root is None) == (config.metadata_root is None):
        raise InputError("give the boxes by either `cub_root` or `metadata_root`")
    return load_boxes(
        cub_root=config.cub_root,
        metadata_root=config.metadata_root,
        dataset_name=config.dataset_name,
        split=config.split,
        allow_beyond=config.allow_beyond,
    )


def box_settings(config: BoxConfig) -> dict:
    """Return the settings of a score as JSON values, with the ground truth that was really read.

    ``metadata_folder`` is the folder with the four files of the metadata. Settings that were not
    used to find the ground truth are None: `dataset_name` for CUB, and both `dataset_name` and
    `split` if `metadata_root` is that folder.
    """
    found = settings(config) | {"metadata_folder": None}
    if config.metadata_root is None:
        return found | {"dataset_name": None}
    folder = find_folder(config.metadata_root, config.dataset_name, config.split)
    if folder == Path(config.metadata_root):
        found |= {"dataset_name": None, "split": None}
    return found | {"metadata_folder": str(folder)}


def score_folder(
    np_root: Path,
    config: BoxConfig,
    tuned: Tuned | None = None,
    progress: Callable | None = None,
    statistics: Statistics | None = None,
    num_workers: int = READERS,
) -> ScoreResult:
    """Score stored maps against boxes.

    Args:
        np_root: a folder with ``<class>/<stem>.npy`` or ``<image_id>.npy``, or a store.
        config: ground truth and protocol.
        tuned: thresholds of another run, at which the accuracies are computed too.
        progress: called with an iterable and its length, returns an iterable.
        statistics: further statistics to compute.
        num_workers: number of threads that read.

    Raises:
        ScoreMapError: a map is not valid, or there is no such folder; the message names the file.
        InputError: bad ground truth, no image has a map, two images share one, `tuned` does not fit
            (see `check_tuned`), or `statistics` cannot be computed (see `find_statistics`).
    """
    source = open_maps(np_root)
    predictions = read_all_predictions(statistics) if statistics else None
    with stage("load"):
        boxes = open_boxes(config)
    evaluator = make_evaluator(boxes, config, tuned)
    fixed = fixed_evaluator(boxes, config)
    both = [e for e in (evaluator, fixed) if e is not None]
    notes = fill_evaluator(both, source, config, progress, num_workers)
    result = evaluator.compute(missing_as_miss=config.missing_as_miss)
    transferred = transferred_accuracies(result, tuned) if tuned else None
    at_fixed = fixed_accuracies(fixed, result)
    scored = ScoreResult(result, evaluator, at_fixed, transferred, notes)
    if statistics and predictions:
        other = None
        if statistics.compare is not None:
            other = make_evaluator(boxes, config)
            other_source = open_maps(statistics.compare)
            notes += fill_evaluator([other], other_source, config, progress, num_workers)
        found = find_statistics(
            statistics, predictions, evaluator, result, other, config.missing_as_miss
        )
        scored.statistics = found
        notes += found.notes
    return scored


def fill_evaluator(
    evaluators: Sequence[BoxEvaluator],
    source: MapSource,
    config: BoxConfig,
    progress: Callable | None,
    num_workers: int,
) -> list[str]:
    """Add the maps of `source` to each evaluator; return lines to print at the end.

    Raises:
        ScoreMapError, InputError: as :func:`score_folder`.
    """
    with stage("find maps"):
        found = find_maps(source, evaluators[0].boxes.image_ids)
    reading = MapReading(
        config.eval_size, config.resize_maps, workers=num_workers, clip=config.clip
    )
    for ids, maps in staged(WAITING, read_maps(source, found, reading, progress)):
        with stage("sweep"):
            for evaluator in evaluators:
                evaluator.update(maps, ids)
    return ambiguous_lines(source)


def read_tuned(path: Path) -> Tuned:
    """Read the thresholds that another run found best, for example on val, from its JSON file.

    Raises:
        InputError: not readable as JSON, or not a result of ``wsol-eval`` or ``evaluate``.
    """
    try:
        found: Any = read_json(path)
    except OSError as e:
        raise InputError(f"{path}: cannot be read as JSON: {e.strerror or e}") from e
    try:
        ious = found["iou_thresholds"]
        best = {
            (mode, float(iou)): float(threshold)
            for mode in MODES
            if mode in found
            for iou, threshold in zip(ious, found[mode]["optimal_threshold"], strict=True)
        }
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise InputError(f"{path}: not a result of wsol-eval or evaluate: {e!r}") from e
    return Tuned(path, best)


def check_tuned(tuned: Tuned, evaluator: BoxEvaluator) -> None:
    """Refuse thresholds that `evaluator` does not evaluate, before any map is read.

    Raises:
        InputError: no contour mode and IoU threshold in common, or a threshold that is not on the
            evaluator's grid (another interval).
    """
    shared = [
        threshold
        for (mode, iou), threshold in tuned.best.items()
        if mode in evaluator.modes and iou in evaluator.iou_thresholds
    ]
    if not shared:
        raise InputError(f"{tuned.source}: shares no contour mode and IoU threshold with this run")
    for threshold in shared:
        if threshold not in evaluator.thresholds:
            raise InputError(
                f"{tuned.source}: threshold {threshold:g} is not one of those evaluated here (take "
                "the `cam_curve_interval` of that run)"
            )


def transferred_accuracies(result: BoxResult, tuned: Tuned) -> list[dict]:
    """Return accuracies at the thresholds that another run found best.

    Args:
        result: the scores of this run.
        tuned: thresholds that `check_tuned` has accepted.

    Returns:
        For each contour mode and IoU threshold that both runs have, a dict with ``contours``,
        ``iou``, ``threshold``, and in percent ``box_acc``, the accuracy at that threshold, and
        ``max_box_acc``, the best one.
    """
    return [
        {
            "contours": mode,
            "iou": iou,
            "threshold": tuned.best[mode, iou],
            "box_acc": result.accuracy_at(mode, iou, tuned.best[mode, iou]),
            "max_box_acc": best,
        }
        for mode, here in result.modes.items()
        for iou, best in zip(result.iou_thresholds, here.max_box_acc)
        if (mode, iou) in tuned.best
    ]


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {
        "cba_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
