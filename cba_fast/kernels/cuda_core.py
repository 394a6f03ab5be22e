"""What the launchers of CUDA kernels share: the module, the device and the stream of a call."""

import types

import torch
from torch import Tensor

from cba_fast.kernels import native


def load() -> types.ModuleType:
    """Return the compiled core; the tests put one in its place whose kernels run on a CPU."""
    return native.load()


def where(tensor: Tensor) -> tuple[int, int]:
    """Return the device's index and the address of its current stream, for kernels on `tensor`."""
    if tensor.device.type != "cuda":
        return 0, 0  # emulated
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def name_of(dtype: torch.dtype) -> str:
    """Return what the compiled core calls a dtype."""
    return str(dtype).removeprefix("torch.")
