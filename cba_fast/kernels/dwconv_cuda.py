"""Launches the CUDA depthwise convolution: half types on tensor cores, float32 on the FMA units.

Strips have kernels of their own, which are another backend: ``dwconv_gpu/cuda_strip``.
"""

import torch
from torch import Tensor

from .dwconv_gpu import cuda_fma, cuda_hankel

_KERNELS = {
    torch.float32: cuda_fma,
    torch.bfloat16: cuda_hankel,
    torch.float16: cuda_hankel,
}
DTYPES = tuple(_KERNELS)
EXACT_WINDOWS = (torch.float32,)  # a NaN reaches only the pixels whose window holds it


def most_blocks(image: Tensor) -> int:
    """Return a number of blocks that no launch for images like `image` (N,C,H,W) exceeds."""
    return _KERNELS[image.dtype].most_blocks(tuple(image.shape))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory_format: torch.memory_format,
    *,
    relu: bool = False,
) -> Tensor:
    """Return the convolution of x (N,C,H,W) with weight (C,1,kh,kw), in `memory_format`.

    Args:
        relu: return max(0, y) instead of y.
    """
    return _KERNELS[x.dtype].forward(x, weight, bias, memory_format, relu=relu)


def grad_x(grad: Tensor, weight: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return the input gradient (N,C,H,W), in `memory_format`."""
    return _KERNELS[grad.dtype].forward(grad, weight, None, memory_format, flip=True)


def grad_weight(grad: Tensor, x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return the weight gradient (C,1,kh,kw), contiguous; the same bits every time."""
    return _KERNELS[x.dtype].grad_weight(grad, x, kernel_size)
