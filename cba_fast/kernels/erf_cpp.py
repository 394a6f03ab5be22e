"""Launches the C++ ERF ops (CPU tensors; float32, float64, float16, bfloat16, any strides)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.erf import refuse_image
from . import native

MOST_PIXELS = 2**31 - 1  # the error bound of csrc/cpu/erf_size.cpp counts on it


def erf_size(grad: Tensor, p: Sequence[float], *, isa: str = "") -> Tensor:
    """Return the sizes, (N, P) int64; see `cba_fast.ops.erf_size`.

    Args:
        grad: (N, C, H, W).
        p: P shares in [0, 1].
        isa: the instruction set of this call; empty for that of the process.
    """
    sizes = torch.empty((len(grad), len(p)), dtype=torch.int64)
    first_bad = _core(isa).erf_size(
        _gradients(grad), list(p), sizes.data_ptr(), isa, torch.get_num_threads()
    )
    if first_bad >= 0:
        refuse_image(grad, first_bad)
    return sizes


def erf_accumulate(grad: Tensor, out: Tensor, mode: str, *, isa: str = "") -> None:
    """Add to `out` (H, W) float64; see `cba_fast.ops.erf_accumulate`."""
    _core(isa).erf_accumulate(
        _gradients(grad), mode, out.data_ptr(), out.stride(), isa, torch.get_num_threads()
    )


def _core(isa: str):
    return native.load() if isa else native.load_for_isa()


def _gradients(grad: Tensor) -> tuple:
    return grad.data_ptr(), str(grad.dtype).removeprefix("torch."), grad.shape, grad.stride()
