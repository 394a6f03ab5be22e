"""Launches the C++ ERF ops (CPU tensors; float32, float64, float16, bfloat16, any strides)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.erf import refuse_image
from . import native

MOST_PIXELS = 2**31 - 1  # the error bound of csrc/cpu/erf_size.cpp holds up to here


def erf_size(grad: Tensor, p: Sequence[float], *, isa: str = "") -> Tensor:
    """Return the sizes, (N, P) int64; see `cba_fast.ops.erf_size`.

    Args:
        grad: (N, C, H, W).
        p: P shares in [0, 1].
        isa: the instruction set of this call; empty for that of the process.
    """
    sizes = torch.empty((len(grad), len(p)), dtype=torch.int64)
    first_bad = native.load_for_isa(isa).erf_size(
        gradients(grad), list(p), sizes.data_ptr(), isa, torch.get_num_threads()
    )
    if first_bad >= 0:
        refuse_image(grad, first_bad)
    return sizes


def erf_accumulate(grad: Tensor, out: Tensor, mode: str, *, isa: str = "") -> None:
    """Add gradients to the map `out` (H, W) float64; see `cba_fast.ops.erf_accumulate`."""
    native.load_for_isa(isa).erf_accumulate(
        gradients(grad), mode, out.data_ptr(), out.stride(), isa, torch.get_num_threads()
    )


def gradients(grad: Tensor) -> tuple:
    """Return the arguments by which the compiled core reads gradients (N, C, H, W)."""
    return grad.data_ptr(), native.dtype_name(grad.dtype), grad.shape, grad.stride()
