"""Launches the C++ box sweep (CPU tensors; scoremaps uint8, thresholds float64 in [0, 1))."""

import torch
from torch import Tensor

from cba_fast.kernels import native


def _arguments(scoremaps: Tensor, thresholds: Tensor) -> tuple:
    return (scoremaps.data_ptr(), *scoremaps.shape, thresholds.data_ptr(), len(thresholds))


def box_sweep(scoremaps: Tensor, thresholds: Tensor) -> Tensor:
    """Return the boxes of the largest contours, (N, T, 4) int32."""
    scoremaps, thresholds = scoremaps.contiguous(), thresholds.contiguous()
    boxes = torch.empty((len(scoremaps), len(thresholds), 4), dtype=torch.int32)
    native.load().largest_boxes(
        *_arguments(scoremaps, thresholds), boxes.data_ptr(), torch.get_num_threads()
    )
    return boxes


def box_sweep_all(scoremaps: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boxes of all contours, (M, 4) int32, and offsets (N*T+1,) int64."""
    scoremaps, thresholds = scoremaps.contiguous(), thresholds.contiguous()
    threads = torch.get_num_threads()
    found = native.load().AllBoxes(*_arguments(scoremaps, thresholds), threads)
    boxes = torch.empty((found.num_boxes, 4), dtype=torch.int32)
    offsets = torch.empty(len(scoremaps) * len(thresholds) + 1, dtype=torch.int64)
    found.write(boxes.data_ptr(), offsets.data_ptr(), threads)
    return boxes, offsets


def best_box_iou(
    scoremaps: Tensor, gt_boxes: Tensor, gt_offsets: Tensor, thresholds: Tensor, contours: str
) -> Tensor:
    """Return the best IoU of each map at each threshold, (N, T) float64.

    gt_boxes (M, 4) int64; those of map i are gt_boxes[gt_offsets[i] : gt_offsets[i + 1]].
    """
    scoremaps, thresholds = scoremaps.contiguous(), thresholds.contiguous()
    gt_boxes, gt_offsets = gt_boxes.contiguous(), gt_offsets.contiguous()
    iou = torch.empty((len(scoremaps), len(thresholds)), dtype=torch.float64)
    native.load().best_iou(
        *_arguments(scoremaps, thresholds),
        gt_boxes.data_ptr(),
        gt_offsets.data_ptr(),
        contours == "all",
        iou.data_ptr(),
        torch.get_num_threads(),
    )
    return iou
