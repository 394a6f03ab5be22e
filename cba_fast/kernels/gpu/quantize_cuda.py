"""Launches the CUDA quantizer of score maps (CUDA tensors)."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...reference.quantize import refuse_value
from .. import cuda_core, native


def quantize(scoremaps: Tensor) -> Tensor:
    """Quantize a CUDA tensor on the current stream; see `cba_fast.ops.quantize`.

    Waits for the kernel, because a bad value must raise an error.
    """
    return quantize_by(_launch, scoremaps)


def quantize_by(launch: Callable[[Tensor, Tensor, Tensor], None], scoremaps: Tensor) -> Tensor:
    """Quantize with a kernel, wait for it, and raise the error for the first unusable value.

    Args:
        launch: takes contiguous values in float32 or float64, the bytes that it is to write, and
            one int64 element with the number of values, which it lowers to the index of the first
            unusable one.
        scoremaps: (N, H, W), floating.
    """
    values = scoremaps.contiguous()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    count = values.numel()
    out = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    first_bad = torch.full((1,), count, dtype=torch.int64, device=values.device)
    launch(values, out, first_bad)
    bad = int(first_bad)
    if bad < count:
        refuse_value(scoremaps, bad)
    return out


def _launch(values: Tensor, out: Tensor, first_bad: Tensor) -> None:
    cuda_core.load().quantize_cuda(
        values.data_ptr(),
        native.dtype_name(values.dtype),
        out.data_ptr(),
        values.numel(),
        first_bad.data_ptr(),
        *cuda_core.where(values),
    )
