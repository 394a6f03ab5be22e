"""The peak memory of the depthwise convolution, ours against PyTorch's in channels_last.

    pytest benchmarks/bench_memory.py
    python benchmarks/table.py

Each way runs in its own process, because allocators keep memory that they once had. What counts is
by how much the resident set grows: inputs, output and scratch memory.
"""

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
from cases import DWCONV

from cba_fast.bench.dwconv_contest import (
    CL,
    DIRECTIONS,
    OURS_CL,
    Case,
    candidates,
    random_inputs,
)

WAYS = (CL, OURS_CL)


def status(field: str) -> int:
    """Return the resident memory of this process in KiB: VmRSS for now, VmHWM for its peak."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(field))


def peak_kib(way: str, case: Case, direction: str, threads: int) -> int:
    """Return by how many KiB this fresh process grows when it calls a candidate twice."""
    import torch

    torch.set_num_threads(threads)
    small = Case(16, 5, 5, 3, 3)  # loads code and starts threads
    candidates(small, direction, random_inputs(small, direction))[way]()
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # resets the peak
    before = status("VmRSS")
    inputs = [t.to(memory_format=torch.channels_last) for t in random_inputs(case, direction)]
    function = candidates(case, direction, inputs)[way]
    for _ in range(2):
        function()
    return status("VmHWM") - before


def in_fresh_process(function: Callable, *args):
    """Return ``function(*args)`` as a new process computes it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", [c for c in DWCONV["replknet"] if c.height >= 12], ids=str)
def test_memory(case, direction, record):
    import torch

    threads = torch.get_num_threads()
    peaks = {way: in_fresh_process(peak_kib, way, case, direction, threads) for way in WAYS}
    record("memory", {"bench": "memory", "case": str(case), "direction": direction, "kib": peaks})
