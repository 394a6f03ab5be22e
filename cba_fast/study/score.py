"""``wsol-eval``: score stored maps against boxes."""

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from cba_fast import __version__
from cba_fast.data import load_boxes
from cba_fast.data.boxes import Boxes
from cba_fast.errors import InputError
from cba_fast.wsol import BoxEvaluator, BoxResult, MapFolder, read_score_map

from .config import BoxConfig

CHUNK = 64  # maps per sweep: 75 MB of float64 at 384x384


@dataclass
class ScoreResult:
    """The scores of a run, what was noticed, and the evaluator that holds the rows."""

    result: BoxResult
    evaluator: BoxEvaluator
    notes: list[str] = field(default_factory=list)


def make_evaluator(boxes: Boxes, config: BoxConfig) -> BoxEvaluator:
    """Return the evaluator of the protocol in `config`."""
    return BoxEvaluator(
        boxes,
        cam_curve_interval=config.cam_curve_interval,
        iou_thresholds=[config.iou_thr],
        contours=config.contours,
    )


def open_boxes(config: BoxConfig) -> Boxes:
    """Load the ground truth of `config`.

    Raises:
        InputError: not exactly one of `cub_root` and `metadata_root`, or bad files.
    """
    if (config.cub_root is None) == (config.metadata_root is None):
        raise InputError("give the boxes by either --cub_root or --metadata_root")
    return load_boxes(
        cub_root=config.cub_root,
        metadata_root=config.metadata_root,
        dataset_name=config.dataset_name,
        split=config.split,
    )


def score_folder(np_root: Path, config: BoxConfig, progress: Callable | None = None) -> ScoreResult:
    """Score the maps of a folder.

    Args:
        np_root: holds ``<class>/<stem>.npy`` or ``<image_id>.npy``.
        config: ground truth and protocol.
        progress: called with an iterable and its length, returns an iterable.

    Raises:
        ScoreMapError: a map that is not valid, or no folder; the message names the file.
        InputError: bad ground truth, or no image has a map.
    """
    folder = MapFolder(np_root)
    boxes = open_boxes(config)
    paths = {i: path for i in boxes.image_ids if (path := folder.find(i)) is not None}
    if not paths:
        raise InputError(
            f"{np_root} holds no map of the {len(boxes.image_ids)} images of the ground truth "
            f"(looked for {boxes.image_ids[0]}.npy among others)"
        )
    evaluator = make_evaluator(boxes, config)
    items: Iterable = paths.items()
    if progress:
        items = progress(items, len(paths))
    for ids, maps in _chunks(items, config):
        evaluator.update(maps, ids)
    notes = []
    if folder.ambiguous:
        notes.append(
            f"{len(folder.ambiguous)} images have two maps; <image_id>.npy was taken: "
            f"{', '.join(folder.ambiguous[:5])}"
        )
    result = evaluator.compute(missing_as_miss=config.missing_as_miss)
    return ScoreResult(result, evaluator, notes)


def _chunks(items: Iterable, config: BoxConfig) -> Iterator[tuple[list[str], np.ndarray]]:
    """Read maps and yield runs of equal shape and dtype, at most `CHUNK` at a time."""
    ids: list[str] = []
    maps: list[np.ndarray] = []
    for image_id, path in items:
        m = read_score_map(path, config.eval_size, config.resize_maps)
        if maps and (len(maps) == CHUNK or (m.shape, m.dtype) != (maps[0].shape, maps[0].dtype)):
            yield ids, np.stack(maps)
            ids, maps = [], []
        ids.append(image_id)
        maps.append(m)
    if maps:
        yield ids, np.stack(maps)


def transferred_accuracies(result: BoxResult, tuned: dict, source: str) -> list[dict]:
    """Return accuracies at the thresholds that another run found best.

    Args:
        result: the scores of this run.
        tuned: the JSON object that another run wrote (on val, say).
        source: its file name, for messages.

    Returns:
        For each contour mode and IoU threshold that both runs have: mode, iou, threshold, the
        accuracy at it and the best accuracy, in percent.

    Raises:
        InputError: `tuned` is not such an object, shares no mode, or its threshold was not
            evaluated here (another interval).
    """
    out = []
    try:
        tuned_ious = tuned["iou_thresholds"]
        for mode, here in result.modes.items():
            if mode not in tuned:
                continue
            best = dict(zip(tuned_ious, tuned[mode]["optimal_threshold"]))
            for iou, oracle in zip(result.iou_thresholds, here.max_box_acc):
                if iou not in best:
                    continue
                accuracy = result.accuracy_at(mode, iou, best[iou])
                row = {"contours": mode, "iou": iou, "threshold": best[iou]}
                out.append(row | {"box_acc": accuracy, "max_box_acc": oracle})
    except (KeyError, TypeError) as e:
        raise InputError(f"{source}: not a result of wsol-eval or evaluate: {e!r}") from e
    except InputError as e:
        raise InputError(f"{source}: {e}") from e
    if not out:
        raise InputError(f"{source}: shares no contour mode and IoU threshold with this run")
    return out


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {
        "cba_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
