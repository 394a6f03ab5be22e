"""The results of a box evaluation: counts, accuracies, curves over thresholds, and classes."""

import warnings
from dataclasses import dataclass, field

import numpy as np

from ...errors import CbaWarning, InputError
from ...short import Short

V2_IOUS = (0.3, 0.5, 0.7)
MODES = ("largest", "all")


def warn_missing(missing: list[str], num_images: int) -> None:
    """Warn if a score leaves out more than half of the ground truth's `num_images` images."""
    if 2 * len(missing) > num_images:
        warnings.warn(
            f"{len(missing)} of {num_images} images of the ground truth have no score map, such as "
            f"{missing[0]}; the score is that of the others (`missing_as_miss` counts misses)",
            CbaWarning,
            stacklevel=3,
        )


@dataclass(repr=False)
class ModeResult(Short):
    """The counts and accuracies of one contour mode.

    Attributes:
        num_correct: for each IoU threshold, the number of images localized at each score threshold.
        max_box_acc: for each IoU threshold, the largest share of images, in percent.
        optimal_threshold: for each IoU threshold, the lowest score threshold that reaches it.
    """

    num_correct: list[list[int]]
    max_box_acc: list[float]
    optimal_threshold: list[float]


@dataclass(repr=False)
class ClassResult(Short):
    """The accuracies of one class at the thresholds that are optimal for the whole set.

    Attributes:
        label: the 0-based class.
        num_images: number of images of the class that count.
        box_acc: by contour mode, the share of images for each IoU threshold, in percent. The mean
            over the classes, weighted with their numbers of images, is the accuracy of the set.
    """

    label: int
    num_images: int
    box_acc: dict[str, list[float]]


@dataclass(repr=False)
class BoxResult(Short):
    """The result of `BoxEvaluator.compute`, with the fields of ``wsol-eval --json``.

    Attributes:
        num_images: number of images that count.
        missing: ids of the images of the ground truth without a score map.
        thresholds, iou_thresholds: the score thresholds and the IoU thresholds.
        modes: the counts by contour mode, "largest" or "all".
    """

    figures = ("max_box_acc", "max_box_acc_v2")

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

    def curve(self, mode: str, iou: float) -> np.ndarray:
        """Return the accuracy in percent at each of `thresholds`: (T,) float64.

        Raises:
            InputError: `mode` or `iou` was not run.
        """
        if mode not in self.modes:
            raise InputError(f"contour mode {mode!r} was not run")
        if iou not in self.iou_thresholds:
            raise InputError(f"IoU threshold {iou!r} is not one of those evaluated")
        counts = self.modes[mode].num_correct[self.iou_thresholds.index(iou)]
        return 100.0 * np.asarray(counts) / self.num_images

    def accuracy_at(self, mode: str, iou: float, threshold: float) -> float:
        """Return the accuracy in percent at one of `thresholds`, such as one tuned on other images.

        Raises:
            InputError: `mode`, `iou` or `threshold` was not run.
        """
        curve = self.curve(mode, iou)
        if threshold not in self.thresholds:
            raise InputError(f"threshold {threshold!r} is not one of those evaluated")
        return float(curve[self.thresholds.index(threshold)])

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
