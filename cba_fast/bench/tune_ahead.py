"""Compiles the Triton kernels of jobs in other processes, before the jobs are measured.

A kernel takes a second or two, so that compiling one after another would take most of the time of
`tune`. Triton keeps compiled kernels on the disk for all processes.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from multiprocessing.pool import Pool

import torch

from ..kernels.gpu import triton_core
from .tune_measure import Job, inputs, ways

CHUNK = 24  # jobs whose kernels are compiled together before they are measured
LONGEST = 120.0  # seconds for the kernels of a chunk


def compiled_ahead(jobs: Iterable[Job], device: torch.device) -> Iterator[Job]:
    """Yield the jobs in their order, on a GPU each after its Triton kernels have been compiled."""
    if device.type != "cuda" or triton_core.unavailable():
        yield from jobs
        return
    processes = max(1, min(12, (os.cpu_count() or 1) - 2))
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from in_chunks(iter(jobs), device, pool)


def in_chunks(jobs: Iterator[Job], device: torch.device, pool: Pool) -> Iterator[Job]:
    """Yield the jobs, a chunk at a time after `pool` has compiled it, if that takes no minutes."""
    helps = True
    while chunk := list(islice(jobs, CHUNK)):
        if helps:
            compiling = pool.map_async(_compile, [(job, device) for job in chunk], chunksize=1)
            compiling.wait(LONGEST)
            if not compiling.ready():  # a process hangs, or died with its job
                pool.terminate()
                helps = False
        yield from chunk


def _compile(work: tuple[Job, torch.device]) -> None:
    """Compile the Triton kernels of a job by running them once."""
    job, device = work
    with contextlib.suppress(Exception):  # the measurement will report it
        for name, function in ways(job, inputs(job.case, job, device), (), False).items():
            if name.startswith("triton"):
                with contextlib.suppress(Exception):
                    function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
