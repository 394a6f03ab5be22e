"""Bytes of maps: the tensor path against OpenCV's, and the second quantization on the device."""

import numpy as np
import pytest
import torch
from test_upsample import IPP_AVX2

from cba_fast.ops import quantize
from cba_fast.wsol import finish_maps
from cba_fast.wsol.heatmap import RANGES, levels_of, normalize, quantize_maps, score_levels
from cba_fast.wsol.upsample import resize_bilinear


def small_maps(kind, side, n=4):
    rng = np.random.default_rng(side)
    if kind == "constant":
        return np.stack([np.full((side, side), v, np.float32) for v in (0, 1 / 3, 1, -0.2)])
    maps = rng.normal(0.4, 0.6, (n, side, side)).astype(np.float32)
    if kind == "cam":
        maps = np.maximum(maps, 0)
        maps /= maps.max(axis=(1, 2), keepdims=True)
    return maps * np.float32(1e15) if kind == "huge" else maps


@pytest.mark.parametrize("kind", ["cam", "pc1", "constant", "huge"])
@pytest.mark.parametrize("value_range", RANGES)
def test_the_tensor_path_gives_the_bytes_of_opencv(kind, value_range):
    for side, size in [(7, 56), (7, 224), (9, 57), (12, 384), (12, 224), (24, 448)]:
        maps = torch.from_numpy(small_maps(kind, side))
        want = quantize_maps(maps, size, value_range)
        got = levels_of(resize_bilinear(maps, size), value_range)
        assert got.dtype == want.dtype == torch.uint8
        if IPP_AVX2 or kind == "constant":
            assert torch.equal(got, want)
        elif kind != "huge":  # whose low bytes are noise
            apart = (got.int() - want.int()).abs()
            assert torch.isin(apart, torch.tensor([0, 1, 255])).all()
            assert (apart != 0).float().mean() < 5e-3


@pytest.mark.parametrize("value_range", RANGES)
def test_finished_maps_are_the_normalized_bytes(value_range):
    maps = small_maps("pc1", 9)
    finished = finish_maps(maps, 40, value_range)
    u = quantize_maps(torch.from_numpy(maps), 40, value_range)
    for n, levels in enumerate(u.numpy().astype(np.float64)):
        low, high = levels.min(), levels.max()
        np.testing.assert_array_equal(finished[n], (levels - low) / (high - low))
    assert finished.dtype == np.float64


def test_every_byte_of_every_range_is_scored_as_the_evaluator_does():
    # all pairs of least and greatest byte, with all bytes between them
    pairs = [(low, high) for low in range(0, 256, 3) for high in range(low, 256, 2)]
    u = torch.stack([torch.arange(256).clamp(low, high) for low, high in pairs])
    u = u.to(torch.uint8).reshape(-1, 16, 16)
    assert torch.equal(score_levels(u), quantize(normalize(u)))
    constant = torch.full((2, 5, 5), 77, dtype=torch.uint8)
    assert not normalize(constant).any()
    assert not score_levels(constant).any()


@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize("value", [1.0, 0.7])
def test_a_single_cell_is_a_constant_map(value, value_range):
    assert not finish_maps(np.full((1, 1, 1), value, np.float32), 384, value_range).any()


def test_what_cannot_be_finished_is_refused():
    maps = small_maps("cam", 4)
    with pytest.raises(ValueError, match=r"value_range must be one of .* got 'fold'"):
        finish_maps(maps, 8, "fold")
    with pytest.raises(ValueError, match=r"must be \(N, h, w\) float32, got \(4, 4, 4\) float64"):
        finish_maps(maps.astype(np.float64), 8)
    maps[2, 1, 1] = np.nan
    with pytest.raises(ValueError, match=r"maps\[2\] holds NaN"):
        finish_maps(maps, 8)
    assert finish_maps(maps[:0], 8).shape == (0, 8, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["cam", "pc1", "constant", "huge"])
@pytest.mark.parametrize("value_range", RANGES)
def test_a_gpu_gives_the_same_bytes(kind, value_range):
    for side, size in [(7, 224), (12, 384), (12, 224)]:
        maps = torch.from_numpy(small_maps(kind, side))
        want = levels_of(resize_bilinear(maps, size), value_range)
        got = quantize_maps(maps.cuda(), size, value_range)
        assert got.is_cuda
        assert torch.equal(got.cpu(), want)
        assert torch.equal(normalize(got).cpu(), normalize(want))
        assert torch.equal(score_levels(got).cpu(), score_levels(want))
