"""Launches the Triton depthwise convolution (CUDA tensors; bfloat16 or float16).

In ``dwconv_gpu``, ``triton_plan`` chooses what is launched, ``triton_band`` and ``triton_toeplitz``
hold the kernels. They and Triton are imported at the first call.
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from .dwconv_gpu import triton_plan as plan
from .dwconv_gpu.cuda_call import with_unit_columns
from .gpu import triton_core

DTYPES = (torch.bfloat16, torch.float16)  # float32 would be slower than PyTorch at every size
_KERNELS = {
    "dwconv_band": "triton_band",
    "dwconv_sum": "triton_band",
    "dwconv_toeplitz": "triton_toeplitz",
}


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    memory_format: torch.memory_format,
    *,
    flip: bool = False,
    relu: bool = False,
    family: str | None = None,
) -> Tensor:
    """Return the convolution of x (N,C,H,W) with weight (C,1,kh,kw), in `memory_format`.

    Args:
        flip: turn the kernel by 180 degrees, which gives the input gradient for x = grad.
        relu: return max(0, y) instead of y.
        family: "toeplitz" or "band"; None for the one that suits the shape.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    kernel_size = tuple(weight.shape[2:])
    family = family or plan.family(tuple(x.shape[2:]))
    if bias is not None:
        bias = bias.contiguous()
    turned = family == "band" and plan.is_transposed(kernel_size)
    if turned:
        x, weight = x.transpose(2, 3), weight.transpose(2, 3)
    x = with_unit_columns(x) if family == "band" else _with_unit_pixels(x)
    out = y if y.is_contiguous() and not turned else x.new_empty(x.shape)
    make = plan.band if family == "band" else plan.toeplitz
    _run(make(x, _planes(weight), bias, out, flip=flip, relu=relu, upcast=_upcast(x)))
    if out is not y:
        y.copy_(out.transpose(2, 3) if turned else out)
    return y


def grad_x(grad: Tensor, weight: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return the input gradient (N,C,H,W), in `memory_format`."""
    return forward(grad, weight, None, memory_format, flip=True)


def grad_weight(grad: Tensor, x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return the weight gradient (C,1,kh,kw), contiguous; the same bits every time."""
    turned = plan.is_transposed(kernel_size)
    if turned:
        grad, x, kernel_size = grad.transpose(2, 3), x.transpose(2, 3), kernel_size[::-1]
    grad, x = with_unit_columns(grad), with_unit_columns(x)
    gw = x.new_empty((x.shape[1], *kernel_size))
    _run(plan.band_weight(grad, x, gw, upcast=_upcast(x)))
    return (gw.transpose(1, 2).contiguous() if turned else gw).unsqueeze(1)


def _planes(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], *weight.shape[2:]).contiguous()


def _with_unit_pixels(x: Tensor) -> Tensor:
    """Return x, or a contiguous copy if its planes are not contiguous."""
    return x if x[:1, :1].is_contiguous() else x.contiguous()


def _upcast(x: Tensor) -> bool:
    return triton_core.is_interpreted() and x.dtype == torch.bfloat16


@functools.cache
def load(kernel: str) -> Any:
    """Return the Triton kernel of that name."""
    module = next(m for prefix, m in _KERNELS.items() if kernel.startswith(prefix))
    return getattr(importlib.import_module(f"cba_fast.kernels.dwconv_gpu.{module}"), kernel)


def _run(launches: list[plan.Launch]) -> None:
    """Run the launches in order on the current stream of the tensors' device."""
    with triton_core.on_device(next(iter(launches[0].arguments.values()))):
        for launch in launches:
            load(launch.kernel)[(launch.programs,)](
                **launch.arguments,
                **launch.constants,
                num_warps=launch.blocks.warps,
                num_stages=launch.blocks.stages,
                enable_fp_fusion=True,  # named because its default is about to change
            )
