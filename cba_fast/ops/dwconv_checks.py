"""Checks the arguments of the depthwise convolution ops, and tells the format of their results.

The ops' kernels and fakes use the same functions.
"""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAX_KERNEL = 63
ACTIVATIONS = ("none", "relu")


def check_image(name: str, x: Tensor) -> None:
    """Refuse an image that is not (N, C, H, W) or of another dtype than `DTYPES`."""
    if x.dim() != 4:
        raise ValueError(f"{name} must have shape (N, C, H, W), got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {x.dtype}")


def _check_like(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        raise TypeError(f"{name} and {other_name} differ in dtype: {value.dtype} and {other.dtype}")
    if value.device != other.device:
        raise ValueError(f"{name} is on {value.device}, {other_name} on {other.device}")


def kernel_sides(kernel_size: int | Sequence[int]) -> list[int]:
    """Return one integer or two as [kh, kw]; raise a `TypeError` for anything else."""
    if isinstance(kernel_size, Sequence):
        return [operator.index(k) for k in kernel_size]
    return [operator.index(kernel_size)] * 2


def check_kernel_size(kernel_size: Sequence[int]) -> None:
    """Refuse what is not two odd numbers from 1 to `MAX_KERNEL`."""
    size = tuple(kernel_size)
    if len(size) != 2 or any(k % 2 == 0 or not 1 <= k <= MAX_KERNEL for k in size):
        raise ValueError(f"the kernel size must be two odd numbers, 1 to {MAX_KERNEL}, got {size}")


def check_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none"
) -> torch.memory_format:
    """Refuse arguments that `depthwise_conv2d` cannot take; return its result's memory format."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    memory_format = check_grad_x(x, weight, "x")
    if bias is not None:
        _check_like("bias", bias, "x", x)
        if bias.dim() != 1 or bias.shape[0] != x.shape[1]:
            raise ValueError(
                f"bias must have shape ({x.shape[1]},), one per channel of x, got "
                f"{tuple(bias.shape)}"
            )
    return memory_format


def check_grad_x(grad: Tensor, weight: Tensor, name: str = "grad") -> torch.memory_format:
    """Refuse arguments that `depthwise_conv2d_grad_x` cannot take; return its memory format.

    Args:
        name: what messages call `grad`.
    """
    check_image(name, grad)
    if weight.dim() != 4 or weight.shape[1] != 1 or weight.shape[0] != grad.shape[1]:
        raise ValueError(
            f"weight must have shape (C, 1, kh, kw) with C = {grad.shape[1]}, the channels of "
            f"{name}, got {tuple(weight.shape)}"
        )
    check_kernel_size(weight.shape[2:])
    _check_like("weight", weight, name, grad)
    return output_format(grad, weight)


def check_grad_weight(grad: Tensor, x: Tensor, kernel_size: list[int]) -> None:
    """Refuse arguments that `depthwise_conv2d_grad_weight` cannot take."""
    check_image("grad", grad)
    check_image("x", x)
    _check_like("grad", grad, "x", x)
    if grad.shape != x.shape:
        raise ValueError(f"grad and x differ in shape: {tuple(grad.shape)} and {tuple(x.shape)}")
    check_kernel_size(kernel_size)


def is_channels_last(t: Tensor) -> bool:
    """Say whether `conv2d` would take `t` (4-D) for channels_last.

    The order of strides decides, C < W < H < N, so that slices of channels_last tensors count. A
    tensor that is both (1x1 maps or one channel) is contiguous unless its strides tell otherwise.
    """
    n, c, h, w = t.stride()
    if c > w or c == 0:  # contiguous, or expanded over channels
        return False
    smallest = 0
    for size, stride in ((t.shape[1], c), (t.shape[3], w), (t.shape[2], h)):
        if stride < smallest:
            return False
        smallest = stride * size if size > 1 else stride
    return n >= smallest and smallest != c


def output_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return the memory format that `conv2d` would give the result."""
    if is_channels_last(x) or is_channels_last(weight):
        return torch.channels_last
    return torch.contiguous_format
