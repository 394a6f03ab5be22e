"""The depthwise convolution on NVIDIA GPUs: for which arguments each backend has a kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import cuda_core, dwconv_cuda, dwconv_triton
from ..kernels.dwconv_gpu import cuda_strip
from ..kernels.gpu import triton_core

_MOST = 1 << 30  # images, or pixels in a plane: kernels number them by 32 bits
_LONGEST_GRID = 2**31 - 1


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


def refuses_strip(image: Tensor, kernel_size: tuple[int, int], algorithm: str) -> str | None:
    """Return why the CUDA kernels for strips cannot run for these arguments, or None."""
    if image.dtype not in cuda_strip.DTYPES:
        return f"it has no kernels for {image.dtype}"
    if min(kernel_size) > cuda_strip.MOST_ACROSS:
        return f"a strip has at most {cuda_strip.MOST_ACROSS} taps across"
    return refuses_cuda(image, kernel_size, algorithm)


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
