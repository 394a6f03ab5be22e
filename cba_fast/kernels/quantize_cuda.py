"""Launches the CUDA quantizer of score maps (CUDA tensors)."""

import torch
from torch import Tensor

from ..reference.quantize import refuse_value
from . import cuda_core, native


def quantize(scoremaps: Tensor) -> Tensor:
    """Quantize a CUDA tensor on the current stream; see `cba_fast.ops.quantize`.

    Waits for the kernel, because a bad value must raise an error.
    """
    values = scoremaps.contiguous()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    count = values.numel()
    out = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    first_bad = torch.full((1,), count, dtype=torch.int64, device=values.device)
    cuda_core.load().quantize_cuda(
        values.data_ptr(),
        native.dtype_name(values.dtype),
        out.data_ptr(),
        count,
        first_bad.data_ptr(),
        *cuda_core.where(values),
    )
    bad = int(first_bad)
    if bad < count:
        refuse_value(scoremaps, bad)
    return out
