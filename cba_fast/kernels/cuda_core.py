"""What the launchers of CUDA kernels share: the module, the device and the stream of a call."""

import functools
import re
import types

import torch
from torch import Tensor

from cba_fast.kernels import native


def load() -> types.ModuleType:
    """Return the compiled core; the tests put one in its place whose kernels run on a CPU."""
    return native.load()


def refuses(device: torch.device) -> str | None:
    """Return why the CUDA kernels of this build cannot run on a GPU, or None.

    Launched there all the same, they fail with "no kernel image is available".
    """
    if (reason := native.cuda_unavailable()) is not None:
        return reason
    archs = native.build_info()["cuda_archs"]
    major, minor = torch.cuda.get_device_capability(device)
    if any(_runs_on(arch, 10 * major + minor) for arch in archs.split(";")):
        return None
    return f"the CUDA kernels were built for {archs}, the GPU has {major}.{minor}"


@functools.cache
def _runs_on(arch: str, capability: int) -> bool:
    """Say whether what was built for `arch`, as CMake writes it, runs on a compute capability.

    Machine code runs on the same major version and later minor ones; with it or instead of it there
    is code that the driver compiles for all later GPUs. Neither leaves an "a" ("f": a major
    version).
    """
    match = re.fullmatch(r"(\d+)([af]?)(-real|-virtual|)", arch)
    if match is None:
        return True  # "native", "all": nobody knows before a launch
    built, bound, kind = int(match[1]), match[2], match[3]
    if bound == "a":
        return capability == built
    same_major = built // 10 == capability // 10
    return built <= capability and (same_major or (kind != "-real" and not bound))


def where(tensor: Tensor) -> tuple[int, int]:
    """Return the device's index and the address of its current stream, for kernels on `tensor`."""
    if tensor.device.type != "cuda":
        return 0, 0  # emulated
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def name_of(dtype: torch.dtype) -> str:
    """Return what the compiled core calls a dtype."""
    return str(dtype).removeprefix("torch.")
