"""The emulated GPU: its instructions against NumPy, and what it notices that a GPU would not."""

import numpy as np
import pytest
import torch

from cba_fast.kernels.gpu import quantize_cuda

# Where the PTX ISA puts the elements of a fragment: "Matrix fragments for mma.m16n8k16 with
# floating point type" and "ldmatrix". Arrays of (row, column), one per lane and element.

LANE = np.arange(32)[:, None]
GROUP, PLACE = LANE >> 2, LANE % 4


def of_a():
    i = np.arange(8)
    row = np.where((i < 2) | ((i >= 4) & (i < 6)), GROUP, GROUP + 8)
    return row, PLACE * 2 + (i & 1) + np.where(i < 4, 0, 8)


def of_b():
    i = np.arange(4)
    return PLACE * 2 + (i & 1) + np.where(i < 2, 0, 8), GROUP + 0 * i


def of_c():
    i = np.arange(4)
    return np.where(i < 2, GROUP, GROUP + 8), PLACE * 2 + (i & 1)


def packed(values, dtype):
    """Return pairs of elements as 32-bit registers, the first in the low half."""
    return torch.from_numpy(values.astype(np.float32)).to(dtype).view(torch.int32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_read_and_write_the_registers_of_the_manual(emulated_cuda, dtype):
    random = np.random.default_rng(0)
    a, b = random.integers(-8, 9, (16, 16)), random.integers(-8, 9, (16, 8))
    left, right = packed(a[of_a()], dtype), packed(b[of_b()], dtype)
    out = torch.full((32, 4), torch.nan)
    arguments = (left.data_ptr(), right.data_ptr(), out.data_ptr(), dtype == torch.bfloat16)
    emulated_cuda.selftest_registers(*arguments)
    assert (out.numpy() == (a @ b)[of_c()]).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded_into_the_registers_of_the_manual(emulated_cuda, transposed):
    rows = torch.arange(256, dtype=torch.int16).reshape(4, 8, 8)
    found = torch.zeros(32, 4, dtype=torch.int32)
    emulated_cuda.selftest_matrices(rows.data_ptr(), found.data_ptr(), transposed)
    expected = rows.mT if transposed else rows
    row, column = GROUP, PLACE * 2 + np.arange(2)
    for i in range(4):
        elements = found[:, i : i + 1].contiguous().view(torch.int16)
        assert torch.equal(elements, expected[i][row, column])


@pytest.mark.parametrize("with_barrier", [True, False])
def test_a_missing_barrier_shows(emulated_cuda, with_barrier):
    x, y = torch.arange(96.0), torch.empty(96)
    emulated_cuda.selftest_reverse(x.data_ptr(), y.data_ptr(), 96, with_barrier)
    assert torch.equal(y, x.flip(0)) is with_barrier


def test_a_copy_that_is_not_waited_for_has_not_arrived(emulated_cuda):
    x, y = torch.zeros(32, 4, dtype=torch.int32), torch.zeros(32, 4, dtype=torch.int32)
    emulated_cuda.selftest_wrong("unfinished copy", x.data_ptr(), y.data_ptr())
    assert (y == -1).all()  # what shared memory starts with


@pytest.mark.parametrize(
    ("name", "message"), [("divergent", "meets another"), ("lonely", "never come")]
)
def test_threads_that_miss_each_other_are_an_error(emulated_cuda, name, message):
    y = torch.zeros(32, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=message):
        emulated_cuda.selftest_wrong(name, 0, y.data_ptr())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_quantizer(emulated_cuda, dtype):
    maps = torch.rand(3, 50, 41, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantize_cuda.quantize(maps), (255 * maps).to(torch.uint8))
    maps[2, 7, 5] = 1.5
    with pytest.raises(ValueError, match=r"\[2, 7, 5\]|map 2.*row 7.*column 5"):
        quantize_cuda.quantize(maps)
