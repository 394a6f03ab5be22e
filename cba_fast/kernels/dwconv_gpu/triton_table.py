"""The blocks of the Triton depthwise convolution, by kernel and shape.

They were chosen so that nothing spills, two programs fit on a multiprocessor, and tensor cores get
tiles of 128 x 128 where the shape has that many results. benchmarks/gpu_compile_table.py prints the
registers and memory of each. They are not tuned by measurements: see docs/gpu-status.md.
"""

from typing import NamedTuple

# The architectures that the kernels are compiled for offline, and the most shared memory that a
# program may take there. Code for sm_80 also runs on 8.6, 8.9 and 12.x, which have 99 KB.
ARCHS = ("sm_80", "sm_90", "sm_100")
SHARED_MEMORY = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


class Blocks(NamedTuple):
    """The size of the block that a program computes, and its warps.

    Attributes:
        m, n, k: the rows and columns of the results and the depth of a step; 0 where the kernel
            leaves no choice.
        warps: the number of warps, 32 threads each.
        stages: the number of steps whose operands are loaded ahead.
    """

    m: int = 0
    n: int = 0
    k: int = 0
    warps: int = 4
    stages: int = 1


# "few" means at most 32 tiles for "band", and at most 16 images for "toeplitz". For "band_weight",
# "narrow" pieces of the window have at most 32 columns; "scattered" ones are not aligned and are
# loaded number by number through registers.
TABLE = {
    ("band", "many"): Blocks(m=128, n=128, k=64, warps=8, stages=3),
    ("band", "few"): Blocks(m=32, n=128, k=64, warps=4, stages=3),
    ("band_weight", "wide"): Blocks(n=128, k=64, warps=4, stages=3),
    ("band_weight", "narrow"): Blocks(n=128, k=64, warps=8, stages=3),
    ("band_weight", "scattered"): Blocks(n=64, k=32, warps=8, stages=2),
    ("toeplitz", "many"): Blocks(m=64, n=64, k=32, warps=4, stages=3),
    ("toeplitz", "few"): Blocks(m=16, n=64, k=32, warps=4, stages=3),
}
