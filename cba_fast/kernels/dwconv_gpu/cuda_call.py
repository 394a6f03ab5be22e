"""Calls a CUDA kernel of the depthwise convolution with a tile that the other modules choose."""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import cuda_core, native


def forward(
    kernel: str,
    choose: Callable[[tuple, tuple], tuple[int, ...]],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory_format: torch.memory_format,
    *,
    flip: bool = False,
    relu: bool = False,
    using: tuple[int, ...] | None = None,
) -> Tensor:
    """Return the convolution of x (N,C,H,W) with weight (C,1,kh,kw), in `memory_format`.

    Args:
        kernel: the kernel's name in the compiled core.
        choose: a function of the shape of x and (kh, kw) that returns the tile: the fields of the
            kernel's tile struct in csrc/cuda, in order.
        flip: turn the kernel by 180 degrees, which gives the input gradient for x = grad.
        relu: return max(0, y) instead of y.
        using: the tile; None for the one of `choose`.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    if x.numel() == 0:
        return y
    out = y if y.is_contiguous() else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    using = choose(tuple(x.shape), tuple(weight.shape[2:])) if using is None else using
    x, weight = with_unit_columns(x), weight.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    getattr(cuda_core.load(), kernel)(
        _images(x),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        _images(out),
        native.dtype_name(x.dtype),
        (*x.shape, *weight.shape[2:]),
        flip,
        relu,
        using,
        *cuda_core.where(x),
    )
    return y if out is y else y.copy_(out)


def grad_weight(
    kernel: str,
    grad: Tensor,
    x: Tensor,
    kernel_size: tuple[int, int],
    splits: int,
    tile: tuple[int, ...] = (),
    *,
    partials: bool = True,
) -> Tensor:
    """Return the weight gradient (C,1,kh,kw) of images that are not empty, contiguous.

    Args:
        kernel: as `forward`.
        tile: the fields of the kernel's tile struct.
        splits: how many parts of the batch the kernel sums separately.
        partials: whether the kernel needs memory for these sums.
    """
    grad, x = with_unit_columns(grad), with_unit_columns(x)
    gw = torch.empty((x.shape[1], 1, *kernel_size), dtype=x.dtype, device=x.device)
    sums = None
    if partials:
        sums = torch.empty((splits, *gw.shape), dtype=torch.float32, device=x.device)
    getattr(cuda_core.load(), kernel)(
        _images(grad),
        _images(x),
        gw.data_ptr(),
        0 if sums is None else sums.data_ptr(),
        splits,
        native.dtype_name(x.dtype),
        (*x.shape, *kernel_size),
        tile,
        *cuda_core.where(x),
    )
    return gw


def with_unit_columns(x: Tensor) -> Tensor:
    """Return x, or a contiguous copy if its columns are not contiguous.

    A copy is bound by memory; a kernel that read every C-th number would move 16 times the bytes.
    """
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _images(x: Tensor) -> tuple[int, tuple[int, ...]]:
    return x.data_ptr(), x.stride()[:3]
