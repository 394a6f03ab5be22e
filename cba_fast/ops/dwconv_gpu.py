"""The depthwise convolution on NVIDIA GPUs: what the Triton kernels take, and when they are chosen.

The rule comes from a model and no GPU has confirmed it (docs/gpu-status.md). PyTorch's own kernel
issues two loads per multiplication and adds up to at most an eighth of the FMA rate, 3.75e12 a
second on an H200; banded products pay 1.5 to 2.3 times the multiplications at more than 50 times
that rate, and a launch or three with their Python. So the rule asks for a margin of about ten, and
otherwise hands over to PyTorch. It holds only on architectures where the tests marked `gpu` have
passed: so far on none, and Triton runs where it is asked for.
"""

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..kernels import dwconv_triton
from ..kernels.dwconv_triton_plan import SMALL_KERNEL

# Keys of `dwconv_triton.arch_of` on which the kernels have been seen to run right.
PROVEN: set[str] = set()

_HALF = (torch.bfloat16, torch.float16)
_FEWEST_TAPS = 121
_FEWEST_PRODUCTS = 1 << 30  # at least 0.29 ms of PyTorch's kernel
_FEWEST_IMAGES = 3
_MOST_PIXELS = 1 << 30  # positions in a plane are 32-bit numbers, addresses are not
_LONGEST_GRID = 2**31 - 1


def refuses_triton(image: Tensor, kernel_size: tuple[int, int], algorithm: str) -> str | None:
    """Return why the Triton kernels cannot run for these arguments, or None."""
    if algorithm == "fft":
        return "algorithm 'fft' is a compiled kernel's; use backend 'cpp' or 'auto'"
    if algorithm == "direct" and max(kernel_size) > SMALL_KERNEL:
        return (
            f"kernels larger than {SMALL_KERNEL} become products of matrices, in which a NaN "
            "reaches beyond the kernel: not 'direct'"
        )
    if image.dtype not in dwconv_triton.DTYPES:
        return f"it computes in float32, not for {image.dtype}"
    if image.device.type != "cuda":
        if image.device.type == "cpu" and dwconv_triton.is_interpreted():
            return None
        return f"it runs on NVIDIA GPUs, not on {image.device.type}"
    if torch.version.hip is not None:
        return "it was never compiled for AMD GPUs"
    if dwconv_triton.arch_of(image.device) is None:
        return "the GPU is older than compute capability 8.0"
    n, c, h, w = image.shape
    if not _may(h * w <= _MOST_PIXELS):
        return f"a plane has more than {_MOST_PIXELS} pixels"
    # Bounds that no kernel's grid exceeds, and no number of tiles, lying or standing.
    most = (n * c * h * (w // 16 + 1), n * c * w * (h // 16 + 1), c * 144)
    if not all(_may(programs <= _LONGEST_GRID) for programs in most):
        return f"more than {_LONGEST_GRID} programs for shape {tuple(image.shape)}"
    return None


def is_proven(image: Tensor) -> bool:
    """Say whether the Triton kernels have been seen to run right on the image's device."""
    return dwconv_triton.arch_of(image.device) in PROVEN


def fastest_on_gpu(image: Tensor, kernel_size: tuple[int, int]) -> str:
    """Return "triton" where the model leaves no doubt, else "torch"; the same in all directions.

    Sizes that are only symbols count as large.
    """
    taps = kernel_size[0] * kernel_size[1]
    n, c, h, w = image.shape
    doubtful = (
        image.dtype not in _HALF  # products of float32 run on the FMA units: a margin of 2 at best
        or max(kernel_size) <= SMALL_KERNEL
        or taps < _FEWEST_TAPS
        or not _may(n >= _FEWEST_IMAGES)
        or not _may(n * c * h * w * taps >= _FEWEST_PRODUCTS)
    )
    return "torch" if doubtful else "triton"


def _may(condition) -> bool:
    """Say whether a comparison of sizes may hold; one with a symbol is not decided by it."""
    if isinstance(condition, bool):
        return condition
    return not statically_known_true(torch.sym_not(condition))
