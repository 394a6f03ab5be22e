"""MaxBoxAcc and MaxBoxAccV2, accumulated over batches and processes."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...choices import CAM_CURVE_INTERVAL
from ...data.boxes import Boxes
from ...errors import InputError
from ...ops import best_box_iou
from ...short import call, shown
from ..score_maps import as_batch, as_bytes, check_clip
from .box_result import MODES, V2_IOUS, BoxResult, ClassResult, ModeResult, warn_missing
from .row_table import RowTable

IOU_BYTES = 32 << 20  # most bytes of IoUs at a time: 4,194 maps at 1,000 thresholds
MAX_IOUS = 255  # the largest count of IoU thresholds that a byte of a row can hold


class BoxEvaluator:
    """Computes MaxBoxAcc and MaxBoxAccV2 of score maps, at all thresholds at once.

    An image counts at (t, iou) if the best IoU between its estimated boxes at t and its
    ground-truth boxes is at least `iou`. ``BoxAcc(t, iou)`` is the share of such images; MaxBoxAcc
    is its maximum over t at IoU 0.5 with the largest contour; MaxBoxAccV2 is the mean over IoU
    0.3, 0.5, 0.7 of the maximum over t with all contours. The counts equal those of the official
    evaluator exactly, in any order of updates and any split over processes.

    Args:
        boxes: the ground truth with the images' sizes.
        thresholds: (T,) score thresholds in [0, 1); None for ``arange(0, 1, cam_curve_interval)``.
        cam_curve_interval: step between score thresholds, in (0, 1], under its official name.
        iou_thresholds: IoU thresholds in (0, 1]; 0.3, 0.5 and 0.7 are always added. At most 255 in
            all.
        contours: ``"largest"``, ``"all"`` or ``"both"``.
        clip: values that leave [0, 1] by no more than this are clipped, e.g. 1e-5; NaN never is.

    Raises:
        InputError: thresholds outside their ranges, more than 255 IoU thresholds, an unknown
            `contours`.

    Notes:
        Memory is one byte per image, threshold and contour mode, for any number of IoU thresholds.

    Source:
        Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods Right", and the
        official code clovaai/wsolevaluation.

    Example:
        >>> import numpy as np
        >>> from cba_fast.data import load_boxes, map_name
        >>> from cba_fast.wsol import BoxEvaluator
        >>> boxes = load_boxes(cub_root="CUB_200_2011")
        >>> evaluator = BoxEvaluator(boxes, cam_curve_interval=0.001)
        >>> for image_id in boxes.image_ids:
        ...     evaluator.update(np.load(f"maps/{map_name(image_id)}")[None], [image_id])
        >>> result = evaluator.compute()
        >>> print(f"{result.max_box_acc:.2f} {result.max_box_acc_v2:.2f}")
        100.00 94.44
        >>> print(f"{result.accuracy_at('largest', 0.5, threshold=0.5):.2f}")
        83.33
    """

    def __init__(
        self,
        boxes: Boxes,
        *,
        thresholds: Sequence[float] | None = None,
        cam_curve_interval: float = CAM_CURVE_INTERVAL,
        iou_thresholds: Iterable[float] = V2_IOUS,
        contours: str = "both",
        clip: float = 0.0,
    ):
        check_clip(clip)
        if not isinstance(boxes, Boxes):
            raise TypeError(f"boxes must come from load_boxes, got {type(boxes).__name__}")
        if thresholds is not None:
            self.thresholds = np.asarray(thresholds, dtype=np.float64)
        elif 0 < cam_curve_interval <= 1:
            self.thresholds = np.arange(0, 1, cam_curve_interval, dtype=np.float64)
        else:
            raise InputError(f"cam_curve_interval {cam_curve_interval} is outside (0, 1]")
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
        if len(self.iou_thresholds) > MAX_IOUS:
            raise InputError(
                f"at most {MAX_IOUS} IoU thresholds fit, got {len(self.iou_thresholds)}"
            )
        self.boxes, self.clip = boxes, clip
        self.modes = MODES if contours == "both" else (contours,)
        # Each image's row (modes, T) uint8 counts the IoU thresholds that its best IoU reaches.
        self.table = RowTable((len(self.modes), len(self.thresholds)))

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
        self.add_rows(image_ids, self.rows(scoremaps, image_ids))

    def rows(
        self,
        scoremaps: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
        image_ids: Sequence[str],
    ) -> np.ndarray:
        """Return what a batch would add: how many IoU thresholds each map's best box reaches.

        Arguments and errors are those of :meth:`update`.

        Returns:
            (N, modes, T) uint8.
        """
        scoremaps = as_batch(scoremaps)
        if len(scoremaps) != len(image_ids):
            raise ValueError(f"{len(scoremaps)} score maps but {len(image_ids)} image ids")
        self._check_known(image_ids)
        names = [f"image {image_id!r}" for image_id in image_ids]
        u = as_bytes(scoremaps, names, self.clip)
        step = max(1, IOU_BYTES // (8 * len(self.thresholds)))
        parts = [
            self._reached(u[i : i + step], image_ids[i : i + step]) for i in range(0, len(u), step)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, *self.table.row_shape), np.uint8)

    def _reached(self, u: Tensor, image_ids: Sequence[str]) -> np.ndarray:
        """Return how many IoU thresholds each map reaches: (n, modes, T) uint8."""
        height, width = u.shape[1:]
        gt = [self.boxes.scaled(i, (width, height)) for i in image_ids]
        reached = np.zeros((len(u), len(self.modes), len(self.thresholds)), np.uint8)
        for m, mode in enumerate(self.modes):
            iou = best_box_iou(u, gt, self.thresholds, contours=mode).cpu().numpy()
            for level in self.iou_thresholds:
                reached[:, m] += iou >= level
        return reached

    def add_rows(self, image_ids: Sequence[str], rows: Iterable[np.ndarray]) -> None:
        """Add the rows (modes, T) of all images, or none of them.

        Raises:
            InputError: a row contradicts an earlier one of its image; the message names the image.
        """
        new: dict[str, np.ndarray] = {}
        for image_id, row in zip(image_ids, rows, strict=True):
            old = new.get(image_id, self.table.get(image_id))
            if old is None:
                new[image_id] = row
            elif not np.array_equal(old, row):
                raise InputError(f"image {image_id!r} was already added with another score map")
        for image_id, row in new.items():
            self.table.append(str(image_id), row)

    def _check_known(self, image_ids: Iterable[str]) -> None:
        unknown = next((i for i in image_ids if i not in self.boxes.boxes), None)
        if unknown is not None:
            first = next(iter(self.boxes.boxes), None)
            raise InputError(
                f"image id {unknown!r} is not in the ground truth, whose first is {first!r}"
            )

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return call("BoxEvaluator", {"images": len(self), "boxes": self.boxes, **self._settings()})

    def merge(self, other: "BoxEvaluator") -> None:
        """Add the images of `other`, an evaluator with the same settings, e.g. of another process.

        Images that both hold count once.

        Raises:
            InputError: the settings differ, or the two contradict each other about an image: its
                boxes, its size, its class or its scores; the message says which and how.
        """
        self._check_settings(other._settings())
        self.check_boxes(other.boxes)
        ids = list(other.table.index)
        self._check_known(ids)
        self.add_rows(ids, (row for block in other.table.blocks() for row in block))

    def check_boxes(self, other: Boxes) -> None:
        """Refuse ground truth that contradicts this evaluator's.

        Raises:
            InputError: an image has other boxes, another size or another class in `other`; the
                message names it.
        """
        if other is self.boxes:
            return
        for image_id, boxes in self.boxes.boxes.items():
            if image_id not in other.boxes:
                continue
            # Unlike `[]`, `get` reads no image header: CUB's sizes are known for scored images.
            size, other_size = self.boxes.sizes.get(image_id), other.sizes.get(image_id)
            if not np.array_equal(boxes, other.boxes[image_id]):
                raise InputError(
                    f"evaluators with different boxes of {image_id!r} do not go together"
                )
            if size is not None and other_size is not None and tuple(size) != tuple(other_size):
                raise InputError(
                    f"evaluators with different sizes of {image_id!r} do not go together: "
                    f"{size} and {other_size}"
                )
            classes = [truth.labels[image_id] for truth in (self.boxes, other) if truth.labels]
            if len(set(classes)) > 1:
                raise InputError(
                    f"evaluators with different classes of {image_id!r} do not go together: "
                    f"{classes[0]} and {classes[1]}"
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
                raise InputError(
                    f"evaluators with different {key} cannot be merged: {shown(value)} here, "
                    f"{shown(other[key])} there"
                )

    def state_dict(self) -> dict:
        """Return the settings and rows, without the ground truth.

        The values are lists, strings, numbers and (images, T) uint8 tensors, so that
        ``torch.load(weights_only=True)`` reads what ``torch.save`` has written.
        """
        ids = sorted(self.table.index)
        rows = self.table.take(ids)
        return {
            "settings": self._settings(),
            "image_ids": ids,
            "rows": {
                mode: torch.from_numpy(rows[:, m].copy()) for m, mode in enumerate(self.modes)
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Replace all rows by those of `state`, or none if it is refused.

        Args:
            state: from :meth:`state_dict` of an evaluator with the same settings.

        Raises:
            InputError: a missing key, other settings than this evaluator's, an image that is not in
                the ground truth or that is repeated, or rows that do not fit.
        """
        try:
            settings, ids, rows_of = state["settings"], state["image_ids"], state["rows"]
            rows = [torch.as_tensor(rows_of[mode]).cpu().numpy() for mode in self.modes]
            self._check_settings(settings)
        except KeyError as e:
            raise InputError(f"the state of an evaluator has no {e}") from e
        self._check_known(ids)
        repeated = next((i for i, n in Counter(ids).items() if n > 1), None)
        if repeated is not None:
            raise InputError(f"image {repeated!r} is repeated in the state")
        shape, most = (len(ids), len(self.thresholds)), len(self.iou_thresholds)
        for mode, row in zip(self.modes, rows, strict=True):
            if row.shape != shape or row.dtype != np.uint8:
                raise InputError(
                    f"the rows of {mode!r} must be {shape} uint8, got {row.shape} {row.dtype}"
                )
            if row.max(initial=0) > most:
                raise InputError(f"the rows of {mode!r} count {row.max()} of {most} IoU thresholds")
        table = RowTable(self.table.row_shape)
        for image_id, row in zip(ids, np.stack(rows, axis=1), strict=True):
            table.append(str(image_id), row)
        self.table = table

    def hits(self, mode: str, iou: float, threshold: float) -> np.ndarray:
        """Return which images are localized for a contour mode, an IoU and a score threshold.

        Returns:
            (N,) bool, in the order of ``table.index``.

        Raises:
            InputError: `mode`, `iou` or `threshold` was not run.
        """
        for name, value, have in (
            ("contour mode", mode, self.modes),
            ("IoU threshold", iou, self.iou_thresholds),
            ("threshold", threshold, self.thresholds),
        ):
            if value not in have:
                raise InputError(f"{name} {value!r} is not one of those evaluated")
        m, t = self.modes.index(mode), int(np.flatnonzero(self.thresholds == threshold)[0])
        found = [block[:, m, t] > self.rank(iou) for block in self.table.blocks()]
        return np.concatenate(found) if found else np.zeros(0, bool)

    def rank(self, iou: float) -> int:
        """Return an IoU threshold's position among the sorted ones; larger rows reach it."""
        return int(np.searchsorted(np.sort(self.iou_thresholds), iou))

    def localized(self, mode: str, iou: float, threshold: float) -> dict[str, bool]:
        """Return for each image whether it is localized; arguments and errors as :meth:`hits`."""
        return dict(zip(self.table.index, self.hits(mode, iou, threshold).tolist(), strict=True))

    def compute(self, *, missing_as_miss: bool = False) -> BoxResult:
        """Return counts, accuracies and optimal thresholds.

        Args:
            missing_as_miss: count images of the ground truth without a score map as not localized.
                Otherwise they are listed in `missing` and left out of every share, with a warning
                if they are more than half of the images.

        Raises:
            InputError: no image was added.
        """
        if not len(self):
            raise InputError("no image was evaluated")
        missing = [i for i in self.boxes.image_ids if i not in self.table.index]
        num_images = len(self) + (len(missing) if missing_as_miss else 0)
        if not missing_as_miss:
            warn_missing(missing, len(self.boxes.image_ids))
        result = BoxResult(num_images, missing, self.thresholds.tolist(), list(self.iou_thresholds))
        counts = self._counts()
        for m, mode in enumerate(self.modes):
            best = counts[m].max(axis=1)
            # The thresholds may be in any order.
            optimal = [float(self.thresholds[c == b].min()) for c, b in zip(counts[m], best)]
            result.modes[mode] = ModeResult(
                counts[m].tolist(), (100.0 * best / num_images).tolist(), optimal
            )
        return result

    def _counts(self) -> np.ndarray:
        """Return the number of localized images: (modes, IoU thresholds, T) int64."""
        shape = (len(self.modes), len(self.iou_thresholds), len(self.thresholds))
        counts = np.zeros(shape, np.int64)
        for block in self.table.blocks():
            for k, iou in enumerate(self.iou_thresholds):
                counts[:, k] += np.count_nonzero(block > self.rank(iou), axis=0)
        return counts

    def per_class(self, result: BoxResult) -> list[ClassResult]:
        """Return the accuracies of each class, in the order of the labels.

        Args:
            result: from :meth:`compute`; its optimal thresholds are used. If it counts missing
                images as misses, they count in their classes too.

        Raises:
            InputError: the ground truth has no labels.
        """
        labels = self.boxes.labels
        if labels is None:
            raise InputError("the ground truth has no class labels (class_labels.txt)")
        seen = np.array([labels[i] for i in self.table.index], dtype=np.int64)
        counted = seen
        if result.num_images > len(self):
            counted = np.append(seen, [labels[i] for i in result.missing])
        # Only labels that occur are counted, because labels can be large numbers with gaps.
        names, of = np.unique(counted, return_inverse=True)
        totals = np.bincount(of, minlength=len(names))
        of = of[: len(seen)]
        hits = {
            mode: [
                np.bincount(of[self.hits(mode, iou, t)], minlength=len(names))
                for iou, t in zip(result.iou_thresholds, found.optimal_threshold, strict=True)
            ]
            for mode, found in result.modes.items()
        }
        return [
            ClassResult(
                label,
                n,
                {mode: [100.0 * int(h[k]) / n for h in each] for mode, each in hits.items()},
            )
            for k, (label, n) in enumerate(zip(names.tolist(), totals.tolist(), strict=True))
        ]
