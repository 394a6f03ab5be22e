"""The emulated GPU: its instructions against NumPy, and what it notices that a GPU would not."""

import numpy as np
import pytest
import torch

from cba_fast.kernels import quantize_cuda


def product(module, a, b, *, b_by_rows):
    c = torch.full((16, 8), torch.nan)
    laid = b.contiguous() if b_by_rows else b.T.contiguous()
    arguments = (a.data_ptr(), laid.data_ptr(), c.data_ptr(), a.dtype == torch.bfloat16, b_by_rows)
    module.selftest_product(*arguments)
    return c.double().numpy()


@pytest.mark.parametrize("b_by_rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_matrix_fragments(emulated_cuda, dtype, b_by_rows):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(16, 16, generator=generator).to(dtype)
    b = torch.randn(16, 8, generator=generator).to(dtype)
    found = product(emulated_cuda, a, b, b_by_rows=b_by_rows)
    expected = a.double().numpy() @ b.double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def fragments(a):
    """Return the registers of operand a (16, 16) of m16n8k16 by the tables of the PTX ISA.

    Row and column of element i of lane l, from "Matrix fragments for mma.m16n8k16".
    """
    out = np.empty((32, 8))
    for lane in range(32):
        group, place = divmod(lane, 4)
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            column = place * 2 + (i & 1) + (0 if i < 4 else 8)
            out[lane, i] = a[row, column]
    return out


def test_each_element_is_where_the_manual_says(emulated_cuda):
    # One element of a at a time, against b that tells rows apart: shows any two swapped elements.
    b = torch.arange(1.0, 17)[:, None].expand(16, 8).bfloat16()
    seen = set()
    for row, column in np.ndindex(16, 16):
        a = torch.zeros(16, 16)
        a[row, column] = 1
        found = product(emulated_cuda, a.bfloat16(), b, b_by_rows=True)
        assert (found[row] == column + 1).all()
        assert np.count_nonzero(found) == 8
        lane, i = np.argwhere(fragments(a.numpy()))[0]
        seen.add((int(lane), int(i)))
    assert len(seen) == 256  # the manual's table holds every element once


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
