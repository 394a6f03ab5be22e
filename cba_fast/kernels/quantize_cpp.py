"""Launches the C++ quantizer of score maps (CPU tensors)."""

import torch
from torch import Tensor

from ..reference.quantize import refuse_value
from . import native


def quantize(scoremaps: Tensor, isa: str = "") -> Tensor:
    """Quantize a CPU tensor; see `cba_fast.ops.quantize`.

    Args:
        scoremaps: floating, (N, H, W), on the CPU.
        isa: the instruction set of this call; empty for that of the process.
    """
    values = scoremaps.contiguous()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    out = torch.empty(values.shape, dtype=torch.uint8)
    first_bad = native.load_for_isa(isa).quantize(
        values.data_ptr(),
        native.dtype_name(values.dtype),
        out.data_ptr(),
        values.numel(),
        isa,
        torch.get_num_threads(),
    )
    if first_bad >= 0:
        refuse_value(scoremaps, first_bad)
    return out
