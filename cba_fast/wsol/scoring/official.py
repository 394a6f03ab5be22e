"""``evaluate_wsol``, a replacement for the function of this name in clovaai/wsolevaluation."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from ...data.boxes import load_boxes
from ...data.masks import OFFICIAL_SIZE, load_masks
from ...data.textlines import counted
from ...errors import InputError, ScoreMapError
from ..map_reading import MapReading, ambiguous_lines, find_maps, open_maps, read_maps
from ..score_maps import as_batch
from .box_result import BoxResult
from .evaluator import BoxEvaluator
from .pixel_evaluator import PixelEvaluator, PixelResult

log = logging.getLogger("cba_fast")

BOX_DATASETS = ("CUB", "ILSVRC")
MASK_DATASET = "OpenImages"

ScoreMap = Tensor | np.ndarray
Result = TypeVar("Result", BoxResult, PixelResult)
Batches = Iterable[tuple[ScoreMap | Sequence[ScoreMap], Sequence[str]]]


def evaluate_wsol(
    scoremap_root: str | os.PathLike | Mapping[str, ScoreMap] | Batches,
    metadata_root: str | os.PathLike,
    mask_root: str | os.PathLike | None,
    dataset_name: str,
    split: str,
    multi_contour_eval: bool,
    multi_iou_eval: bool,
    iou_threshold_list: Sequence[int],
    cam_curve_interval: float = 0.001,
    *,
    clip: float = 0.0,
) -> float:
    """Score the maps of a data set as the official function of this name does.

    For CUB and ILSVRC with ``multi_contour_eval=False, multi_iou_eval=False`` this is MaxBoxAcc,
    with both true and the IoU thresholds 30, 50, 70 MaxBoxAccV2; for OpenImages it is PxAP.

    Args:
        scoremap_root: the folder of the score maps ``<image_id>.npy`` (224, 224), floating in
            [0, 1], or a store of them. Unlike the official function, this one also takes maps in
            memory, torch or NumPy: a mapping from image ids to maps (H, W), or an iterable of
            batches (maps (N, H, W), N image ids).
        metadata_root: the folder that holds ``<dataset_name>/<split>``.
        mask_root: the folder that holds ``OpenImages`` with the masks; not used for boxes.
        dataset_name: "CUB", "ILSVRC" or "OpenImages".
        split: name of a folder, such as "val" or "test".
        multi_contour_eval: take the boxes of all contours instead of the largest one.
        multi_iou_eval: return the mean over `iou_threshold_list`, not the score at threshold 50.
        iou_threshold_list: integers, in percent; not used for OpenImages.
        cam_curve_interval: step between score thresholds, in (0, 1].
        clip: values that leave [0, 1] by no more than this, such as 1 + 1e-6, are clipped; NaN
            never is. The official function has no such argument.

    Returns:
        The score in percent. Nothing is printed; a warning is logged where an image has two maps.

    Raises:
        ScoreMapError: an image without a map, or a map of another size or with values that are not
            valid; the message names it.
        InputError: no image has a map, an unknown data set, bad metadata, or IoU thresholds that do
            not fit.

    Source:
        Choe et al. 2020; equal to ``evaluate_wsol`` of clovaai/wsolevaluation. The official code
        converts all maps to float64; the bytes are the same, because 255 * m in float32 never
        rounds up to an integer.

    Example:
        >>> import torch
        >>> from cba_fast.data import load_boxes
        >>> from cba_fast.wsol import evaluate_wsol
        >>> image_ids = load_boxes(metadata_root="metadata/CUB/test").image_ids
        >>> maps = torch.ones(len(image_ids), 224, 224)  # the whole image
        >>> score = evaluate_wsol(
        ...     [(maps, image_ids)],
        ...     metadata_root="metadata",
        ...     mask_root=None,
        ...     dataset_name="CUB",
        ...     split="test",
        ...     multi_contour_eval=True,
        ...     multi_iou_eval=True,
        ...     iou_threshold_list=[30, 50, 70],
        ... )
        >>> round(score, 2)  # MaxBoxAccV2
        27.78
    """
    evaluator: BoxEvaluator | PixelEvaluator
    folder = Path(metadata_root) / dataset_name / split
    if dataset_name == MASK_DATASET:
        evaluator = _pixel_evaluator(folder, mask_root, cam_curve_interval, clip)
        _read_into(evaluator, scoremap_root, evaluator.masks.image_ids)
        return _complete(evaluator.compute()).px_ap
    ious = _iou_thresholds(iou_threshold_list, multi_iou_eval)
    mode = "all" if multi_contour_eval else "largest"
    boxes = _box_evaluator(folder, dataset_name, cam_curve_interval, ious, mode, clip)
    _read_into(boxes, scoremap_root, boxes.boxes.image_ids)
    result = _complete(boxes.compute())
    wanted = ious if multi_iou_eval else [0.5]
    return float(np.average([result.accuracy(mode, iou) for iou in wanted]))


def _read_into(
    evaluator: BoxEvaluator | PixelEvaluator,
    scoremaps: str | os.PathLike | Mapping[str, ScoreMap] | Batches,
    image_ids: Sequence[str],
) -> None:
    as_bytes = isinstance(evaluator, BoxEvaluator)
    for ids, maps in _batches(scoremaps, image_ids, as_bytes, evaluator.clip):
        evaluator.update(maps, ids)


def _complete(result: Result) -> Result:
    if result.missing:
        raise ScoreMapError(
            f"no score map of {counted(len(result.missing), 'image')}, such as "
            f"{result.missing[0]!r}"
        )
    return result


def _check_folder(folder: Path) -> Path:
    # Other places, where `load_boxes` looks, are not tried: they may hold another split.
    if not (folder / "image_ids.txt").is_file():
        raise InputError(f"no image_ids.txt in {folder}")
    return folder


def _box_evaluator(
    folder: Path,
    dataset_name: str,
    cam_curve_interval: float,
    ious: list[float],
    mode: str,
    clip: float,
) -> BoxEvaluator:
    if dataset_name not in BOX_DATASETS:
        known = (*BOX_DATASETS, MASK_DATASET)
        raise InputError(f"dataset_name must be one of {known}, got {dataset_name!r}")
    return BoxEvaluator(
        load_boxes(metadata_root=_check_folder(folder)),
        cam_curve_interval=cam_curve_interval,
        iou_thresholds=ious,
        contours=mode,
        clip=clip,
    )


def _pixel_evaluator(
    folder: Path, mask_root: str | os.PathLike | None, cam_curve_interval: float, clip: float
) -> PixelEvaluator:
    if mask_root is None:
        raise InputError("OpenImages is scored against masks: give mask_root")
    masks = load_masks(_check_folder(folder), Path(mask_root) / MASK_DATASET, size=OFFICIAL_SIZE)
    return PixelEvaluator(masks, cam_curve_interval=cam_curve_interval, clip=clip)


def _iou_thresholds(percent: Sequence[int], multi_iou_eval: bool) -> list[float]:
    for value in percent:
        if not 1 <= value <= 100:  # a value of 0.5 means 50 %, written in the wrong unit
            raise InputError(f"iou_threshold_list is in percent, 1 to 100, got {value!r}")
    if not len(percent):
        raise InputError("iou_threshold_list is empty")
    if not multi_iou_eval and 50 not in percent:
        raise InputError(f"without multi_iou_eval the list must hold 50, got {list(percent)}")
    return [value / 100 for value in percent]


def _batches(
    scoremaps: str | os.PathLike | Mapping[str, ScoreMap] | Batches,
    image_ids: Sequence[str],
    as_bytes: bool,
    clip: float,
) -> Iterator[tuple[Sequence[str], ScoreMap]]:
    """Yield (ids, maps of the official size); `as_bytes` quantizes those that come from files."""
    if isinstance(scoremaps, str | os.PathLike):
        source = open_maps(scoremaps)
        reading = MapReading(OFFICIAL_SIZE, as_bytes=as_bytes, clip=clip)
        found = find_maps(source, image_ids)
        for line in ambiguous_lines(source):
            log.warning("%s: %s", source.root, line)
        yield from read_maps(source, found, reading)
        return
    if isinstance(scoremaps, Mapping):
        scoremaps = (([m], [i]) for i, m in scoremaps.items())
    for maps, ids in scoremaps:
        maps = as_batch(maps)
        if len(maps) and tuple(maps.shape[1:]) != (OFFICIAL_SIZE, OFFICIAL_SIZE):
            raise ScoreMapError(
                f"image {ids[0]!r}: the official protocol takes maps of {OFFICIAL_SIZE}x"
                f"{OFFICIAL_SIZE} pixels, got {tuple(maps.shape[1:])}"
            )
        yield ids, maps
