"""Loads the compiled core ``cba_fast._C``, and tells what it holds or why it cannot be used."""

import importlib
import types

from ..errors import InputError
from . import cuda_archs, openmp

_module: types.ModuleType | None = None
_usable: types.ModuleType | None = None  # _module, once its instruction set is known to run
_error: ImportError | None = None
_cuda_message: str | None = None  # the reason why its CUDA kernels cannot run
_cuda_built_for: tuple[str | None, tuple] = (None, ())
_message = ""  # the text of _error, because `torch.compile` cannot trace an exception with a cause


def load() -> types.ModuleType:
    """Return the compiled core.

    Raises:
        ImportError: the core is not built or cannot be loaded; the first error is its cause.
    """
    if _module is None and _error is None:
        _import()
    if _module is None:
        raise ImportError(_message) from _error
    return _module


def _import() -> None:
    global _module, _error, _message, _cuda_message, _cuda_built_for
    try:
        module = importlib.import_module("cba_fast._C")
        module.use_openmp(openmp.entry_point())
        _cuda_message = _cuda_reason(module)
        if archs := module.build_info()["cuda_archs"]:
            _cuda_built_for = archs, cuda_archs.capabilities(archs)
        _module = module
    except ImportError as e:
        _error, _message = e, f"the compiled core cannot be loaded: {_describe(e)}"


def load_for_isa(isa: str = "") -> types.ModuleType:
    """Return the compiled core for kernels of an instruction set; empty for that of the process.

    Raises:
        ImportError: as `load`.
        InputError: `isa` is empty, and CBA_ISA names a set that was not compiled or that this
            machine cannot run.
    """
    global _usable
    if isa:
        return load()
    if _usable is None:  # checked once, because it takes a hundredth of a millisecond
        module = load()
        info = module.build_info()
        if info["isa"] is None:
            raise InputError(info["isa_reason"])
        _usable = module
    return _usable


def _describe(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "cba_fast._C":
        return "cba_fast._C was not built (CBA_NATIVE=0, or cba_fast is not installed)"
    return str(error)


def dtype_name(dtype: object) -> str:
    """Return the compiled core's name of a `torch.dtype`, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def unavailable() -> str | None:
    """Return why the compiled core cannot be used, or None."""
    if _module is None and _error is None:
        _import()
    return None if _module is not None else _message


def cuda_unavailable() -> str | None:
    """Return why the compiled CUDA kernels cannot be used, or None."""
    return unavailable() or _cuda_message


def cuda_built_for() -> tuple[str | None, tuple]:
    """Return the CUDA architectures of the build, and the first and last capability of each.

    The result is (None, ()) without CUDA kernels. It is read when the core is loaded, because
    `torch.compile` cannot trace a call of the core.
    """
    return _cuda_built_for


def _cuda_reason(module: types.ModuleType) -> str | None:
    if not hasattr(module, "cuda_versions"):
        return f"no CUDA kernels in this build: {module.build_info()['cuda_reason']}"
    driver, runtime = module.cuda_versions()
    if driver == 0:
        return "no NVIDIA driver is installed"
    if driver // 1000 < runtime // 1000:  # a driver runs all kernels of its major version
        return (
            f"the NVIDIA driver is for CUDA {_version(driver)}, but the kernels were built with "
            f"CUDA {_version(runtime)}"
        )
    return None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def build_info() -> dict:
    """Return how the compiled core was built, and what this machine can run of it.

    Returns:
        ``compiler``: the name and version of the C++ compiler.
        ``isas_compiled``, ``isas_supported``: the instruction sets of the build, and those of them
        that this machine can run, best last.
        ``isa``: the set in use; None if CBA_ISA names one that cannot run, see ``isa_reason``.
        ``cuda_compiler``, ``cuda_archs``: both None without CUDA kernels, see ``cuda_reason``.

    Raises:
        ImportError: as `load`.
    """
    return load().build_info()
