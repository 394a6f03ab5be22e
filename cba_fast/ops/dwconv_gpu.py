"""The depthwise convolution on NVIDIA GPUs: what each backend takes, and which one is chosen.

The automatic choice is read from ``dwconv_gpu_table.json``. For an architecture and a kind of call
(`bucket`) it holds the method that was right and faster than PyTorch's convolution on both memory
formats in every measured case. PyTorch computes all other calls. The table is made from
measurements by ``benchmarks/gpu_choice.py``; docs/gpu-status.md says what was measured.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..kernels import cuda_core, dwconv_cuda, dwconv_triton
from ..kernels.gpu import triton_core
from .dwconv_checks import is_channels_last

TABLE = Path(__file__).with_name("dwconv_gpu_table.json")

# Calls are measured at these values. The sides of a map or a kernel are rounded up, because smaller
# ones waste more of a kernel's work on padding. Images and channels are rounded down, because more
# of them fill the GPU better. The largest power of 2, up to 8, that divides both sides of a map is
# part of the kind, because the kernels read rows in pieces of that many numbers.
KERNEL_SIDES = (1, 3, 5, 7, 9, 13, 21, 31, 51, 63)
ALIGNMENTS = (8, 4, 2, 1)
MAP_SIDES = (7, 14, 28, 56, 112, 224)
_MAP_AREAS = tuple(side * side for side in MAP_SIDES)
IMAGES = (1, 2, 8)
CHANNELS = (32, 128, 512)
_DTYPES = {torch.bfloat16: "half", torch.float16: "half", torch.float32: "float32"}

_MOST = 1 << 30  # images, or pixels in a plane: kernels number them by 32 bits
_LONGEST_GRID = 2**31 - 1


def bucket(direction: str, image: Tensor, kernel_size: tuple[int, int]) -> str | None:
    """Return the kind of a call as the table names it, or None for a kind that is not measured.

    Slices and transposed maps, whose rows may lie anywhere, are not measured.
    """
    n, c, h, w = image.shape
    if image.dtype not in _DTYPES:
        return None
    if image.dtype == torch.float16 and max(kernel_size) <= 5:
        return None  # PyTorch has other kernels here than for bfloat16
    sides = [_at_most(side, KERNEL_SIDES) for side in kernel_size]
    area = _at_most(h * w, _MAP_AREAS)
    images = next((step for step in reversed(IMAGES) if n >= step), None)
    channels = next((step for step in reversed(CHANNELS) if c >= step), None)
    channels_last = is_channels_last(image)
    if None in (*sides, area, images, channels) or not _are_dense(image, channels_last):
        return None
    side = MAP_SIDES[_MAP_AREAS.index(area)]
    aligned = next(a for a in ALIGNMENTS if h % a == 0 and w % a == 0)
    layout = "channels_last" if channels_last else "contiguous"
    return (
        f"{direction} {_DTYPES[image.dtype]} {layout} by{aligned} "
        f"{images}x{channels}x{side}x{side}_k{sides[0]}x{sides[1]}"
    )


def _at_most(value: int, steps: Sequence[int]) -> int | None:
    return next((step for step in steps if value <= step), None)


def _are_dense(images: Tensor, channels_last: bool) -> bool:
    """Say whether each image lies in memory without gaps, in this memory format."""
    _, c, h, w = images.shape
    dense = (1, w * c, c) if channels_last else (h * w, w, 1)
    strides = zip((c, h, w), images.stride()[1:], dense, strict=True)
    return all(size == 1 or stride == wanted for size, stride, wanted in strides)


def smallest_share(kernel_size: tuple[int, int]) -> float:
    """Return the taps of the smallest kernel of the same kind as a share of these, in (0, 1]."""
    share = 1.0
    for side in kernel_size:
        below = max((s for s in KERNEL_SIDES if s < side), default=-1)
        share *= (below + 2) / side
    return share


def fastest_on_gpu(direction: str, image: Tensor, kernel_size: tuple[int, int]) -> str:
    """Return the method that was measured to be fastest for such a call, or "torch"."""
    methods = measured().get(arch_of(image.device), {}).get("methods", {})
    return methods.get(bucket(direction, image, kernel_size), "torch") if methods else "torch"


_MEASURED: dict[str, dict] = json.loads(TABLE.read_text(encoding="utf-8"))


def measured() -> dict[str, dict]:
    """Return the table: for each architecture what was measured, and ``methods`` by bucket."""
    return _MEASURED


def arch_of(device: torch.device) -> str:
    """Return the architecture of a device as the table names it: "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def refuses_triton(image: Tensor, kernel_size: tuple[int, int], algorithm: str) -> str | None:
    """Return why the Triton kernels cannot run for these arguments, or None."""
    if algorithm == "direct":
        return "products of matrices let a NaN reach beyond the kernel: not 'direct'"
    reason = _refuses_any(image, algorithm, dwconv_triton.DTYPES)
    if reason is not None:
        interpreted = image.device.type == "cpu" and triton_core.is_interpreted()
        return None if interpreted and reason.startswith(_NOT_HERE) else reason
    n, c, h, w = image.shape
    # No kernel has a longer grid or more tiles than these, whether its rows or its columns lie
    # along the tiles.
    most = (n * c * h * (w // 16 + 1), n * c * w * (h // 16 + 1), c * 144)
    if max(most) > _LONGEST_GRID:
        return f"more than {_LONGEST_GRID} programs for shape {tuple(image.shape)}"
    return None


def refuses_cuda(image: Tensor, kernel_size: tuple[int, int], algorithm: str) -> str | None:
    """Return why the CUDA kernels cannot run for these arguments, or None."""
    reason = _refuses_any(image, algorithm, dwconv_cuda.DTYPES)
    if reason is not None:
        return reason
    if algorithm == "direct" and image.dtype not in dwconv_cuda.EXACT_WINDOWS:
        return (
            "tensor cores multiply whole rows, where a NaN reaches beyond the kernel: not 'direct'"
        )
    if dwconv_cuda.most_blocks(image) > _LONGEST_GRID:
        return f"more than {_LONGEST_GRID} blocks for shape {tuple(image.shape)}"
    return cuda_core.refuses(image.device)


_NOT_HERE = "it runs on NVIDIA GPUs"


def _refuses_any(image: Tensor, algorithm: str, dtypes: Sequence[torch.dtype]) -> str | None:
    """Return why kernels for these dtypes cannot run on a GPU, or None."""
    if algorithm == "fft":
        return "algorithm 'fft' is a compiled kernel's; use backend 'cpp' or 'auto'"
    if image.dtype not in dtypes:
        return f"it has no kernels for {image.dtype}"
    if image.device.type != "cuda":
        return f"{_NOT_HERE}, not on {image.device.type}"
    if torch.version.hip is not None:
        return "it was never compiled for AMD GPUs"
    if triton_core.is_too_old(image.device):
        return "the GPU is older than compute capability 8.0"
    if image.shape[0] > _MOST:
        return f"there are more than {_MOST} images"
    if image.shape[2] * image.shape[3] > _MOST:
        return f"a plane has more than {_MOST} pixels"
    return None
