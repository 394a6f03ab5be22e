"""Measurements of kernels for `gpu_run.py`: the device's rates, the ERF ops, the convolutions.

Each function yields records of JSON values. Results are checked first, and wrong ones are not
timed. A dry run on a CPU has tiny shapes, and its times mean nothing.
"""

import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice, product

import gpu_faults
import torch
from torch import Tensor

from cba_fast.bench.device_timing import timed
from cba_fast.bench.dwconv_contest import (
    DIRECTIONS,
    Case,
    fft_forward,
    fft_grad_weight,
    fft_grad_x,
    random_inputs,
    relative_error,
)
from cba_fast.ops import (
    depthwise_conv2d,
    depthwise_conv2d_grad_weight,
    depthwise_conv2d_grad_x,
    erf_accumulate,
    erf_size,
)
from cba_fast.ops.dwconv_choice import TABLES

# Results with a larger relative L2 error against float64 are wrong. Rounding to bfloat16 makes up
# to 2e-3. PyTorch computes float32 in TF32 (3e-4) by default, so that this is timed, too; the
# record tells the error.
WRONG = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
WRONG_OF_RIVALS = 1e-2
CL = torch.channels_last
BACKENDS = ("triton", "cuda", "cuda_strip")
TIMING = "timing"  # the way that is noted while all right ways take turns

# The most important cases are first, because the time may run out: RepLKNet-31B at 384 pixels
# (stage 3 has 54 % of its products), then strips of SLaK-T and ConvNeXt's 7x7.
STAGES = (
    *(Case(512, 24, 24, 27, 27, 64), Case(128, 96, 96, 31, 31, 64)),
    *(Case(256, 48, 48, 29, 29, 64), Case(1024, 12, 12, 13, 13, 64)),
)
STRIPS = Case(124, 96, 96, 51, 5, 64), Case(124, 96, 96, 5, 51, 64)
CONVNEXT = Case(128, 96, 96, 7, 7, 64)
JOBS = [
    *((case, torch.bfloat16, direction) for case, direction in product(STAGES, DIRECTIONS)),
    *((case, torch.float32, direction) for case, direction in product(STAGES, DIRECTIONS[:2])),
    (STAGES[1], torch.float16, "forward"),
    *((case, torch.bfloat16, direction) for case, direction in product(STRIPS, DIRECTIONS[:2])),
    *((CONVNEXT, torch.bfloat16, direction) for direction in DIRECTIONS),
]
COMPILED = [(case, torch.bfloat16, "forward") for case in STAGES[:2]]  # also by `torch.compile`
TINY = [
    *((Case(2, 5, 4, 9, 9, 2), torch.bfloat16, direction) for direction in DIRECTIONS),
    (Case(2, 6, 5, 3, 3, 1), torch.float32, "forward"),
]
# The launches that are profiled: the job and the way.
LAUNCHES = {
    "hankel": (JOBS[0], "cuda"),
    "hankel_weight": ((*JOBS[0][:2], "grad_weight"), "cuda"),
    "strip": ((STRIPS[0], torch.bfloat16, "forward"), "cuda_strip"),
    "fma": ((STAGES[1], torch.float32, "forward"), "cuda"),
    "band": (JOBS[0], "triton"),
}


class DeviceLost(Exception):
    """A kernel ended this process's use of the GPU; ``str(e)`` is the way that ran it."""


def rates(device: str) -> Iterator[dict]:
    """Measure mma.sync and library products in bfloat16, and the bandwidth of copies."""
    from gpu_rates import mma_sync

    real = device == "cuda"
    run, operations, error = mma_sync(device, *((1056, 2000) if real else (2, 3)))
    run()
    wrong = error()
    if wrong < 1e-2:
        ms = timed({"run": run}, device, 0.5)["run"]["median_ms"]
        yield {"what": "mma.sync bf16", "tflops": operations / ms / 1e9, "error": wrong}
    else:
        yield {"what": "mma.sync bf16", "error": wrong}
    size = 8192 if real else 16
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    ms = timed({"run": lambda: a @ b}, device, 0.5)["run"]["median_ms"]
    yield {"what": "matmul bf16", "tflops": 2 * size**3 / ms / 1e9}
    source = torch.empty((1 << 30) if real else 1 << 10, dtype=torch.float32, device=device)
    target = torch.empty_like(source.normal_())
    ms = timed({"run": lambda: target.copy_(source)}, device, 0.5)["run"]["median_ms"]
    yield {"what": "copy", "tb_per_s": 2 * source.nbytes / ms / 1e9}


def erf_ops(device: str) -> Iterator[dict]:
    """Compare the ERF ops with plain PyTorch on the device: a sort, and a sum."""
    real = device == "cuda"
    backend = "cuda" if real else None
    for batch in (1, 16):
        grad = torch.randn((batch, 3, 384, 384) if real else (batch, 3, 9, 9), device=device)
        yield _compared(
            "erf_size",
            grad,
            {
                "ours": lambda g=grad: erf_size(g, backend=backend),
                "torch": lambda g=grad: sorted_sizes(g),
            },
            device,
        )
        maps = {name: torch.zeros(grad.shape[2:], dtype=torch.float64, device=device)
                for name in ("ours", "torch")}  # fmt: skip
        yield _compared(
            "erf_accumulate",
            grad,
            {
                "ours": lambda g=grad, out=maps["ours"]: erf_accumulate(
                    g, out, backend=backend
                ).clone(),
                "torch": lambda g=grad, out=maps["torch"]: out.add_(
                    g.relu().sum((0, 1), dtype=torch.float64)
                ).clone(),
            },
            device,
        )


def sorted_sizes(grad: Tensor, p: float = 0.2) -> Tensor:
    """Return the ERF sizes by a sort and a cumulative sum in float64."""
    g = grad.abs().mean(1).flatten(1).double().sort(dim=1, descending=True).values
    total = g.cumsum(1)
    return 1 + torch.searchsorted(total, p * total[:, -1:]).squeeze(1)


def _compared(what: str, grad: Tensor, functions: dict[str, Callable], device: str) -> dict:
    results = {name: function().double() for name, function in functions.items()}
    off = ((results["ours"] - results["torch"]).abs() / results["torch"].clamp(min=1e-9)).max()
    # Sizes may differ by a pixel, because PyTorch's parallel sum rounds otherwise than a sequential
    # one.
    right = off.item() < 1e-3 or (results["ours"] - results["torch"]).abs().max() <= 1
    return {
        "what": what,
        "shape": list(grad.shape),
        "bytes": grad.nbytes,
        "largest_relative_difference": off.item(),
        "timings": timed(functions, device, 0.3, queued=False) if right else {},
    }


def convolutions(
    device: str,
    seconds: float = 1e9,
    *,
    done: int = 0,
    without: Callable[[int], Collection[str]] = lambda index: (),
    trying: Callable[[int, str], None] = lambda index, way: None,
) -> Iterator[dict]:
    """Compare our convolutions with PyTorch's ways, job after job.

    Args:
        device: "cuda" or "cpu".
        seconds: the time after which no job is begun.
        done: how many of the first jobs are left out.
        without: returns the ways that are left out of a job, given its index.
        trying: is told which way of which job is run next.
    """
    end = time.monotonic() + seconds
    jobs = JOBS if device == "cuda" else TINY
    for index, job in islice(enumerate(jobs), done, None):
        if time.monotonic() > end:
            return
        compiler = "inductor" if job in COMPILED else "eager" if job is TINY[0] else None
        faults = index == 0 and "CBA_GPU_FAULTS" in os.environ
        how = (compiler, without(index), partial(trying, index), faults)
        yield compared(*job, device, 0.1, *how)


def compared(
    case: Case,
    dtype: torch.dtype,
    direction: str,
    device: str,
    seconds: float,
    compiler: str | None,
    without: Collection[str] = (),
    trying: Callable[[str], None] = lambda way: None,
    faults: bool = False,
) -> dict:
    """Return the record of the `candidates`: errors, and times of those with right results.

    Raises:
        DeviceLost: the device no longer answers.
    """
    inputs = inputs_on(device, case, direction, dtype)
    functions = candidates(case, direction, inputs, compiler)
    functions = gpu_faults.put_in(functions) if faults else functions
    functions = {name: function for name, function in functions.items() if name not in without}
    truth = _truth(case, direction, [t.double() for t in inputs])
    errors, failed = {}, {}
    for name, function in functions.items():
        _poison(truth, dtype)
        trying(name)
        try:
            errors[name] = relative_error(function(), truth)
        except Exception as e:  # the other ways can still run
            failed[name] = f"{type(e).__name__}: {e}"[:300]
            _check_alive(device, name)
    del truth
    right = {n: f for n, f in functions.items() if _is_right(n, errors.get(n, math.inf), dtype)}
    trying(TIMING)
    return {
        "case": str(case),
        "direction": direction,
        "dtype": str(dtype).removeprefix("torch."),
        "gflop": case.flops / 1e9,
        "mb": 2 * inputs[0].nbytes / 1e6,
        "errors": {n: float(f"{e:.3g}") if math.isfinite(e) else None for n, e in errors.items()},
        "failed": failed,
        "timings": timed(right, device, seconds) if TIMING not in without else {},
    }


def launch(device: str, name: str) -> Iterator[dict]:
    """Run one of `LAUNCHES` once, for a profiler."""
    (case, dtype, direction), way = LAUNCHES[name]
    if device == "cpu":
        (case, dtype, direction), way = TINY[0], "triton"
    inputs = inputs_on(device, case, direction, dtype)
    norm = ours(case, direction, inputs)[way]().float().norm().item()
    yield {"what": name, "way": way, "case": str(case), "norm": norm}


def inputs_on(device: str, case: Case, direction: str, dtype: torch.dtype) -> list[Tensor]:
    """Return (x, weight), (grad, weight) or (grad, x).

    They are made on the device: on a CPU the numbers of the largest case take a second, more than
    all its convolutions on a GPU.
    """
    return [t.to(dtype) for t in random_inputs(case, direction, device)]


def _is_right(name: str, error: float, dtype: torch.dtype) -> bool:
    ours = name.startswith(BACKENDS)
    return error <= (WRONG[dtype] if ours else max(WRONG[dtype], WRONG_OF_RIVALS))


def _poison(like: Tensor, dtype: torch.dtype) -> None:
    """Write NaN to the memory that the next result is likely to get.

    Otherwise PyTorch would hand out the memory that holds the right result of the last candidate.
    """
    torch.full_like(like, math.nan, dtype=dtype)


def _check_alive(device: str, name: str) -> None:
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as e:
            raise DeviceLost(name) from e


def _truth(case: Case, direction: str, inputs: list[Tensor]) -> Tensor:
    """Return the exact result, computed 32 channels at a time because spectra are large."""
    a, b = inputs
    parts = []
    for start in range(0, case.channels, 32):
        some = slice(start, start + 32)
        if direction == "grad_weight":
            parts.append(fft_grad_weight(a[:, some], b[:, some], (case.kh, case.kw)))
        else:
            fft = fft_forward if direction == "forward" else fft_grad_x
            parts.append(fft(a[:, some], b[some]))
    return torch.cat(parts, 0 if direction == "grad_weight" else 1)


def candidates(
    case: Case,
    direction: str,
    inputs: list[Tensor],
    compiler: str | None,
) -> dict[str, Callable[[], Tensor]]:
    """Return our backends and PyTorch's ways, on both memory formats, by name.

    Args:
        compiler: the backend of `torch.compile`, PyTorch's third way; None leaves that out.
    """
    a, b = inputs
    size, groups = (case.kh, case.kw), case.channels
    padding = [case.kh // 2, case.kw // 2]

    def theirs(a, b):
        if direction == "forward":
            return torch.nn.functional.conv2d(a, b, padding=padding, groups=groups)
        x, weight = (b, b.new_empty((groups, 1, *size))) if direction == "grad_weight" else (a, b)
        mask = [direction == "grad_x", direction == "grad_weight", False]
        results = torch.ops.aten.convolution_backward(
            a, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], groups, mask
        )
        return results[mask.index(True)]

    a_cl, b_cl = (t.to(memory_format=CL) for t in (a, b))
    found = ours(case, direction, inputs)
    found |= {"nchw": partial(theirs, a, b), "channels_last": partial(theirs, a_cl, b_cl)}
    if compiler:
        # `theirs` has the same code in every case: without a reset the ninth one would not be
        # compiled.
        torch.compiler.reset()
        compiled = torch.compile(theirs, backend=compiler, dynamic=False, fullgraph=True)
        found["compile"] = partial(compiled, a, b)
    return found


def ours(case: Case, direction: str, inputs: list[Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Return our backends that can run here, on both memory formats, by name.

    For strips there are the two kernels between which the backend "cuda" chooses, too.
    """
    a, b = inputs
    size = (case.kh, case.kw)

    def run(backend, a, b):
        if direction == "grad_weight":
            return depthwise_conv2d_grad_weight(a, b, size, backend=backend)
        op = depthwise_conv2d if direction == "forward" else depthwise_conv2d_grad_x
        return op(a, b, backend=backend)

    a_cl = a.to(memory_format=CL)
    b_cl = b.to(memory_format=CL) if direction == "grad_weight" else b
    found = {}
    for backend in BACKENDS:
        known = TABLES[direction].backends.get(backend)
        if known is not None and known.reason(a, size, "auto") is None:
            found[backend] = partial(run, backend, a, b)
            found[f"{backend}_channels_last"] = partial(run, backend, a_cl, b_cl)
    return found
