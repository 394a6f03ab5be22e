"""OpenCV's bilinear resize of float32 maps as tensor operations, for maps on a GPU."""

import torch
from torch import Tensor

from ..shapes import Size, map_shape


def resize_bilinear(maps: Tensor, size: Size) -> Tensor:
    """Resize maps to (H, W) bilinearly, with the roundings of OpenCV's ``resize`` on x86-64.

    A side of s positions becomes one of S. Position d of the result lies at
    ``t = (d + 1/2) * s / S - 1/2`` of the source, between ``i = floor(t)`` and ``i + 1``; beyond
    the edges the first or last value is taken. ``t`` is computed in float64, its fraction ``a`` is
    rounded to float32, and ``m[i] + a * (m[i+1] - m[i])`` is a float32 difference followed by a
    fused multiply-add. The width is resized first, then the height.

    Args:
        maps: (N, h, w) float32, finite, on any device; equal to OpenCV for h, w >= 2 (OpenCV treats
            a single row or column differently).
        size: side of the result, or its (H, W).

    Returns:
        (N, H, W) float32 on the device of `maps`. The host does not wait for it.

    Notes:
        Each operation here is rounded by itself as IEEE 754 says, so every device gives the same
        bits. They equal those of OpenCV 5.0 from PyPI on a processor with AVX2 and FMA, where
        Intel's IPP resizes float32 images (compared for h = w from 2 to 40 at 30 sizes from 1 to
        448, and some h != w). Elsewhere, or with IPP switched off, OpenCV computes
        ``m[i] * (1 - a) + m[i+1] * a`` from a float32 t. Then, in bytes, one pixel in 180,000 to
        950,000 of a CAM and one in 100,000 to 210,000 of a PC1 map differs by one level (modulo 256
        where values wrap), as measured on 400 maps of each of six sizes. Besides the result, at
        most 60 bytes per position of it are allocated.
    """
    _, h, w = maps.shape
    height, width = map_shape(size, name="size")
    left, right, a = _neighbours(w, width, maps.device)
    rows = _between(maps[:, :, left], maps[:, :, right], a)
    top, bottom, b = _neighbours(h, height, maps.device)
    return _between(rows[:, top], rows[:, bottom], b[:, None])


def _neighbours(side: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return each position's two source positions (int64) and the second one's weight (float32)."""
    t = (torch.arange(size, dtype=torch.float64, device=device) + 0.5) * (side / size) - 0.5
    first = t.floor()
    weight = (t - first).float()
    inside = (first >= 0) & (first < side - 1)
    first = first.long()
    return first.clamp(0, side - 1), (first + 1).clamp(0, side - 1), torch.where(inside, weight, 0)


def _between(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    return fused_multiply_add((end - start), weight, start)


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return ``a * b + c`` of float32 tensors, rounded once.

    The product is exact in float64. The sum is rounded to odd there, which means that the last bit
    of an inexact sum is set, so that the second rounding, to float32, cannot meet a false tie.

    Source:
        Boldo and Melquiond 2008, "Emulation of a FMA and Correctly Rounded Sums: Proved Algorithms
        Using Rounding to Odd"; the error of a sum by Knuth's TwoSum.
    """
    product, c = a.double().mul_(b.double()), c.double()
    total = product + c
    part = total - c
    error = c.sub_(total - part).add_(product.sub_(part))
    bits = total.view(torch.int64)
    # As integers, the bits grow away from zero. An even one moves by 1 towards the true sum.
    step = torch.where((error > 0) == (total > 0), 1, -1)
    odd = torch.where((error != 0) & (bits & 1 == 0), bits + step, bits)
    return odd.view(torch.float64).float()
