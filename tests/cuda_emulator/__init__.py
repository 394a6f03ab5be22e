"""Compiles csrc/cuda/ for a CPU, with the GPU emulated (emulator.h), and loads it."""

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

import pytest
from filelock import FileLock

from cba_fast.kernels import cuda_core

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda-emulator"
# Without contraction, because csrc/cuda/ names the operations that are to be fused.
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-U_FORTIFY_SOURCE")
# A GPU would refuse accesses that are not aligned, too.
CHECKED = ("-O1", "-fsanitize=alignment,shift,bounds", "-fno-sanitize-recover=all")
# Adds a call before every access (hooks.cpp), and the lines of the sources.
RACES = ("-Og", "-g1", "-fsanitize=thread")


def compiler() -> list[str] | None:
    """Return the command of the C++ compiler, or None if there is none."""
    wanted = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    return wanted if shutil.which(wanted[0]) else None


@functools.cache
def load(*, races: bool = False):
    """Return a module with the functions of ``bind_cuda`` for tensors on the CPU.

    Objects are kept in ``build/`` and compiled again when a source, a header or the flags change.

    Args:
        races: whether the kernels are instrumented, so that all accesses are checked (races.h).

    Raises:
        RuntimeError: a source does not compile; the message has the compiler's output.
    """
    import pybind11

    includes = [HERE, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    command = [*compiler(), *FLAGS, *(f"-I{path}" for path in includes)]
    kernels = [*sorted((CSRC / "cuda").glob("*.cu")), HERE / "racing_selftest.cpp"]
    units = [CSRC / "bindings_cuda.cpp", *sorted({*HERE.glob("*.cpp")} - {*kernels})]
    headers = [*sorted(CSRC.glob("*.h")), *sorted(CSRC.glob("c[ou]*/*.h")), *HERE.rglob("*.h")]
    common = b"".join(path.read_bytes() for path in headers)
    kernel_flags = RACES if races else CHECKED
    work = [*((kernel_flags, path) for path in kernels), *((CHECKED, path) for path in units)]
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / "lock"):  # other test processes build the same module
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda one: _object(command, *one, common), work))
        digest = hashlib.sha256("".join(path.name for path in objects).encode()).hexdigest()[:16]
        module = BUILD / digest / f"cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not module.exists():
            module.parent.mkdir(exist_ok=True)
            _run([*command, *CHECKED, "-shared", *map(str, objects)], module)
    name = "races.cuda_emulated" if races else "cuda_emulated"  # pybind11 allows a name once
    spec = importlib.util.spec_from_file_location(name, module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def emulate(monkeypatch, order: int):
    """Let the launchers run emulated kernels, the threads of a block in order 0, 1 or 2."""
    if compiler() is None:
        pytest.skip("no C++ compiler to build the emulated kernels with")
    module = load()
    module.set_order(order)
    monkeypatch.setattr(cuda_core, "load", lambda: module)
    return module


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
