"""Launches the CUDA depthwise convolution with strips on tensor cores (bfloat16 and float16).

Long kernels of at most 7 taps across, strips such as 51x5, become banded matrices;
csrc/cuda/dwconv_strip.h explains the products and how far a NaN or an infinity reaches. This file
chooses the tiles. Whether they take less time than cuda_hankel.py is what `cba-fast tune` measures.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import cuda_call as call
from . import cuda_hankel as hankel

DTYPES = hankel.DTYPES
MOST_ACROSS = 7
_MARGIN = 32  # inputs on each side of the outputs that are read along the strip
_BLOCK_WARPS = 4
_GROUP = 16  # the lines that a warp takes at a time
_BLOCKS = 2112  # four rounds of the four blocks that each multiprocessor of an H200 holds
_SHARED = 56 << 10  # bytes of shared memory for a block, so that four fit on a multiprocessor
_MOST_LINES, _MOST_IMAGES, _MOST_SPANS = 128, 8, 4
# Costs in units of a product: to store 16 lines of a span, to copy 1 KB of images, to wait for the
# other warps at the ends of a tile, and to load a block's taps into registers.
_ITEM, _KILOBYTE, _TILE, _BLOCK = 12, 2, 24, 60


class Kernel(NamedTuple):
    """A kernel of csrc/cuda/dwconv_strip.cu.

    Attributes:
        across: the most taps across the strip.
        columns: outputs of a warp along the strip, in units of 8.
        reach: how far its bands reach to each side, in matrices of 8 columns.
    """

    across: int
    columns: int
    reach: int


KERNELS = (Kernel(5, 3, 3), Kernel(5, 4, 4), Kernel(5, 6, 3), Kernel(5, 6, 4), Kernel(7, 4, 4))


class Tile(NamedTuple):
    """What a block holds at a time, and how the batch is divided among blocks.

    Attributes:
        columns: outputs of a warp along the strip, in units of 8; a span has that many outputs.
        spans: spans along the strip.
        lines: lines of each image, across the strip; a multiple of 16, or all of them.
        images: images side by side; 1 unless the block holds all their lines.
        parts: the parts into which the batch is divided.
    """

    columns: int
    spans: int
    lines: int
    images: int
    parts: int


class _Strip(NamedTuple):
    """The size of an image and a kernel along and across the strip.

    `along` and `across` count only taps that can meet the image; `length` and `lines` are the
    image's sides in these directions.
    """

    standing: bool
    length: int
    lines: int
    along: int
    across: int


def _strip(shape: tuple[int, int, int, int], kernel_size: tuple[int, int]) -> _Strip:
    (_, _, h, w), (kernel_h, kernel_w) = shape, kernel_size
    if kernel_h > kernel_w:
        return _Strip(True, h, w, min(kernel_h, 2 * h - 1), kernel_w)
    return _Strip(False, w, h, min(kernel_w, 2 * w - 1), kernel_h)


@functools.lru_cache(maxsize=4096)  # the search takes longer than a launch
def tile(shape: tuple[int, int, int, int], kernel_size: tuple[int, int]) -> Tile:
    """Return the tile that takes least time for images (N,C,H,W), by a model.

    The kernel that serves it is the first of `KERNELS` whose bands are wide enough.
    """
    strip = _strip(shape, kernel_size)
    found = (
        (_time(shape, strip, kernel, using), using)
        for kernel in _fitting(strip)
        for using in _tiles(shape, strip, kernel)
    )
    return min(found, key=lambda pair: pair[0])[1]


def _fitting(strip: _Strip) -> list[Kernel]:
    """Return the kernels whose bands are wide enough, for each size the one of least reach."""
    reach = (strip.along // 2 + 7) // 8
    found: dict[tuple[int, int], Kernel] = {}
    for kernel in KERNELS:
        if kernel.across >= strip.across and kernel.reach >= reach:
            found.setdefault((kernel.across, kernel.columns), kernel)
    least = min(kernel.across for kernel in found.values())
    return [kernel for kernel in found.values() if kernel.across == least]


def _tiles(shape: tuple[int, int, int, int], strip: _Strip, kernel: Kernel) -> Iterator[Tile]:
    """Yield the tiles of a kernel that leave room for four blocks on a multiprocessor."""
    n, c, *_ = shape
    width = 8 * kernel.columns
    if kernel.columns % 2 and strip.length > width:
        return  # an image is cut only at multiples of 16
    cut = range(_GROUP, min(strip.lines, _MOST_LINES + 1), _GROUP)
    whole = [strip.lines] if strip.lines <= _MOST_LINES else []
    most_spans = min(_MOST_SPANS, _up(strip.length, width))
    for spans, lines in itertools.product(range(1, most_spans + 1), (*cut, *whole)):
        cuts = c * _up(strip.length, width * spans) * _up(strip.lines, lines)
        for images in range(1, min(n, _MOST_IMAGES if lines == strip.lines else 1) + 1):
            if shared_bytes(strip, kernel, spans, lines, images) > _SHARED:
                break
            turns = max(1, round(_up(n, images) * cuts / _BLOCKS))  # tiles that a block computes
            yield Tile(kernel.columns, spans, lines, images, _up(_up(n, images), turns))


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _row_bytes(elements: int) -> int:
    return 32 * _up(elements, 16) + 16


def shared_bytes(strip: _Strip, kernel: Kernel, spans: int, lines: int, images: int) -> int:
    """Return the bytes of shared memory that a block takes.

    They hold the taps, the results of four warps, and two tiles of images. For a standing strip
    the second tile is not yet transposed.
    """
    taps = 2 * kernel.across * (16 * kernel.reach + 16)
    out = max(256 * (kernel.columns | 1), 384 * kernel.columns)
    along = min(8 * kernel.columns * spans + 2 * _MARGIN, 16 * _up(strip.length, 16))
    _, pitch, last = _groups(strip, kernel, lines, images)
    rows = max(last + _GROUP, images * pitch) + kernel.across - 1
    lines_bytes = rows * _row_bytes(along)
    staged = images * along * _row_bytes(min(lines + 8 + kernel.across // 2, strip.lines))
    return taps + _BLOCK_WARPS * out + lines_bytes + (staged if strip.standing else lines_bytes)


def _groups(strip: _Strip, kernel: Kernel, lines: int, images: int) -> tuple[int, int, int]:
    """Return how a tile's lines form groups of 16, which warps take.

    Returns:
        The number of groups, the lines from one image to the next, and the last group's first line.
    """
    pitch = lines + kernel.across // 2
    if strip.standing:
        pitch = 8 * _up(pitch, 8)
    each = _up(lines, _GROUP)
    straddling = _up((images - 1) * pitch + lines, _GROUP)
    if straddling < images * each:
        return straddling, pitch, (straddling - 1) * _GROUP
    return images * each, pitch, (images - 1) * pitch + (each - 1) * _GROUP


@functools.lru_cache(maxsize=4096)
def _products(length: int, kernel: Kernel, spans: int) -> float:
    """Return how many products 16 lines of a span take, on average over an image of that length."""
    width, total = 8 * kernel.columns, 0
    tiles = _up(length, width * spans)
    for span in range(tiles * spans):
        first, tile_first = width * span, width * spans * (span // spans)
        begin = max(tile_first - _MARGIN, 0)
        end = min(tile_first + width * spans + _MARGIN, 16 * _up(length, 16))
        for column in range(kernel.columns):
            steps = range((begin - first) // 16, (end - first) // 16)
            total += sum(-kernel.reach - 1 <= 2 * s - column <= kernel.reach for s in steps)
    return total * kernel.across / (tiles * spans)


def _time(shape: tuple[int, int, int, int], strip: _Strip, kernel: Kernel, using: Tile) -> float:
    """Return the time that a model predicts for a tile, in the unit of `cuda_hankel.time`.

    While the GPU has at most two warps for each scheduler, this is the time of one block; with more
    warps it grows with the number of all operations.
    """
    n, c, *_ = shape
    width = 8 * using.columns * using.spans
    groups, _, _ = _groups(strip, kernel, using.lines, using.images)
    rounds = _up(groups * using.spans, _BLOCK_WARPS)
    along = min(width + 2 * _MARGIN, strip.length)
    kilobytes = using.images * along * (using.lines + kernel.across - 1) * 2 / 1024
    copies = (2 if strip.standing else 1) * kilobytes * _KILOBYTE / _BLOCK_WARPS
    each = rounds * (_products(strip.length, kernel, using.spans) + _ITEM) + copies + _TILE
    turns = _up(_up(n, using.images), using.parts)
    blocks = c * _up(strip.length, width) * _up(strip.lines, using.lines) * using.parts
    return (turns * each + _BLOCK) * max(1, blocks * _BLOCK_WARPS / hankel.WARPS)


# (x, weight, bias, memory_format) -> y
forward = functools.partial(call.forward, "dwconv_strip_cuda", tile)


def grad_x(grad: Tensor, weight: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return the input gradient (N,C,H,W), in `memory_format`."""
    return forward(grad, weight, None, memory_format, flip=True)
