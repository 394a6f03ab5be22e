"""Launches the CUDA box sweep (byte maps on a GPU); what does not fit there is swept on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import box_sweep_cpp, cuda_core

LEVELS = 255  # level L is the mask u > L
# Runs of a level for which a block has memory at first, so that four blocks share a multiprocessor.
# Levels with more of them are done with all the memory that a block may have.
FIRST_NODES = 2048
FEWEST_NODES = 1024


def refuses(scoremaps: Tensor) -> str | None:
    """Return why maps of that size cannot be swept, or None."""
    num, height, width = scoremaps.shape
    if max(height, width) >= 2**15 or cuda_nodes(height, width) < FEWEST_NODES:
        return f"maps of {height} x {width} pixels do not fit into its shared memory"
    return None if num < 2**22 else f"{num} maps are too many for a launch"


def cuda_nodes(height: int, width: int) -> int:
    """Return the most runs of a level for which a block has memory beside the mask."""
    return cuda_core.load().box_sweep_cuda_nodes(height, width)


def box_sweep(maps: Tensor, thresholds: Tensor) -> Tensor:
    """Return the boxes of the largest contours, (N, T, 4) int32, on the device of maps.

    Args:
        maps: (N, H, W) uint8.
        thresholds: (T,) float64, on the CPU.
    """
    levels = _levels(maps, thresholds)
    boxes = torch.zeros((len(maps), LEVELS, 4), dtype=torch.int32, device=maps.device)
    left = _run(maps, levels, all_contours=False, boxes=boxes)
    found = boxes.gather(1, levels[..., None].expand(-1, -1, 4))
    return _mend(found, left, lambda: box_sweep_cpp.box_sweep(maps[left].cpu(), thresholds))


def box_sweep_all(maps: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boxes of all contours, (M, 4) int32, and offsets (N*T+1,) int64.

    The batch is swept on the CPU if one of its maps does not fit.
    """
    levels = _levels(maps, thresholds)
    counts = torch.zeros(len(maps) * LEVELS, dtype=torch.int32, device=maps.device)
    left = _run(maps, levels, all_contours=True, counts=counts)
    if len(left):
        found = box_sweep_cpp.box_sweep_all(maps.cpu(), thresholds)
        return found[0].to(maps.device), found[1].to(maps.device)
    ends = counts.cumsum(0)
    starts = ends - counts
    boxes = torch.empty((int(counts.sum()), 4), dtype=torch.int32, device=maps.device)
    _run(maps, levels, all_contours=True, boxes=boxes, starts=starts)
    x0, y0, x1, y1 = boxes.long().unbind(1)
    order = (((x0 << 15 | y0) << 15 | x1) << 15 | y1).argsort()
    owner = torch.arange(len(counts), device=maps.device).repeat_interleave(counts)
    boxes = boxes[order[owner[order].argsort(stable=True)]]
    first = torch.arange(len(maps), device=maps.device) * LEVELS
    chosen = (first[:, None] + levels).flatten()  # a map may have a level at several thresholds
    each = counts[chosen].long()
    offsets = torch.cat([each.new_zeros(1), each.cumsum(0)])
    place = torch.arange(int(offsets[-1]), device=maps.device)
    return boxes[place + (starts[chosen] - offsets[:-1]).repeat_interleave(each)], offsets


def best_box_iou(
    maps: Tensor, gt_boxes: Tensor, gt_offsets: Tensor, thresholds: Tensor, contours: str
) -> Tensor:
    """Return the best IoU of each map at each threshold, (N, T) float64, on the device of maps.

    gt_boxes is (M, 4) int64; map i has the boxes gt_boxes[gt_offsets[i] : gt_offsets[i + 1]].
    """
    levels = _levels(maps, thresholds)
    iou = torch.zeros((len(maps), LEVELS), dtype=torch.float64, device=maps.device)
    truth = {"truth": gt_boxes.to(maps.device), "offsets": gt_offsets.to(maps.device)}
    left = _run(maps, levels, all_contours=contours == "all", iou=iou, **truth)

    def on_cpu() -> Tensor:
        ranges = [gt_boxes[gt_offsets[i] : gt_offsets[i + 1]] for i in left.tolist()]
        offsets = torch.tensor([0, *map(len, ranges)]).cumsum(0)
        arguments = maps[left].cpu(), torch.cat(ranges), offsets, thresholds, contours
        return box_sweep_cpp.best_box_iou(*arguments)

    return _mend(iou.gather(1, levels), left, on_cpu)


def _levels(maps: Tensor, thresholds: Tensor) -> Tensor:
    """Return int(t * max u), (N, T) int64."""
    maxima = maps.flatten(1).amax(1).double()
    return (maxima[:, None] * thresholds.to(maps.device)).long()


def _run(maps: Tensor, levels: Tensor, *, all_contours: bool, **tensors: Tensor) -> Tensor:
    """Compute the levels that thresholds need; return the maps that have too many runs for it."""
    maps, core = maps.contiguous(), cuda_core.load()
    done = torch.ones((len(maps), LEVELS), dtype=torch.uint8, device=maps.device)
    done = done.scatter_(1, levels, 0).flatten()
    pairs = (done == 0).nonzero().flatten()  # waits
    names = ("boxes", "starts", "counts", "iou", "truth", "offsets")
    given = [tensors[name].contiguous() if name in tensors else None for name in names]
    addresses = [0 if value is None else value.data_ptr() for value in given]
    most = cuda_nodes(*maps.shape[1:])
    for nodes in (min(FIRST_NODES, most), most):
        todo = pairs.data_ptr(), len(pairs), nodes, done.data_ptr()
        core.box_sweep_cuda(
            *(maps.data_ptr(), maps.shape, all_contours, *todo, *addresses), *cuda_core.where(maps)
        )
        pairs = pairs[done[pairs] == 0]  # waits
        if not len(pairs):
            break
    return (pairs // LEVELS).unique()


def _mend(found: Tensor, left: Tensor, on_cpu: Callable[[], Tensor]) -> Tensor:
    if len(left):
        found[left] = on_cpu().to(found.device)
    return found
