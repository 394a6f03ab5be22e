"""The commands that `gpu_run` runs: machine description, build, NVIDIA's tools."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

# Odd sizes and unaligned rows, for the first tests and those under compute-sanitizer.
_ODD = "test_passes_are_within_bounds and contiguous and (2x5x7x7 or 2x3x33x65 or 2x70x13x9)"
SMALL_TRITON = f"triton- and ({_ODD} and bfloat16 or test_views and unaligned)"
SANITIZED_RACES = "test_any_alignment_on_a_gpu or test_device_equals_cpu"
SMALL_CUDA = (
    f"cuda- and {_ODD} and (bfloat16 or float32) or {SANITIZED_RACES}"
    " or test_device_graph_of_the_accumulator or test_the_cuda_kernel_runs_where_it_is_built"
)
SANITIZED = f"{SMALL_CUDA} or {SMALL_TRITON}"

# The launches that are profiled (`gpu_measure.LAUNCHES`), and their kernels.
PROFILED = {
    "hankel": "hankel_kernel",
    "hankel_weight": "hankel_weight_kernel",
    "strip": "strip",
    "fma": "fma",
    "band": "dwconv_band_kernel",
}
NCU = ("--clock-control", "none", "--set", "full", "--kernel-name-base", "function")
NCU += ("--launch-count", "1", "--target-processes", "application-only")

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


CBA_FAST = "from cba_fast.cli.main import main; main()"
CHECK = "from cba_fast.kernels import native; assert not native.cuda_unavailable()"


def tool(name: str) -> str | None:
    """Return the path of a program, on the PATH or beside this Python, or None."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def missing_for_build() -> list[str]:
    """Return the names of the tools that the build needs and that are missing."""
    missing = [name for name in ("cmake", "c++") if tool(name) is None]
    return missing + ["pybind11"] * (importlib.util.find_spec("pybind11") is None)


def configure(root: Path, folder: Path, python: str) -> list:
    """Return the command that configures the build for a Python and the Hopper generation."""
    import pybind11

    ninja, nvcc = tool("ninja"), nvidia_tool("nvcc")
    return [
        *(tool("cmake"), "-S", root, "-B", folder, "-DCMAKE_BUILD_TYPE=Release"),
        *(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={python}"),
        *("-DCBA_CUDA_ARCHS=90-real", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'lib'}"),
        *(["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        # With CBA_CUDA CMake stops, and says why, if the CUDA kernels cannot be built.
        *([f"-DCBA_NVCC={nvcc}", "-DCBA_CUDA=1"] if nvcc else []),
    ]


def build(root: Path, folder: Path, python: str) -> dict[str, list]:
    """Return the commands that build the core, by name."""
    first = configure(root, folder, python)
    how = ["--build", folder, "-j", os.cpu_count() or 1]
    return {"build_configure": first, "build": [first[0], *how]}


def built(folder: Path) -> Path:
    """Return the core that was built in `folder`."""
    return next((folder / "lib").glob("_C*.so"))


def prebuild(root: Path, python: str) -> int:
    """Build the core into ``build/gpu/`` to be carried to another machine; return an exit code."""
    folder, python = root / "build" / "gpu_prebuild", tool(python) or python
    for command in build(root, folder, python).values():
        if code := subprocess.run([str(c) for c in command], check=False).returncode:
            return code
    carried = root / "build" / "gpu"
    shutil.rmtree(carried, ignore_errors=True)
    carried.mkdir(parents=True)
    install(built(folder), carried)
    (carried / "sources.txt").write_text(digest(root))
    print(f"carry {carried.relative_to(root)}: {built(folder).name}")
    return 0


def digest(root: Path) -> str:
    """Return a fingerprint of the sources of the core."""
    files = [root / "CMakeLists.txt", *(f for f in (root / "csrc").rglob("*") if f.is_file())]
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).hexdigest()


def carried(root: Path) -> Path | None:
    """Return the core in ``build/gpu/`` if it belongs to these sources and to this Python."""
    note = root / "build" / "gpu" / "sources.txt"
    if not note.exists() or note.read_text() != digest(root):
        return None
    library = note.with_name(f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
    return library if library.exists() else None


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


def nvidia_tool(name: str) -> str | None:
    """Return the path of a tool of the CUDA toolkit, or None."""
    found = shutil.which(name) or f"/usr/local/cuda/bin/{name}"
    return found if Path(found).exists() else None
