"""MaxBoxAcc, MaxBoxAccV2 and PxAP as metrics of torchmetrics, exact over any number of processes.

They keep what each image contributes, by its place in the ground truth. So an image that a sampler
deals to two processes counts once, and the counts are those of a single process.
"""

import copy
import uuid
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..choices import CAM_CURVE_INTERVAL
from ..data.boxes import Boxes
from ..data.masks import Masks
from ..errors import CbaWarning, InputError
from .scoring.box_result import V2_IOUS
from .scoring.evaluator import BoxEvaluator
from .scoring.pixel_evaluator import PixelEvaluator

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ImportError as e:
    raise ImportError(
        "the metrics need torchmetrics: pip install torchmetrics, or cba_fast[metrics]"
    ) from e

__all__ = ["MaxBoxAcc", "MaxBoxAccV2", "PxAP"]


class _ImageMetric(Metric):
    """A metric that gathers one row per image.

    Attributes:
        rows: what the images contribute; a row has the shape of `_no_rows`.
        places: their positions among the ids of the ground truth, int64.
        identity: tells this metric from all others.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor]
    places: list[Tensor]
    identity: Tensor

    def __init__(
        self, image_ids: Sequence[str], no_rows: Tensor, missing_as_miss: bool, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.image_ids, self.missing_as_miss = image_ids, missing_as_miss
        self._place_of = {image_id: n for n, image_id in enumerate(image_ids)}
        self._no_rows = no_rows
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("places", [], dist_reduce_fx="cat")
        # A `MetricCollection` takes metrics with equal states after the first batch for one, and
        # both contour modes give equal rows where each map has one contour.
        identity = torch.tensor(list(uuid.uuid4().bytes))
        self.add_state("identity", identity, dist_reduce_fx="max")

    def _append(self, rows: np.ndarray, image_ids: Sequence[str]) -> None:
        places = [self._place_of[i] for i in image_ids]
        self.rows.append(torch.from_numpy(rows).to(self.device))
        self.places.append(torch.tensor(places, dtype=torch.int64, device=self.device))

    def _contributions(self) -> tuple[list[str], np.ndarray]:
        """Return the ids of the images, each once, and their rows.

        Raises:
            InputError: no image was added, or one was added twice with other scores.
        """
        if not any(places.numel() for places in self.places):
            raise InputError("no image was evaluated")
        rows, places = (dim_zero_cat(v).cpu().numpy() for v in (self.rows, self.places))
        once, first, inverse = np.unique(places, return_index=True, return_inverse=True)
        same = (rows == rows[first[inverse]]).reshape(len(rows), -1).all(axis=1)
        if not same.all():
            image_id = self.image_ids[places[np.argmin(same)]]
            raise InputError(f"image {image_id!r} was added twice, with different score maps")
        return [self.image_ids[p] for p in once], rows[first]

    def _sync_dist(self, *args, **kwargs) -> None:
        # torchmetrics' own stand-in for a process without images has one dimension; gathering it
        # beside rows of more would wait for ever.
        if not self.rows:
            self.rows = [self._no_rows.to(self.device)]
            self.places = [torch.empty(0, dtype=torch.int64, device=self.device)]
        super()._sync_dist(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Add a batch and return its own score (images outside of it do not count as missing)."""
        before = {**vars(self), "rows": copy.copy(self.rows), "places": copy.copy(self.places)}
        self.missing_as_miss = False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CbaWarning)  # a batch lacks most images
                found = super().forward(*args, **kwargs)
        except BaseException:
            vars(self).update(before)  # torchmetrics has taken out what earlier batches added
            raise
        self.missing_as_miss = before["missing_as_miss"]
        return found


class _BoxMetric(_ImageMetric):
    contours: str

    def __init__(
        self,
        boxes: Boxes,
        *,
        thresholds: Sequence[float] | None = None,
        cam_curve_interval: float = CAM_CURVE_INTERVAL,
        iou_thresholds: Iterable[float] = V2_IOUS,
        clip: float = 0.0,
        missing_as_miss: bool = False,
        **kwargs: Any,
    ):
        self._options: dict[str, Any] = {
            "thresholds": thresholds,
            "cam_curve_interval": cam_curve_interval,
            "iou_thresholds": list(iou_thresholds),
            "contours": self.contours,
            "clip": clip,
        }
        empty = BoxEvaluator(boxes, **self._options)
        no_rows = torch.empty((0, *empty.table.row_shape), dtype=torch.uint8)
        super().__init__(boxes.image_ids, no_rows, missing_as_miss, **kwargs)
        self.boxes, self._empty = boxes, empty

    def update(self, scoremaps: Tensor | np.ndarray, image_ids: Sequence[str]) -> None:
        """Add a batch; arguments and errors as `BoxEvaluator.update`."""
        self._append(self._empty.rows(scoremaps, image_ids), image_ids)

    def evaluator(self) -> BoxEvaluator:
        """Return an evaluator of the images that this process holds, such as for `bootstrap`."""
        found = BoxEvaluator(self.boxes, **self._options)
        found.add_rows(*self._contributions())
        return found

    def compute(self) -> Tensor:
        """Return the score in percent, a float64 tensor without dimensions."""
        result = self.evaluator().compute(missing_as_miss=self.missing_as_miss)
        return torch.tensor(getattr(result, self.figure), dtype=torch.float64)


class MaxBoxAcc(_BoxMetric):
    """MaxBoxAcc in percent (IoU 0.5, largest contour), as a `torchmetrics.Metric`.

    Args:
        boxes: the ground truth, the same in all processes.
        thresholds, cam_curve_interval, iou_thresholds, clip: as for `BoxEvaluator`.
        missing_as_miss: `compute` counts images without a score map as misses.
        kwargs: those of `torchmetrics.Metric`.

    Raises:
        InputError: as `BoxEvaluator`.

    Example:
        >>> import torch
        >>> from cba_fast.data import Boxes
        >>> from cba_fast.wsol.metrics import MaxBoxAcc
        >>> box = {"a.jpg": torch.tensor([[2, 2, 6, 6]]).numpy()}
        >>> metric = MaxBoxAcc(Boxes(("a.jpg",), box, {"a.jpg": (8, 8)}, None))
        >>> scoremap = torch.zeros(1, 8, 8)
        >>> scoremap[0, 2:6, 2:6] = 1
        >>> metric.update(scoremap, ["a.jpg"])
        >>> metric.compute().item()
        100.0
    """

    contours, figure = "largest", "max_box_acc"


class MaxBoxAccV2(_BoxMetric):
    """MaxBoxAccV2 in percent (mean over IoU 0.3, 0.5, 0.7, all contours), as a torchmetrics metric.

    Arguments and errors are those of `MaxBoxAcc`.

    Example:
        >>> import numpy as np
        >>> from cba_fast.data import load_boxes, map_name
        >>> from cba_fast.wsol.metrics import MaxBoxAccV2
        >>> boxes = load_boxes(cub_root="CUB_200_2011")
        >>> metric = MaxBoxAccV2(boxes)
        >>> for image_id in boxes.image_ids:
        ...     metric.update(np.load(f"maps/{map_name(image_id)}")[None], [image_id])
        >>> round(metric.compute().item(), 2)
        94.44
    """

    contours, figure = "all", "max_box_acc_v2"


class PxAP(_ImageMetric):
    """PxAP in percent, the pixel-wise average precision against masks, as a torchmetrics metric.

    Args:
        masks: the ground truth, the same in all processes.
        cam_curve_interval, clip: as for `PixelEvaluator`.
        missing_as_miss: `compute` counts images without a score map as ones whose scores are all 0.
        kwargs: those of `torchmetrics.Metric`.

    Notes:
        Memory is 8 bytes per image and threshold.

    Example:
        >>> import numpy as np
        >>> from cba_fast.data import load_masks, map_name
        >>> from cba_fast.wsol.metrics import PxAP
        >>> masks = load_masks("metadata/OpenImages/test", "OpenImages", size=64)
        >>> metric = PxAP(masks)
        >>> for image_id in masks.image_ids:
        ...     metric.update(np.load(f"maps/{map_name(image_id)}")[None], [image_id])
        >>> round(metric.compute().item(), 1)
        64.7
    """

    def __init__(
        self,
        masks: Masks,
        *,
        cam_curve_interval: float = CAM_CURVE_INTERVAL,
        clip: float = 0.0,
        missing_as_miss: bool = False,
        **kwargs: Any,
    ):
        empty = PixelEvaluator(masks, cam_curve_interval=cam_curve_interval, clip=clip)
        no_rows = torch.empty((0, *empty.histograms.shape), dtype=torch.int32)
        super().__init__(masks.image_ids, no_rows, missing_as_miss, **kwargs)
        self._empty = empty

    def update(
        self,
        scoremaps: Tensor | np.ndarray,
        image_ids: Sequence[str],
        masks: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Add a batch; arguments and errors as `PixelEvaluator.update`."""
        rows = self._empty.histograms_of(scoremaps, image_ids, masks)
        self._append(rows.astype(np.int32), image_ids)

    def compute(self) -> Tensor:
        """Return the score in percent, a float64 tensor without dimensions."""
        ids, rows = self._contributions()
        empty = self._empty
        found = PixelEvaluator(empty.masks, cam_curve_interval=empty.interval)
        found.add_histograms(ids, rows.sum(axis=0, dtype=np.int64))
        result = found.compute(missing_as_miss=self.missing_as_miss)
        return torch.tensor(result.px_ap, dtype=torch.float64)
