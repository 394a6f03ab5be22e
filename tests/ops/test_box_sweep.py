"""The box sweep: equal to the official algorithm at every level, in both contour modes."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sweep_maps import level_thresholds, shaded, shapes_of_interest

from cba_fast import ops
from cba_fast.errors import ScoreMapError
from cba_fast.reference import box_sweep as reference

MODES = ("largest", "all")


def assert_equal_to_reference(u: np.ndarray, thresholds=None, gt=((1, 0, 4, 3), (2, 2, 2, 2))):
    thresholds = level_thresholds(u) if thresholds is None else thresholds
    u, gt = u[None], [np.array(gt)]
    for mode in MODES:
        found = ops.box_sweep(u, thresholds, contours=mode, backend="cpp")
        expected = ops.box_sweep(u, thresholds, contours=mode, backend="reference")
        for a, b in zip(
            (found,) if mode == "largest" else found, (expected,) if mode == "largest" else expected
        ):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), (mode, u.tolist())
        iou = ops.best_box_iou(u, gt, thresholds, contours=mode, backend="cpp")
        expected = ops.best_box_iou(u, gt, thresholds, contours=mode, backend="reference")
        assert torch.equal(iou, expected), (mode, u.tolist())


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
# Few levels: many components of equal area, many holes.
tie_heavy = shapes.flatmap(
    lambda shape: st.integers(1, 5).flatmap(
        lambda top: hnp.arrays(np.uint8, shape, elements=st.integers(0, top))
    )
)


@settings(max_examples=150)
@given(tie_heavy)
def test_maps_with_many_ties(u):
    assert_equal_to_reference(u)


@settings(max_examples=40)
@given(hnp.arrays(np.uint8, shapes), st.lists(st.floats(0, 1, exclude_max=True), max_size=6))
def test_any_map_at_any_thresholds(u, thresholds):
    assert_equal_to_reference(u, np.array(thresholds))


def test_random_maps():
    rng = np.random.default_rng(0)
    for _ in range(150):
        u = rng.integers(0, rng.integers(2, 7), rng.integers(1, 13, 2)).astype(np.uint8)
        assert_equal_to_reference(u)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(64, 64), (51, 90)])
def test_upsampled_maps(seed, size):
    coarse = np.random.default_rng(seed).random((9, 9))
    smooth = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC).clip(0, 1)
    assert_equal_to_reference((255 * smooth).astype(np.uint8), np.arange(0, 1, 0.01))


@pytest.mark.parametrize("name", shapes_of_interest())
def test_adversarial_shapes(name):
    u = shapes_of_interest()[name]
    for variant in (u, u[::-1].copy(), u.T.copy(), shaded(u), shaded(u, 1, 3), u.max() - u):
        assert_equal_to_reference(variant)


def test_all_maps_of_three_levels_and_six_pixels():
    for height, width in ((1, 6), (2, 3), (3, 2)):
        for values in itertools.product(range(3), repeat=6):
            u = np.array(values, np.uint8).reshape(1, height, width)
            boxes = ops.box_sweep(u, [0.0, 0.6])
            assert torch.equal(boxes, ops.box_sweep(u, [0.0, 0.6], backend="reference"))


def test_equal_areas_take_the_last_first_pixel():
    u = np.zeros((9, 20), np.uint8)
    u[1:4, 1:4] = u[2:5, 6:9] = u[1:4, 12:15] = 9  # 3x3 squares; the second starts one row lower
    assert ops.box_sweep(u[None], [0.0]).tolist() == [[[6, 2, 9, 5]]]
    u[2:5, 6:9] = 0
    assert ops.box_sweep(u[None], [0.0]).tolist() == [[[12, 1, 15, 4]]]
    u[7, :] = 9  # a line has no area, whatever its length
    assert ops.box_sweep(u[None], [0.0]).tolist() == [[[12, 1, 15, 4]]]


def test_area_is_that_of_the_border_polygon_with_holes_filled():
    u = np.zeros((12, 24), np.uint8)
    u[1:8, 1:8] = 1
    u[2:7, 2:7] = 0  # a ring of 24 pixels encloses 36, a full square of 49 pixels
    u[1:7, 10:16] = 1  # a square of 36 pixels encloses 25
    assert ops.box_sweep(u[None], [0.0]).tolist() == [[[1, 1, 8, 8]]]


def test_holes_are_contours_grown_by_a_pixel():
    u = np.ones((7, 9), np.uint8)
    u[2:4, 3:6] = 0
    boxes, offsets = ops.box_sweep(u[None], [0.0], contours="all")
    assert boxes.tolist() == [[0, 0, 8, 6], [2, 1, 7, 5]]
    assert offsets.tolist() == [0, 2]


def test_without_a_contour_the_box_is_zero():
    zeros = torch.zeros(2, 5, 6)
    assert ops.box_sweep(zeros, [0.0, 0.5]).tolist() == [[[0, 0, 0, 0]] * 2] * 2
    boxes, offsets = ops.box_sweep(zeros, [0.0, 0.5], contours="all")
    assert boxes.tolist() == [[0, 0, 0, 0]] * 4
    assert offsets.tolist() == [0, 1, 2, 3, 4]
    for mode in MODES:
        iou = ops.best_box_iou(zeros, [np.array([[0, 0, 1, 1]])] * 2, [0.3], contours=mode)
        assert iou.tolist() == [[0.25], [0.25]]


@pytest.mark.parametrize("shape", [(2, 2500), (2500, 2), (3, 4099)])
def test_wide_and_tall_maps(shape):
    u = np.random.default_rng(1).integers(0, 4, shape).astype(np.uint8)
    assert_equal_to_reference(u)


def batch(dtype=torch.float32, n: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(n, 1, 6, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, (24, 31), mode="bilinear")[:, 0].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_maps_are_quantized(dtype):
    maps = batch(dtype)
    u = ops.quantize(maps)
    thresholds = np.arange(0, 1, 0.05)
    for backend in ("cpp", "reference"):
        found = ops.box_sweep(maps, thresholds, backend=backend)
        assert torch.equal(found, ops.box_sweep(u, thresholds))


def sweep(maps, thresholds, gt):
    results = []
    for mode in MODES:
        boxes = ops.box_sweep(maps, thresholds, contours=mode)
        results += [boxes] if mode == "largest" else [*boxes]
        results.append(ops.best_box_iou(maps, gt, thresholds, contours=mode))
    return results


def test_threads_batches_and_layouts_do_not_matter():
    maps = batch(n=7)
    gt = [np.array([[i, 2, 20, 15]]) for i in range(7)]
    before = torch.get_num_threads()
    expected = sweep(maps, np.arange(0, 1, 0.01), gt)
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            for layout in (maps, maps.permute(2, 1, 0).contiguous().permute(2, 1, 0), maps.numpy()):
                found = sweep(layout, torch.arange(0, 100, dtype=torch.float64) / 100, gt)
                assert all(map(torch.equal, found, expected))
    finally:
        torch.set_num_threads(before)
    for i in range(7):
        single = sweep(maps[i : i + 1], np.arange(0, 1, 0.01), gt[i : i + 1])
        assert torch.equal(single[0][0], expected[0][i])
        assert torch.equal(single[1][0], expected[1][i])
        assert torch.equal(single[4][0], expected[4][i])


def test_thresholds_in_any_order_with_duplicates():
    maps, gt = batch(), [np.array([[3, 3, 20, 20]])] * 5
    thresholds = np.array([0.5, 0.0, 0.999, 0.5, 0.123])
    boxes = ops.box_sweep(maps, thresholds)
    iou = ops.best_box_iou(maps, gt, thresholds, contours="all")
    for j, t in enumerate(thresholds):
        assert torch.equal(boxes[:, j], ops.box_sweep(maps, [t])[:, 0])
        assert torch.equal(iou[:, j], ops.best_box_iou(maps, gt, [t], contours="all")[:, 0])


def test_empty_batches_and_no_thresholds():
    none = torch.zeros(0, 4, 5)
    for backend in ("cpp", "reference"):
        assert ops.box_sweep(none, [0.5], backend=backend).shape == (0, 1, 4)
        assert ops.box_sweep(batch(), [], backend=backend).shape == (5, 0, 4)
        boxes, offsets = ops.box_sweep(none, [0.5], contours="all", backend=backend)
        assert boxes.shape == (0, 4)
        assert offsets.tolist() == [0]
        boxes, offsets = ops.box_sweep(batch(), [], contours="all", backend=backend)
        assert boxes.shape == (0, 4)
        assert offsets.tolist() == [0]
        assert ops.best_box_iou(none, [], [0.5], backend=backend).shape == (0, 1)


# Ground truth


def test_iou_by_hand():
    u = np.zeros((1, 20, 20), np.uint8)
    u[0, 4:10, 5:15] = 1  # the box 5, 4, 15, 10: 11 x 7 pixels
    found = ops.best_box_iou(u, [[[5, 4, 15, 10]]], [0.0])
    assert found.tolist() == [[1.0]]
    found = ops.best_box_iou(u, [[[10, 7, 19, 19], [0, 0, 4, 3]]], [0.0])
    assert found.tolist() == [[6 * 4 / (77 + 130 - 24)]]
    assert ops.best_box_iou(u, [[[16, 11, 19, 19]]], [0.0]).tolist() == [[0.0]]
    far = 2**31 - 1
    assert ops.best_box_iou(u, [[[0, 0, far, far]]], [0.0]).tolist() == [[77 / 2.0**62]]


def test_iou_of_degenerate_boxes_is_zero():
    # Only where the denominator is not positive, as in the official evaluator.
    empty, pixel = np.array([[3, 3, 2, 2]]), np.array([[3, 3, 3, 3]])
    assert reference.box_iou(empty, empty).tolist() == [[0.0]]
    assert reference.box_iou(pixel, pixel).tolist() == [[1.0]]


def test_padded_boxes_equal_a_list():
    maps = batch(n=3)
    rows = [
        np.array([[1, 1, 9, 9], [4, 5, 20, 22]]),
        np.array([[0, 0, 3, 3]]),
        np.array([[5, 5, 6, 6]] * 3),
    ]
    padded, counts = np.full((3, 3, 4), -1), np.array([2, 1, 3])
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    for backend, mode in itertools.product(("cpp", "reference"), MODES):
        options = {"contours": mode, "backend": backend}
        expected = ops.best_box_iou(maps, rows, [0.2, 0.7], **options)
        tensors = torch.from_numpy(padded).int(), torch.from_numpy(counts)
        assert torch.equal(
            ops.best_box_iou(maps, (padded, counts), [0.2, 0.7], **options), expected
        )
        assert torch.equal(ops.best_box_iou(maps, tensors, [0.2, 0.7], **options), expected)
        as_tensors = [torch.from_numpy(row).short() for row in rows]
        assert torch.equal(ops.best_box_iou(maps, as_tensors, [0.2, 0.7], **options), expected)


BOX = [[1, 1, 3, 3]]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    ("gt", "error", "message"),
    [
        ([BOX], ValueError, "boxes of 1 maps, scoremaps has 2"),
        ([BOX, []], ValueError, r"gt_boxes\[1\] must be \(G, 4\) with G >= 1, got \(0,\)"),
        ([BOX, np.zeros((0, 4), int)], ValueError, r"gt_boxes\[1\] must .* got \(0, 4\)"),
        ([BOX, [1, 2, 3, 4]], ValueError, r"got \(4,\)"),
        ([BOX, [[1.0, 2.0, 3.0, 4.0]]], TypeError, r"gt_boxes\[1\] must be integer.*float64"),
        ([BOX, [[4, 1, 3, 5]]], ValueError, r"map 1 has the box \[4, 1, 3, 5\]"),
        ([[*BOX, [0, -1, 3, 5]], BOX], ValueError, r"map 0 has the box \[0, -1, 3, 5\]"),
        ([BOX, [[0, 0, 2**31, 5]]], ValueError, "below"),
        ((np.ones((2, 1, 4), int), np.array([1, 0])), ValueError, "map 1 has no box"),
        ((np.ones((2, 1, 4), int), np.array([1, 2])), ValueError, "a count of 2 for 1 boxes"),
        ((np.ones((3, 1, 4), int), np.array([1, 1, 1])), ValueError, "with N = 2"),
    ],
)
def test_refused_ground_truth(backend, gt, error, message):
    with pytest.raises(error, match=message):
        ops.best_box_iou(torch.zeros(2, 5, 5), gt, [0.5], backend=backend)


@pytest.mark.parametrize("bad", [1.0, -0.001, float("nan"), float("inf")])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_refused_thresholds(bad, backend):
    maps = batch()
    for mode in MODES:
        with pytest.raises(ValueError, match=r"thresholds must lie in \[0, 1\), got"):
            ops.box_sweep(maps, [0.5, bad], contours=mode, backend=backend)
    with pytest.raises(ValueError, match=r"thresholds must lie in \[0, 1\), got"):
        ops.best_box_iou(maps, [BOX] * 5, [bad, 0.5], backend=backend)
    with pytest.raises(ValueError, match=r"shape \(T,\), got \(\)"):
        ops.box_sweep(maps, 0.5, backend=backend)


def test_other_refusals():
    maps = batch()
    with pytest.raises(ValueError, match="contours must be one of .* 'biggest'"):
        ops.box_sweep(maps, [0.5], contours="biggest")
    with pytest.raises(ValueError, match="box_sweep has no backend 'triton'"):
        ops.box_sweep(maps, [0.5], backend="triton")
    with pytest.raises(ValueError, match=r"\(N, H, W\).* got \(24, 31\)"):
        ops.box_sweep(maps[0], [0.5])
    with pytest.raises(TypeError, match=r"torch\.int32"):
        ops.box_sweep(maps.int(), [0.5])
    maps[3, 2, 1] = float("nan")
    with pytest.raises(ScoreMapError, match=r"score map 3 .* nan at \(row 2, column 1\)"):
        ops.best_box_iou(maps, [BOX] * 5, [0.5])
    # Too large for 31-bit areas; an expanded tensor has the shape without the memory.
    huge = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(1, 2**15, 2**15)
    with pytest.raises(ValueError, match="32768 x 32768 pixels are too large"):
        ops.box_sweep(huge, [0.5], backend="cpp")


# The official evaluator, written anew


def official_counts(maps, gt, interval, deltas, multi):
    """Count correct images as BoxEvaluator of clovaai/wsolevaluation does: one box set per map."""
    thresholds = list(np.arange(0, 1, interval))
    correct = {delta: np.zeros(len(thresholds)) for delta in deltas}
    for scoremap, boxes in zip(maps, gt):
        image = np.expand_dims((scoremap * 255).astype(np.uint8), 2)
        estimated, lengths = [], []
        for t in thresholds:
            _, mask = cv2.threshold(image, int(t * np.max(image)), 255, cv2.THRESH_BINARY)
            found = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
            if not multi and len(found):
                found = [max(found, key=cv2.contourArea)]
            rectangles = [cv2.boundingRect(c) for c in found]
            height, width = scoremap.shape
            here = [
                [x, y, min(x + w, width - 1), min(y + h, height - 1)] for x, y, w, h in rectangles
            ] or [[0, 0, 0, 0]]
            estimated += here
            lengths.append(len(here))
        iou = reference.box_iou(np.array(estimated), np.array(boxes)).max(1)
        best = np.array([part.max() for part in np.split(iou, np.cumsum(lengths)[:-1])])
        for delta in deltas:
            correct[delta][best >= delta / 100] += 1
    return correct


@pytest.mark.parametrize("multi", [False, True])
def test_counts_of_the_official_evaluator(multi):
    rng = np.random.default_rng(5)
    maps = np.stack(
        [cv2.resize(rng.random((7, 7)), (56, 56), interpolation=cv2.INTER_CUBIC) for _ in range(12)]
    )
    maps = (maps - maps.min((1, 2), keepdims=True)) / np.ptp(maps, (1, 2), keepdims=True)
    gt = [np.sort(rng.integers(0, 56, (rng.integers(1, 4), 2, 2)), 1).reshape(-1, 4) for _ in maps]
    deltas = (30, 50, 70)
    expected = official_counts(maps, gt, 0.01, deltas, multi)
    assert any(counts.any() for counts in expected.values())
    mode = "all" if multi else "largest"
    iou = ops.best_box_iou(maps, gt, np.arange(0, 1, 0.01), contours=mode).numpy()
    for delta in deltas:
        assert np.array_equal((iou >= delta / 100).sum(0), expected[delta])


# PyTorch


@pytest.mark.parametrize("backend", ["auto", "cpp", "reference"])
@pytest.mark.parametrize("transposed", [False, True])
def test_opcheck(backend, transposed):
    u = ops.quantize(batch())[:, :9, :11]
    u = u.transpose(1, 2) if transposed else u.contiguous()
    thresholds = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    thresholds = torch.stack([thresholds, thresholds], 1)[:, 0] if transposed else thresholds
    boxes, counts = torch.tensor([[1, 1, 5, 5]] * 6), torch.tensor([1, 1, 2, 1, 1])
    names = torch.ops.cba_fast
    torch.library.opcheck(names.box_sweep.default, (u, thresholds, backend))
    torch.library.opcheck(names.box_sweep_all.default, (u, thresholds, backend))
    for mode in MODES:
        arguments = (u, boxes, counts, thresholds, mode, backend)
        torch.library.opcheck(names.best_box_iou.default, arguments)


def test_compile_and_autocast():
    maps, thresholds = batch(), torch.tensor([0.2, 0.6], dtype=torch.float64)
    gt = [torch.tensor(BOX)] * 5

    def run(m):
        boxes, offsets = ops.box_sweep(m, thresholds, contours="all")
        return (
            ops.box_sweep(m, thresholds) + 1,
            boxes.sum(),
            offsets,
            ops.best_box_iou(m, gt, thresholds) * 2,
        )

    expected = run(maps)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, run(maps), expected))
    found = torch.compile(run, backend="aot_eager")(maps)
    assert all(map(torch.equal, found, expected))


@pytest.mark.gpu
def test_gpu_maps():
    maps, gt = batch(), [BOX] * 5
    thresholds = np.arange(0, 1, 0.05)
    found = sweep(maps.cuda(), thresholds, gt)
    assert all(result.is_cuda for result in found)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, sweep(maps, thresholds, gt)))


OP_ARGUMENTS = {
    "scoremaps": torch.zeros((2, 6, 6), dtype=torch.uint8),
    "gt_boxes": torch.tensor([[0, 0, 3, 3], [1, 1, 2, 2], [0, 0, 5, 5]]),
    "gt_counts": torch.tensor([1, 2]),
    "thresholds": torch.tensor([0.1, 0.5], dtype=torch.float64),
    "contours": "all",
    "backend": "auto",
}


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scoremaps", torch.zeros((2, 6, 6), dtype=torch.int32), "floating or uint8"),
        ("scoremaps", torch.zeros((2, 6), dtype=torch.uint8), r"\(N, H, W\)"),
        ("thresholds", torch.tensor([0.1, 0.5]), "thresholds must be torch.float64, got torch.fl"),
        ("thresholds", torch.tensor([[0.1]], dtype=torch.float64), r"\(any\), got \(1, 1\)"),
        ("gt_boxes", OP_ARGUMENTS["gt_boxes"].int(), "gt_boxes must be torch.int64, got torch.int"),
        ("gt_boxes", torch.zeros((3, 5), dtype=torch.int64), r"\(any, 4\), got \(3, 5\)"),
        ("gt_boxes", torch.zeros(12, dtype=torch.int64), r"\(any, 4\), got \(12,\)"),
        ("gt_counts", torch.tensor([1, 5000]), "gt_counts: 5001 boxes in all, gt_boxes has 3"),
        ("gt_counts", torch.tensor([1, 1]), "gt_counts: 2 boxes in all, gt_boxes has 3"),
        ("gt_counts", torch.tensor([4, -1]), "map 1 has no box"),
        ("gt_counts", torch.tensor([2**62, 2**62]), f"gt_counts: {2**63} boxes in all"),
        ("gt_counts", torch.tensor([3]), r"gt_counts must have the shape \(2\), got \(1,\)"),
        ("gt_counts", torch.tensor([1, 2], dtype=torch.int32), "gt_counts must be torch.int64"),
        ("contours", "foo", "contours must be one of .* got 'foo'"),
    ],
)
def test_the_registered_ops_check_what_the_backends_rely_on(backend, name, value, message):
    values = OP_ARGUMENTS | {"backend": backend}
    assert torch.ops.cba_fast.best_box_iou.default(*values.values()).shape == (2, 2)
    values[name] = value
    with pytest.raises((TypeError, ValueError), match=message):
        torch.ops.cba_fast.best_box_iou.default(*values.values())
    if name in ("scoremaps", "thresholds"):
        for op in (torch.ops.cba_fast.box_sweep, torch.ops.cba_fast.box_sweep_all):
            with pytest.raises((TypeError, ValueError), match=message):
                op.default(values["scoremaps"], values["thresholds"], backend)
