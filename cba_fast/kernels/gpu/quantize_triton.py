"""Launches the Triton quantizer of score maps (CUDA tensors; no compiler is needed)."""

import importlib

from torch import Tensor

from . import triton_core
from .quantize_cuda import quantize_by

_BLOCK = 1024


def quantize(scoremaps: Tensor) -> Tensor:
    """Quantize a CUDA tensor on the current stream; see `quantize_cuda.quantize`."""
    return quantize_by(_launch, scoremaps)


def _launch(values: Tensor, out: Tensor, first_bad: Tensor) -> None:
    kernels = importlib.import_module("cba_fast.kernels.gpu.triton_pixels")
    count = values.numel()
    if count:
        with triton_core.on_device(values):
            kernels.quantize_kernel[(-(-count // _BLOCK),)](
                values, out, first_bad, count, BLOCK=_BLOCK, enable_fp_fusion=False
            )
