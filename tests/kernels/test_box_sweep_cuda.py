"""The CUDA box sweep: equal to the C++ one, emulated and on a GPU where there is one."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from sweep_maps import level_thresholds, shaded, shapes_of_interest

from cba_fast import ops
from cba_fast.errors import ScoreMapError
from cba_fast.kernels import box_sweep_cpp
from cba_fast.kernels.gpu import box_sweep_cuda
from cba_fast.ops.box_sweep import TABLE

MODES = ("largest", "all")
TRUTH = torch.tensor([[1, 0, 4, 3], [2, 2, 2, 2], [5, 1, 30, 40], [0, 0, 2**31 - 1, 2**31 - 1]])
one_order = pytest.mark.parametrize("emulated_cuda", [2], indirect=True)


def results(module, maps, thresholds):
    maps, thresholds = torch.from_numpy(np.ascontiguousarray(maps)), torch.from_numpy(thresholds)
    counts = torch.arange(len(maps)) % len(TRUTH) + 1  # map i has one to four true boxes
    truth = torch.cat([TRUTH[:0], *(TRUTH[-count:] for count in counts)])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    ious = [module.best_box_iou(maps, truth, offsets, thresholds, mode) for mode in MODES]
    return [module.box_sweep(maps, thresholds), *module.box_sweep_all(maps, thresholds), *ious]


def assert_equal_to_cpp(maps, thresholds=None):
    thresholds = level_thresholds(maps) if thresholds is None else np.asarray(thresholds, float)
    names = ("largest", "all", "offsets", "iou largest", "iou all")
    found, expected = (results(m, maps, thresholds) for m in (box_sweep_cuda, box_sweep_cpp))
    for name, a, b in zip(names, found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), (name, maps.tolist())


@pytest.fixture
def left(monkeypatch):
    """Return the list of the numbers of maps that are left to the CPU."""
    numbers = []
    run = box_sweep_cuda._run

    def noted(*args, **kwargs):
        maps = run(*args, **kwargs)
        numbers.append(len(maps))
        return maps

    monkeypatch.setattr(box_sweep_cuda, "_run", noted)
    return numbers


@pytest.mark.parametrize("name", shapes_of_interest())
def test_adversarial_shapes(emulated_cuda, name):
    u = shapes_of_interest()[name]
    for variant in (u, shaded(u, 1, 4), u.max() - u):
        levels = level_thresholds(variant)
        assert_equal_to_cpp(variant[None], levels[:: 1 + len(levels) // 20])


@one_order
def test_all_binary_maps_of_three_by_three(emulated_cuda):
    bits = np.arange(2**9)[:, None] >> np.arange(9) & 1
    assert_equal_to_cpp(bits.reshape(-1, 3, 3).astype(np.uint8), [0.0])


@one_order
@pytest.mark.parametrize("top", [1, 2, 5])
def test_random_maps(emulated_cuda, top):
    rng = np.random.default_rng(top)
    for shape in itertools.product((1, 6, 13), repeat=2):
        maps = rng.integers(0, top + 1, (10, *shape)).astype(np.uint8)
        maps[:, 0, 0] = top  # one set of levels for the batch
        assert_equal_to_cpp(maps)


@one_order
@pytest.mark.parametrize("width", [1, 31, 32, 33, 64, 257])
def test_widths_around_those_of_words_and_threads(emulated_cuda, width):
    maps = np.random.default_rng(width).integers(0, 4, (1, 4, width)).astype(np.uint8)
    assert_equal_to_cpp(maps, [0.0, 0.4, 0.7])
    assert_equal_to_cpp(maps.transpose(0, 2, 1), [0.0, 0.4, 0.7])


@pytest.mark.parametrize("emulated_cuda", [0, 1], indirect=True)
def test_upsampled_maps(emulated_cuda, left):
    coarse = np.random.default_rng(0).random((2, 9, 9))
    maps = [cv2.resize(m, (70, 60), interpolation=cv2.INTER_CUBIC).clip(0, 1) for m in coarse]
    maps = (255 * np.stack(maps)).astype(np.uint8)
    maps[1] //= 30  # few levels
    assert_equal_to_cpp(maps, [0.9, 0.0, 0.301, 0.3, 0.3, 0.71])
    assert not any(left)


@one_order
def test_levels_with_many_runs_take_more_memory_or_go_to_the_cpu(emulated_cuda, left, monkeypatch):
    maps = np.random.default_rng(2).integers(0, 9, (3, 9, 10)).astype(np.uint8)
    maps[1] = 1  # one run in a row
    monkeypatch.setattr(box_sweep_cuda, "FIRST_NODES", 12)
    assert_equal_to_cpp(maps, [0.0, 0.5])
    assert not any(left)
    monkeypatch.setattr(box_sweep_cuda, "cuda_nodes", lambda height, width: 12)
    assert_equal_to_cpp(maps, [0.0, 0.5])
    assert left[-3:] == [2, 2, 2]


def test_which_sizes_fit(emulated_cuda):
    def reason(*shape):
        return box_sweep_cuda.refuses(torch.empty(shape, device="meta"))

    for side in (1, 224, 384, 700):
        assert reason(64, side, side) is None
    assert "1024 x 1024 pixels do not fit" in reason(1, 1024, 1024)
    assert "1 x 40000 pixels do not fit" in reason(1, 1, 40000)
    assert "too many for a launch" in reason(2**22, 1, 1)
    assert box_sweep_cuda.cuda_nodes(224, 224) > 2 * box_sweep_cuda.FIRST_NODES
    maps = torch.zeros(1, 2, 3, dtype=torch.uint8)
    arguments = maps.data_ptr(), maps.shape, False, maps.data_ptr(), 1, 10**5, maps.data_ptr()
    with pytest.raises(ValueError, match="no memory for this"):
        emulated_cuda.box_sweep_cuda(*arguments, 0, 0, 0, 0, 0, 0, 0, 0)


@one_order
def test_nothing_to_do(emulated_cuda):
    none, thresholds = torch.zeros(0, 4, 5, dtype=torch.uint8), torch.zeros(1).double()
    assert box_sweep_cuda.box_sweep(none, thresholds).shape == (0, 1, 4)
    some = torch.ones(2, 4, 5, dtype=torch.uint8)
    assert box_sweep_cuda.box_sweep(some, thresholds[:0]).shape == (2, 0, 4)
    boxes, offsets = box_sweep_cuda.box_sweep_all(some, thresholds[:0])
    assert (boxes.shape, offsets.tolist()) == ((0, 4), [0])


@one_order
def test_the_self_check_passes(emulated_cuda):
    TABLE.backends["cuda"].self_check(torch.device("cpu"))


@one_order
@pytest.mark.parametrize("name", ["box_sweep", "box_sweep_all", "best_box_iou"])
def test_the_self_check_finds_a_wrong_kernel(emulated_cuda, name, monkeypatch):
    right = getattr(box_sweep_cuda, name)

    def wrong(*args):
        result = right(*args)
        (result if torch.is_tensor(result) else result[0]).view(-1)[-1] += 1
        return result

    monkeypatch.setattr(box_sweep_cuda, name, wrong)
    with pytest.raises(ArithmeticError, match="relative error"):
        TABLE.backends["cuda"].self_check(torch.device("cpu"))


def test_cpu_maps_are_refused():
    with pytest.raises(ValueError, match="backend 'cuda' cannot run: "):
        ops.box_sweep(torch.zeros(1, 2, 2), [0.5], backend="cuda")
    assert TABLE.backends["cuda"].refuses(torch.zeros(1, 2, 2)) == "the tensor is on cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("size", [224, 384])
def test_device_equals_cpu(cuda_device, size):
    rng = np.random.default_rng(size)
    how = {"dsize": (size, size), "interpolation": cv2.INTER_CUBIC}
    maps = [cv2.resize(coarse, **how) for coarse in rng.random((6, 12, 12))]
    maps.append(rng.random((size, size)))  # noise, which goes to the CPU
    maps = torch.from_numpy(np.stack(maps)).clamp(0, 1)
    gt = [np.array([[10, 20, size // 2, size - 30]])] * len(maps)
    for thresholds in (np.arange(0, 1, 0.001), [0.2]):
        for mode in MODES:
            how = {"contours": mode}
            found = ops.best_box_iou(maps.cuda(), gt, thresholds, **how, backend="cuda")
            assert torch.equal(found.cpu(), ops.best_box_iou(maps, gt, thresholds, **how))
            found = ops.box_sweep(maps.cuda(), thresholds, **how, backend="cuda")
            expected = ops.box_sweep(maps, thresholds, **how)
            for a, b in zip(*((x,) if mode == "largest" else x for x in (found, expected))):
                assert a.is_cuda
                assert torch.equal(a.cpu(), b)
    maps[3, 2, 1] = 2
    with pytest.raises(ScoreMapError, match="score map 3"):
        ops.box_sweep(maps.cuda(), [0.5], backend="cuda")
