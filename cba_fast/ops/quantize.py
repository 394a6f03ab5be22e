"""Quantization of score maps to bytes, the first step of MaxBoxAcc."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import cuda_core, native, quantize_cpp
from ..kernels.gpu import quantize_cuda, quantize_triton, triton_core
from ..reference import quantize as reference
from .backends import Backend, BackendTable, expect
from .library import backend_argument, register, requested


def quantize(scoremaps: Tensor | np.ndarray, *, backend: str | None = None) -> Tensor:
    """Quantize score maps to bytes: u = uint8(255 * m), truncated.

    Args:
        scoremaps: m, (N, H, W) with H, W >= 1, floating in [0, 1] (any strides), or uint8, which is
            returned as it is; a CPU or CUDA tensor or a NumPy array.
        backend: ``"cuda"``, ``"triton"``, ``"cpp"`` (CPU), ``"reference"``, or None for the fastest
            that can run (GPU kernels after they have passed a self-check on that GPU).

    Returns:
        u, (N, H, W) uint8, on the device of `scoremaps`.

    Raises:
        TypeError: `scoremaps` is no tensor or array, or neither floating nor uint8.
        ValueError: `scoremaps` has another shape, or `backend` cannot run.
        ScoreMapError: a value is NaN or outside [0, 1]; the message names the map, row, column and
            value. It is a `ValueError`, too.

    Notes:
        The product is rounded once, in float64 for float64 maps and in float32 for all others.
        Every backend gives the same bytes. The call waits for CUDA maps to be checked.

    Source:
        Bit-exact with ``(scoremap * 255).astype(numpy.uint8)`` of clovaai/wsolevaluation.

    Example:
        >>> import torch
        >>> from cba_fast.ops import quantize
        >>> quantize(torch.tensor([[[0.0, 0.5, 0.999, 1.0]]]))
        tensor([[[  0, 127, 254, 255]]], dtype=torch.uint8)
    """
    scoremaps = as_scoremaps(scoremaps)
    if scoremaps.dtype == torch.uint8:
        if backend is not None:
            TABLE.resolve(backend, scoremaps)  # refuses a backend that cannot run
        return scoremaps
    return torch.ops.cba_fast.quantize.default(scoremaps, backend_argument(backend))


def as_tensor(value: Any, name: str) -> Tensor:
    """Return a tensor as it is, and an array as a tensor that shares its memory if possible.

    Raises:
        TypeError: `value` is something else, or has a dtype that PyTorch does not know.
    """
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a tensor or an array, got {type(value).__name__}")
    if not value.flags.behaved or not value.dtype.isnative or any(s < 0 for s in value.strides):
        # PyTorch has no read-only or unaligned tensors, no other byte orders, no negative strides.
        value = value.astype(value.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(value)
    except TypeError as e:
        raise TypeError(f"{name} has the dtype {value.dtype}, which cannot be used") from e


def as_scoremaps(scoremaps: object) -> Tensor:
    """Return `scoremaps` as a tensor without autograd history, after checking shape and dtype.

    Raises:
        TypeError, ValueError: as `quantize`.
    """
    scoremaps = as_tensor(scoremaps, "scoremaps").detach()
    if not scoremaps.dtype.is_floating_point and scoremaps.dtype != torch.uint8:
        raise TypeError(f"scoremaps must be floating or uint8, got {scoremaps.dtype}")
    if scoremaps.dim() != 3 or 0 in scoremaps.shape[1:]:
        raise ValueError(
            f"scoremaps must have the shape (N, H, W) with H, W >= 1, got {tuple(scoremaps.shape)}"
        )
    return scoremaps


def _cpp_refuses(scoremaps: Tensor) -> str | None:
    return None if scoremaps.device.type == "cpu" else f"the tensor is on {scoremaps.device}"


def _cuda_refuses(scoremaps: Tensor) -> str | None:
    if scoremaps.device.type != "cuda":
        return f"the tensor is on {scoremaps.device}"
    return cuda_core.refuses(scoremaps.device)


def _self_check(backend: str, device: torch.device) -> None:
    maps = torch.arange(1, 2 * 33 * 70 + 1, dtype=torch.float64, device="cpu").reshape(2, 33, 70)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        some = (maps / maps.numel()).to(dtype)
        expect(_KERNELS[backend](some.to(device)), reference.quantize(some))


TABLE = BackendTable(
    "quantize",
    [
        Backend("cuda", _cuda_refuses, native.cuda_unavailable, partial(_self_check, "cuda")),
        Backend("cpp", _cpp_refuses, native.unavailable),
        Backend(
            "triton",
            triton_core.refuses,
            triton_core.unavailable,
            partial(_self_check, "triton"),
        ),
        Backend("reference", lambda scoremaps: None),
    ],
)

_KERNELS = {
    "cuda": quantize_cuda.quantize,
    "cpp": quantize_cpp.quantize,
    "triton": quantize_triton.quantize,
    "reference": reference.quantize,
}


def _quantize(scoremaps: Tensor, backend: str) -> Tensor:
    return _KERNELS[TABLE.resolve(requested(backend), scoremaps)](scoremaps)


def _quantize_fake(scoremaps: Tensor, backend: str) -> Tensor:
    return scoremaps.new_empty(scoremaps.shape, dtype=torch.uint8)


register("quantize(Tensor scoremaps, str backend) -> Tensor", _quantize, _quantize_fake)
