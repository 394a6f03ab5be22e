"""Launches the C++ quantizer."""

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
    core = native.load() if isa else native.load_for_isa()
    first_bad = core.quantize(
        values.data_ptr(),
        str(values.dtype).removeprefix("torch."),
        out.data_ptr(),
        values.numel(),
        isa,
        torch.get_num_threads(),
    )
    if first_bad >= 0:
        refuse_value(scoremaps, first_bad)
    return out
