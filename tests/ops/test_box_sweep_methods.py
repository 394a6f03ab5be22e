"""Segments and pixels find the same boxes as OpenCV, on every instruction set and thread count."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from sweep_maps import level_thresholds, rings, shaded, shapes_of_interest, spiral

from cba_fast import ops
from cba_fast.errors import ScoreMapError
from cba_fast.kernels import box_sweep_cpp, native
from cba_fast.reference import box_sweep as reference

MODES = ("largest", "all")
ISAS = native.build_info()["isas_supported"]
WAYS = [("pixels", ISAS[-1]), *(("segments", isa) for isa in ISAS), ("auto", ISAS[-1])]
TRUTH = torch.tensor([[1, 0, 4, 3], [2, 2, 2, 2], [5, 1, 30, 40]])


def results(u: np.ndarray, thresholds: np.ndarray, method: str, isa: str) -> list[torch.Tensor]:
    maps, levels = torch.from_numpy(u), torch.from_numpy(thresholds)
    how = {"method": method, "isa": isa}
    boxes, offsets = box_sweep_cpp.box_sweep_all(maps, levels, **how)
    truth, starts = TRUTH.repeat(len(maps), 1), torch.arange(len(maps) + 1) * len(TRUTH)
    ious = [box_sweep_cpp.best_box_iou(maps, truth, starts, levels, m, **how) for m in MODES]
    return [box_sweep_cpp.box_sweep(maps, levels, **how), boxes, offsets, *ious]


def from_opencv(u: np.ndarray, thresholds: np.ndarray) -> list[torch.Tensor]:
    boxes, offsets = reference.box_sweep_all(u, thresholds)
    truth = np.tile(TRUTH, (len(u), 1)), np.arange(len(u) + 1) * len(TRUTH)
    ious = [reference.best_box_iou(u, *truth, thresholds, mode) for mode in MODES]
    return list(map(torch.from_numpy, [reference.box_sweep(u, thresholds), boxes, offsets, *ious]))


def assert_all_equal(u: np.ndarray, thresholds=None, opencv: bool = True) -> None:
    """Compare all ways, on a batch (N, H, W), with each other and with OpenCV."""
    thresholds = level_thresholds(u) if thresholds is None else thresholds
    expected = from_opencv(u, thresholds) if opencv else results(u, thresholds, *WAYS[0])
    for way in WAYS:
        found = results(u, thresholds, *way)
        names = ("largest", "all", "offsets", "iou largest", "iou all")
        for name, a, b in zip(names, found, expected, strict=True):
            assert torch.equal(a, b), (way, name, u.shape)


def test_all_binary_maps_of_four_by_three():
    bits = np.arange(2**12)[:, None] >> np.arange(12) & 1
    assert_all_equal(bits.reshape(-1, 4, 3).astype(np.uint8), np.array([0.0]))


def test_all_maps_of_three_levels_and_eight_pixels():
    values = np.array(list(itertools.product(range(3), repeat=8)), np.uint8)
    # Two thresholds, one for each level of the maps whose maximum is 2.
    assert_all_equal(values.reshape(-1, 2, 4), np.array([0.0, 0.5]), opencv=False)
    assert_all_equal(values.reshape(-1, 8, 1)[::3], np.array([0.0, 0.5]), opencv=False)
    some = values[np.random.default_rng(0).permutation(len(values))[:1500]]
    assert_all_equal(some.reshape(-1, 2, 4), np.array([0.0, 0.5]))


@pytest.mark.parametrize("top", [1, 2, 5, 255])
def test_random_maps(top):
    rng = np.random.default_rng(top)
    for _ in range(25 if top < 255 else 3):
        height, width = rng.integers(1, 14, 2)
        maps = rng.integers(0, top + 1, (4, height, width)).astype(np.uint8)
        maps[:, 0, 0] = top  # one set of levels for the batch
        assert_all_equal(maps)


@pytest.mark.parametrize("width", [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 257])
def test_widths_around_those_of_vectors_and_words(width):
    rng = np.random.default_rng(width)
    noise = rng.integers(0, 5, (1, 5, width))
    waves = 40 * (1 + np.sin(np.arange(width) / 7) * np.cos(np.arange(9) / 2)[:, None])[None]
    for u in (noise.astype(np.uint8), waves.astype(np.uint8)):
        thresholds = np.arange(0, 1, 0.11)
        assert_all_equal(u, thresholds)
        assert_all_equal(np.ascontiguousarray(u.transpose(0, 2, 1)), thresholds)


@pytest.mark.parametrize("name", shapes_of_interest())
def test_adversarial_shapes(name):
    u = shapes_of_interest()[name]
    for variant in (u, np.ascontiguousarray(u.T), shaded(u), u.max() - u):
        assert_all_equal(variant[None])


def smooth(coarse: int, size: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).random((coarse, coarse))
    values = cv2.resize(values, (size, size), interpolation=cv2.INTER_CUBIC)
    return (values - values.min()) / np.ptp(values)


@pytest.mark.parametrize("coarse", [3, 7, 12, 30])
@pytest.mark.parametrize("shape", ["as it is", "relu", "few levels"])
def test_upsampled_maps(coarse, shape):
    m = smooth(coarse, 112, coarse)
    m = {"as it is": m, "relu": np.maximum(2 * m - 1, 0), "few levels": m * 0.05}[shape]
    u = (255 * m).astype(np.uint8)[None]
    assert_all_equal(u, opencv=False)
    assert_all_equal(u, np.arange(0, 1, 0.07))


LARGE = {
    "noise": lambda n, rng: rng.integers(0, 256, (n, n)),
    "spiral": lambda n, rng: spiral(n) * 255,
    "spiral, levels": lambda n, rng: spiral(n) * rng.integers(1, 256, (n, n)),
    "rings": lambda n, rng: rings(n) % 2 * rings(n),
    "dots": lambda n, rng: (rng.random((n, n)) < 0.01) * rng.integers(0, 256, (n, n)),
    "diagonals": lambda n, rng: (np.add(*np.mgrid[:n, :n]) % 4 == 0) * 255,
    "constant": lambda n, rng: np.full((n, n), 255),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_maps(name):
    u = LARGE[name](131, np.random.default_rng(3)).astype(np.uint8)[None]
    assert_all_equal(u, np.arange(0, 1, 0.09), opencv=False)
    assert_all_equal(u, np.array([0.0, 0.3, 0.9]))


@pytest.mark.parametrize("shape", [(1, 5003), (5003, 1), (5, 4999), (4999, 5)])
def test_no_limit_on_width_or_height(shape):
    rng = np.random.default_rng(1)
    wave = 100 * (1 + np.sin(np.arange(max(shape)) / 40)) + rng.random(max(shape))
    u = np.broadcast_to(wave.reshape(-1, 1) if shape[0] > shape[1] else wave, shape)
    u = u + np.arange(min(shape)).reshape((1, -1) if shape[0] > shape[1] else (-1, 1))
    assert_all_equal(u.astype(np.uint8)[None], np.array([0.0, 0.4, 0.8]))


# Maps that are quantized as they are read


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("isa", ISAS)
def test_floating_maps(dtype, isa):
    # In half precision 255 * m would round differently on some of these.
    maps = torch.from_numpy(np.stack([smooth(9, 45, s) for s in range(4)])).to(dtype)
    levels, u = torch.arange(0, 1, 0.05, dtype=torch.float64), ops.quantize(maps)
    assert torch.equal(u, ops.quantize(maps, backend="reference"))
    for layout in (maps, maps.transpose(1, 2).contiguous().transpose(1, 2), maps[::2]):
        found = box_sweep_cpp.box_sweep_all(layout, levels, isa=isa)
        expected = box_sweep_cpp.box_sweep_all(ops.quantize(layout), levels, isa=isa)
        assert all(map(torch.equal, found, expected))
        found = ops.best_box_iou(layout, [TRUTH.numpy()] * len(layout), levels)
        expected = ops.best_box_iou(ops.quantize(layout), [TRUTH.numpy()] * len(layout), levels)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("bad", [float("nan"), -1e-9, 1.0000001, float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_bad_value_is_named(bad, dtype):
    maps = torch.rand(64, 6, 37, dtype=dtype)
    maps[41, 5, 36] = maps[23, 2, 35] = bad
    maps[23, 3, 0] = maps[63] = 7
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            for mode in MODES:
                with pytest.raises(ScoreMapError, match=r"score map 23 .* \(row 2, column 35\)"):
                    ops.box_sweep(maps, [0.1, 0.5], contours=mode)
                with pytest.raises(ScoreMapError, match=r"score map 23 .* \(row 2, column 35\)"):
                    ops.best_box_iou(maps, [TRUTH.numpy()] * 64, [0.1, 0.5], contours=mode)
    finally:
        torch.set_num_threads(before)


def test_gradients_do_not_flow():
    maps = torch.rand(2, 8, 8, requires_grad=True)
    assert not ops.best_box_iou(maps, [TRUTH.numpy()] * 2, [0.5]).requires_grad


def test_opcheck_on_floating_maps():
    maps = torch.from_numpy(np.stack([smooth(5, 20, s) for s in range(2)]))
    levels, counts = torch.tensor([0.1, 0.8], dtype=torch.float64), torch.tensor([1, 2])
    for backend in ("cpp", "reference"):
        torch.library.opcheck(torch.ops.cba_fast.box_sweep.default, (maps, levels, backend))
        torch.library.opcheck(torch.ops.cba_fast.box_sweep_all.default, (maps, levels, backend))
        arguments = (maps, TRUTH, counts, levels, "all", backend)
        torch.library.opcheck(torch.ops.cba_fast.best_box_iou.default, arguments)


def test_unknown_methods_and_types_are_refused():
    maps, levels = torch.zeros(1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="method must be auto, segments or pixels, got trees"):
        box_sweep_cpp.box_sweep(maps, levels, method="trees")
    with pytest.raises(ValueError, match="isa=sse9"):
        box_sweep_cpp.box_sweep(maps, levels, isa="sse9")
    with pytest.raises(ValueError, match="got int16"):
        native.load().largest_boxes(
            maps.data_ptr(), 1, 2, 2, levels.data_ptr(), 0, 0, 1, dtype="int16"
        )
    with pytest.raises(ValueError, match=r"thresholds must lie in \[0, 1\), got 1\.0"):
        box_sweep_cpp.box_sweep(maps, levels + 1)
