"""The command ``boxes``: find the boxes of stored maps at a threshold, write CSV or COCO JSON."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from .. import files
from ..choices import READERS
from ..data.images import read_size
from ..data.score_store import ScoreStore
from ..data.textlines import counted
from ..errors import InputError
from ..ops import box_sweep
from ..short import Short
from ..wsol import MapReading, find_maps, open_maps, read_maps
from ..wsol.map_reading import MapSource, ambiguous_lines
from .inference import open_images
from .pack import map_files
from .scoring.boxes import fill_evaluator, make_evaluator, open_boxes, versions
from .settings import BoxConfig, DataConfig

SUFFIXES = (".csv", ".json")


@dataclass(frozen=True)
class ThresholdRule:
    """How the threshold of a map is chosen.

    Attributes:
        kind: "fixed" or "optimal" (the most accurate one) for one threshold of all maps,
            "percentile" or "otsu" for one that each map's bytes u = uint8(255 * m) determine.
        value: the threshold in [0, 1) for "fixed", the percentage for "percentile".
    """

    kind: str
    value: float = 0.0


def threshold_rule(text: str) -> ThresholdRule:
    """Parse a rule such as ``0.15``, ``optimal``, ``percentile:90`` or ``otsu``.

    Raises:
        InputError: another text, or a number outside of its range.
    """
    if text in ("optimal", "otsu"):
        return ThresholdRule(text)
    found = re.fullmatch(r"(percentile:)?(\d*\.?\d+(?:[eE]-?\d+)?)", text)
    value = float(found[2]) if found else math.nan
    if found and found[1] and value <= 100:
        return ThresholdRule("percentile", value)
    if found and not found[1] and value < 1:
        return ThresholdRule("fixed", value)
    raise InputError(
        f"`threshold` must be a number in [0, 1), optimal, percentile:Q with Q from 0 to 100, or "
        f"otsu, got {text!r}"
    )


@dataclass(frozen=True)
class PredictedBox:
    """A box x0, y0, x1, y1 in pixels of an image or map of `width` x `height`.

    `threshold` is the score threshold at which it was found.
    """

    image_id: str
    x0: float
    y0: float
    x1: float
    y1: float
    width: int
    height: int
    threshold: float


@dataclass(repr=False)
class Predictions(Short):
    """The boxes of all maps.

    Attributes:
        boxes: one or more boxes of each image, in the order of the images.
        pixels: "image" or "map", whose pixels the coordinates count.
        without_contour: number of images whose mask is empty; their box is 0, 0, 0, 0.
        notes: lines to print at the end.
    """

    boxes: list[PredictedBox]
    pixels: str
    without_contour: int = 0
    notes: list[str] = field(default_factory=list)


def predict_boxes(
    np_root: Path,
    rule: ThresholdRule,
    config: BoxConfig,
    *,
    test_dataset: str | None = None,
    follow_links: bool = False,
    pixels: str | None = None,
    num_workers: int = READERS,
    progress: Callable | None = None,
) -> Predictions:
    """Find the boxes of stored maps, as MaxBoxAcc counts them.

    With u = uint8(255 * m) a map's mask is u > int(t * max(u)), and its boxes are those of
    `box_sweep` for the contour mode ``config.contours``. For the rules "percentile" and "otsu", t
    is chosen such that int(t * max(u)) is the percentile of u, rounded down, or OpenCV's Otsu
    threshold, but at most max(u) - 1, so that the brightest pixels are always in the mask.

    Args:
        np_root: a folder of maps or a store.
        rule: from `threshold_rule`.
        config: how maps are read, and the ground truth, from which the images, their sizes and the
            optimum come. Without ground truth all maps are taken, under the names of their files.
        test_dataset: images that give ids and sizes instead of ground truth.
        follow_links: as in `DataConfig`.
        pixels: "image" or "map"; None for "image" if the sizes of the images are known, else "map".
        num_workers: number of threads that read.
        progress: called with an iterable and its length, returns an iterable.

    Raises:
        ScoreMapError, ImageError: a map, or the header of an image, that cannot be read.
        InputError: "optimal" without ground truth, "image" without known sizes, both contour modes,
            ground truth and `test_dataset` together, or no maps.
    """
    if config.contours not in ("largest", "all"):
        raise InputError(f"`contours` must be largest or all, got {config.contours!r}")
    source = open_maps(np_root)
    known = _Known(source, config, test_dataset, follow_links)
    if pixels == "image" and known.sizes is None:
        raise InputError(
            "the sizes of the images are not known: give `cub_root`, `metadata_root` or "
            "`test_dataset`"
        )
    if rule.kind == "optimal":
        best = known.optimal(source, config, progress, num_workers)
        rule = ThresholdRule("fixed", best)
    in_images = known.sizes is not None and pixels != "map"
    out = Predictions([], "image" if in_images else "map")
    reading = MapReading(
        config.eval_size, config.resize_maps, workers=num_workers, clip=config.clip
    )
    for ids, maps in read_maps(source, known.found, reading, progress):
        for image_id, t, boxes in zip(ids, *_boxes(maps, rule, config.contours), strict=True):
            shape = maps.shape[2], maps.shape[1]
            size = known.sizes[image_id] if known.sizes is not None and in_images else shape
            scale = np.array([*size, *size]) / [*shape, *shape]
            out.without_contour += not boxes.any()
            for box in (boxes * scale).tolist():
                out.boxes.append(PredictedBox(image_id, *box, *size, t))  # type: ignore[call-arg]
    if out.without_contour:
        count = counted(out.without_contour, "map")
        out.notes.append(f"{count} without a pixel above the threshold: the box is 0, 0, 0, 0")
    out.notes += ambiguous_lines(source)
    return out


class _Known:
    """What is known of the images: where the map of each is, and their sizes (None if unknown)."""

    def __init__(
        self, source: MapSource, config: BoxConfig, test_dataset: str | None, follow_links: bool
    ):
        self.sizes: Mapping[str, tuple[int, int]] | None = None
        self.boxes = None
        given = config.cub_root is not None or config.metadata_root is not None
        if given and test_dataset is not None:
            raise InputError("give either `test_dataset` or the ground truth, not both")
        if given:
            self.boxes = open_boxes(config)
            self.found = find_maps(source, self.boxes.image_ids)
            self.sizes = self.boxes.sizes
        elif test_dataset is not None:
            images = open_images(DataConfig(test_dataset, follow_links=follow_links))
            records = {r.image_id: r for r in images.records}
            self.found = find_maps(source, list(records))
            self.sizes = {i: read_size(records[i].path) for i in self.found}
        elif isinstance(source, ScoreStore):
            rows = zip(source.names, source.present, strict=True)
            self.found = {name: row for row, (name, there) in enumerate(rows) if there}
        else:
            names = map_files(source.root)
            self.found = {name.removesuffix(".npy"): source.root / name for name in names}
        if not self.found:
            raise InputError(f"{source.root} holds no score maps")

    def optimal(
        self, source: MapSource, config: BoxConfig, progress: Callable | None, num_workers: int
    ) -> float:
        """Return the threshold with the best accuracy of these maps at ``config.iou_thr``."""
        if self.boxes is None:
            raise InputError(
                "the optimal `threshold` needs ground truth: give `cub_root` or `metadata_root`"
            )
        evaluator = make_evaluator(self.boxes, config)
        fill_evaluator([evaluator], source, config, progress, num_workers)
        result = evaluator.compute()
        at = result.iou_thresholds.index(config.iou_thr)
        return result.modes[config.contours].optimal_threshold[at]


def _boxes(
    maps: np.ndarray, rule: ThresholdRule, contours: str
) -> tuple[list[float], list[np.ndarray]]:
    """Return the thresholds and the boxes (M, 4) of maps (N, H, W) uint8."""
    if rule.kind == "fixed":
        return [rule.value] * len(maps), _sweep(maps, rule.value, contours)
    thresholds = [_own_threshold(u, rule) for u in maps]
    boxes = [_sweep(u[None], t, contours)[0] for u, t in zip(maps, thresholds, strict=True)]
    return thresholds, boxes


def _sweep(maps: np.ndarray, threshold: float, contours: str) -> list[np.ndarray]:
    found = box_sweep(maps, [threshold], contours=contours)
    if isinstance(found, torch.Tensor):
        return list(found.numpy())
    boxes, offsets = (part.numpy() for part in found)
    return [boxes[a:b] for a, b in itertools.pairwise(offsets)]


def _own_threshold(u: np.ndarray, rule: ThresholdRule) -> float:
    """Return t such that int(t * max(u)) is the level of the rule."""
    peak = int(u.max())
    if not peak:
        return 0.0
    if rule.kind == "otsu":
        level, _ = cv2.threshold(u, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    else:
        level = np.percentile(u, rule.value)
    return (min(int(level), peak - 1) + 0.5) / peak  # + 0.5, so that no rounding changes the level


def write_boxes(path: Path, predicted: Predictions, settings: dict) -> None:
    """Write boxes as CSV or as COCO JSON, by the suffix of `path`.

    The CSV has the columns of `PredictedBox`. The JSON is a COCO data set: images (`file_name` is
    the image's id), annotations (bbox is x, y, width, height, where the width is x1 - x0) and one
    category; its `info` holds `settings`, versions, and whose pixels the coordinates count. It is
    what FiftyOne imports as a ``COCODetectionDataset``; the list of annotations alone is what
    pycocotools' ``loadRes`` takes as results.

    Raises:
        InputError: another suffix.
        OSError: the file cannot be written.
    """
    check_suffix(path)
    if path.suffix == ".csv":
        files.write_text(path, _csv(predicted.boxes))
        return
    info = {"pixels": predicted.pixels, "settings": settings, "versions": versions()}
    files.write_json(path, {"info": info, **_coco(predicted.boxes)})


def check_suffix(path: Path) -> None:
    """Refuse the name of a file that is neither CSV nor JSON.

    Raises:
        InputError: the message names the file.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: boxes are written as .csv or, for COCO, as .json")


def _csv(boxes: Iterable[PredictedBox]) -> str:
    rows = ([_plain(value) for value in vars(box).values()] for box in boxes)
    return files.csv_text([PredictedBox.__dataclass_fields__, *rows])


def _plain(value: object) -> object:
    """Return a whole number without its ".0"."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _coco(boxes: Iterable[PredictedBox]) -> dict:
    images: dict[str, dict] = {}
    annotations = []
    for n, b in enumerate(boxes, 1):
        image = {"id": len(images) + 1, "file_name": b.image_id}
        image = images.setdefault(b.image_id, image | {"width": b.width, "height": b.height})
        w, h = b.x1 - b.x0, b.y1 - b.y0
        annotations.append(
            {
                "id": n,
                "image_id": image["id"],
                "category_id": 1,
                "bbox": [_plain(v) for v in (b.x0, b.y0, w, h)],
                "area": _plain(w * h),
                "iscrowd": 0,
                "score": 1.0,  # readers of results demand one; no box is surer than another
                "threshold": b.threshold,
            }
        )
    categories = [{"id": 1, "name": "object"}]
    return {"images": list(images.values()), "annotations": annotations, "categories": categories}
