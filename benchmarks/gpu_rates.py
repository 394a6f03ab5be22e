"""Measures the rate of mma.sync, which bounds kernels that use no warpgroup instructions."""

import torch
import triton
import triton.language as tl

PROGRAM = (32, 128, 64)  # too few rows for the warpgroup instructions of sm_90


@triton.jit
def mma_kernel(a_ptr, b_ptr, out_ptr, steps, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """Multiply the same operands `steps` times without accessing memory in between."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    acc = tl.zeros((M, N), dtype=tl.float32)
    for _ in range(steps):
        acc = tl.dot(a, b, acc)
    pid = tl.program_id(0).to(tl.int64)
    tl.store(out_ptr + pid * M * N + m[:, None] * N + n[None, :], acc)


def mma_sync(device: str, programs: int, steps: int):
    """Return a function that runs the products, its number of operations, and its check.

    The check returns the relative error of the first program's result against float32.
    """
    m, n, k = PROGRAM
    # Triton's interpreter, which runs on CPUs, cannot compute in bfloat16.
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a = torch.randn(m, k, device=device).to(dtype)
    b = torch.randn(k, n, device=device).to(dtype)
    out = torch.empty(programs, m, n, device=device)

    def run():
        mma_kernel[(programs,)](a, b, out, steps, M=m, N=n, K=k, num_warps=4)

    def error() -> float:
        expected = steps * (a.float() @ b.float())
        return ((out[0] - expected).norm() / expected.norm()).item()

    return run, 2 * m * n * k * steps * programs, error
