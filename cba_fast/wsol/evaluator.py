"""MaxBoxAcc and MaxBoxAccV2, accumulated over batches and processes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cba_fast.data.boxes import Boxes
from cba_fast.errors import InputError, ScoreMapError
from cba_fast.ops import best_box_iou, quantize

V2_IOUS = (0.3, 0.5, 0.7)
MODES = ("largest", "all")


@dataclass
class ModeResult:
    """The counts of one contour mode and what follows from them.

    Attributes:
        num_correct: for each IoU threshold, the number of images localized at each threshold.
        max_box_acc: for each IoU threshold, the best share of images, in percent.
        optimal_threshold: for each IoU threshold, the lowest threshold that reaches the best.
    """

    num_correct: list[list[int]]
    max_box_acc: list[float]
    optimal_threshold: list[float]


@dataclass
class BoxResult:
    """What `BoxEvaluator.compute` returns; `to_json` gives the fields of ``wsol-eval --json``."""

    num_images: int
    missing: list[str]
    thresholds: list[float]
    iou_thresholds: list[float]
    modes: dict[str, ModeResult] = field(default_factory=dict)

    @property
    def max_box_acc(self) -> float | None:
        """MaxBoxAcc in percent: IoU 0.5, largest contour; None if that mode was not run."""
        return self.accuracy("largest", 0.5)

    @property
    def max_box_acc_v2(self) -> float | None:
        """MaxBoxAccV2 in percent: mean over IoU 0.3, 0.5, 0.7, all contours; None if not run."""
        if "all" not in self.modes:
            return None
        return float(np.mean([self.accuracy("all", iou) for iou in V2_IOUS]))

    def accuracy(self, mode: str, iou: float) -> float | None:
        """Return the best accuracy in percent, or None if `mode` was not run."""
        if mode not in self.modes:
            return None
        return self.modes[mode].max_box_acc[self.iou_thresholds.index(iou)]

    def accuracy_at(self, mode: str, iou: float, threshold: float) -> float:
        """Return the accuracy in percent at one of `thresholds` (for instance one tuned on val).

        Raises:
            InputError: `threshold` was not evaluated, or `mode` was not run.
        """
        if mode not in self.modes:
            raise InputError(f"contour mode {mode!r} was not run")
        if threshold not in self.thresholds:
            raise InputError(f"threshold {threshold!r} is not one of those evaluated")
        counts = self.modes[mode].num_correct[self.iou_thresholds.index(iou)]
        return 100.0 * counts[self.thresholds.index(threshold)] / self.num_images

    def to_json(self) -> dict:
        """Return plain lists and numbers, with one entry per contour mode that was run."""
        out = {
            "num_images": self.num_images,
            "missing": self.missing,
            "thresholds": self.thresholds,
            "iou_thresholds": self.iou_thresholds,
            "max_box_acc": self.max_box_acc,
            "max_box_acc_v2": self.max_box_acc_v2,
        }
        for mode, result in self.modes.items():
            out[mode] = vars(result)
        return out


class BoxEvaluator:
    """Score maps against ground-truth boxes at all thresholds at once.

    An image counts at (t, iou) if the best IoU between its estimated boxes at t and its
    ground-truth boxes is at least `iou`. ``BoxAcc(t, iou)`` is the share of such images; MaxBoxAcc
    is its maximum over t at IoU 0.5 with the largest contour; MaxBoxAccV2 is the mean over IoU
    0.3, 0.5, 0.7 of the maximum over t with all contours. The counts equal those of the official
    evaluator exactly, in any order of updates and any split over processes.

    Args:
        boxes: the ground truth with the images' sizes.
        thresholds: (T,) score thresholds in [0, 1); None for ``arange(0, 1, cam_curve_interval)``.
        cam_curve_interval: the official name of the step between thresholds.
        iou_thresholds: IoU thresholds in (0, 1]; 0.3, 0.5 and 0.7 are always among them.
        contours: ``"largest"``, ``"all"`` or ``"both"``.

    Raises:
        InputError: thresholds outside their ranges, an unknown `contours`.

    Notes:
        Memory is one byte per image, threshold and contour mode.

    Source:
        Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods Right", and the
        official code clovaai/wsolevaluation.
    """

    def __init__(
        self,
        boxes: Boxes,
        *,
        thresholds: Sequence[float] | None = None,
        cam_curve_interval: float = 0.01,
        iou_thresholds: Iterable[float] = V2_IOUS,
        contours: str = "both",
    ):
        if thresholds is None:
            if not 0 < cam_curve_interval <= 1:
                raise InputError(f"cam_curve_interval {cam_curve_interval} is outside (0, 1]")
            thresholds = np.arange(0, 1, cam_curve_interval)
        self.thresholds = np.asarray(thresholds, dtype=np.float64)
        if self.thresholds.ndim != 1 or not len(self.thresholds):
            raise InputError(f"thresholds must be (T,), got shape {self.thresholds.shape}")
        if not ((self.thresholds >= 0) & (self.thresholds < 1)).all():
            raise InputError("thresholds must lie in [0, 1)")
        if contours not in (*MODES, "both"):
            raise InputError(f"contours must be one of {(*MODES, 'both')}, got {contours!r}")
        self.iou_thresholds = list(V2_IOUS)
        for iou in iou_thresholds:
            if not 0 < iou <= 1:
                raise InputError(f"IoU threshold {iou} is outside (0, 1]")
            if iou not in self.iou_thresholds:
                self.iou_thresholds.append(float(iou))
        self.boxes = boxes
        self.modes = MODES if contours == "both" else (contours,)
        # mode -> image id -> (T,) uint8: how many of the sorted IoU thresholds are reached
        self._rows: dict[str, dict[str, np.ndarray]] = {mode: {} for mode in self.modes}

    def update(
        self,
        scoremaps: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
        image_ids: Sequence[str],
    ) -> None:
        """Add a batch: all of it, or nothing if it is refused.

        Args:
            scoremaps: (N, H, W) floating in [0, 1] or uint8, or N such maps (H, W) of one shape and
                dtype; the boxes are scaled to (W, H).
            image_ids: N ids of the ground truth.

        Raises:
            InputError: an unknown id, or other scores for an image that was added before; a
                `ScoreMapError` that names the image for NaN or values outside [0, 1].
            ValueError: wrong shapes.
            TypeError: a dtype that is neither floating nor uint8.
        """
        scoremaps = _as_batch(scoremaps)
        if len(scoremaps) != len(image_ids):
            raise ValueError(f"{len(scoremaps)} score maps but {len(image_ids)} image ids")
        self._check_known(image_ids)
        height, width = scoremaps.shape[1:]
        gt = [self.boxes.scaled(i, (width, height)) for i in image_ids]
        levels = np.sort(self.iou_thresholds)
        u = _quantized(scoremaps, image_ids)  # the bytes serve both modes
        rows = {}
        for mode in self.modes:
            iou = best_box_iou(u, gt, self.thresholds, contours=mode).numpy()
            rows[mode] = np.searchsorted(levels, iou, side="right").astype(np.uint8)
        self._add(image_ids, rows)

    def _add(self, image_ids: Sequence[str], rows: dict[str, Sequence[np.ndarray]]) -> None:
        """Add the rows of all modes, or none if one differs from what is there."""
        added: dict[str, dict[str, np.ndarray]] = {mode: {} for mode in self.modes}
        for mode, new in added.items():
            for image_id, row in zip(image_ids, rows[mode], strict=True):
                old = new.get(image_id, self._rows[mode].get(image_id))
                if old is not None and not np.array_equal(old, row):
                    raise InputError(f"image {image_id!r} was already added with another score map")
                new[image_id] = row
        for mode, new in added.items():
            self._rows[mode].update(new)

    def _check_known(self, image_ids: Iterable[str]) -> None:
        unknown = next((i for i in image_ids if i not in self.boxes.boxes), None)
        if unknown is not None:
            raise InputError(f"image id {unknown!r} is not in the ground truth")

    def __len__(self) -> int:
        return len(self._rows[self.modes[0]])

    def merge(self, other: "BoxEvaluator") -> None:
        """Add the images of `other`, an evaluator with the same settings (of another process).

        Images that both hold count once.

        Raises:
            InputError: other settings, other boxes or sizes of an image that both ground truths
                hold, or an image with different scores in the two.
        """
        self._check_settings(other._settings())
        self._check_boxes(other.boxes)
        ids = list(other._rows[self.modes[0]])
        self._check_known(ids)
        self._add(ids, {m: [other._rows[m][i] for i in ids] for m in self.modes})

    def _check_boxes(self, other: Boxes) -> None:
        if other is self.boxes:
            return
        for image_id, boxes in self.boxes.boxes.items():
            if image_id not in other.boxes:
                continue
            # `get` reads no image header: CUB's sizes are known where an image was scored
            sizes = (self.boxes.sizes.get(image_id), other.sizes.get(image_id))
            if not np.array_equal(boxes, other.boxes[image_id]):
                raise InputError(
                    f"evaluators with different boxes of {image_id!r} cannot be merged"
                )
            if None not in sizes and tuple(sizes[0]) != tuple(sizes[1]):
                raise InputError(
                    f"evaluators with different sizes of {image_id!r} cannot be merged: "
                    f"{sizes[0]} and {sizes[1]}"
                )

    def _settings(self) -> dict:
        return {
            "thresholds": self.thresholds.tolist(),
            "iou_thresholds": self.iou_thresholds,
            "modes": list(self.modes),
        }

    def _check_settings(self, other: dict) -> None:
        for key, value in self._settings().items():
            if other[key] != value:
                raise InputError(f"evaluators with different {key} cannot be merged")

    def state_dict(self) -> dict:
        """Return the settings and rows, without the ground truth.

        Lists, strings, numbers and (images, T) uint8 tensors: ``torch.load(weights_only=True)``
        reads what ``torch.save`` wrote of it.
        """
        ids = sorted(self._rows[self.modes[0]])
        shape = (len(ids), len(self.thresholds))
        rows = {m: np.array([self._rows[m][i] for i in ids], np.uint8) for m in self.modes}
        return {
            "settings": self._settings(),
            "image_ids": [str(i) for i in ids],
            "rows": {mode: torch.from_numpy(r.reshape(shape)) for mode, r in rows.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Replace the rows by those of `state`; its settings must be this evaluator's.

        Raises:
            InputError: other settings, an image that is not in the ground truth, or rows that do
                not fit.
        """
        self._check_settings(state["settings"])
        ids = state["image_ids"]
        self._check_known(ids)
        shape = (len(ids), len(self.thresholds))
        rows = {
            mode: torch.as_tensor(state["rows"][mode]).cpu().numpy().copy() for mode in self.modes
        }
        for mode, row in rows.items():
            if row.shape != shape or row.dtype != np.uint8:
                raise InputError(
                    f"the rows of {mode!r} must be {shape} uint8, got {row.shape} {row.dtype}"
                )
        self._rows = {mode: dict(zip(ids, row)) for mode, row in rows.items()}

    def localized(self, mode: str, iou: float, threshold: float) -> dict[str, bool]:
        """Return for each image whether it is localized at one of the evaluated settings."""
        rank = int(np.searchsorted(np.sort(self.iou_thresholds), iou))
        t = int(np.flatnonzero(self.thresholds == threshold)[0])
        return {i: bool(row[t] > rank) for i, row in self._rows[mode].items()}

    def compute(self, *, missing_as_miss: bool = False) -> BoxResult:
        """Return counts, accuracies and optimal thresholds.

        Args:
            missing_as_miss: count images of the ground truth without a score map as not localized;
                otherwise they are listed in `missing` and left out of every share.

        Raises:
            InputError: no image was added.
        """
        if not len(self):
            raise InputError("no image was evaluated")
        seen = self._rows[self.modes[0]]
        missing = [i for i in self.boxes.image_ids if i not in seen]
        num_images = len(seen) + (len(missing) if missing_as_miss else 0)
        result = BoxResult(num_images, missing, self.thresholds.tolist(), list(self.iou_thresholds))
        order = np.sort(self.iou_thresholds)
        for mode in self.modes:
            counts = np.zeros((len(order), len(self.thresholds)), dtype=np.int64)
            for row in self._rows[mode].values():
                counts += row[None, :] > np.arange(len(order))[:, None]
            counts = counts[np.searchsorted(order, self.iou_thresholds)]  # the asked order
            best = counts.max(axis=1)
            # the lowest threshold among those that reach the best, whatever their order
            optimal = [float(self.thresholds[c == b].min()) for c, b in zip(counts, best)]
            result.modes[mode] = ModeResult(
                counts.tolist(), (100.0 * best / num_images).tolist(), optimal
            )
        return result


def _as_batch(scoremaps) -> Tensor | np.ndarray:
    """Return the score maps as one tensor or array (N, H, W)."""
    if isinstance(scoremaps, list | tuple):
        if not scoremaps:
            return np.zeros((0, 1, 1))
        kinds = {(tuple(np.shape(m)), str(getattr(m, "dtype", type(m)))) for m in scoremaps}
        # one dtype, because the rounding of the quantization depends on it
        if len(kinds) > 1:
            found = " and ".join(f"{shape} {dtype}" for shape, dtype in sorted(kinds)[:2])
            raise ValueError(f"score maps in a list must have one shape and dtype, got {found}")
        scoremaps = (torch if torch.is_tensor(scoremaps[0]) else np).stack(scoremaps)
    if not isinstance(scoremaps, Tensor | np.ndarray):
        raise TypeError(f"score maps must be a tensor or an array, got {type(scoremaps).__name__}")
    shape = tuple(scoremaps.shape)
    if len(shape) != 3 or 0 in shape[1:]:
        squeeze = "; take the channel out with squeeze(1)" if shape[1:2] == (1,) else ""
        raise ValueError(f"score maps must be (N, H, W) with H, W >= 1, got {shape}{squeeze}")
    return scoremaps


def _quantized(scoremaps: Tensor | np.ndarray, image_ids: Sequence[str]) -> Tensor:
    """Return the maps as bytes on the CPU; name the image of the first map that is not valid."""
    try:
        return quantize(scoremaps).cpu()
    except ScoreMapError as e:
        inside = ((scoremaps >= 0) & (scoremaps <= 1)).reshape(len(scoremaps), -1)  # NaN is not
        index = next(i for i, row in enumerate(inside) if not row.all())
        raise ScoreMapError(f"image {image_ids[index]!r}: {e}") from e
