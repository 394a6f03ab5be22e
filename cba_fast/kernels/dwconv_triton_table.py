"""The blocks of the Triton depthwise convolution, by architecture, element size and shape."""

from typing import NamedTuple

import torch


class Blocks(NamedTuple):
    """What one program computes and with what.

    Attributes:
        m, n, k: rows and columns of its results, depth of one step; 0 where the kernel's shape
            leaves no choice.
        warps: of 32 threads.
        stages: of the pipeline that loads operands ahead.
    """

    m: int = 0
    n: int = 0
    k: int = 0
    warps: int = 4
    stages: int = 1


def blocks(kernel: str, arch: str, dtype: torch.dtype, *, m: int = 0, n: int = 0, depth: int = 0) -> Blocks:
    half = dtype.itemsize == 2
    if kernel == "band":
        if m <= 32:
            return Blocks(m=32, warps=4, stages=3)
        if half:
            return Blocks(m=128, warps=8, stages=3)
        return Blocks(m=64, warps=4, stages=2)
    if kernel == "band_weight":
        return Blocks(k=64 if half else 32, warps=4, stages=3 if half else 2)
    if kernel == "toeplitz":
        return Blocks(m=64, n=64, k=32, warps=4, stages=3 if half else 2)
    if kernel == "direct":
        return Blocks(m=256, n=1)
    if kernel == "direct_channels":
        return Blocks(m=16, n=64)
    if kernel == "direct_weight":
        return Blocks(m=128, n=1)
    if kernel == "direct_weight_channels":
        return Blocks(m=4, n=64)
    raise KeyError(kernel)
