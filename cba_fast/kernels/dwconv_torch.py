"""Depthwise convolution by PyTorch's own kernels, as they are or avoiding their faults on CPUs.

`conv2d`, `conv2d_grad_x` and `conv2d_grad_weight` are what `torch.nn.Conv2d` does. On CPUs the
other functions differ from them in three things. The figures are for torch 2.15 with oneDNN on two
cores with AVX-512.

- The float32 weight gradient is computed in channels_last. In NCHW oneDNN returns wrong values for
  kernels of at least 33 rows and at most 3 columns that are not taller than the image: relative
  errors of 7 to 24 % in 44 of 1393 random shapes, 14 % for 51x1 at 96x96. In channels_last all 1393
  agreed with float64 to 4e-6, and it is no slower.
- Half types are computed in float32 and rounded once. This accumulates in float32 and is 5 to 100
  times faster than the half loops of PyTorch (31x31 at 64x48x48: 66 ms instead of 338 in NCHW, 6
  instead of 511 in channels_last). The exception is bfloat16 on processors for which oneDNN has it:
  it rounds once, too, and does without the copies (51x1 at 128x96x96: 2.4 ms instead of 8.4). But
  not for kernels wider than 9, for which its forward pass of torch 2.14 does not return on some
  maps (1x51 on 64x64, 31x31 on 64x64), nor for weight gradients, which have the fault above.
- A float32 forward pass in NCHW with a kernel wider than 9 is computed in channels_last, because
  oneDNN has no fast NCHW kernel for it (31x31 at 128x96x96: 60 ms with both copies instead of 587).
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_WIDEST_FAST_NCHW = 9
_WIDEST_IN_BF16 = 9


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of x (N, C, H, W) with weight (C, 1, kh, kw)."""
    if _needs_float32(x, weight.shape[2:]):
        wide_bias = None if bias is None else bias.float()
        return forward(x.float(), weight.float(), wide_bias).to(x.dtype)
    if _float32_on_cpu(x) and weight.shape[3] > _WIDEST_FAST_NCHW:
        x = x.to(memory_format=torch.channels_last)
    return conv2d(x, weight, bias)


def grad_x(grad: Tensor, weight: Tensor) -> Tensor:
    """Return the input gradient (N, C, H, W)."""
    if _needs_float32(grad, weight.shape[2:]):
        return grad_x(grad.float(), weight.float()).to(grad.dtype)
    return conv2d_grad_x(grad, weight)


def grad_weight(grad: Tensor, x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return the weight gradient (C, 1, kh, kw)."""
    if _half_on_cpu(x):
        return grad_weight(grad.float(), x.float(), kernel_size).to(x.dtype)
    if _float32_on_cpu(x):
        grad = grad.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    return conv2d_grad_weight(grad, x, kernel_size)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution as `torch.nn.Conv2d` computes it."""
    kh, kw = weight.shape[-2:]
    return F.conv2d(x, weight, bias, padding=(kh // 2, kw // 2), groups=x.shape[1])


def conv2d_grad_x(grad: Tensor, weight: Tensor) -> Tensor:
    """Return the input gradient as `torch.nn.Conv2d` computes it."""
    # Only the input's shape and strides are read, and the gradient has the same ones.
    return _convolution_backward(grad, grad, weight, [True, False, False])[0]


def conv2d_grad_weight(grad: Tensor, x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return the weight gradient as `torch.nn.Conv2d` computes it."""
    weight = x.new_empty((x.shape[1], 1, *kernel_size))  # only its shape is read
    return _convolution_backward(grad, x, weight, [False, True, False])[1]


def _half_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in _HALF


def _needs_float32(x: Tensor, kernel_size: tuple[int, ...]) -> bool:
    if not _half_on_cpu(x):
        return False
    narrow = kernel_size[1] <= _WIDEST_IN_BF16
    by_onednn = x.dtype == torch.bfloat16 and torch.backends.mkldnn.enabled and _onednn_has_bf16()
    return not (narrow and by_onednn)


def may_hang(x: Tensor, kernel_size: tuple[int, int]) -> bool:
    """Say whether `conv2d` or a gradient of it may not return (see above)."""
    bfloat16 = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return bfloat16 and kernel_size[1] > _WIDEST_IN_BF16 and _onednn_has_bf16()


@functools.cache
def _onednn_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _float32_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, mask: list[bool]):
    kh, kw = weight.shape[-2:]
    padding = [kh // 2, kw // 2]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], x.shape[1], mask
    )
