"""Finds PyTorch's OpenMP runtime, so that the compiled core can run on its threads."""

import ctypes
import multiprocessing
import os
from pathlib import Path

import torch

_MAPS = Path("/proc/self/maps")
_NAMES = ("libgomp", "libiomp", "libomp")
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def in_forked_child() -> bool:
    """Say whether this process is known to be a fork, in which OpenMP's threads do not exist.

    A process that `os.fork` made before this module was imported is not recognized.
    """
    forks = multiprocessing.get_start_method(allow_none=True) in (None, "fork", "forkserver")
    return _forked or (multiprocessing.parent_process() is not None and forks)


def entry_point() -> int:
    """Return the address of ``GOMP_parallel`` in PyTorch's OpenMP runtime, or 0 if there is none.

    A process may hold several runtimes: PyTorch's is the one in its own folders, or the only one.
    """
    if in_forked_child():
        return 0
    try:
        lines = os.fsdecode(_MAPS.read_bytes()).splitlines()
    except OSError:  # not Linux
        return 0
    paths = {line.split(maxsplit=5)[-1] for line in lines if "omp" in line}
    runtimes = [p for p in map(Path, paths) if p.name.startswith(_NAMES)]
    site = Path(torch.__file__).parent.parent
    own = [p for p in runtimes if site / "torch" in p.parents or site / "torch.libs" in p.parents]
    if len(own or runtimes) != 1:
        return 0
    try:
        # NOLOAD finds the copy that PyTorch uses; a second one would have other threads.
        library = ctypes.CDLL(str((own or runtimes)[0]), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0
