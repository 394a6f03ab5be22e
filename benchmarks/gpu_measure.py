"""What `gpu_run.py` measures of kernels: the device's rates, the ERF ops, the convolutions.

Each function yields JSON values. Results are checked first; what is wrong gets no time. The
functions of a comparison take turns; times are CUDA events around one call each, in milliseconds.
On CPUs (a dry run) the shapes are tiny, and the times mean nothing.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from cba_fast.ops import (
    depthwise_conv2d,
    depthwise_conv2d_grad_weight,
    depthwise_conv2d_grad_x,
    erf_accumulate,
    erf_size,
)
from cba_fast.ops.dwconv_choice import TABLES
from cba_fast.study.dwconv_contest import (
    DIRECTIONS,
    Case,
    fft_forward,
    fft_grad_weight,
    fft_grad_x,
    random_inputs,
    relative_error,
)

# float64 by FFT is the truth. Rounding to bfloat16 is up to 2e-3 in the norm, PyTorch's float32 may
# be TF32's, which is shown but not timed as float32.
WRONG = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
CL = torch.channels_last
BACKENDS = ("triton", "cuda")

# Most important first: the time may run out. RepLKNet-31B at 384 (stage 3 has 54 % of its
# products), strips of SLaK-T, ConvNeXt's 7x7; then batch 1 and 2.
CASES = [
    *(Case(512, 24, 24, 27, 27, 64), Case(128, 96, 96, 31, 31, 64), Case(256, 48, 48, 29, 29, 64)),
    *(Case(1024, 12, 12, 13, 13, 64), Case(124, 96, 96, 51, 5, 64), Case(124, 96, 96, 5, 51, 64)),
    *(Case(128, 96, 96, 7, 7, 64), Case(128, 96, 96, 31, 31, 2), Case(512, 24, 24, 27, 27, 2)),
    *(Case(128, 96, 96, 31, 31, 1), Case(512, 24, 24, 27, 27, 1), Case(1024, 12, 12, 13, 13, 1)),
]
TINY = [Case(2, 5, 4, 9, 9, 2), Case(2, 6, 5, 3, 3, 1)]


def timed(functions: dict[str, Callable], device: str, seconds: float) -> dict[str, dict]:
    """Return milliseconds per call by name: median, 20th and 80th percentile, number of calls.

    Args:
        functions: what is timed; called once before.
        seconds: of each, about; three calls at least.
    """
    samples = {name: [] for name in functions}
    first = {name: _once(function, device) for name, function in functions.items()}
    left = {name: max(3, min(50, int(1e3 * seconds / (ms + 1e-3)))) for name, ms in first.items()}
    while any(left.values()):
        for name, function in functions.items():
            if left[name]:
                samples[name].append(_once(function, device))
                left[name] -= 1
    result = {}
    for name, values in samples.items():
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        numbers = {"median_ms": statistics.median(values), "p20_ms": fifths[0], "p80_ms": fifths[3]}
        result[name] = {k: round(v, 5) for k, v in numbers.items()} | {"calls": len(values)}
    return result


def _once(function: Callable, device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def rates(device: str) -> Iterator[dict]:
    """Measure mma.sync and library products in bfloat16, and copies (bytes read and written)."""
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
    target = torch.empty_like(source)
    ms = timed({"run": lambda: target.copy_(source)}, device, 0.5)["run"]["median_ms"]
    yield {"what": "copy", "tb_per_s": 2 * source.nbytes / ms / 1e9}


def erf_ops(device: str) -> Iterator[dict]:
    """Compare the ERF ops with plain PyTorch on the device: sorting, and a sum of the parts."""
    real = device == "cuda"
    for batch in (1, 16):
        grad = torch.randn((batch, 3, 384, 384) if real else (batch, 3, 9, 9), device=device)
        yield _compared(
            "erf_size",
            grad,
            {"ours": lambda g=grad: erf_size(g), "torch": lambda g=grad: sorted_sizes(g)},
            device,
        )
        maps = {name: torch.zeros(grad.shape[2:], dtype=torch.float64, device=device)
                for name in ("ours", "torch")}  # fmt: skip
        yield _compared(
            "erf_accumulate",
            grad,
            {
                "ours": lambda g=grad, out=maps["ours"]: erf_accumulate(g, out).clone(),
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
    # Sizes may differ by a pixel where the parallel sum rounds otherwise than ours, in sequence.
    right = off.item() < 1e-3 or (results["ours"] - results["torch"]).abs().max() <= 1
    return {
        "what": what,
        "shape": list(grad.shape),
        "bytes": grad.nbytes,
        "largest_relative_difference": off.item(),
        "timings": timed(functions, device, 0.3) if right else {},
    }


def convolutions(device: str, seconds: float = 0.2) -> Iterator[dict]:
    """Compare ours with PyTorch's three ways: in bfloat16 all, in float32 the network's forward."""
    real = device == "cuda"
    cases = CASES if real else TINY
    half = [(case, torch.bfloat16, direction) for case, direction in product(cases, DIRECTIONS)]
    single = [(case, torch.float32, "forward") for case in cases[:4]]
    for case, dtype, direction in half[:12] + single + half[12:]:
        yield compared(case, dtype, direction, device, seconds, "inductor" if real else "eager")


def compared(
    case: Case,
    dtype: torch.dtype,
    direction: str,
    device: str,
    seconds: float,
    compiler: str | None,
) -> dict:
    """Return errors and times of the `candidates` as JSON values; what is wrong has no time."""
    inputs = [t.to(device, dtype) for t in random_inputs(case, direction)]
    functions = candidates(case, direction, inputs, compiler)
    truth = _truth(case, direction, [t.double() for t in inputs])
    errors, failed = {}, {}
    for name, function in functions.items():
        try:
            errors[name] = relative_error(function(), truth)
        except RuntimeError as e:  # a way that cannot run is no reason to stop the others
            failed[name] = str(e)[:300]
    del truth
    right = {n: f for n, f in functions.items() if errors.get(n, 1) <= WRONG[dtype]}
    return {
        "case": str(case),
        "direction": direction,
        "dtype": str(dtype).removeprefix("torch."),
        "gflop": case.flops / 1e9,
        "mb": 2 * inputs[0].nbytes / 1e6,
        "errors": {name: float(f"{e:.3g}") for name, e in errors.items()},
        "failed": failed,
        "timings": timed(right, device, seconds),
    }


def _truth(case: Case, direction: str, inputs: list[Tensor]) -> Tensor:
    """Return the exact result, a part of the channels at a time: spectra are large."""
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


def candidates(case: Case, direction: str, inputs: list[Tensor], compiler: str | None) -> dict:
    """Return our backends and PyTorch's ways, on both memory formats, by name.

    Args:
        compiler: of PyTorch's third way, `torch.compile`; None leaves it out.
    """
    a, b = inputs
    size, groups = (case.kh, case.kw), case.channels
    padding = [case.kh // 2, case.kw // 2]

    def ours(backend, a, b):
        if direction == "grad_weight":
            return depthwise_conv2d_grad_weight(a, b, size, backend=backend)
        op = depthwise_conv2d if direction == "forward" else depthwise_conv2d_grad_x
        return op(a, b, backend=backend)

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
    weight = b_cl if direction == "grad_weight" else b
    table = TABLES[direction]
    found = {}
    for backend in BACKENDS:
        if table.backends[backend].reason(a, size, "auto") is None:
            found[backend] = partial(ours, backend, a, b)
            found[f"{backend}_channels_last"] = partial(ours, backend, a_cl, weight)
    found |= {"nchw": partial(theirs, a, b), "channels_last": partial(theirs, a_cl, b_cl)}
    if compiler:
        compiled = torch.compile(theirs, backend=compiler, dynamic=False)
        found["compile"] = partial(compiled, a, b)
    return found
