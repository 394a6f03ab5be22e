"""Launches the C++ depthwise convolution (CPU tensors; float32, bfloat16 or float16)."""

import torch
from torch import Tensor

from . import native

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory_format: torch.memory_format,
    algorithm: str,
    *,
    turned: bool = False,
    isa: str = "",
) -> Tensor:
    """Return the convolution of x (N,C,H,W) with weight (C,1,kh,kw), in `memory_format`.

    Args:
        algorithm: "fft" or "direct".
        turned: turn the kernel by 180 degrees, which gives the input gradient for x = grad.
        isa: the instruction set; empty for the best one.
    """
    x, weight = _readable(x), weight.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, memory_format=memory_format)
    if bias is not None:
        bias = bias.float().contiguous()
    native.load_for_isa().depthwise_conv2d(
        _planes(x),
        _kernel_planes(weight),
        0 if bias is None else bias.data_ptr(),
        _planes(y),
        _DTYPES[x.dtype],
        *x.shape[:2],
        turned,
        algorithm,
        isa,
        torch.get_num_threads(),
    )
    return y


def grad_x(
    grad: Tensor,
    weight: Tensor,
    memory_format: torch.memory_format,
    algorithm: str,
    *,
    isa: str = "",
) -> Tensor:
    """Return the input gradient (N,C,H,W), in `memory_format`."""
    return forward(grad, weight, None, memory_format, algorithm, turned=True, isa=isa)


def grad_weight(
    grad: Tensor, x: Tensor, kernel_size: tuple[int, int], algorithm: str, *, isa: str = ""
) -> Tensor:
    """Return the weight gradient (C,1,kh,kw), contiguous."""
    grad, x = _readable(grad), _readable(x)
    # Zeros: the FFT kernel leaves out taps that lie outside of the image everywhere.
    weight = x.new_zeros((x.shape[1], 1, *kernel_size))
    native.load_for_isa().depthwise_conv2d_grad_weight(
        _planes(grad),
        _planes(x),
        _kernel_planes(weight),
        _DTYPES[x.dtype],
        *x.shape[:2],
        algorithm,
        isa,
        torch.get_num_threads(),
    )
    return weight


def _strides(x: Tensor) -> tuple[int, ...]:
    """Return x's strides, 1 in dimensions of size 1 (theirs may be anything)."""
    shape, strides = x.shape, x.stride()
    if 1 not in shape:
        return strides
    return tuple([s if n > 1 else 1 for n, s in zip(shape, strides, strict=True)])


def _readable(x: Tensor) -> Tensor:
    """Return x, copied if neither its channels nor its columns lie side by side."""
    _, c, _, w = _strides(x)
    return x if 1 in (c, w) else x.contiguous()


def _planes(x: Tensor) -> tuple:
    return x.data_ptr(), x.shape[2], x.shape[3], _strides(x)


def _kernel_planes(weight: Tensor) -> tuple:
    kh, kw = weight.shape[-2:]
    return weight.data_ptr(), kh, kw, (0, kh * kw, kw, 1)
