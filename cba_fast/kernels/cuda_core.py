"""What CUDA kernels share: the module, the GPUs it is for, the device and the stream of a call."""

import types

import torch
from torch import Tensor

from . import native


def load() -> types.ModuleType:
    """Return the compiled core; the tests put one in its place whose kernels run on a CPU."""
    return native.load()


def refuses(device: torch.device) -> str | None:
    """Return why the CUDA kernels of this build, if it has any, are not for a GPU, or None.

    Launched there all the same, they fail with "no kernel image is available".
    """
    archs, capabilities = native.cuda_built_for()
    major, minor = torch.cuda.get_device_capability(device)
    if archs is None or any(low <= (major, minor) <= high for low, high in capabilities):
        return None
    return f"the CUDA kernels were built for {archs}, the GPU has {major}.{minor}"


def where(tensor: Tensor) -> tuple[int, int]:
    """Return the device's index and the address of its current stream, for kernels on `tensor`."""
    if tensor.device.type != "cuda":
        return 0, 0  # emulated
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def name_of(dtype: torch.dtype) -> str:
    """Return what the compiled core calls a dtype."""
    return str(dtype).removeprefix("torch.")
