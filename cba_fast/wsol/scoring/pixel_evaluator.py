"""PxAP, the pixel-wise average precision against masks, accumulated over batches and processes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...choices import CAM_CURVE_INTERVAL
from ...data.masks import BACKGROUND, FOREGROUND, IGNORED, Masks
from ...errors import InputError
from ...short import Short, call
from ..score_maps import as_batch, check_clip, check_score_map
from .box_result import warn_missing

KINDS = 1 + max(BACKGROUND, FOREGROUND, IGNORED)


@dataclass(repr=False)
class PixelResult(Short):
    """The result of `PixelEvaluator.compute`, with the fields of ``pixel-eval --json``.

    Attributes:
        num_images: number of images that count.
        missing: ids of the images of the ground truth without a score map.
        px_ap: the pixel-wise average precision in percent.
        thresholds: score thresholds, descending from 2.0 and 1.0 to 0.0.
        precision, recall: values in [0, 1] at each of `thresholds`; the precision is None where no
            pixel is positive.
    """

    num_images: int
    missing: list[str]
    px_ap: float
    thresholds: list[float]
    precision: list[float | None]
    recall: list[float]

    def to_json(self) -> dict:
        """Return plain lists and numbers."""
        return dict(vars(self))


class PixelEvaluator:
    """Computes PxAP of score maps against masks, at all thresholds at once.

    A pixel is positive at t if its score m >= t; the scores are not quantized. Over the pixels of
    all images that are not ignored, with thresholds t_0 > t_1 > ... (2.0, 1.0, and those of
    ``arange(0, 1, cam_curve_interval)``):

        PxAP = 100 * sum over i >= 1 of precision(t_i) * (recall(t_i) - recall(t_{i-1})),

    where terms without any positive pixel are left out.

    Args:
        masks: the ground truth.
        cam_curve_interval: step between score thresholds, in (0, 1], under its official name.
        clip: values that leave [0, 1] by no more than this are clipped, e.g. 1e-5; NaN never is.

    Raises:
        InputError: a `cam_curve_interval` outside of its range.

    Notes:
        Memory is two histograms of T + 2 counts; the order of images does not matter.

    Source:
        Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods Right", and
        MaskEvaluator of the official code clovaai/wsolevaluation, whose result it equals.

    Example:
        >>> import numpy as np
        >>> from cba_fast.data import load_masks, map_name
        >>> from cba_fast.wsol import PixelEvaluator
        >>> masks = load_masks("metadata/OpenImages/test", "OpenImages", size=64)
        >>> evaluator = PixelEvaluator(masks)
        >>> for image_id in masks.image_ids:
        ...     evaluator.update(np.load(f"maps/{map_name(image_id)}")[None], [image_id])
        >>> round(evaluator.compute().px_ap, 1)
        64.7
    """

    def __init__(
        self, masks: Masks, *, cam_curve_interval: float = CAM_CURVE_INTERVAL, clip: float = 0.0
    ):
        check_clip(clip)
        if not 0 < cam_curve_interval <= 1:
            raise InputError(f"cam_curve_interval {cam_curve_interval} is outside (0, 1]")
        self.masks, self.clip = masks, clip
        self.interval = float(cam_curve_interval)
        self.edges = np.append(np.arange(0, 1, self.interval), [1.0, 2.0, 3.0])
        # Counts of background and foreground pixels with scores in [edges[i], edges[i + 1]).
        self.histograms = np.zeros((2, len(self.edges) - 1), np.int64)
        self._seen: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def __repr__(self) -> str:
        return call("PixelEvaluator", {"images": len(self), "masks": self.masks})

    def update(
        self,
        scoremaps: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
        image_ids: Sequence[str],
        masks: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Add a batch: all of it, or nothing if it is refused.

        Args:
            scoremaps: (N, H, W) floating in [0, 1], the size of the masks, or N maps (H, W).
            image_ids: N ids of the ground truth, none of them added before.
            masks: N masks from ``Masks.read``, if the caller has read them already.

        Raises:
            InputError: an unknown id or one that was added before; a `ScoreMapError` that names the
                image for NaN or values outside [0, 1]; an `ImageError` for a mask that cannot be
                read.
            ValueError: wrong shapes.
            TypeError: maps that are not floating.
        """
        self._check_new(image_ids)
        histograms = self.histograms_of(scoremaps, image_ids, masks).sum(axis=0)
        self.add_histograms(image_ids, histograms)

    def histograms_of(
        self,
        scoremaps: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
        image_ids: Sequence[str],
        masks: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return what each map of a batch would add: its background and foreground pixels per bin.

        Arguments and errors are those of :meth:`update`; images may be added already.

        Returns:
            (N, 2, bins) int64.
        """
        scoremaps = as_batch(scoremaps)
        if isinstance(scoremaps, Tensor):
            scoremaps = scoremaps.detach().to("cpu", torch.float64).numpy()
        if len(scoremaps) != len(image_ids):
            raise ValueError(f"{len(scoremaps)} score maps but {len(image_ids)} image ids")
        if not np.issubdtype(scoremaps.dtype, np.floating):
            raise TypeError(f"PxAP needs the scores themselves, floating; got {scoremaps.dtype}")
        if len(scoremaps) and scoremaps.shape[1:] != self.masks.shape:
            raise ValueError(f"score maps must be {self.masks.shape}, got {scoremaps.shape[1:]}")
        self._check_known(image_ids)
        if masks is None:
            masks = [self.masks.read(i) for i in image_ids]
        found = np.zeros((len(scoremaps), *self.histograms.shape), np.int64)
        for own, scoremap, image_id, mask in zip(found, scoremaps, image_ids, masks, strict=True):
            own[:] = self._histograms(
                check_score_map(scoremap, f"image {image_id!r}", self.clip), mask
            )
        return found

    def add_histograms(self, image_ids: Sequence[str], histograms: np.ndarray) -> None:
        """Add images whose histograms (2, bins) int64 are known, as their sum.

        Raises:
            InputError: an unknown image or one that was added before.
        """
        self._check_new(image_ids)
        self.histograms = self.histograms + histograms
        self._seen.update(dict.fromkeys(map(str, image_ids)))

    def _histograms(self, scoremap: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the numbers of background and foreground pixels in each bin: (2, bins).

        A division finds the bin, which a rounding error can make one too high or too low; comparing
        with the edges corrects that. A binary search takes ten times as long.
        """
        m = scoremap.astype(np.float64, copy=False).ravel()
        last = len(self.edges) - 4  # the bin below 1.0
        at = np.minimum((m / self.interval).astype(np.int64), last)
        at -= m < self.edges[at]
        at += m >= self.edges[at + 1]
        bins = len(self.edges) - 1
        counts = np.bincount(at + bins * mask.ravel().astype(np.int64), minlength=KINDS * bins)
        return counts.reshape(KINDS, bins)[[BACKGROUND, FOREGROUND]]

    def _check_new(self, image_ids: Sequence[str]) -> None:
        self._check_known(image_ids)
        new: set[str] = set()
        for image_id in image_ids:
            if image_id in self._seen or image_id in new:
                raise InputError(f"image {image_id!r} was already added")
            new.add(image_id)

    def _check_known(self, image_ids: Sequence[str]) -> None:
        unknown = next((i for i in image_ids if i not in self.masks.paths), None)
        if unknown is not None:
            first = next(iter(self.masks.paths), None)
            raise InputError(
                f"image id {unknown!r} is not in the ground truth, whose first is {first!r}"
            )

    def merge(self, other: "PixelEvaluator") -> None:
        """Add the images of `other`, an evaluator with the same settings, e.g. of another process.

        Raises:
            InputError: the settings or the mask files of an image differ, or both hold an image.
        """
        for image_id in other._seen:
            if self.masks.paths.get(image_id) != other.masks.paths[image_id]:
                raise InputError(f"evaluators with different masks of {image_id!r}")
        self._add_state(other.state_dict())

    def state_dict(self) -> dict:
        """Return settings, ids and histograms as lists, numbers and one int64 tensor (2, bins)."""
        return {
            "settings": self._settings(),
            "image_ids": list(self._seen),
            "histograms": torch.from_numpy(self.histograms.copy()),
        }

    def load_state_dict(self, state: dict) -> None:
        """Replace what was added so far by `state`, from an evaluator with the same settings.

        Raises:
            InputError: other settings, unknown or repeated images, or histograms that do not fit.
        """
        fresh = PixelEvaluator(self.masks, cam_curve_interval=self.interval)
        fresh._add_state(state)
        self.histograms, self._seen = fresh.histograms, fresh._seen

    def _add_state(self, state: dict) -> None:
        if state["settings"] != self._settings():
            raise InputError(
                f"evaluators with different settings do not go together: {self._settings()} and "
                f"{state['settings']}"
            )
        histograms = torch.as_tensor(state["histograms"]).cpu().numpy()
        if histograms.shape != self.histograms.shape or histograms.dtype != np.int64:
            raise InputError(
                f"the histograms must be {self.histograms.shape} int64, got {histograms.shape} "
                f"{histograms.dtype}"
            )
        self.add_histograms(state["image_ids"], histograms)

    def _settings(self) -> dict:
        return {"cam_curve_interval": self.interval, "size": self.masks.size}

    def compute(
        self, *, missing_as_miss: bool = False, progress: Callable[..., Iterable] | None = None
    ) -> PixelResult:
        """Return PxAP and the curve of precision and recall.

        Args:
            missing_as_miss: count an image without a score map as one whose scores are all 0 (its
                masks are read). Otherwise it is listed in `missing` and left out, with a warning if
                more than half of the images are missing.
            progress: called with the missing images and their number, returns an iterable.

        Raises:
            InputError: no image was added, or no pixel is foreground.
        """
        if not self._seen:
            raise InputError("no image was evaluated")
        missing = [i for i in self.masks.image_ids if i not in self._seen]
        histograms = self.histograms
        if not missing_as_miss:
            warn_missing(missing, len(self.masks.image_ids))
        else:
            zeros = np.zeros(self.masks.shape)
            for image_id in progress(missing, len(missing)) if progress else missing:
                histograms = histograms + self._histograms(zeros, self.masks.read(image_id))
        # The order of the thresholds and of the sums is the official one: equal to the last bit.
        false, true = histograms[:, ::-1].astype(np.float64).cumsum(axis=1)
        if not true[-1]:
            raise InputError("no pixel of the masks is foreground")
        positive = true + false
        precision = np.divide(true, positive, out=np.zeros_like(true), where=positive > 0)
        recall = true / true[-1]
        terms = (precision[1:] * np.diff(recall))[positive[1:] > 0]
        return PixelResult(
            len(self._seen) + (len(missing) if missing_as_miss else 0),
            missing,
            float(terms.sum() * 100),
            self.edges[-2::-1].tolist(),
            [float(p) if n else None for p, n in zip(precision, positive, strict=True)],
            recall.tolist(),
        )
