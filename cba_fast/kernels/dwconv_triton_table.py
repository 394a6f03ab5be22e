"""The blocks of the Triton depthwise convolution, by kernel and shape.

They were chosen so that nothing spills, two programs fit on a multiprocessor and tensor cores get
tiles of 128 x 128 where the shape has that many results; benchmarks/gpu_compile_table.py prints
what each takes. No GPU has measured them yet: see docs/gpu-status.md.
"""

from typing import NamedTuple

# What the kernels are compiled for offline, and the most shared memory that a program of theirs may
# take: what is compiled for sm_80 also runs on 8.6, 8.9 and 12.x, which have 99 KB.
ARCHS = ("sm_80", "sm_90", "sm_100")
SHARED_MEMORY = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


class Blocks(NamedTuple):
    """What one program computes and with what.

    Attributes:
        m, n, k: rows and columns of its results and the depth of one step, where the kernel has a
            choice.
        warps: of 32 threads.
        stages: of the pipeline that loads operands ahead.
    """

    m: int = 0
    n: int = 0
    k: int = 0
    warps: int = 4
    stages: int = 1


# "band" has "many" or "few" tiles (32 and less), "toeplitz" many or few images (16 and less);
# "band_weight" has "wide" or "narrow" pieces of the window (32 columns and less), or "scattered"
# ones, which nothing aligns: these are loaded number by number, through registers.
TABLE = {
    ("band", "many"): Blocks(m=128, n=128, k=64, warps=8, stages=3),
    ("band", "few"): Blocks(m=32, n=128, k=64, warps=4, stages=3),
    ("band_weight", "wide"): Blocks(n=128, k=64, warps=4, stages=3),
    ("band_weight", "narrow"): Blocks(n=128, k=64, warps=8, stages=3),
    ("band_weight", "scattered"): Blocks(n=64, k=32, warps=8, stages=2),
    ("toeplitz", "many"): Blocks(m=64, n=64, k=32, warps=4, stages=3),
    ("toeplitz", "few"): Blocks(m=16, n=64, k=32, warps=4, stages=3),
}
