"""Launches the CUDA ERF ops (float32, float64, float16, bfloat16 gradients of any strides)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...reference.erf import refuse_image
from .. import cuda_core, erf_cpp

SCRATCH_BYTES = 2**28  # enough for 420 images of 384x384 at a time, more than fill any GPU
NOT_FINITE = -1  # written in place of a size; other negative numbers mean undecided


def erf_size(grad: Tensor, p: Sequence[float]) -> Tensor:
    """Return the sizes, (N, P) int64, on grad's device; see `cba_fast.ops.erf_size`.

    Runs on the current stream and waits once for the sizes, because an image may have none. Images
    whose sizes could depend on the rounding of a sum in sorted order are computed on the CPU.

    Args:
        grad: (N, C, H, W).
        p: P shares in [0, 1].
    """
    shares = list(p) or [0.0]  # images are checked even without shares
    core, here = cuda_core.load(), cuda_core.where(grad)
    sizes = torch.empty((len(grad), len(shares)), dtype=torch.int64, device=grad.device)
    each = core.erf_size_cuda_scratch(erf_cpp.gradients(grad))
    group = max(1, min(len(grad), SCRATCH_BYTES // each))
    scratch = torch.empty(group * each, dtype=torch.uint8, device=grad.device)
    for start in range(0, len(grad), group):
        images, out = grad[start : start + group], sizes[start : start + group]
        arguments = erf_cpp.gradients(images), shares, out.data_ptr(), scratch.data_ptr()
        core.erf_size_cuda(*arguments, *here)
    found = sizes.cpu()
    for n in (found < 0).any(dim=1).nonzero().flatten().tolist():
        if found[n, 0] == NOT_FINITE:
            refuse_image(grad, n)
        sizes[n] = _size_on_cpu(grad, n, shares).to(grad.device)
    return sizes[:, : len(p)]


def erf_accumulate(grad: Tensor, out: Tensor, mode: str) -> None:
    """Add gradients to the map `out` (H, W) float64; see `cba_fast.ops.erf_accumulate`.

    Runs on the current stream and does not wait.
    """
    cuda_core.load().erf_accumulate_cuda(
        erf_cpp.gradients(grad), mode, out.data_ptr(), out.stride(), *cuda_core.where(grad)
    )


def _size_on_cpu(grad: Tensor, n: int, shares: list[float]) -> Tensor:
    try:
        return erf_cpp.erf_size(grad[n : n + 1].cpu(), shares)[0]
    except ValueError:  # the sum is infinite
        refuse_image(grad, n)
