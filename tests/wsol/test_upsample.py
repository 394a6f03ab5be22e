"""The bilinear resize in tensor operations: OpenCV's bits, and sums of products rounded once."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cba_fast.shapes import map_shape
from cba_fast.wsol.upsample import fused_multiply_add, resize_bilinear

# Where OpenCV hands float32 images to IPP's code for AVX2 and FMA, which was taken as the model.
IPP_AVX2 = hasattr(cv2, "ipp") and cv2.ipp.useIPP() and "AVX2" in cv2.ipp.getIppVersion()
EPS = np.finfo(np.float32).eps

singles = st.floats(width=32, min_value=-(2.0**30), max_value=2.0**30).filter(
    lambda v: v == 0 or abs(v) > 2.0**-30
)


def nearest_float32(value: Fraction) -> float:
    """Round to the nearest float32, ties to even."""
    near = np.float32(float(value))
    candidates = [np.nextafter(near, np.float32(s)) for s in (-np.inf, np.inf)] + [near]
    return min(
        candidates, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(np.uint32)) & 1)
    )


@given(singles, singles, singles)
@example(1 - 2.0**-15, 2.0**-24 * (1 + 2.0**-15), 1 + 2.0**-23)  # just below a tie
@example(1 - 2.0**-15, -(2.0**-24) * (1 + 2.0**-15), -1 - 2.0**-23)
@example(1 + 2.0**-15, 2.0**-24 * (1 + 2.0**-15), 1.0)  # above, far enough for float64
@settings(max_examples=200)
def test_a_sum_of_a_product_is_rounded_once(a, b, c):
    tensors = [torch.tensor([v], dtype=torch.float32) for v in (a, b, c)]
    got = fused_multiply_add(*tensors).item()
    assert got == nearest_float32(Fraction(a) * Fraction(b) + Fraction(c))


def test_rounding_twice_would_be_seen():
    a, b, c = 1 - 2.0**-15, 2.0**-24 * (1 + 2.0**-15), 1 + 2.0**-23
    twice = float(np.float32(a * b + c))
    once = fused_multiply_add(*(torch.tensor([v]) for v in (a, b, c))).item()
    assert (once, twice) == (1 + 2.0**-23, 1 + 2.0**-22)


def resized_by_opencv(maps, size):
    height, width = map_shape(size)
    return np.stack([cv2.resize(m, (width, height)) for m in maps])


@pytest.mark.parametrize("side", [2, 3, 4, 7, 9, 12, 13, 14, 16, 24, 31])
def test_the_bits_are_those_of_opencv(side):
    rng = np.random.default_rng(side)
    for size in (1, 2, 5, 7, 12, 24, 57, 56, 96, 100, 112, 224, 299, 300, 384, 448):
        maps = rng.normal(size=(2, side, side)).astype(np.float32)
        got = resize_bilinear(torch.from_numpy(maps), size).numpy()
        want = resized_by_opencv(maps, size)
        if IPP_AVX2:
            np.testing.assert_array_equal(got, want)
        # two passes, of which each may round weights and products in another order; the float32
        # position of OpenCV's own code is off by half an ulp of a number up to the side
        atol = (8 + 2 * side) * EPS * np.abs(maps).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)


@pytest.mark.parametrize(("h", "w", "size"), [(2, 7, 50), (7, 12, (100, 60)), (20, 6, (96, 384))])
def test_maps_that_are_not_square(h, w, size):
    maps = np.random.default_rng(0).normal(size=(1, h, w)).astype(np.float32)
    got = resize_bilinear(torch.from_numpy(maps), size).numpy()
    if IPP_AVX2:
        np.testing.assert_array_equal(got, resized_by_opencv(maps, size))
    np.testing.assert_allclose(got, resized_by_opencv(maps, size), rtol=0, atol=200 * EPS)


@given(st.integers(0, 2**32 - 1), st.integers(2, 16), st.integers(1, 80))
@settings(max_examples=40)
def test_the_formula_in_float64(seed, side, size):
    maps = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    t = (np.arange(size) + 0.5) * side / size - 0.5
    columns = np.stack([np.interp(t, np.arange(side), row) for row in maps.astype(np.float64)])
    want = np.stack([np.interp(t, np.arange(side), column) for column in columns.T]).T
    got = resize_bilinear(torch.from_numpy(maps)[None], size)[0].numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * EPS * np.abs(maps).max())


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0, -1 / 3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 3), (12, 12)])
def test_constant_maps_stay_constant(value, shape):
    got = resize_bilinear(torch.full((1, *shape), value), 50)
    assert torch.equal(got, torch.full((1, 50, 50), value))


def test_maps_of_a_batch_do_not_matter_to_each_other():
    maps = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(0))
    whole = resize_bilinear(maps, 40)
    assert torch.equal(whole, torch.cat([resize_bilinear(m[None], 40) for m in maps]))
    assert resize_bilinear(maps[:0], 40).shape == (0, 40, 40)
    turned = resize_bilinear(maps.mT, 40)  # strided; the order of the two passes shows
    assert torch.equal(turned, resize_bilinear(maps.mT.contiguous(), 40))


@pytest.mark.gpu
@pytest.mark.parametrize(("side", "size"), [(7, 224), (12, 384), (12, 224), (24, 448), (13, 100)])
def test_a_gpu_gives_the_same_bits(side, size):
    maps = torch.randn(8, side, side, generator=torch.Generator().manual_seed(side))
    on_gpu = maps.cuda()  # waits, as the memory is not pinned
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = resize_bilinear(on_gpu, size)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert got.device == on_gpu.device
    assert torch.equal(got.cpu(), resize_bilinear(maps, size))
