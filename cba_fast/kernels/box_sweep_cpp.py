"""Launches the C++ box sweep (CPU tensors; thresholds float64 in [0, 1)).

The maps m (N, H, W) are uint8, or floating and quantized as they are read, u = uint8(255 * m); a
value that is NaN or outside [0, 1] raises the `ScoreMapError` of `reference.quantize`. Tests and
benchmarks choose the instruction set by `isa` (empty: that of the process) and by `method` how
contours are found: ``"segments"``, ``"pixels"``, or ``"auto"`` for the faster one for each map.
"""

import torch
from torch import Tensor

from ..reference.quantize import refuse_value
from . import native


def _readable(scoremaps: Tensor) -> Tensor:
    if scoremaps.dtype not in (torch.uint8, torch.float32, torch.float64):
        scoremaps = scoremaps.float()
    return scoremaps.contiguous()


def _where(maps: Tensor, thresholds: Tensor) -> tuple:
    return (maps.data_ptr(), *maps.shape, thresholds.data_ptr(), len(thresholds))


def _options(maps: Tensor, isa: str, method: str) -> dict:
    return {"dtype": native.dtype_name(maps.dtype), "isa": isa, "method": method}


def box_sweep(
    scoremaps: Tensor, thresholds: Tensor, *, isa: str = "", method: str = "auto"
) -> Tensor:
    """Return the boxes of the largest contours, (N, T, 4) int32."""
    maps, thresholds = _readable(scoremaps), thresholds.contiguous()
    boxes = torch.empty((len(maps), len(thresholds), 4), dtype=torch.int32)
    first_bad = native.load_for_isa(isa).largest_boxes(
        *_where(maps, thresholds),
        boxes.data_ptr(),
        torch.get_num_threads(),
        **_options(maps, isa, method),
    )
    if first_bad >= 0:
        refuse_value(scoremaps, first_bad)
    return boxes


def box_sweep_all(
    scoremaps: Tensor, thresholds: Tensor, *, isa: str = "", method: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the boxes of all contours, (M, 4) int32, and offsets (N*T+1,) int64."""
    maps, thresholds = _readable(scoremaps), thresholds.contiguous()
    core, threads = native.load_for_isa(isa), torch.get_num_threads()
    found = core.AllBoxes(*_where(maps, thresholds), threads, **_options(maps, isa, method))
    if found.first_bad >= 0:
        refuse_value(scoremaps, found.first_bad)
    boxes = torch.empty((found.num_boxes, 4), dtype=torch.int32)
    offsets = torch.empty(len(maps) * len(thresholds) + 1, dtype=torch.int64)
    found.write(boxes.data_ptr(), offsets.data_ptr(), threads)
    return boxes, offsets


def best_box_iou(
    scoremaps: Tensor,
    gt_boxes: Tensor,
    gt_offsets: Tensor,
    thresholds: Tensor,
    contours: str,
    *,
    isa: str = "",
    method: str = "auto",
) -> Tensor:
    """Return the best IoU of each map at each threshold, (N, T) float64.

    gt_boxes is (M, 4) int64; map i has the boxes gt_boxes[gt_offsets[i] : gt_offsets[i + 1]].
    """
    maps, thresholds = _readable(scoremaps), thresholds.contiguous()
    gt_boxes, gt_offsets = gt_boxes.contiguous(), gt_offsets.contiguous()
    iou = torch.empty((len(maps), len(thresholds)), dtype=torch.float64)
    first_bad = native.load_for_isa(isa).best_iou(
        *_where(maps, thresholds),
        gt_boxes.data_ptr(),
        gt_offsets.data_ptr(),
        contours == "all",
        iou.data_ptr(),
        torch.get_num_threads(),
        **_options(maps, isa, method),
    )
    if first_bad >= 0:
        refuse_value(scoremaps, first_bad)
    return iou
