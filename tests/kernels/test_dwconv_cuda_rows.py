"""Rows on their way to the tensor cores: what is copied of them, the index arithmetic in NumPy."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from cba_fast.kernels.dwconv_gpu import cuda_hankel as hankel
from cba_fast.kernels.dwconv_gpu.cuda_hankel import TILES, Tile, WeightTile

# The index arithmetic of csrc/cuda/dwconv_hankel_rows.h.


def copy_words(elements):
    return (elements // 2 + 15) // 32 * 32 + 16


def laid_out(window):
    """Return the words of a row that is laid out twice, each a pair of elements."""
    half, words = len(window) // 2, copy_words(len(window))
    out = np.full((2 * words, 2), -1)
    out[:half] = window.reshape(-1, 2)
    out[words : words + half - 1] = window[1:-1].reshape(-1, 2)
    return out


@pytest.mark.parametrize(("columns", "steps"), [(12, 2), (6, 2), (3, 4), (2, 1)])
def test_fragments_of_a_hankel_matrix(columns, steps):
    length = 8 * columns + 16 * steps
    row = np.arange(length)
    words = laid_out(row)
    matrix = np.array([[k + n for n in range(8 * columns)] for k in range(16 * steps)])
    for lane in range(32):
        group, place = divmod(lane, 4)
        own = group % 2 * copy_words(length) + group // 2 + place
        for step, column, register in itertools.product(range(steps), range(columns), range(2)):
            # "Matrix fragments for mma.m16n8k16", operand b: element i of this lane.
            pair = [
                matrix[
                    16 * step + 2 * place + i % 2 + (8 if i >= 2 else 0),
                    8 * column + group,
                ]
                for i in (2 * register, 2 * register + 1)
            ]
            assert words[own + 4 * (2 * step + column + register)].tolist() == pair


@pytest.mark.parametrize("length", range(32, 168, 8))
def test_lanes_read_different_banks(length):
    words = {lane // 4 % 2 * copy_words(length) + lane // 4 // 2 + lane % 4 for lane in range(32)}
    assert len({word % 32 for word in words}) == len(words)
    assert copy_words(length) >= length // 2


@pytest.mark.parametrize("steps", range(1, 7))
def test_rows_of_a_matrix_lie_in_different_banks(steps):
    stride = (16 * steps + 8) * 2  # bytes; ldmatrix reads 16 of each of 8 rows at a time
    assert len({row * stride // 16 % 8 for row in range(8)}) == 8


# Wavefronts: what shared memory needs for one access by a warp, 1 for 128 bytes in different banks.


def wavefronts(addresses, size=4):
    """Return how many a warp needs that accesses `size` bytes at each address (None: idle lane)."""
    total, lanes = 0, 128 // size  # that are served at a time
    for first in range(0, 32, lanes):
        at = [a for a in addresses[first : first + lanes] if a is not None]
        words = {a // 4 + i for a in at for i in range(size // 4)}
        total += max(Counter(word % 32 for word in words).values(), default=0)
    return total


def least(addresses, size=4):
    lanes = 128 // size
    groups = (addresses[first : first + lanes] for first in range(0, 32, lanes))
    return sum(any(a is not None for a in group) for group in groups)


def by_lane(images, stride, item, size, begin=0, end=10**9):
    """Return the addresses of a warp's lanes: item i of image l % images for lane l."""
    return [
        lane % images * stride + item(lane // images) * size
        if begin <= item(lane // images) < end
        else None
        for lane in range(32)
    ]


def turns(images, count):
    """Yield what the lanes of an image access in turn: the number of lane 0's item."""
    return range(0, count, 32 // images)


def moved_rows(images, stride, elements, pieces):
    """Yield (addresses, size) of the accesses that bring a row and lay it out.

    The second copy and the pairs at odd places shift all addresses of an access alike.
    """
    for first in turns(images, pieces):
        yield by_lane(images, stride, lambda i, f=first: f + i, 16, end=pieces), 16
    for first in turns(images, elements // 2):
        read = by_lane(images, stride, lambda i, f=first: f + i, 4, end=elements // 2)
        yield from ((read, 4) for _ in range(4))  # low, high; to one copy and to the other


def stored_rows(images, columns, together):
    """Yield the accesses of two rows of output on their way out: reads of `together` elements."""
    stride, row = hankel.apart(32 * columns, images), 4 * columns
    if together == 8:
        for first in turns(images, 2 * columns):
            yield by_lane(images, stride, lambda i, f=first: f + i, 16, end=2 * columns), 16
        return
    for which, first in itertools.product(range(2), turns(images, row)):
        read = by_lane(images, stride, lambda i, f=first: f + i, 4, end=row)
        yield [a if a is None else a + 4 * row * which for a in read], 4


@pytest.mark.parametrize("columns", sorted({tile[1] for tile in TILES}))
def test_sums_of_two_rows_leave_the_registers_without_conflicts(columns):
    lanes = [
        (lane // 4 % 2 * 4 * columns + lane % 4) * 4 if lane < 8 else None for lane in range(32)
    ]
    assert wavefronts(lanes) == 1


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_images_of_a_warp_lie_in_different_banks(tile, steps):
    _, columns, images = tile
    elements = 8 * columns + 16 * steps
    staged = 16 * (elements // 8 + 2)
    stride = hankel.apart(4 * staged + 8 * copy_words(elements), images)
    for addresses, size in moved_rows(images, stride, elements, staged // 16):
        assert wavefronts(addresses, size) == least(addresses, size)
    for together in (2, 8):
        for addresses, size in stored_rows(images, columns, together):
            assert wavefronts(addresses, size) == least(addresses, size)


@pytest.mark.parametrize("images", [1, 2, 4, 8])
@pytest.mark.parametrize("columns", [1, 2, 4, 6, 8])
def test_images_of_a_weight_gradient_lie_in_different_banks(images, columns):
    for steps, ring_rows in itertools.product(range(1, 7), (1, 12, 13, 27, 48)):
        stride = hankel.image_bytes(ring_rows, columns, steps, images)
        assert stride % 16 == 0
        for elements in (16 * steps, 16 * steps + 8 * columns):
            for addresses, size in moved_rows(images, stride, elements, (elements + 14) // 8):
                assert wavefronts(addresses, size) == least(addresses, size)


@pytest.mark.parametrize(
    ("tile", "side", "taps", "most"),
    [(Tile(2, 3, 4), 24, 27, 66), (Tile(1, 2, 8), 12, 13, 56)],
    ids=["RepLKNet, stage 3", "stage 4"],
)
def test_wavefronts_of_a_row(tile, side, taps, most):
    slots, columns, images, _ = tile
    steps = -(-taps // 16)
    elements = 8 * columns + 16 * steps
    staged = 16 * (elements // 8 + 2)
    stride = hankel.apart(4 * staged + 8 * copy_words(elements), images)
    moved = moved_rows(images, stride, elements, -(-side // 8))
    count = sum(wavefronts(addresses, size) for addresses, size in moved)
    count += images * (columns + 1 + 2 * (steps - 1))  # fragments
    count += 4 * slots * steps  # ldmatrix of the taps
    count += images * columns / 2  # the sums of two rows that are complete, then the rows
    rows_out = stored_rows(images, columns, 2 if side % 8 else 8)
    two_rows = sum(wavefronts(addresses, size) for addresses, size in rows_out)
    assert count + two_rows / 2 <= most


# What is copied of a row. Protected pages cannot show that: 16 bytes never cross a page.


@pytest.mark.parametrize("emulated_cuda", [2], ids=["shuffled"], indirect=True)
@pytest.mark.parametrize("direction", ["forward", "grad_weight"])
@pytest.mark.parametrize("images", [1, 2, 4, 8])
def test_no_byte_beyond_a_row_is_copied(emulated_cuda, images, direction):
    weight = torch.ones(1, 1, 3, 17, dtype=torch.bfloat16)
    tile = {1: Tile(1, 12, 1), 2: Tile(1, 6, 2), 4: Tile(1, 3, 4), 8: Tile(1, 2, 8)}[images]
    for offset, width in itertools.product(range(8), (1, 7, 24, 25, 100)):
        pitch = width + 21  # elements from one row to the next
        memory = torch.zeros(images * 3 * pitch + 16, dtype=torch.bfloat16)
        x = memory[offset : offset + images * 3 * pitch].view(images, 1, 3, pitch)[..., :width]
        emulated_cuda.note_copies()
        if direction == "forward":
            hankel.forward(x, weight, None, torch.contiguous_format, using=tile)
        else:
            hankel.grad_weight(x, x, (3, 17), using=WeightTile(1, 4, 2, images))
        left = [set(range(2 * width)) for _ in range(3 * images)]
        for source, count in emulated_cuda.noted_copies():
            assert source % 16 == 0
            assert 0 < count <= 16
            # Nothing lies beyond the last element; before the first one at most its 16 bytes.
            row, begin = divmod(source + 16 - x.data_ptr(), 2 * pitch)
            begin -= 16
            assert begin > -16
            assert begin + count <= 2 * width
            left[row] -= set(range(begin, begin + count))
        assert not any(left)
