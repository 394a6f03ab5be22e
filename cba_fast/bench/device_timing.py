"""Times functions that take turns on a GPU: on the device and on the host."""

import functools
import statistics
import time
from collections.abc import Callable

import torch

from .contest import Timing

_FLUSH_BYTES = 256 << 20  # read before each call; the L2 cache of an H200 holds 50 MB
_CYCLES_PER_SECOND = 2e9  # a GPU with a slower clock waits longer
_LONGEST_WAIT = 5e-3


def timed(
    functions: dict[str, Callable], device: str, seconds: float, *, queued: bool = True
) -> dict[str, dict]:
    """Time functions; return ``median_ms``, ``p20_ms``, ``p80_ms``, ``calls``, ``host_ms`` of each.

    On a GPU the milliseconds are measured by CUDA events around a call, before which the L2 cache
    is filled with other numbers. ``host_ms`` is the median time until the call returns.

    Args:
        functions: the functions by name; each is called once untimed.
        device: "cuda" or "cpu".
        seconds: the approximate time for each, which has at least one or two calls and at most 50.
        queued: whether the GPU waits until a call is queued, so that its time does not include the
            host's. Must be False for functions that wait for the GPU.
    """
    first = {name: _once(function, device, 0.0) for name, function in functions.items()}
    waits = {
        name: min(2 * host + 5e-5, _LONGEST_WAIT) if queued else 0.0
        for name, (_, host) in first.items()
    }
    left = {
        name: max(2 if gpu < 0.3 else 1, min(50, int(seconds / (gpu + 1e-6))))
        for name, (gpu, _) in first.items()
    }
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    while any(left.values()):
        for name, function in functions.items():
            if left[name]:
                samples[name].append(_once(function, device, waits[name]))
                left[name] -= 1
    result = {}
    for name, values in samples.items():
        gpu, host = zip(*values, strict=True)
        host_ms = {"host_ms": round(1e3 * statistics.median(host), 5)}
        result[name] = Timing.of(list(gpu)).in_ms() | host_ms
    return result


def _once(function: Callable, device: str, wait: float) -> tuple[float, float]:
    """Return the seconds of one call: on the device, and until it returned."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        seconds = time.perf_counter() - start
        return seconds, seconds
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _other_numbers().sum()  # only reads, so that nothing must be written back during the call
    if wait:
        torch.cuda._sleep(int(wait * _CYCLES_PER_SECOND))
    begin.record()
    start = time.perf_counter()
    function()
    host = time.perf_counter() - start
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, host


@functools.cache
def _other_numbers() -> torch.Tensor:
    return torch.zeros(_FLUSH_BYTES // 4, device="cuda")
