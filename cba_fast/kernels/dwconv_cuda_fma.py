"""Launches the float32 depthwise convolution on the FMA units (CUDA tensors)."""

import torch
from torch import Tensor

from . import cuda_core

# Blocks that fill the largest present GPU several times; a constant, so that the order of additions
# is the same on all of them.
_BLOCKS = 1536
_SMALL_PLANE, _IMAGES_AT_ONCE = 1024, 8  # of which a block takes that many at a time


def most_blocks(shape: tuple[int, int, int, int]) -> int:
    """Return a number of blocks that no launch for images (N,C,H,W) exceeds."""
    n, c, h, w = shape
    # No tile has fewer than four rows or columns, if the image has as many.
    return n * c * (h // 4 + 1) * (w // 4 + 1)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory_format: torch.memory_format,
    *,
    flip: bool = False,
) -> Tensor:
    """Return the convolution of x (N,C,H,W) with weight (C,1,kh,kw), in `memory_format`.

    Exact windows: a NaN or an infinity reaches the pixels whose window holds it, and no others.

    Args:
        flip: turn the kernel by 180 degrees, which gives the input gradient for x = grad.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() > 0:
        x, weight = _with_unit_columns(x), weight.contiguous()
        if bias is not None:
            bias = bias.contiguous()
        cuda_core.load().dwconv_fma_cuda(
            _planes(x),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            _planes(y),
            (tuple(x.shape), tuple(weight.shape[2:])),
            flip,
            *cuda_core.where(x),
        )
    return y.contiguous(memory_format=memory_format)


def grad_x(grad: Tensor, weight: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return the input gradient (N,C,H,W), in `memory_format`."""
    return forward(grad, weight, None, memory_format, flip=True)


def grad_weight(grad: Tensor, x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return the weight gradient (C,1,kh,kw), contiguous; the same bits every time."""
    out_shape = (x.shape[1], 1, *kernel_size)
    if x.numel() == 0:
        return x.new_zeros(out_shape)
    grad, x = _with_unit_columns(grad), _with_unit_columns(x)
    out = x.new_empty(out_shape)
    parts = splits(tuple(x.shape))
    partials = x.new_empty((parts, *out_shape)) if parts > 1 else None
    cuda_core.load().dwconv_fma_weight_cuda(
        _planes(grad),
        _planes(x),
        out.data_ptr(),
        0 if partials is None else partials.data_ptr(),
        parts,
        (tuple(x.shape), tuple(kernel_size)),
        *cuda_core.where(x),
    )
    return out


def splits(shape: tuple[int, int, int, int]) -> int:
    """Return into how many parts the batch is split for the weight gradient, by the shape alone."""
    n, c, h, w = shape
    at_once = _IMAGES_AT_ONCE if h * w <= _SMALL_PLANE else 1
    return max(1, min(-(-n // at_once), -(-_BLOCKS // c)))


def _with_unit_columns(x: Tensor) -> Tensor:
    """Return x, copied if its columns do not lie side by side."""
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _planes(x: Tensor) -> tuple[int, tuple[int, int, int]]:
    return x.data_ptr(), x.stride()[:3]
