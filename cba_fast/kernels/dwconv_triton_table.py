"""The blocks of the Triton depthwise convolution, by architecture, element size and shape.

They were chosen so that nothing spills, two programs fit on a multiprocessor and tensor cores get
tiles of 128 x 128 where the shape has that many results; benchmarks/gpu_compile_table.py prints
what each takes. No GPU has measured them yet: see docs/gpu-status.md.
"""

from typing import NamedTuple

import torch

# The entries of sm_80 also serve 8.6, 8.9 and 12.x, whose programs have 99 KB of shared memory.
ARCHS = ("sm_80", "sm_90", "sm_100")
SHARED_MEMORY = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


class Blocks(NamedTuple):
    """What one program computes and with what.

    Attributes:
        m, n, k: rows and columns of its results and the depth of one step, where the kernel has a
            choice; pixels and channels for the direct kernels.
        warps: of 32 threads.
        stages: of the pipeline that loads operands ahead.
    """

    m: int = 0
    n: int = 0
    k: int = 0
    warps: int = 4
    stages: int = 1


_EVERY = ARCHS
_ROWS = [
    # kernel, shape, bytes of an element, architectures, blocks
    ("band", "many", 2, _EVERY, Blocks(m=128, n=128, k=64, warps=8, stages=3)),
    ("band", "few", 2, _EVERY, Blocks(m=32, n=128, k=64, warps=4, stages=3)),
    # Products of float32 are unrolled over their whole depth: 32 spill on sm_80, 16 on the others.
    ("band", "many", 4, ("sm_80",), Blocks(m=128, n=64, k=16, warps=8, stages=2)),
    ("band", "many", 4, ("sm_90", "sm_100"), Blocks(m=64, n=128, k=32, warps=8, stages=2)),
    ("band", "few", 4, ("sm_80",), Blocks(m=32, n=128, k=16, warps=8, stages=2)),
    ("band", "few", 4, ("sm_90", "sm_100"), Blocks(m=32, n=128, k=32, warps=4, stages=2)),
    ("band_weight", "wide", 2, _EVERY, Blocks(n=128, k=64, warps=4, stages=3)),
    ("band_weight", "narrow", 2, _EVERY, Blocks(n=128, k=64, warps=8, stages=3)),
    ("band_weight", "wide", 4, _EVERY, Blocks(n=128, k=16, warps=8, stages=2)),
    # Windows at odd addresses are loaded number by number, through registers.
    ("band_weight", "scattered", 2, _EVERY, Blocks(n=64, k=32, warps=8, stages=2)),
    ("band_weight", "scattered", 4, ("sm_80",), Blocks(n=64, k=16, warps=8, stages=2)),
    ("band_weight", "scattered", 4, ("sm_90", "sm_100"), Blocks(n=64, k=16, warps=4, stages=2)),
    ("band_weight", "narrow", 4, _EVERY, Blocks(n=128, k=16, warps=8, stages=2)),
    ("toeplitz", "many", 2, _EVERY, Blocks(m=64, n=64, k=32, warps=4, stages=3)),
    ("toeplitz", "few", 2, _EVERY, Blocks(m=16, n=64, k=32, warps=4, stages=3)),
    ("toeplitz", "many", 4, _EVERY, Blocks(m=64, n=64, k=16, warps=8, stages=2)),
    ("toeplitz", "few", 4, _EVERY, Blocks(m=16, n=64, k=16, warps=4, stages=2)),
    ("direct", "planes", 2, _EVERY, Blocks(m=256, n=1)),
    ("direct", "channels", 2, _EVERY, Blocks(m=16, n=64)),
    ("direct", "planes", 4, _EVERY, Blocks(m=256, n=1)),
    ("direct", "channels", 4, _EVERY, Blocks(m=16, n=64)),
    ("direct_weight", "planes", 2, _EVERY, Blocks(m=128, n=1)),
    ("direct_weight", "channels", 2, _EVERY, Blocks(m=4, n=64)),
    ("direct_weight", "planes", 4, _EVERY, Blocks(m=128, n=1)),
    ("direct_weight", "channels", 4, _EVERY, Blocks(m=4, n=64)),
]
TABLE = {
    (kernel, shape, size, arch): chosen
    for kernel, shape, size, archs, chosen in _ROWS
    for arch in archs
}


def blocks(kernel: str, shape: str, arch: str, dtype: torch.dtype) -> Blocks:
    """Return the blocks of a kernel.

    Args:
        kernel: "band", "band_weight", "toeplitz", "direct" or "direct_weight".
        shape: of "band" "many" or "few" tiles (32 and less); of "toeplitz" "many" or "few" images
            (16 and less); of "band_weight" "wide" or "narrow" pieces of the window (32 columns and
            less), "scattered" where nothing is aligned; of the direct ones "planes" or "channels",
            the neighbours in memory.
        arch: one of `ARCHS`.
        dtype: float32, bfloat16 or float16.
    """
    return TABLE[kernel, shape, dtype.itemsize, arch]
