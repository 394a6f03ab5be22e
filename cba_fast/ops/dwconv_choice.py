"""Chooses how a depthwise convolution is computed: its backends, and the rule for the fastest.

A method is an algorithm of the compiled CPU kernel ("fft" or "direct") or the name of another
backend. The rule for NVIDIA GPUs is in `dwconv_gpu`.
"""

import torch
from torch import Tensor

from ..kernels import native
from ..kernels.gpu import triton_core
from .backends import Backend, BackendTable
from .dwconv_checks import is_channels_last
from .dwconv_gpu import fastest_on_gpu, refuses_cuda, refuses_triton
from .library import AUTO, requested

ALGORITHMS = (AUTO, "fft", "direct")
METHODS = ("fft", "direct", "torch", "triton", "cuda", "reference")
COMPILED = ("fft", "direct")  # the methods of backend "cpp"
_MOST_PIXELS = 1 << 20  # some algorithms keep planes of 8 or 16 channels per thread
_CPP_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fastest(
    direction: str, size: tuple[int, int], kernel_size: tuple[int, int], channels_last: bool
) -> str:
    """Return the fastest method on a CPU: "fft", "direct" or "torch".

    The rule comes from measurements with AVX2 on two threads: maps with sides of 7 to 96, square
    kernels of 3 to 31 and strips, batches of 1 and 8. One thread has the same winners.

    Args:
        direction: "forward", "grad_x" or "grad_weight".
        size: (H, W) of the image.
        kernel_size: (kh, kw).
        channels_last: whether the image has that memory format.
    """
    taps, pixels = kernel_size[0] * kernel_size[1], size[0] * size[1]
    small = pixels <= 100
    if direction == "grad_weight":
        # PyTorch takes as long for 3x3 in channels_last, else 2 to 400 times as long.
        return "direct" if max(kernel_size) <= 9 or small else "fft"
    if small:
        return "direct"  # a transform has more padding than data
    if direction == "grad_x":
        return "torch" if taps < 9 else "fft"  # PyTorch takes 1.3 to 6 times as long for 3x3
    if channels_last:
        if 1 in kernel_size:
            return "torch"  # for 51x1 and 1x51 at 96x96 it is 0.9 to 1.6 times as fast as "fft"
        # PyTorch is up to 1.7 times as fast for 5x5. For 7x7 it is 0.8 to 1 times as fast, but 1.3
        # times at 96x96 and batch 8.
        return "torch" if taps < (81 if pixels > 64 * 64 else 49) else "fft"
    # PyTorch is 0.5 to 1.2 times as fast for 3x3; for 5x5 it is 1.2 times as fast at 14x14, and 0.5
    # to 0.96 times from 20x20 on.
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


def _table(op: str) -> BackendTable:
    backends = [
        Backend("cpp", _refuses_cpp, native.unavailable),
        Backend("torch", _refuses_fft),
        Backend("triton", refuses_triton, triton_core.unavailable),
        Backend("cuda", refuses_cuda, native.cuda_unavailable),
        Backend("reference", _refuses_fft),
    ]
    return BackendTable(op, backends)


TABLES = {
    "forward": _table("depthwise_conv2d"),
    "grad_x": _table("depthwise_conv2d_grad_x"),
    "grad_weight": _table("depthwise_conv2d_grad_weight"),
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
    table = TABLES[direction]
    if image.device.type == "cuda" and backend == AUTO and algorithm != "fft":
        best = fastest_on_gpu(direction, image, kernel_size)
        if table.backends[best].reason(image, kernel_size, algorithm):
            best = "torch"
        return table.resolve(best, image, kernel_size, algorithm)
    best = fastest(direction, image.shape[2:], kernel_size, is_channels_last(image))
    if backend == AUTO and best == "torch" and algorithm != "fft":
        backend = "torch"
    name = table.resolve(requested(backend), image, kernel_size, algorithm)
    if name != "cpp":
        return name
    if algorithm != AUTO:
        return algorithm
    return best if best in COMPILED else "direct"
