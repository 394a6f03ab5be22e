"""Rows on their way to the tensor cores: their copies on a CPU, the index arithmetic in NumPy."""

import ctypes
import itertools
import subprocess
from pathlib import Path

import cuda_emulator
import numpy as np
import pytest

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


# What is copied of a row.


@pytest.fixture(scope="module")
def copies_of_a_row(tmp_path_factory):
    """Return a function: what the lanes copy of a row, (to, from, bytes, size) of each copy."""
    if cuda_emulator.compiler() is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("hankel_rows") / "copies.so"
    sources, root = Path(__file__).with_name("hankel_rows"), Path(__file__).parent.parent
    include = [f"-I{path}" for path in (sources, root / "csrc")]
    build = [*cuda_emulator.compiler(), "-std=c++17", "-shared", "-fPIC", *include]
    subprocess.run([*build, sources / "copies.cpp", "-o", library], check=True)
    function = ctypes.CDLL(library).copies_of_a_row
    function.restype = ctypes.c_size_t
    out = (ctypes.c_int64 * 4 * 64)()

    def copies(staged, row, start, length, width, lanes):
        addresses = ctypes.c_size_t(staged), ctypes.c_size_t(row)
        count = function(*addresses, start, length, width, lanes, out, ctypes.c_size_t(len(out)))
        assert count <= len(out)
        return [tuple(out[i]) for i in range(count)]

    return copies


@pytest.mark.parametrize("lanes", [4, 8, 16, 32])
@pytest.mark.parametrize("length", [32, 48, 128])
def test_no_byte_beyond_a_row_is_copied(copies_of_a_row, length, lanes):
    staged, beginning = 1 << 20, 1 << 30
    room = 16 * ((length + 14) // 8)
    starts, widths = (-31, -8, -1, 0, 1, 16, 24, 25), (1, 7, 12, 24, 25, 96, 200)
    for offset, start, width in itertools.product(range(8), starts, widths):
        first, end = max(start, 0), min(start + length, width)
        if first >= end:
            continue  # no tile has such a window
        row = beginning + 2 * offset
        held = {}  # which byte of the image a byte of the staged row is
        for to, source, count, size in copies_of_a_row(staged, row, start, length, width, lanes):
            assert size == 16
            assert 0 < count <= 16
            assert to % 16 == source % 16 == 0
            assert staged <= to <= staged + room - 16
            # Nothing lies beyond the last element; before the first one at most its 16 bytes.
            assert (row + 2 * first) // 16 * 16 <= source
            assert source + count <= row + 2 * end
            held.update((to - staged + i, source + i) for i in range(count))
        aside = (row + 2 * first) % 16
        for byte in range(2 * (end - first)):
            assert held[aside + byte] == row + 2 * first + byte
