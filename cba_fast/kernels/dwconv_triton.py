"""Launches the Triton depthwise convolution (CUDA tensors; float32, bfloat16 or float16).

``dwconv_triton_plan`` says what is launched, ``dwconv_triton_{band,direct,toeplitz}`` hold the
kernels. They are imported, and Triton with them, at the first call.
"""

import functools
import importlib
import importlib.util
import os

import torch
from torch import Tensor

from . import dwconv_triton_plan as plan

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST = (8, 0)  # bfloat16 and asynchronous copies
_KERNELS = {
    "dwconv_band": "dwconv_triton_band",
    "dwconv_sum": "dwconv_triton_band",
    "dwconv_direct": "dwconv_triton_direct",
    "dwconv_toeplitz": "dwconv_triton_toeplitz",
}


def unavailable() -> str | None:
    """Return why Triton cannot be used at all, or None."""
    return None if _INSTALLED else "triton is not installed"


_INSTALLED = importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Say whether kernels run in Triton's interpreter, which takes CPU tensors."""
    return _INTERPRETED


# As Triton, which reads the variable when the kernels are imported.
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def arch_of(device: torch.device) -> str | None:
    """Return the key of the device's blocks, None if it is too old for the kernels.

    Compute capability 12 has the tensor cores and the shared memory of 8.x.
    """
    if device.type != "cuda":
        return "sm_80"  # the interpreter
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < _OLDEST:
        return None
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory_format: torch.memory_format,
    *,
    flip: bool = False,
    family: str | None = None,
) -> Tensor:
    """Return the convolution of x (N,C,H,W) with weight (C,1,kh,kw), in `memory_format`.

    Args:
        flip: turn the kernel by 180 degrees, which gives the input gradient for x = grad.
        family: "direct", "toeplitz" or "band"; None for what the shape calls for.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    size, kernel_size = tuple(x.shape[2:]), tuple(weight.shape[2:])
    family = family or plan.family(size, kernel_size)
    if bias is not None:
        bias = bias.contiguous()
    if family == "direct":
        _run(plan.direct(x, _planes(weight), bias, y, flip=flip, arch=arch_of(x.device)))
        return y
    turned = family == "band" and plan.is_transposed(kernel_size)
    if turned:
        x, weight = x.transpose(2, 3), weight.transpose(2, 3)
    x = _with_unit_columns(x) if family == "band" else _with_unit_pixels(x)
    out = y if y.is_contiguous() and not turned else x.new_empty(x.shape)
    make = plan.band if family == "band" else plan.toeplitz
    how = {"flip": flip, "arch": arch_of(x.device), "upcast": _upcast(x)}
    _run(make(x, _planes(weight), bias, out, **how))
    if out is not y:
        y.copy_(out.transpose(2, 3) if turned else out)
    return y


def grad_x(grad: Tensor, weight: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return the input gradient (N,C,H,W), in `memory_format`."""
    return forward(grad, weight, None, memory_format, flip=True)


def grad_weight(
    grad: Tensor, x: Tensor, kernel_size: tuple[int, int], *, family: str | None = None
) -> Tensor:
    """Return the weight gradient (C,1,kh,kw), contiguous; the same bits every time.

    Args:
        family: "direct" or "band"; None for what the kernel calls for.
    """
    channels, arch = x.shape[1], arch_of(x.device)
    family = family or ("direct" if max(kernel_size) <= plan.SMALL_KERNEL else "band")
    if family == "direct":
        gw = x.new_empty((channels, *kernel_size))
        _run(plan.direct_weight(grad, x, gw, arch=arch))
        return gw.unsqueeze(1)
    turned = plan.is_transposed(kernel_size)
    if turned:
        grad, x, kernel_size = grad.transpose(2, 3), x.transpose(2, 3), kernel_size[::-1]
    grad, x = _with_unit_columns(grad), _with_unit_columns(x)
    gw = x.new_empty((channels, *kernel_size))
    _run(plan.band_weight(grad, x, gw, arch=arch, upcast=_upcast(x)))
    return (gw.transpose(1, 2).contiguous() if turned else gw).unsqueeze(1)


def _planes(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], *weight.shape[2:]).contiguous()


def _with_unit_columns(x: Tensor) -> Tensor:
    """Return x, copied if its columns do not lie side by side.

    A copy is bound by memory; reading every C-th number would move 16 times the bytes.
    """
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _with_unit_pixels(x: Tensor) -> Tensor:
    """Return x, copied if its planes are not contiguous."""
    return x if x[:1, :1].is_contiguous() else x.contiguous()


def _upcast(x: Tensor) -> bool:
    return _INTERPRETED and x.dtype == torch.bfloat16


@functools.cache
def load(kernel: str):
    """Return a kernel by name."""
    module = next(m for prefix, m in _KERNELS.items() if kernel.startswith(prefix))
    return getattr(importlib.import_module(f"cba_fast.kernels.{module}"), kernel)


def _run(launches: list[plan.Launch]) -> None:
    """Launch on the current stream of the tensors' device."""
    device = next(iter(launches[0].arguments.values())).device
    with torch.cuda.device(device.index if device.type == "cuda" else -1):
        for launch in launches:
            load(launch.kernel)[(launch.programs,)](
                **launch.arguments,
                **launch.constants,
                num_warps=launch.blocks.warps,
                num_stages=launch.blocks.stages,
                enable_fp_fusion=True,  # its default is about to change
            )
