"""Launches the float32 depthwise convolution on the FMA units (CUDA tensors)."""

import functools

from torch import Tensor

from . import cuda_call as call

# So many blocks fill the largest present GPU several times. The number is a constant, so that the
# order of additions is the same on every GPU.
_BLOCKS = 1536
_SMALL_PLANE, _IMAGES_AT_ONCE = 1024, 8  # a block takes 8 images of up to 1024 pixels at a time


def most_blocks(shape: tuple[int, int, int, int]) -> int:
    """Return a number of blocks that no launch for images (N,C,H,W) exceeds."""
    n, c, h, w = shape
    # Tiles have at least four rows and four columns, unless the image has fewer.
    return n * c * (h // 4 + 1) * (w // 4 + 1)


# (x, weight, bias, memory_format) -> y. A NaN or an infinity reaches only the pixels whose window
# holds it. The core chooses the tile.
forward = functools.partial(call.forward, "dwconv_fma_cuda", lambda shape, kernel_size: ())


def grad_weight(grad: Tensor, x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return the weight gradient (C,1,kh,kw), contiguous; the same bits every time."""
    if x.numel() == 0:
        return x.new_zeros((x.shape[1], 1, *kernel_size))
    parts = splits(tuple(x.shape))
    kernel = "dwconv_fma_weight_cuda"
    return call.grad_weight(kernel, grad, x, kernel_size, parts, partials=parts > 1)


def splits(shape: tuple[int, ...]) -> int:
    """Return the number of parts of the batch that the weight gradient sums separately."""
    n, c, h, w = shape
    at_once = _IMAGES_AT_ONCE if h * w <= _SMALL_PLANE else 1
    return max(1, min(-(-n // at_once), -(-_BLOCKS // c)))
