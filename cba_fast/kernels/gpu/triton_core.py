"""What Triton launchers share: whether Triton can be used, and its interpreter."""

import importlib.util
import os

import torch
from torch import Tensor

_OLDEST = (8, 0)  # the first with bfloat16 and asynchronous copies


def unavailable() -> str | None:
    """Return why Triton cannot be used at all, or None."""
    return None if _INSTALLED else "triton is not installed"


_INSTALLED = importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Say whether the kernels run in Triton's interpreter, which takes CPU tensors."""
    return _INTERPRETED


# Triton, too, reads the variable once, when the kernels are imported.
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def is_too_old(device: torch.device) -> bool:
    """Say whether a GPU is older than the kernels need, compute capability 8.0."""
    return torch.cuda.get_device_capability(device) < _OLDEST


def refuses(tensor: Tensor) -> str | None:
    """Return why kernels without further demands cannot take a tensor where it lies, or None."""
    if tensor.device.type != "cuda":
        here = tensor.device.type == "cpu" and is_interpreted()
        return None if here else f"the tensor is on {tensor.device}"
    return "the GPU is older than compute capability 8.0" if is_too_old(tensor.device) else None


def on_device(tensor: Tensor) -> torch.cuda.device:
    """Return the context in which Triton launches kernels on the device of `tensor`."""
    return torch.cuda.device(tensor.device.index if tensor.device.type == "cuda" else -1)
