"""The commands that `gpu_run` runs: machine description, build, pytest, compute-sanitizer."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

# Tests to run under compute-sanitizer: odd sizes and unaligned rows.
_ODD = "test_passes_are_within_bounds and contiguous and (2x5x7x7 or 2x3x33x65 or 2x70x13x9)"
SANITIZED_TRITON = f"triton- and ({_ODD} and bfloat16 or test_views and unaligned)"
SANITIZED_CUDA = (
    f"cuda- and {_ODD} and (bfloat16 or float32) or test_any_alignment_on_a_gpu"
    " or test_device_equals_cpu or test_device_graph_of_the_accumulator"
    " or test_the_cuda_kernel_runs_where_it_is_built"
)
SANITIZED_RACES = "test_any_alignment_on_a_gpu or test_device_equals_cpu"

MACHINE = """
import json, torch, triton
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
    "cudnn": torch.backends.cudnn.version(),
    "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
    "devices": [{"name": d.name, "capability": [d.major, d.minor], "bytes": d.total_memory,
                 "multiprocessors": d.multi_processor_count} for d in devices]}))
"""


def tool(name: str) -> str | None:
    """Return the path of a program, on the PATH or beside this Python, or None."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def missing_for_build() -> list[str]:
    """Return the names of the tools that the build needs and that are missing."""
    missing = [name for name in ("cmake", "c++") if tool(name) is None]
    return missing + ["pybind11"] * (importlib.util.find_spec("pybind11") is None)


def configure(root: Path, folder: Path) -> list:
    """Return the command that configures the build for the Hopper generation."""
    import pybind11

    ninja, nvcc = tool("ninja"), Path("/usr/local/cuda/bin/nvcc")
    return [
        *(tool("cmake"), "-S", root, "-B", folder, "-DCMAKE_BUILD_TYPE=Release"),
        *(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"),
        *("-DCBA_CUDA_ARCHS=90-real", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'lib'}"),
        *(["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        *([f"-DCBA_NVCC={nvcc}"] if not shutil.which("nvcc") and nvcc.exists() else []),
        # With this option CMake stops, and says why, if the CUDA kernels cannot be built.
        *(["-DCBA_CUDA=1"] if shutil.which("nvcc") or nvcc.exists() else []),
    ]


def install(library: Path, folder: Path) -> None:
    """Copy a library in one step, because other processes may load it at any time."""
    part = folder / f"{library.name}.part"
    shutil.copy2(library, part)
    part.replace(folder / library.name)


def gpu_test_files(root: Path) -> list[Path]:
    """Return the test files that have GPU tests.

    Other files are left out, because one that cannot be imported would stop the collection.
    """
    files = sorted((root / "tests").rglob("test_*.py"))
    return [f.relative_to(root) for f in files if "mark.gpu" in f.read_text(encoding="utf-8")]


def pytest(files: list, chosen: str, *more: str) -> list:
    """Return the command that runs the GPU tests of `files` that a ``-k`` expression chooses."""
    arguments = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", chosen, *files]
    arguments += ["-p", "no:cacheprovider", "-o", "addopts=--strict-markers", "--tb=short"]
    return [*arguments, "--continue-on-collection-errors", *more]


def in_parallel() -> list[str]:
    """Return the arguments that run tests in several processes, since most time is compilation."""
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(min(8, os.cpu_count() or 1))]


def sanitizer() -> str | None:
    """Return the path of compute-sanitizer, or None."""
    found = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    return found if Path(found).exists() else None
