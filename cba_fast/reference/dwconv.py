"""The specification of depthwise convolution and its two gradients, tap by tap.

PyTorch's convolution is not called, so that these functions can check every backend, PyTorch's own
included. Half types are accumulated in float32 and rounded once; float64 is accumulated in float64.
Each tap costs a pass over the image. Results have no particular memory format.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve each channel of x with its own kernel; x counts as zero outside the image.

    y[n, c, h, w] = bias[c] + sum over i, j of weight[c, 0, i, j] * x[n, c, h+i-kh//2, w+j-kw//2].

    x (N, C, H, W), weight (C, 1, kh, kw) with kh and kw odd, bias (C,) or None -> (N, C, H, W).
    """
    acc = _accumulator(x.dtype)
    windows = _windows(x.to(acc), weight.shape[-2:])
    taps = weight.to(acc)[None, :, 0, :, :, None, None]  # [1, C, KH, KW, 1, 1]
    y = torch.zeros(x.shape, dtype=acc, device=x.device)
    for i, j, window in windows:
        y += taps[:, :, i, j] * window
    if bias is not None:
        y += bias.to(acc)[None, :, None, None]
    return y.to(x.dtype)


def depthwise_conv2d_grad_x(grad: Tensor, weight: Tensor) -> Tensor:
    """Return the input gradient: each tap adds weight * grad where the forward pass read x.

    grad (N, C, H, W), weight (C, 1, kh, kw) -> (N, C, H, W).
    """
    acc = _accumulator(grad.dtype)
    kh, kw = weight.shape[-2:]
    height, width = grad.shape[-2:]
    g = grad.to(acc)
    taps = weight.to(acc)[None, :, 0, :, :, None, None]  # [1, C, KH, KW, 1, 1]
    padded = g.new_zeros(*g.shape[:2], height + kh - 1, width + kw - 1)
    for i, j, window in _views(padded, (kh, kw), (height, width)):
        window += taps[:, :, i, j] * g
    top, left = kh // 2, kw // 2
    return padded[:, :, top : top + height, left : left + width].to(grad.dtype)


def depthwise_conv2d_grad_weight(grad: Tensor, x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return the weight gradient.

    gw[c, 0, i, j] = sum over n, h, w of grad[n, c, h, w] * x[n, c, h+i-kh//2, w+j-kw//2].

    grad and x (N, C, H, W) -> (C, 1, kh, kw).
    """
    acc = _accumulator(x.dtype)
    g = grad.to(acc)
    gw = torch.zeros((x.shape[1], 1, *kernel_size), dtype=acc, device=x.device)
    for i, j, window in _windows(x.to(acc), kernel_size):
        gw[:, 0, i, j] = (g * window).sum((0, 2, 3))
    return gw.to(x.dtype)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _windows(x: Tensor, kernel_size: Sequence[int]) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (i, j, window): what tap (i, j) reads at each output pixel, (N, C, H, W)."""
    kh, kw = kernel_size
    padded = F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2))
    return _views(padded, (kh, kw), x.shape[-2:])


def _views(padded: Tensor, kernel_size, size) -> Iterator[tuple[int, int, Tensor]]:
    kh, kw = kernel_size
    height, width = size
    for i in range(kh):
        for j in range(kw):
            yield i, j, padded[:, :, i : i + height, j : j + width]
