"""Boxes of score maps at many thresholds and their IoU with ground truth, for MaxBoxAcc."""

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from ..kernels import box_sweep_cpp, cuda_core, native
from ..kernels.gpu import box_sweep_cuda
from ..reference import box_sweep as reference
from .backends import Backend, BackendTable, expect
from .library import backend_argument, register, requested
from .quantize import as_scoremaps, as_tensor, quantize

CONTOURS = ("largest", "all")


@overload
def box_sweep(
    scoremaps: Tensor | np.ndarray,
    thresholds: Tensor | np.ndarray | Sequence[float],
    *,
    contours: Literal["largest"] = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def box_sweep(
    scoremaps: Tensor | np.ndarray,
    thresholds: Tensor | np.ndarray | Sequence[float],
    *,
    contours: str,
    backend: str | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def box_sweep(
    scoremaps: Tensor | np.ndarray,
    thresholds: Tensor | np.ndarray | Sequence[float],
    *,
    contours: str = "largest",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Find the boxes of score maps at every threshold.

    With u = uint8(255 * m) the mask at threshold t is u > int(t * max u). Its contours are
    8-connected and include the borders of holes. A contour with the bounding rectangle x0, y0, w, h
    has the box x0, y0, min(x0 + w, W - 1), min(y0 + h, H - 1). A mask without contour has the box
    0, 0, 0, 0.

    Args:
        scoremaps: m, (N, H, W), floating in [0, 1], or u itself as uint8; a CPU or CUDA tensor or
            an array.
        thresholds: t, (T,), each in [0, 1), in any order, duplicates allowed; taken as float64.
        contours: ``"largest"`` for the contour of largest area (among equals the one that
            `cv2.findContours` lists first), or ``"all"``.
        backend: ``"cuda"``, ``"cpp"``, ``"reference"``, or None for the fastest that can run (the
            CUDA kernel after it has passed a self-check on that GPU).

    Returns:
        For ``"largest"`` the boxes, (N, T, 4) int32. For ``"all"`` a pair of boxes, (M, 4) int32,
        and offsets, (N*T+1,) int64: map i has at threshold j the boxes
        boxes[offsets[i*T+j] : offsets[i*T+j+1]], sorted by x0, y0, x1, y1. On the device of
        `scoremaps`.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: a shape is wrong, a value of `scoremaps` or `thresholds` is NaN or out of range,
            `contours` is unknown, or `backend` cannot run.

    Notes:
        ``"cuda"`` sweeps CUDA maps where they are; maps with thousands of runs in a level (noise)
        and those above some 700 x 700 pixels go to the CPU. The other backends work on the CPU:
        CUDA maps are quantized on the GPU, and their bytes are moved. The boxes do not depend on
        the backend and the number of threads. ``"cpp"`` gives each map to one thread and builds a
        tree of row segments, which takes 0.2 to 0.4 ms for a smooth map of 224x224 with AVX2,
        however many thresholds there are. Maps with very many local maxima are swept by a
        union-find over pixels instead.

    Source:
        Choe et al., CVPR 2020; bit-exact with ``compute_bboxes_from_scoremaps`` of
        clovaai/wsolevaluation (which orders the boxes of a map as OpenCV does).

    Example:
        >>> import torch
        >>> from cba_fast.ops import box_sweep
        >>> scoremaps = torch.zeros(1, 8, 8)
        >>> scoremaps[0, 2:6, 1:4] = torch.tensor([0.4, 1.0, 0.4])
        >>> box_sweep(scoremaps, [0.1, 0.5])  # x0, y0, x1, y1 at each threshold
        tensor([[[1, 2, 4, 6],
                 [2, 2, 3, 6]]], dtype=torch.int32)
        >>> boxes, offsets = box_sweep(scoremaps, [0.1, 0.5], contours="all")
        >>> offsets.tolist()
        [0, 1, 2]
    """
    _check_contours(contours)
    ops = torch.ops.cba_fast
    op = ops.box_sweep.default if contours == "largest" else ops.box_sweep_all.default
    return op(as_scoremaps(scoremaps), _as_thresholds(thresholds), backend_argument(backend))


def best_box_iou(
    scoremaps: Tensor | np.ndarray,
    gt_boxes: Sequence[Tensor | np.ndarray] | tuple[Tensor | np.ndarray, Tensor | np.ndarray],
    thresholds: Tensor | np.ndarray | Sequence[float],
    *,
    contours: str = "largest",
    backend: str | None = None,
) -> Tensor:
    """Find the best IoU between estimated and ground-truth boxes at every threshold.

    IoU = I / (A + B - I) in float64, with inclusive corners: the area of a box is
    (x1 - x0 + 1) * (y1 - y0 + 1). The estimated boxes are those of `box_sweep`.

    Args:
        scoremaps, thresholds, contours, backend: as for `box_sweep`.
        gt_boxes: for each map an integer array (G_i, 4) of x0, y0, x1, y1 with G_i >= 1, in pixels
            of the map; boxes may reach beyond it. Or a pair of boxes (N, G, 4) and counts (N,):
            map i then has its first counts[i] boxes.

    Returns:
        (N, T) float64: the maximum over the estimated and the ground-truth boxes of each map, on
        the device of `scoremaps`.

    Raises:
        TypeError, ValueError: as `box_sweep`; also if boxes are not integer, have a wrong shape or
            number, are negative, or have x1 < x0 or y1 < y0.

    Source:
        Choe et al., CVPR 2020; bit-exact with ``calculate_multiple_iou`` of clovaai/wsolevaluation.

    Example:
        >>> import torch
        >>> from cba_fast.ops import best_box_iou
        >>> scoremaps = torch.zeros(1, 8, 8)
        >>> scoremaps[0, 2:6, 1:4] = torch.tensor([0.4, 1.0, 0.4])
        >>> best_box_iou(scoremaps, [torch.tensor([[1, 2, 4, 6]])], [0.1, 0.5])
        tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """
    _check_contours(contours)
    maps = as_scoremaps(scoremaps)
    boxes, counts = _pack_boxes(gt_boxes, maps.shape[0])
    return torch.ops.cba_fast.best_box_iou.default(
        maps, boxes, counts, _as_thresholds(thresholds), contours, backend_argument(backend)
    )


def _check_contours(contours: str) -> None:
    if contours not in CONTOURS:
        raise ValueError(f"contours must be one of {CONTOURS}, got {contours!r}")


def _as_thresholds(thresholds) -> Tensor:
    if not isinstance(thresholds, Tensor):
        thresholds = torch.from_numpy(np.array(thresholds, dtype=np.float64))
    thresholds = thresholds.to("cpu", torch.float64)
    if thresholds.dim() != 1:
        raise ValueError(f"thresholds must have the shape (T,), got {tuple(thresholds.shape)}")
    return thresholds


def _integers(value, name: str) -> Tensor:
    value = as_tensor(value, name)
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise TypeError(f"{name} must be integer, got {value.dtype}")
    return value.to("cpu", torch.int64)


def _pack_boxes(gt_boxes, num_maps: int) -> tuple[Tensor, Tensor]:
    """Return the boxes of all maps, (M, 4), and the number of boxes of each map, (N,), as int64."""
    if isinstance(gt_boxes, tuple) and len(gt_boxes) == 2 and np.ndim(gt_boxes[0]) == 3:
        boxes, counts = (_integers(v, "gt_boxes") for v in gt_boxes)
        if boxes.shape[::2] != (num_maps, 4) or counts.shape != (num_maps,):
            raise ValueError(
                f"gt_boxes must be boxes (N, G, 4) and counts (N,) with N = {num_maps}, got "
                f"{tuple(boxes.shape)} and {tuple(counts.shape)}"
            )
        if (counts > boxes.shape[1]).any():
            raise ValueError(f"gt_boxes: a count of {int(counts.max())} for {boxes.shape[1]} boxes")
        return boxes[torch.arange(boxes.shape[1]) < counts[:, None]], counts
    if len(gt_boxes) != num_maps:
        raise ValueError(f"gt_boxes has boxes of {len(gt_boxes)} maps, scoremaps has {num_maps}")
    # NumPy is used because a call of PyTorch for each map would take longer than its sweep.
    rows = [b.numpy(force=True) if isinstance(b, Tensor) else np.asarray(b) for b in gt_boxes]
    for i, row in enumerate(rows):
        if row.ndim != 2 or row.shape[1] != 4 or len(row) == 0:
            raise ValueError(f"gt_boxes[{i}] must be (G, 4) with G >= 1, got {row.shape}")
        if row.dtype.kind not in "iu":
            raise TypeError(f"gt_boxes[{i}] must be integer, got {row.dtype}")
    every = np.concatenate([np.empty((0, 4), np.int64), *(row.astype(np.int64) for row in rows)])
    numbers = np.array([len(row) for row in rows], np.int64)
    return torch.from_numpy(every), torch.from_numpy(numbers)


def _cpp_refuses(scoremaps: Tensor) -> str | None:
    height, width = scoremaps.shape[1:]
    if (height + 2) * (width + 2) < 2**30:
        return None
    return f"maps of {height} x {width} pixels are too large for it"


def _cuda_refuses(scoremaps: Tensor) -> str | None:
    if scoremaps.device.type != "cuda":
        return f"the tensor is on {scoremaps.device}"
    return cuda_core.refuses(scoremaps.device) or box_sweep_cuda.refuses(scoremaps)


def _self_check(device: torch.device) -> None:
    y, x = np.mgrid[:33, :40]
    waves = 120 + 80 * np.sin(x / 3) * np.cos(y / 4) + 40 * np.sin(x * y / 7)
    maps = np.stack([waves, 240 - waves]).astype(np.uint8)
    thresholds, offsets = np.arange(0, 1, 0.07), np.array([0, 1, 3])
    truth = np.array([[3, 2, 20, 25], [0, 0, 12, 7], [15, 9, 39, 32]])
    found = torch.from_numpy(maps).to(device), torch.from_numpy(thresholds)
    boxes = torch.from_numpy(reference.box_sweep(maps, thresholds))
    expect(box_sweep_cuda.box_sweep(*found), boxes)
    for result, expected in zip(
        box_sweep_cuda.box_sweep_all(*found), reference.box_sweep_all(maps, thresholds)
    ):
        expect(result, torch.from_numpy(expected))
    for contours in CONTOURS:
        iou = reference.best_box_iou(maps, truth, offsets, thresholds, contours)
        gt = torch.from_numpy(truth), torch.from_numpy(offsets)
        result = box_sweep_cuda.best_box_iou(found[0], *gt, found[1], contours)
        expect(result, torch.from_numpy(iou))


_BACKENDS = [
    Backend("cuda", _cuda_refuses, native.cuda_unavailable, _self_check),
    Backend("cpp", _cpp_refuses, native.unavailable),
    Backend("reference", lambda scoremaps: None),
]
TABLE = BackendTable("box_sweep", _BACKENDS)
IOU_TABLE = BackendTable("best_box_iou", _BACKENDS)
_KERNELS = {"cuda": box_sweep_cuda, "cpp": box_sweep_cpp}

# The registered ops can be called directly, too, so that all that a backend relies on is checked in
# them and not in the public functions.


def _check_layout(name: str, value: Tensor, dtype: torch.dtype, shape: tuple) -> None:
    """Refuse what a backend that reads addresses would misread; None in `shape` fits any length."""
    fits = len(shape) == value.dim() and all(
        want in (None, have) for want, have in zip(shape, value.shape)
    )
    if not fits:
        sides = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} must have the shape ({sides}), got {tuple(value.shape)}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}")
    if value.device.type != "cpu":
        raise ValueError(f"{name} must lie on the CPU, not on {value.device}")


def _check_thresholds(thresholds: Tensor) -> None:
    _check_layout("thresholds", thresholds, torch.float64, (None,))
    values = thresholds.numpy()  # many times faster than PyTorch for few numbers
    inside = (values >= 0) & (values < 1)
    if not inside.all():
        raise ValueError(f"thresholds must lie in [0, 1), got {values[~inside][0]}")


def _maps_for(backend: str, scoremaps: Tensor) -> Tensor:
    """Return the maps as `backend` reads them: bytes, or floating maps for "cpp".

    Only "cuda" reads them on a GPU. The C++ core quantizes each row as it reads it, which saves a
    pass over the batch. Maps on a GPU are quantized there, because bytes are moved faster. The
    boxes are the same either way.
    """
    if backend == "cuda":
        return quantize(scoremaps)
    if scoremaps.dtype == torch.uint8 or (backend == "cpp" and scoremaps.device.type == "cpu"):
        return scoremaps.cpu()
    return quantize(scoremaps, backend="reference" if backend == "reference" else None).cpu()


def _check_boxes(boxes: Tensor, counts: Tensor, num_maps: int) -> None:
    _check_layout("gt_boxes", boxes, torch.int64, (None, 4))
    _check_layout("gt_counts", counts, torch.int64, (num_maps,))
    b, num = boxes.numpy(), counts.numpy()
    if (num < 1).any():
        raise ValueError(f"gt_boxes: map {np.argmax(num < 1)} has no box")
    if sum(num.tolist()) != len(b):  # as Python integers, which cannot overflow
        raise ValueError(f"gt_counts: {sum(num.tolist())} boxes in all, gt_boxes has {len(b)}")
    bad = ((b[:, 2:] < b[:, :2]) | (b[:, :2] < 0) | (b[:, 2:] >= 2**31)).any(1)
    if bad.any():
        row = int(np.argmax(bad))
        owner = int(np.searchsorted(num.cumsum(), row, side="right"))
        raise ValueError(
            f"gt_boxes: map {owner} has the box {b[row].tolist()}; boxes are x0, y0, x1, y1 "
            "with 0 <= x0 <= x1 and 0 <= y0 <= y1, below 2**31"
        )


def _box_sweep(scoremaps: Tensor, thresholds: Tensor, backend: str) -> Tensor:
    scoremaps = as_scoremaps(scoremaps)
    _check_thresholds(thresholds)
    chosen = TABLE.resolve(requested(backend), scoremaps)
    maps = _maps_for(chosen, scoremaps)
    if chosen in _KERNELS:
        boxes = _KERNELS[chosen].box_sweep(maps, thresholds)
    else:
        boxes = torch.from_numpy(reference.box_sweep(maps.numpy(), thresholds.numpy()))
    return boxes.to(scoremaps.device)


def _box_sweep_fake(scoremaps, thresholds, backend):
    shape = (scoremaps.shape[0], thresholds.shape[0], 4)
    return scoremaps.new_empty(shape, dtype=torch.int32)


def _box_sweep_all(scoremaps: Tensor, thresholds: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    scoremaps = as_scoremaps(scoremaps)
    _check_thresholds(thresholds)
    chosen = TABLE.resolve(requested(backend), scoremaps)
    maps = _maps_for(chosen, scoremaps)
    if chosen in _KERNELS:
        boxes, offsets = _KERNELS[chosen].box_sweep_all(maps, thresholds)
    else:
        found = reference.box_sweep_all(maps.numpy(), thresholds.numpy())
        boxes, offsets = map(torch.from_numpy, found)
    return boxes.to(scoremaps.device), offsets.to(scoremaps.device)


def _box_sweep_all_fake(scoremaps, thresholds, backend):
    num_boxes = torch.library.get_ctx().new_dynamic_size()
    num_offsets = scoremaps.shape[0] * thresholds.shape[0] + 1
    return (
        scoremaps.new_empty((num_boxes, 4), dtype=torch.int32),
        scoremaps.new_empty((num_offsets,), dtype=torch.int64),
    )


def _best_box_iou(scoremaps, gt_boxes, gt_counts, thresholds, contours, backend):
    scoremaps = as_scoremaps(scoremaps)
    _check_thresholds(thresholds)
    _check_contours(contours)
    _check_boxes(gt_boxes, gt_counts, len(scoremaps))
    chosen = IOU_TABLE.resolve(requested(backend), scoremaps)
    maps = _maps_for(chosen, scoremaps)
    offsets = torch.cat([gt_counts.new_zeros(1), gt_counts.cumsum(0)])
    if chosen in _KERNELS:
        iou = _KERNELS[chosen].best_box_iou(maps, gt_boxes, offsets, thresholds, contours)
    else:
        boxes, ends = gt_boxes.numpy(), offsets.numpy()
        found = reference.best_box_iou(maps.numpy(), boxes, ends, thresholds.numpy(), contours)
        iou = torch.from_numpy(found)
    return iou.to(scoremaps.device)


def _best_box_iou_fake(scoremaps, gt_boxes, gt_counts, thresholds, contours, backend):
    shape = (scoremaps.shape[0], thresholds.shape[0])
    return scoremaps.new_empty(shape, dtype=torch.float64)


register(
    "box_sweep(Tensor scoremaps, Tensor thresholds, str backend) -> Tensor",
    _box_sweep,
    _box_sweep_fake,
)
register(
    "box_sweep_all(Tensor scoremaps, Tensor thresholds, str backend) -> (Tensor, Tensor)",
    _box_sweep_all,
    _box_sweep_all_fake,
)
register(
    "best_box_iou(Tensor scoremaps, Tensor gt_boxes, Tensor gt_counts, Tensor thresholds, "
    "str contours, str backend) -> Tensor",
    _best_box_iou,
    _best_box_iou_fake,
)
