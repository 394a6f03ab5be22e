"""Chooses how a depthwise convolution is computed: its backends, and which method is fastest.

A method is an algorithm of the compiled CPU kernel ("fft" or "direct") or the name of another
backend. The fastest one is read from the tables of `choice_table`. Where they are silent, CPUs have
a rule, and GPUs get PyTorch's convolution.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import dwconv_cuda, dwconv_triton, native
from ..kernels.dwconv_gpu import cuda_strip
from ..kernels.gpu import triton_core
from ..reference import dwconv as reference
from . import choice_table
from .backends import Backend, BackendTable, expect
from .choice_table import Call
from .dwconv_checks import is_channels_last
from .dwconv_gpu import refuses_cuda, refuses_strip, refuses_triton
from .library import AUTO, requested

ALGORITHMS = (AUTO, "fft", "direct")
COMPILED = ("fft", "direct")  # the methods of backend "cpp"
_GPU_KERNELS = ("triton", "cuda", "cuda_strip")
_ON = {"cpu": ("fft", "direct", "conv2d", "torch"), "cuda": ("torch", *_GPU_KERNELS)}
_MOST_PIXELS = 1 << 20  # some algorithms keep planes of 8 or 16 channels per thread
_CPP_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RULE = "the rule"


class Choice(NamedTuple):
    """The method for a call, and where the choice comes from: a table's file, or `RULE`."""

    method: str
    source: str


def fastest(
    direction: str, size: tuple[int, ...], kernel_size: tuple[int, int], channels_last: bool
) -> str:
    """Return the method that is likely to be fastest on a CPU: "fft", "direct" or "torch".

    The rule is for CPUs without a table. It was read off measurements with AVX2 on two threads:
    maps with sides of 7 to 96, square kernels of 3 to 31 and strips, batches of 1 and 8.

    Args:
        direction: "forward", "grad_x" or "grad_weight".
        size: (H, W) of the image.
        kernel_size: (kh, kw).
        channels_last: whether the image has that memory format.
    """
    taps, pixels = kernel_size[0] * kernel_size[1], size[0] * size[1]
    small = pixels <= 100
    if direction == "grad_weight":
        return "direct" if max(kernel_size) <= 9 or small else "fft"
    if small:
        return "direct"  # a transform has more padding than data
    if direction == "grad_x":
        return "torch" if taps < 9 else "fft"
    if channels_last:
        if 1 in kernel_size:
            return "torch"
        return "torch" if taps < (81 if pixels > 64 * 64 else 49) else "fft"
    return "torch" if taps < (25 if pixels > 200 else 81) else "fft"


# The backends, best first. Their predicates take (image, kernel_size, algorithm).


def _refuses_cpp(image: Tensor, kernel_size, algorithm: str) -> str | None:
    if image.device.type != "cpu":
        return f"it runs on CPUs, not on {image.device.type}"
    if image.dtype not in _CPP_DTYPES:
        return f"it computes in float32, not for {image.dtype}"
    if image.shape[2] * image.shape[3] > _MOST_PIXELS:
        return f"a plane has more than {_MOST_PIXELS} pixels"
    return None


def _refuses_fft(image: Tensor, kernel_size, algorithm: str) -> str | None:
    if algorithm == "fft":
        return "algorithm 'fft' is a compiled kernel's; use backend 'cpp' or 'auto'"
    return None


def _refuses_conv2d(image: Tensor, kernel_size, algorithm: str) -> str | None:
    if image.device.type == "cpu" and image.dtype in (torch.float16, torch.bfloat16):
        return "PyTorch adds up half types in half precision for some shapes, and hangs for others"
    return _refuses_fft(image, kernel_size, algorithm)


def _check_on_gpu(direction: str, kernels, device: torch.device) -> None:
    """Compare a backend's kernels with the reference for one small case in each dtype."""
    steps = torch.arange(1, 2 * 3 * 9 * 10 + 1, dtype=torch.float64, device="cpu")
    image, other = steps.sin().reshape(2, 3, 9, 10), (steps * 1.7).cos().reshape(2, 3, 9, 10)
    weight = other.flatten()[: 3 * 5 * 7].reshape(3, 1, 5, 7)
    for dtype in kernels.DTYPES:
        # Rounding the result to bfloat16 makes an error of up to 2^-9, float32 less than 1e-5.
        tolerance = 1e-5 if dtype == torch.float32 else 2**-8
        x, g, w = (t.to(dtype) for t in (image, other, weight))
        x_there, g_there, w_there = (t.to(device) for t in (x, g, w))
        if direction == "grad_weight":
            result = kernels.grad_weight(g_there, x_there, (5, 7))
            exact = reference.depthwise_conv2d_grad_weight(g.double(), x.double(), (5, 7))
        elif direction == "grad_x":
            result = kernels.grad_x(g_there, w_there, torch.contiguous_format)
            exact = reference.depthwise_conv2d_grad_x(g.double(), w.double())
        else:
            result = kernels.forward(x_there, w_there, None, torch.contiguous_format)
            exact = reference.depthwise_conv2d(x.double(), w.double(), None)
        expect(result, exact, tolerance)


def _table(op: str, direction: str) -> BackendTable:
    check: Callable = partial(partial, _check_on_gpu, direction)
    backends = [
        Backend("cpp", _refuses_cpp, native.unavailable),
        Backend("torch", _refuses_fft),
        Backend("conv2d", _refuses_conv2d),
        Backend("triton", refuses_triton, triton_core.unavailable, check(dwconv_triton)),
        Backend("cuda", refuses_cuda, native.cuda_unavailable, check(dwconv_cuda)),
        Backend("reference", _refuses_fft),
    ]
    if direction != "grad_weight":
        strips = check(cuda_strip)
        backends.insert(-1, Backend("cuda_strip", refuses_strip, native.cuda_unavailable, strips))
    return BackendTable(op, backends)


TABLES = {
    "forward": _table("depthwise_conv2d", "forward"),
    "grad_x": _table("depthwise_conv2d_grad_x", "grad_x"),
    "grad_weight": _table("depthwise_conv2d_grad_weight", "grad_weight"),
}


def choose(
    direction: str, image: Tensor, kernel_size: tuple[int, int], backend: str, algorithm: str
) -> str:
    """Return the method for one direction of the op.

    Args:
        direction: "forward", "grad_x" or "grad_weight".
        image: x or grad, (N, C, H, W).
        kernel_size: (kh, kw).
        backend: a backend's name or "auto".
        algorithm: one of `ALGORITHMS`.

    Raises:
        ValueError: a name is unknown, or no backend can run.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {algorithm!r}")
    if direction == "grad_weight" and backend == "cuda_strip":
        backend = "cuda"  # which computes the weight gradients of strips, too
    if backend != AUTO:
        name = TABLES[direction].resolve(requested(backend), image, kernel_size, algorithm)
        if name != "cpp":
            return name
        if algorithm != AUTO:
            return algorithm
        return explain(direction, image, kernel_size, AUTO, COMPILED).method
    return explain(direction, image, kernel_size, algorithm).method


def explain(
    direction: str,
    image: Tensor,
    kernel_size: tuple[int, int],
    algorithm: str = AUTO,
    among: tuple[str, ...] | None = None,
) -> Choice:
    """Return the method of the automatic choice, and which table it comes from.

    Args:
        direction, image, kernel_size, algorithm: as `choose`.
        among: the methods that may be chosen; None for all that can run.

    Raises:
        ValueError: no backend can run.
    """
    able = among or runnable(direction, image, kernel_size, algorithm)
    if not able:  # raises an error with the reasons
        return Choice(TABLES[direction].resolve(None, image, kernel_size, algorithm), RULE)
    if image.numel() and (call := Call.of(direction, image, kernel_size)):
        for table in choice_table.tables(image.device):
            method = table.method(call, able)
            # A user's table was made by running the kernel on this very device.
            if method in _GPU_KERNELS and table.source != choice_table.USER:
                backends, how = TABLES[direction], (image, kernel_size, algorithm)
                method = None if backends.reason_unless_named(method, *how) else method
            if method is not None:
                return Choice(method, str(table.path))
    if image.device.type == "cpu":
        best = fastest(direction, image.shape[2:], kernel_size, is_channels_last(image))
        return Choice(next(m for m in (best, "direct", "torch", "fft") if m in able), RULE)
    return Choice("torch", RULE)


def runnable(
    direction: str, image: Tensor, kernel_size: tuple[int, int], algorithm: str = AUTO
) -> list[str]:
    """Return the methods that the automatic choice may take for these arguments."""
    how = (image, kernel_size, algorithm)
    backends = TABLES[direction].backends

    def can_run(method: str) -> bool:
        compiled = method in COMPILED
        if compiled and algorithm not in (AUTO, method):
            return False
        backend = backends.get("cpp" if compiled else method)
        return backend is not None and backend.reason(*how) is None

    return [m for m in _ON.get(image.device.type, ("torch",)) if can_run(m)]
