"""Compile csrc/cuda/ for a CPU and import it: the same sources, the GPU emulated (emulator.h)."""

import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda-emulator"
# Contraction off: csrc/ asks for fused operations by name.
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-U_FORTIFY_SOURCE")
# Alignment is checked, as a GPU would.
CHECKED = ("-O1", "-fsanitize=alignment,shift,bounds", "-fno-sanitize-recover=all")
# Calls before every access (hooks.cpp), and what lines of the sources they come from.
RACES = ("-Og", "-g1", "-fsanitize=thread")


def compiler() -> list[str] | None:
    """Return the command of the C++ compiler, None if there is none."""
    wanted = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    return wanted if shutil.which(wanted[0]) else None


@functools.cache
def load(*, races: bool = False):
    """Return the module with the functions of ``bind_cuda``, for tensors on the CPU.

    Objects are kept in ``build/`` and compiled again when a source, a header or the flags changed.

    Args:
        races: instrument the kernels, so that all their accesses are checked (races.h).

    Raises:
        RuntimeError: a source does not compile; the message holds the compiler's.
    """
    import pybind11

    includes = [HERE, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    command = [*compiler(), *FLAGS, *(f"-I{path}" for path in includes)]
    kernels = [*sorted((CSRC / "cuda").glob("*.cu")), HERE / "racing_selftest.cpp"]
    units = [CSRC / "bindings_cuda.cpp", *sorted({*HERE.glob("*.cpp")} - {*kernels})]
    headers = [*sorted(CSRC.glob("*.h")), *sorted(CSRC.glob("c[ou]*/*.h")), *HERE.rglob("*.h")]
    common = b"".join(path.read_bytes() for path in headers)
    of_kernels = RACES if races else CHECKED
    work = [*((of_kernels, path) for path in kernels), *((CHECKED, path) for path in units)]
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / "lock"):  # other processes of the tests build the same
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda one: _object(command, *one, common), work))
        digest = hashlib.sha256("".join(path.name for path in objects).encode()).hexdigest()[:16]
        module = BUILD / digest / f"cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not module.exists():
            module.parent.mkdir(exist_ok=True)
            _run([*command, *CHECKED, "-shared", *map(str, objects)], module)
    name = "races.cuda_emulated" if races else "cuda_emulated"  # pybind11 keeps one of each name
    spec = importlib.util.spec_from_file_location(name, module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _object(command: list[str], flags: tuple[str, ...], source: Path, common: bytes) -> Path:
    command = [*command, *flags, "-c", "-x", "c++", str(source)]
    parts = " ".join(command).encode(), common, source.read_bytes()
    digest = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    stem = f"{source.stem}{'-races' if flags is RACES else ''}"
    path = BUILD / f"{stem}-{digest}.o"
    if not path.exists():
        for old in BUILD.glob(f"{stem}-{'?' * 16}.o"):
            old.unlink(missing_ok=True)
        _run(command, path)
    return path


def _run(command: list[str], output: Path) -> None:
    part = output.with_name(f"{output.name}.part")
    done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    part.replace(output)
