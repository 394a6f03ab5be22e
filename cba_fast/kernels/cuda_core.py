"""What CUDA launchers share: the compiled core, its GPUs, the device and stream of a call."""

import types

import torch
from torch import Tensor

from . import native


def load() -> types.ModuleType:
    """Return the compiled core; tests replace this function by a core that emulates the kernels."""
    return native.load()


def refuses(device: torch.device) -> str | None:
    """Return why the CUDA kernels of this build cannot run on a GPU, or None.

    A launch there would fail with "no kernel image is available".
    """
    archs, capabilities = native.cuda_built_for()
    major, minor = torch.cuda.get_device_capability(device)
    if archs is None or any(low <= (major, minor) <= high for low, high in capabilities):
        return None
    return f"the CUDA kernels were built for {archs}, the GPU has {major}.{minor}"


def where(tensor: Tensor) -> tuple[int, int]:
    """Return the index of the device of `tensor` and the address of its current stream."""
    if tensor.device.type != "cuda":
        return 0, 0  # the kernels are emulated
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
