"""Describes the device and the software that a measured time belongs to."""

import functools
import platform
import re
from pathlib import Path

import torch

from .. import __version__
from ..kernels import native

HARDWARE = ("kind", "device", "vendor", "arch", "threads")
SOFTWARE = ("driver", "torch", "cba_fast")


def place_of(device: torch.device) -> dict[str, str | int | None]:
    """Return the values of `HARDWARE` and `SOFTWARE` for a device.

    ``kind`` is "cpu" or "cuda"; ``arch`` is the instruction set in use (None without the compiled
    core) or such as "sm_90"; ``threads`` are PyTorch's and ``driver`` is CUDA's version; each of
    these two is None for the other kind.
    """
    software = {"torch": str(torch.__version__), "cba_fast": __version__}
    if device.type == "cuda":
        return {
            "kind": "cuda",
            "device": torch.cuda.get_device_name(device),
            "vendor": "AMD" if torch.version.hip else "NVIDIA",
            "arch": arch_of(device),
            "threads": None,
            "driver": getattr(torch._C, "_cuda_getDriverVersion", lambda: None)(),
            **software,
        }
    return {
        "kind": "cpu",
        "device": cpu_name(),
        "vendor": _cpuinfo("vendor_id") or platform.machine(),
        "arch": None if native.unavailable() else native.build_info()["isa"],
        "threads": torch.get_num_threads(),
        "driver": None,
        **software,
    }


def arch_of(device: torch.device) -> str:
    """Return the architecture of a GPU, such as "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def cpu_name() -> str:
    """Return the name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


@functools.cache
def _cpuinfo(key: str) -> str | None:
    """Return the first value of a key in Linux's list of processors, or None."""
    try:
        found = re.search(rf"^{key}\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return found.group(1).strip() if found else None
