"""Loads the compiled core ``cba_fast._C`` and says what it holds, or why it is not there."""

import ctypes
import importlib
import os
import types
from pathlib import Path

import torch

from cba_fast.errors import InputError

_module: types.ModuleType | None = None
_error: ImportError | None = None


def load() -> types.ModuleType:
    """Return the compiled core.

    Raises:
        ImportError: it is not built or cannot be loaded; the first cause is attached.
    """
    global _module, _error
    if _module is None and _error is None:
        try:
            _module = importlib.import_module("cba_fast._C")
            _module.use_openmp(openmp_of_torch())
        except ImportError as e:
            _error = e
    if _module is None:
        raise ImportError(f"the compiled core cannot be loaded: {_describe(_error)}") from _error
    return _module


def openmp_of_torch() -> int:
    """Return the address of ``GOMP_parallel`` in the OpenMP runtime of PyTorch, or 0.

    A process may hold several runtimes; it is the one in PyTorch's own folders, or the only one.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    paths = {line.split(maxsplit=5)[-1] for line in lines if "omp" in line}
    names = ("libgomp", "libiomp", "libomp")
    runtimes = [p for p in map(Path, paths) if p.name.startswith(names)]
    site = Path(torch.__file__).parent.parent
    own = [p for p in runtimes if site / "torch" in p.parents or site / "torch.libs" in p.parents]
    if len(own or runtimes) != 1:
        return 0
    try:
        # NOLOAD: a second copy of the runtime would be of no use.
        library = ctypes.CDLL(str((own or runtimes)[0]), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


def load_for_isa() -> types.ModuleType:
    """Return the compiled core for a kernel that the instruction set of the process runs.

    Raises:
        ImportError: as `load`.
        InputError: CBA_ISA names a set that is not there or that this machine cannot run.
    """
    module = load()
    info = module.build_info()
    if info["isa"] is None:
        raise InputError(info["isa_reason"])
    return module


def _describe(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "cba_fast._C":
        return "cba_fast._C was not built (CBA_NATIVE=0, or cba_fast is not installed)"
    return str(error)


def unavailable() -> str | None:
    """Return why the compiled core cannot be used, or None."""
    try:
        load()
    except ImportError as e:
        return str(e)
    return None


def cuda_unavailable() -> str | None:
    """Return why the compiled CUDA kernels cannot be used, or None."""
    reason = unavailable()
    if reason is None and not hasattr(load(), "quantize_cuda"):
        reason = f"no CUDA kernels in this build: {build_info()['cuda_reason']}"
    return reason


def build_info() -> dict:
    """Return what the compiled core holds.

    Returns:
        ``compiler``; ``isas_compiled`` and ``isas_supported`` (by this machine), best last; ``isa``
        (in use; None if CBA_ISA names one that cannot run) and ``isa_reason``; ``cuda_compiler``
        and ``cuda_archs``, or both None and ``cuda_reason``.

    Raises:
        ImportError: as `load`.
    """
    return load().build_info()
