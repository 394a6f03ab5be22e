"""Checks and times all ways to compute one depthwise convolution, on both memory formats.

Every method is checked against float64 on few images and channels of the same map and kernel, and
against PyTorch on all of them. The right ones take turns with PyTorch's ways.
"""

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels import dwconv_torch
from ..ops.choice_table import Call
from ..ops.dwconv import depthwise_conv2d, depthwise_conv2d_grad_weight, depthwise_conv2d_grad_x
from ..ops.dwconv_choice import COMPILED, runnable
from . import dwconv_contest as contest
from .contest import Contest, seconds_of
from .device_timing import timed
from .dwconv_contest import DTYPES, WRONG, Case, relative_error

EACH = 0.05  # seconds of calls of each way
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# PyTorch's ways besides those that the automatic choice can take.
NCHW, CL, BENCHMARK, FFT = "nchw", "channels_last", "cudnn_benchmark", "torch_fft"
RIVALS = (NCHW, CL, BENCHMARK, FFT)
AUTOMATIC = "automatic"
# One of PyTorch's ways that is likely to take this many times as long as the fastest way, by times
# for fewer images or channels, is left out if a call would take longer than all of its time.
HOPELESS = 8
NEAR = 1.25  # methods within this of the fastest one are told apart by more calls, with its rival
_LONGEST = 2.0  # seconds of a call, beyond which this holds for the fastest of them, too
# PyTorch may compute float32 in TF32 (error 3e-4). That is allowed for its own ways and where ours
# are compared with them.
_NEAR_PYTORCH = {"float32": 1e-3, "bfloat16": 2e-2}
_FEW_IMAGES, _FEW_CHANNELS = 3, 18

Functions = dict[str, Callable[[], Tensor]]


class Job(NamedTuple):
    """A convolution, direction and dtype that are measured together."""

    case: Case
    direction: str
    dtype: str

    def call(self, layout: str) -> Call:
        """Return the key of the job's result on tensors of a layout."""
        c = self.case
        shape = (c.batch, c.channels, c.height, c.width)
        return Call(self.direction, self.dtype, layout, *shape, c.kh, c.kw)


class DeviceLost(InputError):
    """A kernel ended this process's use of the GPU; `method` is the one that ran."""

    def __init__(self, method: str, job: Job):
        self.method = method
        super().__init__(
            f"the GPU gives no answer since {method} computed {job.direction} of {job.case} in "
            f"{job.dtype}; the same command goes on without {method}"
        )


def without_hopeless(times: dict[str, float], limit: float) -> list[str]:
    """Return the ways whose times are below `limit` or not hopeless, PyTorch's in order of time.

    Our methods always stay, and so does PyTorch's fastest way, with which they are compared, unless
    it takes seconds.
    """
    ours = [name for name in times if not _is_pytorch(name)]
    theirs = sorted((name for name in times if _is_pytorch(name)), key=times.__getitem__)
    longest = max(limit, HOPELESS * min(times.values(), default=0))
    kept = [n for n in theirs if times[n] <= longest]
    kept = kept or [n for n in theirs[:1] if times[n] <= _LONGEST]
    return kept + ours


def way_of(name: str, layout: str) -> str:
    """Return the name of a way: that of a rival, or a method and the layout that it runs on."""
    return name if name in RIVALS else f"{name} {layout}"


def measure(
    job: Job,
    device: torch.device,
    seconds: float = EACH,
    without: Collection[str] = (),
    automatic: bool = False,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, str]]]:
    """Check and time all ways for one job.

    Args:
        job: the convolution, direction and dtype.
        device: where it runs.
        seconds: the time of each way.
        without: methods, or ways (`way_of`), that are left out.
        automatic: whether the automatic choice takes part as well.

    On a CPU ways that are hopeless (`HOPELESS`) are left out as well.

    Returns:
        For each of `LAYOUTS` the milliseconds of each method and of PyTorch's ways, and what was
        wrong with those that are left out. On a GPU the milliseconds are medians of the device or
        of the host, whichever are more; on a CPU 20th percentiles.

    Raises:
        DeviceLost: the GPU no longer answers.
    """
    case = job.case
    few = Case(
        min(case.channels, _FEW_CHANNELS),
        *(case.height, case.width, case.kh, case.kw),
        min(case.batch, _FEW_IMAGES),
    )
    small = inputs(few, job, device)
    exact = _exact(few, job, [t.double() for t in small])
    functions = ways(job, inputs(case, job, device), without, automatic)
    wrong: dict[str, str] = {}
    quick = ways(job, small, without, automatic)
    for name, function in quick.items():
        tolerance = _NEAR_PYTORCH[job.dtype] if _is_pytorch(name) else WRONG[job.dtype]
        _check(name, function, exact, tolerance, wrong, job)
    right = [n for n in functions if n not in wrong]
    if device.type == "cpu":
        work = case.batch * case.channels / (few.batch * few.channels)
        expected = {n: work * min(map(seconds_of, 3 * [quick[n]])) for n in right}
        right = without_hopeless(expected, seconds)
    # PyTorch's convolution, if that is right, is what the others are compared with at full size.
    right.sort(key=lambda n: not _is_pytorch(n))
    full = None
    for name in right:
        result = _check(name, functions[name], full, _NEAR_PYTORCH[job.dtype], wrong, job)
        full = result if full is None else full
    del full
    ms = _timed({n: functions[n] for n in right if n not in wrong}, device, seconds)
    return _by_layout(ms), _by_layout(wrong)


def inputs(case: Case, job: Job, device: torch.device) -> list[Tensor]:
    """Return (x, weight), (grad, weight) or (grad, x): one random image, a factor for each copy.

    Random numbers for a large batch would take longer than its convolutions.
    """
    one = contest.random_inputs(Case(*_but_batch(case)), job.direction, device.type)
    factors = torch.linspace(0.5, 1, case.batch, device=device)[:, None, None, None]
    first, second = (t.to(device) for t in one)
    tensors = [first * factors, second * factors if job.direction == "grad_weight" else second]
    return [t.to(DTYPES[job.dtype]) for t in tensors]


def _but_batch(case: Case) -> tuple[int, ...]:
    return case.channels, case.height, case.width, case.kh, case.kw


def ways(job: Job, tensors: list[Tensor], without: Collection[str], automatic: bool) -> Functions:
    """Return all ways for a job by name, as functions without arguments."""
    case, direction = job.case, job.direction
    size, image = (case.kh, case.kw), tensors[0]
    methods = [m for m in runnable(direction, image, size) if m not in without]
    found: Functions = {}
    for layout, memory_format in LAYOUTS.items():
        a = image.to(memory_format=memory_format)
        b = tensors[1].to(memory_format=memory_format)
        b = b if direction == "grad_weight" else tensors[1]
        for method in [*methods, *[AUTOMATIC] * automatic]:
            found[way_of(method, layout)] = partial(_ours, direction, a, b, size, method)
    rivals = contest.candidates(case, direction, tensors)
    if not dwconv_torch.may_hang(image, size):
        found[NCHW], found[CL] = rivals[contest.NCHW], rivals[contest.CL]
    if image.device.type == "cuda":
        found[BENCHMARK] = partial(_benchmarked, rivals[contest.CL])
    if job.dtype == "float32":
        found[FFT] = rivals[contest.FFT]
    return {name: function for name, function in found.items() if name not in without}


def _ours(direction: str, a: Tensor, b: Tensor, size: tuple[int, int], method: str) -> Tensor:
    backend: str | None = method
    algorithm = "auto"
    if method in COMPILED:
        backend, algorithm = "cpp", method
    elif method == AUTOMATIC:
        backend = None
    if direction == "grad_weight":
        return depthwise_conv2d_grad_weight(a, b, size, backend=backend, algorithm=algorithm)
    op = depthwise_conv2d if direction == "forward" else depthwise_conv2d_grad_x
    return op(a, b, backend=backend, algorithm=algorithm)


def _benchmarked(function: Callable[[], Tensor]) -> Tensor:
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        return function()


def _is_pytorch(way: str) -> bool:
    return way.split()[0] in ("torch", "conv2d", *RIVALS)


def _exact(case: Case, job: Job, tensors: list[Tensor]) -> Tensor:
    return contest.candidates(case, job.direction, tensors)[contest.FFT]()


def _check(
    name: str,
    function: Callable[[], Tensor],
    expected: Tensor | None,
    tolerance: float,
    wrong: dict[str, str],
    job: Job,
) -> Tensor | None:
    """Run a way and note in `wrong` if it fails or is not close to `expected`; return its result.

    Args:
        expected: the right result; None accepts any.
    """
    if expected is not None:
        # PyTorch would hand out the memory of the last candidate's right result.
        torch.full_like(expected, math.nan)
    try:
        result = function()
        if expected is not None:
            error = _relative(result, expected)
            if not error <= tolerance:
                wrong[name] = f"relative error {error:.2g}"
    except Exception as e:  # the other ways can still run
        wrong[name] = f"{type(e).__name__}: {e}"[:200]
        if torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                raise DeviceLost(name.split()[0], job) from e
        return None
    return result


def _relative(result: Tensor, expected: Tensor) -> float:
    if expected.dtype == torch.float64:
        return relative_error(result, expected)
    expected = expected.float()
    return ((result.float() - expected).norm() / expected.norm()).item()


def _timed(functions: Functions, device: torch.device, seconds: float) -> dict[str, float]:
    if device.type == "cuda":
        with torch.cuda.device(device):
            found = timed(functions, "cuda", seconds)
        return {name: max(t["median_ms"], t["host_ms"]) for name, t in found.items()}
    ms = _contest(functions, seconds)
    again = sorted((n for n in ms if n in RIVALS), key=ms.__getitem__)[:1]
    for layout in LAYOUTS:
        own = {n: t for n, t in ms.items() if n.endswith(f" {layout}")}
        again += [n for n, t in own.items() if t <= NEAR * min(own.values())]
    return ms | _contest({n: functions[n] for n in again}, 3 * seconds)


def _contest(functions: Functions, seconds: float) -> dict[str, float]:
    silent = {name: partial(_run, function) for name, function in functions.items()}
    if not silent:
        return {}
    # Other processes make calls longer, never shorter: the 20th percentile says more of the ways.
    timings = Contest(silent, seconds, most=100).run()
    return {name: t.in_ms()["p20_ms"] for name, t in timings.items()}


def _run(function: Callable[[], Tensor]) -> None:
    function()  # without keeping the result, of which a contest would hold one for each way


def _by_layout(values: dict) -> dict[str, dict]:
    """Return for each layout the values of its ways by method, and those of PyTorch's ways."""
    found: dict[str, dict] = {layout: {} for layout in LAYOUTS}
    for name, value in values.items():
        method, *layout = name.split()
        for own in layout or LAYOUTS:
            found[own][method] = value
    return found
