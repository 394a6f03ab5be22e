"""Launches the CUDA depthwise convolution on tensor cores (bfloat16 and float16; sm_80 and newer).

An input row is laid out as a Hankel matrix and multiplied by rows of the kernel;
csrc/cuda/dwconv_hankel.h explains the products and how far a NaN or an infinity reaches. This file
chooses the tiles.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from . import cuda_call as call

DTYPES = (torch.bfloat16, torch.float16)
WARPS = 1056  # two for each scheduler of an H200
_ROW = 8  # the cost of a row without its products, in products
_BLOCK_WARPS = 4
_WEIGHT_BLOCKS = 1024  # the number of blocks that a weight gradient aims at
_MOST_STEPS = 6  # 96 columns, which take 7 KB of gradient for a kernel of 31 rows
_WARP_BYTES = 13824  # a multiprocessor of an H200 then holds four blocks, 16 warps
_FEWEST_BAND_ROWS = 16


class Tile(NamedTuple):
    """What a warp of the forward kernel computes.

    Attributes:
        slots: output rows at a time, in units of 16.
        columns: output columns of an image, in units of 8.
        images: images side by side.
        bands: the parts into which the rows of an image are cut, each for another warp.
    """

    slots: int
    columns: int
    images: int
    bands: int = 1


# (slots, columns, images) of the kernels in csrc/cuda/dwconv_hankel.cu.
TILES = (
    *((1, 2, 8), (1, 3, 4), (1, 6, 2), (1, 12, 1)),
    *((2, 3, 4), (2, 6, 2), (2, 12, 1)),
    *((3, 3, 2), (3, 6, 1)),
    *((4, 3, 2), (4, 6, 1)),
)


class WeightTile(NamedTuple):
    """What a warp of the weight gradient computes.

    Attributes:
        rows: rows of taps, in units of 16.
        columns: columns of taps, in units of 8.
        steps: image columns at a time, in units of 16.
        images: images that are loaded together: 1, 2, 4 or 8.
        bands: the parts into which the rows of an image are cut, each for another warp.
    """

    rows: int
    columns: int
    steps: int
    images: int = 1
    bands: int = 1


# (rows, columns) of the kernels in csrc/cuda/dwconv_hankel_weight.cu.
WEIGHT_TILES = (*((rows, columns) for rows in (1, 2, 3, 4) for columns in (1, 2, 4, 8)), (3, 6))


def most_blocks(shape: tuple[int, int, int, int]) -> int:
    """Return a number of blocks that no launch for images (N,C,H,W) exceeds."""
    n, c, h, w = shape
    # A tile has at least 16 columns, a band at least 16 rows and a block at least one warp. This
    # holds in `cuda_strip`, too.
    return n * c * (h // _FEWEST_BAND_ROWS + 1) * (w // 16 + 1)


@functools.lru_cache(maxsize=4096)  # the search takes longer than a launch
def tile(shape: tuple[int, int, int, int], kernel_size: tuple[int, int]) -> Tile:
    """Return the tile of the forward kernel with the least `time` for images (N,C,H,W)."""
    h = shape[2]
    kernel_h = min(kernel_size[0], 2 * h - 1)
    candidates = (Tile(*t, bands) for t in TILES for bands in _bands(h))
    fitting = (t for t in candidates if 16 * t.slots >= min(kernel_h, -(-h // t.bands)))
    return min(fitting, key=lambda using: time(shape, kernel_size, using))


def time(shape: tuple[int, int, int, int], kernel_size: tuple[int, int], using: Tile) -> float:
    """Return the time that a model predicts for a tile, in units of one product by one warp.

    While the GPU has at most two warps for each scheduler, this is the time of one warp; with more
    warps it grows with the number of all operations.
    """
    n, c, h, w = shape
    kernel_h, kernel_w = min(kernel_size[0], 2 * h - 1), min(kernel_size[1], 2 * w - 1)
    steps = -(-kernel_w // 16)
    # Each 8 elements of a row that are laid out cost half a product.
    products = using.slots * steps * using.columns
    row = using.images * (products + (using.columns + 2 * steps) / 2) + _ROW
    rows = min(-(-h // using.bands) + kernel_h - 1, h)
    warps = c * -(-n // using.images) * -(-w // (8 * using.columns)) * using.bands
    return row * rows * max(1, warps / WARPS)


@functools.lru_cache(maxsize=4096)
def weight_tile(shape: tuple[int, ...], kernel_size: tuple[int, int]) -> WeightTile:
    """Return the tile of the weight gradient with the fewest operations for images (N,C,H,W)."""
    n, c, h, w = shape
    kernel_h, kernel_w = min(kernel_size[0], 2 * h - 1), min(kernel_size[1], 2 * w - 1)
    rows, columns = min(
        (t for t in WEIGHT_TILES if 16 * t[0] >= kernel_h and 8 * t[1] >= kernel_w),
        key=lambda t: t[0] * t[1],
    )
    tiles = -(-w // (16 * _MOST_STEPS))
    steps = -(-w // (16 * tiles))
    images = 1  # small images are loaded together while they fit and enough warps remain
    ring_rows = min(kernel_h, h)
    while images < min(n, 8):
        if 2 * images * image_bytes(ring_rows, columns, steps, 2 * images) > _WARP_BYTES:
            break
        if c * tiles * -(-n // (2 * images)) < WARPS:
            break
        images *= 2
    # Bands cost little: each loads kernel_h - 1 rows of the gradient once more.
    warps = c * tiles * -(-n // images)
    bands = next((b for b in _bands(h) if warps * b >= WARPS), _bands(h)[-1])
    return WeightTile(rows, columns, steps, images, bands)


def image_bytes(ring_rows: int, columns: int, steps: int, images: int) -> int:
    """Return the bytes of shared memory that a weight gradient takes for each image of a warp.

    They hold a ring of rows of the gradient and a row of zeros, four rows each of the gradient and
    of the input in pieces of 16 bytes, a row of the input laid out twice, 16 banks apart, and
    padding that keeps the images in different banks.
    """
    window = 16 * steps + 8 * columns
    staged = sum(16 * (elements // 8 + 2) for elements in (16 * steps, window))
    laid_out = 8 * ((window // 2 + 15) // 32 * 32 + 16)
    return apart(2 * (ring_rows + 1) * (16 * steps + 8) + 4 * staged + laid_out, images)


def apart(size: int, images: int) -> int:
    """Return the bytes from one image of a warp to the next (`hankel_image_bytes` in csrc)."""
    banks = 128 // images
    while images > 1 and size % (2 * banks) != banks:
        size += 16
    return size


def splits(shape: tuple[int, ...], using: WeightTile) -> int:
    """Return the number of parts of a channel's work that the weight gradient sums separately.

    It depends on the shape alone, because it decides the order of additions: every GPU then returns
    the same bits.
    """
    n, c, _, w = shape
    units = -(-n // using.images) * using.bands * -(-w // (16 * using.steps))
    return min(-(-units // _BLOCK_WARPS), -(-_WEIGHT_BLOCKS // c))


def _bands(height: int) -> list[int]:
    """Return the numbers of bands to choose from: one, or so many that each has 16 to 128 rows."""
    most = -(-height // _FEWEST_BAND_ROWS)
    return sorted({1, *(-(-most // rows) for rows in range(1, 9))})


# (x, weight, bias, memory_format) -> y
forward = functools.partial(call.forward, "dwconv_hankel_cuda", tile)


def grad_weight(
    grad: Tensor,
    x: Tensor,
    kernel_size: tuple[int, int],
    *,
    using: WeightTile | None = None,
) -> Tensor:
    """Return the weight gradient (C,1,kh,kw), contiguous; the same bits every time.

    Args:
        using: the tile; None for the one of `weight_tile`.
    """
    shape, kernel_size = tuple(x.shape), (kernel_size[0], kernel_size[1])
    if x.numel() == 0:
        return x.new_zeros((shape[1], 1, *kernel_size))
    using = using or weight_tile(shape, kernel_size)
    parts = splits(shape, using)
    return call.grad_weight("dwconv_hankel_weight_cuda", grad, x, kernel_size, parts, using)
