"""The bounds themselves: right results pass, one missing tap and a half accumulator do not."""

import pytest
import torch
from tolerance import (
    assert_forward,
    assert_grad_weight,
    assert_grad_x,
    assert_transform,
    assert_within,
    sum_bound,
)

from cba_fast.reference import dwconv

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def positive(*shape, dtype=torch.float32):
    """Return numbers in [0.5, 1): no cancellation hides an error."""
    return (torch.rand(*shape) / 2 + 0.5).to(dtype)


def narrow_conv(x, weight, dtype):
    """Convolve as a kernel would that keeps its running sum in `dtype`."""
    kh, kw = weight.shape[2:]
    height, width = x.shape[2:]
    padded = torch.nn.functional.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2))
    y = torch.zeros(x.shape, dtype=dtype)
    for i in range(kh):
        for j in range(kw):
            window = padded[:, :, i : i + height, j : j + width].float()
            y = (y.float() + window * weight[:, 0, i, j].float()[:, None, None]).to(dtype)
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(7, 7), (31, 31), (51, 5)])
def test_sequential_float32_sum_passes_with_the_small_constant(dtype, size):
    x, weight = positive(1, 2, 16, 16, dtype=dtype), positive(2, 1, *size, dtype=dtype)
    assert_forward(narrow_conv(x, weight, torch.float32).to(dtype), x, weight, c=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(7, 7), (31, 31), (51, 5)])
def test_half_accumulator_is_rejected(dtype, size):
    x, weight = positive(1, 2, 16, 16, dtype=dtype), positive(2, 1, *size, dtype=dtype)
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_forward(narrow_conv(x, weight, dtype), x, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(7, 7), (31, 31), (51, 5)])
def test_one_missing_tap_is_rejected(dtype, size):
    x, grad = torch.randn(2, 2, 16, 16).to(dtype), torch.randn(2, 2, 16, 16).to(dtype)
    weight = positive(2, 1, *size, dtype=dtype)
    wrong = weight.clone()
    wrong[:, :, size[0] // 2 + 1, size[1] // 2 - 1] = 0
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_forward(dwconv.depthwise_conv2d(x, wrong), x, weight)
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_grad_x(dwconv.depthwise_conv2d_grad_x(grad, wrong), grad, weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_gradient_shifted_by_one_tap_is_rejected(dtype):
    x, grad = torch.randn(2, 2, 16, 16).to(dtype), torch.randn(2, 2, 16, 16).to(dtype)
    gw = dwconv.depthwise_conv2d_grad_weight(grad, x, (7, 7))
    assert_grad_weight(gw, grad, x, c=2)
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_grad_weight(gw.roll(1, dims=3), grad, x)


def test_nan_shape_and_worst_element_are_reported():
    y64 = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    bound = sum_bound(y64, y64, 1, torch.float32)
    assert_within(y64.float(), y64, bound)
    with pytest.raises(AssertionError, match=r"1 of 3 .* at \(1,\): nan instead of 2"):
        assert_within(torch.tensor([1.0, torch.nan, 3.0]), y64, bound)
    with pytest.raises(AssertionError, match=r"2 of 3 .* at \(2,\): 4"):
        assert_within(torch.tensor([1.0, 2.1, 4.0]), y64, bound)
    with pytest.raises(AssertionError, match="shape"):
        assert_within(torch.zeros(2), y64, bound)


def test_underflow_to_the_output_dtype_is_allowed_for():
    y64 = torch.tensor([1e-9], dtype=torch.float64)
    assert_within(y64.half(), y64, sum_bound(y64, y64, 1, torch.float16))


def transformed(x, weight, dtype):
    """Convolve by PyTorch's transforms, with the spectra rounded to `dtype`."""
    height, width = (n + k for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    size = (height, width)

    def spectrum(t):
        f = torch.fft.rfft2(t.float(), s=size)
        return torch.complex(f.real.to(dtype).float(), f.imag.to(dtype).float())

    y = torch.fft.irfft2(spectrum(x) * spectrum(weight[:, 0]).conj(), s=size)
    kh, kw = weight.shape[2:]
    return y.roll((kh // 2, kw // 2), (2, 3))[..., : x.shape[2], : x.shape[3]]


@pytest.mark.parametrize("size", [(7, 7), (31, 31), (51, 5)])
def test_transform_in_float32_passes_and_errors_are_rejected(size):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 2, 24, 24), torch.randn(2, 1, *size)
    y64 = dwconv.depthwise_conv2d(x.double(), weight.double())
    pairs, length = [(x, weight[:, 0])], (24 + size[0]) * (24 + size[1])
    assert_transform(transformed(x, weight, torch.float32), y64, pairs, length)
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_transform(transformed(x, weight, torch.float16), y64, pairs, length)
    wrong = weight.clone()
    wrong[:, :, size[0] // 2 + 1, size[1] // 2 - 1] = 0
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_transform(transformed(x, wrong, torch.float32), y64, pairs, length)
