"""A NumPy model of the design in docs/block-toeplitz.md: products for 64 images, row by row."""

import numpy as np
import pytest

IMAGES = 64  # rows of a product
CORE = 64  # elements of a core matrix, 8 rows of 8 elements (16 bytes each)


def operand(memory, start, leading, stride, rows):
    """Return what a descriptor without swizzle shows of an operand (K-major): [rows, 16].

    Args:
        memory: elements of shared memory.
        start: the place of the first core matrix.
        leading: from a core matrix to the next one in K.
        stride: from a core matrix to the next one in rows.
        rows: M or N.
    """
    # The fields of a descriptor have 14 bits for multiples of 16 bytes, and no sign.
    assert all(0 <= 2 * v < 1 << 18 and 2 * v % 16 == 0 for v in (start, leading, stride))
    i, k = np.arange(rows)[:, None], np.arange(16)[None, :]
    return memory[start + i // 8 * stride + k // 8 * leading + i % 8 * 8 + k % 8]


def blocks_of(kernel, lead, width, rows, cores):
    """Lay out the Toeplitz blocks of all kernel rows, below and above them blocks of zeros.

    Block c holds kernel row r = KH + rows - 2 - c, its element (k, n) tap k - n - lead + KW // 2.
    """
    kh, kw = kernel.shape
    count = kh + 2 * (rows - 1)
    block = np.zeros((count, width, 8 * cores))
    n, k = np.arange(width)[:, None], np.arange(8 * cores)[None, :]
    tap = k - n - lead + kw // 2
    inside = (tap >= 0) & (tap < kw)
    for r in range(kh):
        block[kh + rows - 2 - r][inside] = kernel[r][tap[inside]]
    matrix = block.reshape(count * width // 8, 8, cores, 8)
    return matrix.transpose(0, 2, 1, 3).ravel()  # core matrices adjacent in K follow each other


def rows_of(x, columns, cores):
    """Lay out rows [H, 64, W] of 64 images, columns from `columns` on, rows from the last up."""
    h, images, w = x.shape
    padded = np.zeros((h, images, 8 * cores))
    first, end = max(columns, 0), min(columns + 8 * cores, w)
    padded[:, :, first - columns : end - columns] = x[:, :, first:end]
    matrix = padded[::-1].reshape(h, images // 8, 8, cores, 8)
    return matrix.transpose(0, 1, 3, 2, 4).ravel()


def convolve(x, kernel, width, rows):
    """Return the convolution [64, H, W] of one channel, `rows` x `width` outputs at a time."""
    images, h, w = x.shape
    kh, kw = kernel.shape
    lead = 0 if width == w else -(-(kw // 2) // 8) * 8  # columns before the tile, whole cores
    cores = (w if width == w else -(-(width + lead + kw // 2) // 8) * 8) // 8
    y, slot, products = np.zeros(x.shape), IMAGES * 8 * cores, 0
    b = blocks_of(kernel, lead, width, rows, cores)
    b = np.append(b, np.zeros(width * 8 * cores))
    for column in range(0, w, width):
        a = np.append(rows_of(x.transpose(1, 0, 2), column - lead, cores), np.zeros(slot))
        for top in range(0, h, rows):
            sums = np.zeros((images, rows * width))
            first = min(top + rows - 1 + kh // 2, h - 1)
            last = max(top - kh // 2, 0)
            steps = [(row, core) for row in range(first, last - 1, -1) for core in range(cores)]
            steps += [(last - 1, 0)] * (len(steps) % 2)  # an odd core matrix at the end needs zeros
            for one, two in zip(steps[::2], steps[1::2], strict=True):
                shift = kh + rows - 2 + top - kh // 2
                in_a = [(h - 1 - r) * slot + c * CORE for r, c in (one, two)]
                in_b = [((shift - r) * width // 8 * cores + c) * CORE for r, c in (one, two)]
                left = operand(a, in_a[0], in_a[1] - in_a[0], cores * CORE, images)
                right = operand(b, in_b[0], in_b[1] - in_b[0], cores * CORE, rows * width)
                if two[0] < last:
                    left[:, 8:] = 0
                sums += left @ right.T
                products += 1
            tile = sums.reshape(images, rows, width)[:, : h - top]
            y[:, top : top + rows, column : column + width] = tile
    return y, products


def direct(x, kernel):
    kh, kw = kernel.shape
    padded = np.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), axis=(1, 2))
    return np.einsum("nhwrs,rs->nhw", windows, kernel)


@pytest.mark.parametrize(
    ("height", "width", "kernel", "tile", "count"),
    [
        (24, 24, (27, 27), (12, 24), 72),  # odd cores: pairs of them cross from a row to the next
        (16, 32, (5, 31), (8, 16), 120),
        (9, 32, (7, 13), (4, 16), 76),
    ],
)
def test_products_of_shifted_descriptors_are_the_convolution(height, width, kernel, tile, count):
    random = np.random.default_rng(0)
    x = random.integers(-8, 9, (IMAGES, height, width)).astype(float)
    weight = random.integers(-8, 9, kernel).astype(float)
    rows, columns = tile
    y, products = convolve(x, weight, columns, rows)
    assert np.array_equal(y, direct(x, weight))
    assert products == count
