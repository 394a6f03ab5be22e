"""The depthwise convolution on NVIDIA GPUs: what each backend takes, and which is chosen.

The automatic choice is read from ``dwconv_gpu_table.json``, which holds measurements and nothing
else: for an architecture and a kind of call (`bucket`) the method that was right and faster than
PyTorch's on both memory formats in every measured case. What is not in it is PyTorch's.
Architectures that nobody measured have no entries (docs/gpu-status.md);
``benchmarks/gpu_choice.py`` makes them.
"""

import functools
import json
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..kernels import cuda_core, dwconv_cuda, dwconv_triton
from ..kernels.dwconv_triton_plan import SMALL_KERNEL
from .dwconv_checks import is_channels_last

TABLE = Path(__file__).with_name("dwconv_gpu_table.json")

# A call is measured at these values. A map and a kernel count as the next larger one: both make our
# kernels worse by their padding. Images and channels count as the next smaller one: more of them
# fill the GPU better.
KERNEL_SIDES = (3, 5, 7, 9, 13, 21, 31, 51, 63)
MAP_SIDES = (7, 14, 28, 56, 112, 224)
IMAGES = (1, 2, 8)
CHANNELS = (32, 128, 512)
_DTYPES = {torch.bfloat16: "half", torch.float16: "half", torch.float32: "float32"}

_MOST = 1 << 30  # images, pixels in a plane: their numbers have 32 bits, addresses have 64
_LONGEST_GRID = 2**31 - 1


def bucket(direction: str, image: Tensor, kernel_size: tuple[int, int]) -> str | None:
    """Return the kind of a call as the table names it, None for one that is never measured.

    A number of images that is only a symbol counts as large; other symbols are not measured.
    """
    n, c, h, w = image.shape
    if image.dtype not in _DTYPES or not all(isinstance(size, int) for size in (c, h, w)):
        return None
    if image.dtype == torch.float16 and max(kernel_size) <= 5:
        return None  # PyTorch has other kernels for these than for bfloat16
    sides = [_at_most(side, KERNEL_SIDES) for side in kernel_size]
    side = _at_most(math.sqrt(h * w), MAP_SIDES)
    images = _at_least(n, IMAGES) if isinstance(n, int) else IMAGES[-1]
    channels = _at_least(c, CHANNELS)
    if None in (*sides, side, images, channels):
        return None
    layout = "channels_last" if is_channels_last(image) else "contiguous"
    return (
        f"{direction} {_DTYPES[image.dtype]} {layout} "
        f"{images}x{channels}x{side}x{side}_k{sides[0]}x{sides[1]}"
    )


def _at_most(value: float, steps: tuple[int, ...]) -> int | None:
    return next((step for step in steps if value <= step), None)


def _at_least(value: int, steps: tuple[int, ...]) -> int | None:
    return next((step for step in reversed(steps) if value >= step), None)


def fastest_on_gpu(direction: str, image: Tensor, kernel_size: tuple[int, int]) -> str:
    """Return the method that was measured to be the fastest for such a call, else "torch"."""
    methods = measured().get(arch_of(image.device), {}).get("methods", {})
    return methods.get(bucket(direction, image, kernel_size), "torch") if methods else "torch"


@functools.cache
def measured() -> dict[str, dict]:
    """Return the table: by architecture, on what it was measured, and ``methods`` by bucket."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


@functools.cache
def arch_of(device: torch.device) -> str:
    """Return the architecture of a device as the table names it: "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def refuses_triton(image: Tensor, kernel_size: tuple[int, int], algorithm: str) -> str | None:
    """Return why the Triton kernels cannot run for these arguments, or None."""
    if algorithm == "direct" and max(kernel_size) > SMALL_KERNEL:
        return (
            f"kernels larger than {SMALL_KERNEL} become products of matrices, in which a NaN "
            "reaches beyond the kernel: not 'direct'"
        )
    reason = _refuses_any(image, algorithm)
    if reason is not None:
        interpreted = image.device.type == "cpu" and dwconv_triton.is_interpreted()
        return None if interpreted and reason.startswith(_NOT_HERE) else reason
    n, c, h, w = image.shape
    # Bounds that no kernel's grid exceeds, and no number of tiles, lying or standing.
    most = (n * c * h * (w // 16 + 1), n * c * w * (h // 16 + 1), c * 144)
    if not all(_may(programs <= _LONGEST_GRID) for programs in most):
        return f"more than {_LONGEST_GRID} programs for shape {tuple(image.shape)}"
    return None


def refuses_cuda(image: Tensor, kernel_size: tuple[int, int], algorithm: str) -> str | None:
    """Return why the CUDA kernels cannot run for these arguments, or None."""
    reason = _refuses_any(image, algorithm)
    if reason is not None:
        return reason
    if algorithm == "direct" and image.dtype not in dwconv_cuda.EXACT_WINDOWS:
        return (
            "tensor cores multiply whole rows, where a NaN reaches beyond the kernel: not 'direct'"
        )
    if not _may(dwconv_cuda.most_blocks(image) <= _LONGEST_GRID):
        return f"more than {_LONGEST_GRID} blocks for shape {tuple(image.shape)}"
    return cuda_core.refuses(image.device)


_NOT_HERE = "it runs on NVIDIA GPUs"


def _refuses_any(image: Tensor, algorithm: str) -> str | None:
    """Return why no kernel of ours can run on a GPU, or None."""
    if algorithm == "fft":
        return "algorithm 'fft' is a compiled kernel's; use backend 'cpp' or 'auto'"
    if image.dtype not in _DTYPES:
        return f"it computes in float32, not for {image.dtype}"
    if image.device.type != "cuda":
        return f"{_NOT_HERE}, not on {image.device.type}"
    if torch.version.hip is not None:
        return "it was never compiled for AMD GPUs"
    if dwconv_triton.arch_of(image.device) is None:
        return "the GPU is older than compute capability 8.0"
    if not _may(image.shape[0] <= _MOST):
        return f"there are more than {_MOST} images"
    if not _may(image.shape[2] * image.shape[3] <= _MOST):
        return f"a plane has more than {_MOST} pixels"
    return None


def _may(condition) -> bool:
    """Say whether a comparison of sizes may hold; one with a symbol is not decided by it."""
    if isinstance(condition, bool):
        return condition
    return not statically_known_true(torch.sym_not(condition))
