"""BoxEvaluator against the official evaluator's algorithm, written plainly with OpenCV."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cba_fast.data.boxes import Boxes
from cba_fast.errors import InputError, ScoreMapError
from cba_fast.ops import best_box_iou
from cba_fast.wsol import BoxEvaluator, score_maps
from cba_fast.wsol.scoring import evaluator as evaluator_module
from cba_fast.wsol.scoring.row_table import BLOCK_BYTES, RowTable


def make_boxes(n, rng, size=(60, 40), per_image=1):
    ids = tuple(f"c/{i}.jpg" for i in range(n))
    boxes = {}
    for i in ids:
        x0 = rng.integers(0, size[0] // 2, per_image)
        y0 = rng.integers(0, size[1] // 2, per_image)
        w, h = rng.integers(2, size[0] // 2, per_image), rng.integers(2, size[1] // 2, per_image)
        boxes[i] = np.stack([x0, y0, x0 + w, y0 + h], axis=1).astype(np.int64)
    return Boxes(ids, boxes, dict.fromkeys(ids, size), None)


def make_maps(n, rng, side=24, dtype=np.float64):
    maps = rng.random((n, 5, 5)) ** 2
    return np.stack([cv2.resize(m, (side, side)) for m in maps]).clip(0, 1).astype(dtype)


def official_counts(maps, boxes, ids, thresholds, ious, multi):
    """Count as the official BoxEvaluator does: one OpenCV call per image and threshold."""
    counts = np.zeros((len(ious), len(thresholds)), int)
    for m, image_id in zip(maps, ids):
        height, width = m.shape
        w, h = boxes.sizes[image_id]
        gt = [
            [int(x0 * width / w), int(y0 * height / h), int(x1 * width / w), int(y1 * height / h)]
            for x0, y0, x1, y1 in boxes.boxes[image_id].astype(float)
        ]
        image = (m * 255).astype(np.uint8)
        for t, threshold in enumerate(thresholds):
            _, binary = cv2.threshold(image, int(threshold * np.max(image)), 255, cv2.THRESH_BINARY)
            contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
            if len(contours) == 0:
                found = [[0, 0, 0, 0]]
            else:
                if not multi:
                    contours = [max(contours, key=cv2.contourArea)]
                found = []
                for c in contours:
                    x, y, bw, bh = cv2.boundingRect(c)
                    found.append([x, y, min(x + bw, width - 1), min(y + bh, height - 1)])
            best = max(iou(a, b) for a in found for b in gt)
            counts[:, t] += [best >= threshold_iou for threshold_iou in ious]
    return counts.tolist()


def iou(a, b):
    w = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    h = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    area = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return w * h / (area[0] + area[1] - w * h)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("per_image", [1, 3])
def test_counts_equal_the_official_ones(dtype, per_image):
    rng = np.random.default_rng(per_image)
    boxes = make_boxes(12, rng, per_image=per_image)
    maps = make_maps(12, rng, dtype=dtype)
    evaluator = BoxEvaluator(boxes, cam_curve_interval=0.02)
    evaluator.update(maps[:5], boxes.image_ids[:5])
    evaluator.update(maps[5:], boxes.image_ids[5:])
    result = evaluator.compute()
    for mode in ("largest", "all"):
        want = official_counts(
            maps, boxes, boxes.image_ids, np.arange(0, 1, 0.02), (0.3, 0.5, 0.7), mode == "all"
        )
        assert result.modes[mode].num_correct == want
        best = [100 * max(row) / 12 for row in want]
        assert result.modes[mode].max_box_acc == pytest.approx(best)
    assert result.max_box_acc == pytest.approx(result.modes["largest"].max_box_acc[1])
    assert result.max_box_acc_v2 == pytest.approx(np.mean(result.modes["all"].max_box_acc))


def test_the_optimal_threshold_is_the_lowest_of_the_best():
    rng = np.random.default_rng(3)
    boxes = make_boxes(6, rng)
    evaluator = BoxEvaluator(boxes, thresholds=[0.9, 0.5, 0.1, 0.5, 0.0])
    evaluator.update(make_maps(6, rng), boxes.image_ids)
    result = evaluator.compute().modes["largest"]
    for counts, optimal in zip(result.num_correct, result.optimal_threshold):
        best = [t for t, c in zip([0.9, 0.5, 0.1, 0.5, 0.0], counts) if c == max(counts)]
        assert optimal == min(best)


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=10)
def test_any_order_and_any_split_give_the_same(seed, cut):
    rng = np.random.default_rng(seed)
    boxes = make_boxes(7, rng)
    maps, ids = make_maps(7, rng, side=12), boxes.image_ids
    whole = BoxEvaluator(boxes, iou_thresholds=[0.4])
    whole.update(maps, ids)
    order = rng.permutation(7)
    parts = [BoxEvaluator(boxes, iou_thresholds=[0.4]) for _ in range(2)]
    for part, chosen in zip(parts, (order[:cut], order[cut - 1 :])):  # one image in both
        part.update(maps[chosen], [ids[i] for i in chosen])
    restored = BoxEvaluator(boxes, iou_thresholds=[0.4])
    restored.load_state_dict(parts[0].state_dict())
    restored.merge(parts[1])
    assert restored.compute().to_json() == whole.compute().to_json()
    assert whole.iou_thresholds == [0.3, 0.5, 0.7, 0.4]


def test_missing_images_are_listed_and_count_only_if_asked():
    rng = np.random.default_rng(5)
    boxes = make_boxes(4, rng)
    evaluator = BoxEvaluator(boxes, contours="largest")
    with pytest.raises(InputError, match="no image was evaluated"):
        evaluator.compute()
    evaluator.update(np.ones((2, 8, 8)), boxes.image_ids[:2])
    kept, counted = evaluator.compute(), evaluator.compute(missing_as_miss=True)
    assert (kept.num_images, counted.num_images) == (2, 4)
    assert kept.missing == counted.missing == list(boxes.image_ids[2:])
    assert kept.modes["largest"].num_correct == counted.modes["largest"].num_correct
    assert kept.max_box_acc_v2 is None


def test_localized_names_the_images_behind_a_count():
    rng = np.random.default_rng(6)
    boxes = make_boxes(9, rng)
    evaluator = BoxEvaluator(boxes)
    evaluator.update(make_maps(9, rng), boxes.image_ids)
    result = evaluator.compute()
    for k, delta in enumerate(result.iou_thresholds):
        for t in (0.0, float(evaluator.thresholds[37])):
            at = result.thresholds.index(t)
            found = evaluator.localized("all", delta, t)
            assert sum(found.values()) == result.modes["all"].num_correct[k][at]
            accuracy = result.accuracy_at("all", delta, t)
            assert accuracy == pytest.approx(100 * sum(found.values()) / 9)


def test_bad_use_is_refused():
    rng = np.random.default_rng(7)
    boxes = make_boxes(2, rng)
    for bad in ([1.0], [-0.1], [float("nan")], []):
        with pytest.raises(InputError, match="thresholds"):
            BoxEvaluator(boxes, thresholds=bad)
    with pytest.raises(TypeError, match="must come from load_boxes, got str"):
        BoxEvaluator("CUB_200_2011")
    with pytest.raises(InputError, match="contours"):
        BoxEvaluator(boxes, contours="biggest")
    with pytest.raises(InputError, match="IoU threshold 1.5"):
        BoxEvaluator(boxes, iou_thresholds=[1.5])
    with pytest.raises(InputError, match="cam_curve_interval"):
        BoxEvaluator(boxes, cam_curve_interval=0)
    evaluator = BoxEvaluator(boxes)
    with pytest.raises(InputError, match="'nobody'"):
        evaluator.update(np.zeros((1, 4, 4)), ["nobody"])
    with pytest.raises(ValueError, match="2 score maps but 1"):
        evaluator.update(np.zeros((2, 4, 4)), boxes.image_ids[:1])
    with pytest.raises(ValueError, match="holds 16 NaN values, the first at"):
        evaluator.update(np.full((1, 4, 4), np.nan), boxes.image_ids[:1])
    x0, y0, x1, y1 = boxes.boxes[boxes.image_ids[0]][0]
    exact = np.zeros((1, 40, 60))
    exact[:, y0 : y1 + 1, x0 : x1 + 1] = 1
    evaluator.update(exact, boxes.image_ids[:1])
    evaluator.update(exact, boxes.image_ids[:1])  # the same again is fine
    with pytest.raises(InputError, match="another score map"):
        evaluator.update(np.zeros((1, 40, 60)), boxes.image_ids[:1])
    with pytest.raises(InputError, match=r"different thresholds .*: .* here, .* there"):
        evaluator.merge(BoxEvaluator(boxes, cam_curve_interval=0.5))
    with pytest.raises(InputError, match="was not evaluated|not one of those"):
        evaluator.compute().accuracy_at("all", 0.5, 0.123)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_the_maps_are_quantized_once_and_the_counts_are_those_of_the_op(dtype, monkeypatch):
    rng = np.random.default_rng(8)
    boxes = make_boxes(6, rng, per_image=2)
    maps = make_maps(6, rng)
    maps = (maps * 255).astype(np.uint8) if dtype == np.uint8 else maps.astype(dtype)
    calls = []
    quantize = score_maps.quantize
    monkeypatch.setattr(score_maps, "quantize", lambda m: calls.append(m) or quantize(m))
    both = BoxEvaluator(boxes)
    both.update(maps, boxes.image_ids)
    assert len(calls) == 1
    result = both.compute()
    gt = [boxes.scaled(i, (24, 24)) for i in boxes.image_ids]
    for mode in ("largest", "all"):
        iou = best_box_iou(maps, gt, both.thresholds, contours=mode).numpy()
        want = [(iou >= level).sum(axis=0).tolist() for level in result.iou_thresholds]
        assert result.modes[mode].num_correct == want
        alone = BoxEvaluator(boxes, contours=mode)
        alone.update(maps, boxes.image_ids)
        assert alone.compute().modes[mode].num_correct == want


@pytest.mark.parametrize("value", [float("nan"), -0.25, 1.5])
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, list])
def test_a_bad_value_names_the_image_and_adds_nothing(value, convert):
    rng = np.random.default_rng(9)
    boxes = make_boxes(4, rng)
    maps = make_maps(4, rng)
    maps[2, 3, 5] = value
    evaluator = BoxEvaluator(boxes)
    what = "holds 1 NaN value," if np.isnan(value) else f"the value {value} .* by 0.[25]+"
    message = rf"image 'c/2\.jpg': {what} at \(3, 5\)"
    with pytest.raises(ScoreMapError, match=message):
        evaluator.update(convert(maps), boxes.image_ids)
    assert len(evaluator) == 0


def test_the_shape_of_the_maps_is_checked_and_named():
    rng = np.random.default_rng(10)
    boxes = make_boxes(2, rng)
    ids = boxes.image_ids
    evaluator = BoxEvaluator(boxes)
    for channel in (torch.zeros(2, 1, 4, 4), np.zeros((2, 1, 4, 4))):
        with pytest.raises(ValueError, match=r"got \(2, 1, 4, 4\).*squeeze\(1\)"):
            evaluator.update(channel, ids)
    for shape in ((2, 4), (2,), (), (2, 0, 4), (2, 3, 4, 4)):
        with pytest.raises(ValueError, match=r"\(N, H, W\).*got") as e:
            evaluator.update(np.zeros(shape), ids)
        assert f"got {shape}" in str(e.value)
        assert "squeeze" not in str(e.value)
    with pytest.raises(ValueError, match=r"one shape and dtype, got \(4, 4\) .* and \(4, 5\)"):
        evaluator.update([np.zeros((4, 4)), np.zeros((4, 5))], ids)
    with pytest.raises(ValueError, match="one shape and dtype, .*float32 and .*float64"):
        evaluator.update([np.zeros((4, 4)), np.zeros((4, 4), np.float32)], ids)
    with pytest.raises(TypeError, match="got str"):
        evaluator.update("maps", ids)
    with pytest.raises(TypeError, match="int64"):
        evaluator.update(np.zeros((2, 4, 4), np.int64), ids)
    evaluator.update([], [])
    evaluator.update(np.zeros((0, 4, 4)), [])
    assert len(evaluator) == 0


@pytest.mark.parametrize("convert", [list, tuple, torch.tensor, lambda m: list(torch.tensor(m))])
def test_lists_of_maps_score_as_arrays_do(convert):
    rng = np.random.default_rng(11)
    boxes = make_boxes(3, rng)
    maps = make_maps(3, rng)
    found, want = BoxEvaluator(boxes), BoxEvaluator(boxes)
    found.update(convert(maps), boxes.image_ids)
    want.update(maps, boxes.image_ids)
    assert found.compute() == want.compute()


def test_a_refused_batch_adds_nothing():
    rng = np.random.default_rng(12)
    boxes = make_boxes(3, rng)
    ids = boxes.image_ids
    x0, y0, x1, y1 = boxes.boxes[ids[0]][0]
    maps = np.zeros((2, 40, 60))
    maps[0, y0 : y1 + 1, x0 : x1 + 1] = 1
    evaluator = BoxEvaluator(boxes)
    with pytest.raises(InputError, match="another score map"):
        evaluator.update(maps, [ids[0], ids[0]])  # one image, two maps
    assert len(evaluator) == 0
    evaluator.update(maps[:1], ids[:1])
    with pytest.raises(InputError, match="another score map"):
        evaluator.update(maps[[1, 1]], [ids[1], ids[0]])
    assert list(evaluator.localized("all", 0.5, 0.0)) == [ids[0]]


def test_the_state_survives_a_file_read_without_unpickling(tmp_path):
    rng = np.random.default_rng(13)
    boxes = make_boxes(4, rng)
    evaluator = BoxEvaluator(boxes, iou_thresholds=np.array([0.4]), thresholds=[0.1, 0.2])
    torch.save(evaluator.state_dict(), tmp_path / "empty.pt")
    evaluator.update(make_maps(3, rng), np.array(boxes.image_ids[:3]))
    torch.save(evaluator.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(r.dtype == torch.uint8 and r.shape == (3, 2) for r in state["rows"].values())
    restored = BoxEvaluator(boxes, iou_thresholds=[0.4], thresholds=[0.1, 0.2])
    restored.load_state_dict(state)
    assert restored.compute() == evaluator.compute()
    restored.load_state_dict(torch.load(tmp_path / "empty.pt", weights_only=True))
    assert len(restored) == 0
    with pytest.raises(InputError, match="'nobody' is not in the ground truth, whose first is"):
        restored.load_state_dict({**state, "image_ids": ["nobody", *state["image_ids"][1:]]})
    with pytest.raises(InputError, match=r"must be \(2, 2\) uint8, got \(3, 2\)"):
        restored.load_state_dict({**state, "image_ids": state["image_ids"][:2]})
    with pytest.raises(InputError, match="different iou_thresholds"):
        BoxEvaluator(boxes, thresholds=[0.1, 0.2]).load_state_dict(state)


def test_evaluators_with_another_ground_truth_are_not_merged():
    rng = np.random.default_rng(14)
    boxes = make_boxes(3, rng)
    ids = boxes.image_ids
    maps = make_maps(3, rng)

    def scored(ground_truth, which):
        evaluator = BoxEvaluator(ground_truth)
        evaluator.update(maps[which], [ids[i] for i in which])
        return evaluator

    moved = Boxes(ids, {**boxes.boxes, ids[1]: boxes.boxes[ids[1]] + 1}, boxes.sizes, None)
    more = {**boxes.boxes, ids[1]: np.tile(boxes.boxes[ids[1]], (2, 1))}
    larger = Boxes(ids, boxes.boxes, {**boxes.sizes, ids[1]: (61, 40)}, None)
    boxes.labels, others = dict.fromkeys(ids, 0), {**dict.fromkeys(ids, 0), ids[1]: 2}
    for other, what in (
        (moved, "boxes"),
        (Boxes(ids, more, boxes.sizes, None), "boxes"),
        (larger, "sizes"),
        (Boxes(ids, boxes.boxes, boxes.sizes, others), "classes"),
    ):
        whole = scored(boxes, [0])
        with pytest.raises(InputError, match=rf"different {what} of 'c/1\.jpg'"):
            whole.merge(scored(other, [1, 2]))
        assert len(whole) == 1
    part = Boxes(ids[:2], {i: boxes.boxes[i] for i in ids[:2]}, boxes.sizes, None)
    with pytest.raises(InputError, match=r"'c/2\.jpg' is not in the ground truth"):
        scored(part, [0]).merge(scored(boxes, [1, 2]))
    whole = scored(boxes, [2])
    whole.merge(scored(part, [0, 1]))
    assert whole.compute() == scored(boxes, [0, 1, 2]).compute()


def test_the_batch_of_ious_does_not_matter(monkeypatch):
    rng = np.random.default_rng(15)
    boxes = make_boxes(7, rng)
    maps = make_maps(7, rng)
    whole, cut = BoxEvaluator(boxes), BoxEvaluator(boxes)
    whole.update(maps, boxes.image_ids)
    sizes, best = [], evaluator_module.best_box_iou

    def record(u, *args, **kwargs):
        sizes.append(len(u))
        return best(u, *args, **kwargs)

    monkeypatch.setattr(evaluator_module, "best_box_iou", record)
    monkeypatch.setattr(evaluator_module, "IOU_BYTES", 3 * 8 * len(cut.thresholds))
    cut.update(maps, boxes.image_ids)
    assert sizes == [3, 3, 3, 3, 1, 1]  # both modes of each batch
    assert cut.compute() == whole.compute()


def test_memory_is_a_byte_per_image_threshold_and_mode():
    table = RowTable((2, 1000))
    for i in range(5000):
        table.append(str(i), np.full((2, 1000), i % 5, np.uint8))
    assert 10_000_000 <= sum(b.nbytes for b in table._blocks) <= 10_000_000 + BLOCK_BYTES
    assert next(table.blocks())[:6, 0, 0].tolist() == [0, 1, 2, 3, 4, 0]
    assert sum(map(len, table.blocks())) == len(table) == 5000
    assert table.get("4999")[1, 999] == 4
    assert table.get("5000") is None
    np.testing.assert_array_equal(table.take(["7", "3"])[:, 0, 0], [2, 3])


def test_the_curve_is_the_accuracy_at_each_threshold():
    rng = np.random.default_rng(16)
    boxes = make_boxes(9, rng)
    evaluator = BoxEvaluator(boxes)
    evaluator.update(make_maps(9, rng), boxes.image_ids)
    result = evaluator.compute()
    for mode in ("largest", "all"):
        for iou in (0.3, 0.5, 0.7):
            curve = result.curve(mode, iou)
            assert curve.shape == (100,)
            assert curve.max() == result.accuracy(mode, iou)
            assert curve[12] == result.accuracy_at(mode, iou, float(evaluator.thresholds[12]))
    with pytest.raises(InputError, match="IoU threshold 0.4"):
        result.curve("all", 0.4)
    with pytest.raises(InputError, match="'some'"):
        result.curve("some", 0.5)
    for bad in (("some", 0.5, 0.0), ("all", 0.4, 0.0), ("all", 0.5, 0.123)):
        with pytest.raises(InputError, match="not one of those evaluated"):
            evaluator.hits(*bad)
    with pytest.raises(InputError, match="no class labels"):
        evaluator.per_class(result)


def test_as_many_iou_thresholds_as_a_byte_counts():
    """One more would wrap around to 0 where all of them are reached."""
    rng = np.random.default_rng(15)
    boxes = make_boxes(2, rng)
    many = np.linspace(0.001, 1, 252)
    evaluator = BoxEvaluator(boxes, thresholds=[0.0], iou_thresholds=many)
    assert len(evaluator.iou_thresholds) == 255
    map_of_box = np.zeros((1, 40, 60))
    x0, y0, x1, y1 = boxes.boxes[boxes.image_ids[0]][0]
    map_of_box[0, y0:y1, x0:x1] = 1  # a box ends one pixel behind its contour
    evaluator.update(map_of_box, boxes.image_ids[:1])
    assert (evaluator.table.get(boxes.image_ids[0]) == 255).all()
    assert evaluator.compute().accuracy("all", 1.0) == 100
    with pytest.raises(InputError, match="at most 255 IoU thresholds fit, got 256"):
        BoxEvaluator(boxes, iou_thresholds=[*many, 0.12345])


def test_figures_of_classes_with_large_labels_take_no_memory_of_their_size():
    rng = np.random.default_rng(16)
    boxes = make_boxes(6, rng)
    maps = make_maps(6, rng)
    rows = []
    for names in ([0, 1, 2], [7, 2**30, 2**31 - 1]):
        boxes.labels = {i: names[k % 3] for k, i in enumerate(boxes.image_ids)}
        evaluator = BoxEvaluator(boxes)
        evaluator.update(maps[:5], boxes.image_ids[:5])
        rows.append(evaluator.per_class(evaluator.compute(missing_as_miss=True)))
        assert [r.label for r in rows[-1]] == names
    for small, large in zip(*rows, strict=True):
        assert (small.num_images, small.box_acc) == (large.num_images, large.box_acc)
    assert [r.num_images for r in rows[0]] == [2, 2, 2]


def test_a_refused_state_changes_nothing():
    rng = np.random.default_rng(17)
    boxes = make_boxes(3, rng)
    evaluator = BoxEvaluator(boxes, thresholds=[0.1, 0.2])
    evaluator.update(make_maps(3, rng), boxes.image_ids)
    before, state = evaluator.compute().to_json(), evaluator.state_dict()
    first = state["image_ids"][0]
    for message, change in (
        ("'c/0\\.jpg' is repeated", {"image_ids": [first, *state["image_ids"][:2]]}),
        (
            "count 4 of 3 IoU thresholds",
            {"rows": {k: torch.full_like(v, 4) for k, v in state["rows"].items()}},
        ),
        ("has no 'all'", {"rows": {"largest": state["rows"]["largest"]}}),
        ("has no 'iou_thresholds'", {"settings": {"thresholds": [0.1, 0.2]}}),
        *((f"has no '{key}'", {key: None}) for key in state),
    ):
        bad = {k: v for k, v in (state | change).items() if v is not None}
        with pytest.raises(InputError, match=message):
            evaluator.load_state_dict(bad)
        assert evaluator.compute().to_json() == before
