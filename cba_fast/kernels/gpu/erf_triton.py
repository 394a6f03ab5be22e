"""Launches the Triton ERF accumulator (CUDA tensors; no compiler is needed)."""

import importlib

from torch import Tensor

from ...reference.erf import GROUP
from . import triton_core

_BLOCK = 128


def erf_accumulate(grad: Tensor, out: Tensor, mode: str) -> None:
    """Add gradients to the map `out` (H, W) float64; see `cba_fast.ops.erf_accumulate`.

    Runs on the current stream and does not wait.
    """
    if not grad.numel():
        return
    if grad.stride(2) < grad.stride(3):  # neighbouring threads read neighbouring values
        grad, out = grad.transpose(2, 3), out.t()
    kernels = importlib.import_module("cba_fast.kernels.gpu.triton_pixels")
    images, channels, height, width = grad.shape
    sizes = images, channels, width, height * width
    with triton_core.on_device(grad):
        kernels.erf_accumulate_kernel[(-(-height * width // _BLOCK),)](
            *(grad, out, *sizes, *grad.stride(), *out.stride()),
            MODE=mode,
            GROUP=GROUP,
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )
