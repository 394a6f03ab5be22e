"""Bootstrap intervals and paired comparisons against the plain way: repeat the rows, score anew."""

import numpy as np
import pytest

from cba_fast.data.boxes import Boxes
from cba_fast.errors import InputError
from cba_fast.wsol import BoxEvaluator, bootstrap, classification_scores, compare, correct_classes
from cba_fast.wsol.scoring import bootstrap as bootstrap_module
from cba_fast.wsol.scoring.row_table import RowTable

THRESHOLDS = [0.9, 0.1, 0.5, 0.5, 0.3]  # neither sorted nor distinct


def make_evaluator(n, seed, *, contours="both", total=None, thresholds=THRESHOLDS, labels=True):
    """Return an evaluator with random rows: what is reached at each threshold, 0 to 4 levels."""
    rng = np.random.default_rng(seed)
    ids = tuple(f"c/{i}.jpg" for i in range(total or n))
    box = np.array([[0, 0, 3, 3]])
    boxes = Boxes(
        ids,
        dict.fromkeys(ids, box),
        dict.fromkeys(ids, (8, 8)),
        {i: k % 7 for k, i in enumerate(ids)} if labels else None,
    )
    evaluator = BoxEvaluator(boxes, thresholds=thresholds, iou_thresholds=[0.4], contours=contours)
    distinct, inverse = np.unique(thresholds, return_inverse=True)
    shape = (n, len(evaluator.modes), len(distinct))
    rows = rng.integers(0, 5, shape).astype(np.uint8)[:, :, inverse]
    for k in rng.permutation(n):
        evaluator.table.append(ids[k], rows[k])
    return evaluator


def resampled(evaluator, draw):
    """Return an evaluator of the drawn images, as new images with copies of the rows."""
    ids = list(evaluator.table.index)
    total = len(evaluator.boxes.image_ids)
    names = tuple(f"n/{k}.jpg" for k in range(len(draw)))
    boxes = Boxes(names, dict.fromkeys(names, np.array([[0, 0, 3, 3]])), {}, None)
    out = BoxEvaluator(
        boxes,
        thresholds=evaluator.thresholds,
        iou_thresholds=evaluator.iou_thresholds,
        contours="both" if len(evaluator.modes) == 2 else evaluator.modes[0],
    )
    out.table = RowTable(evaluator.table.row_shape)
    assert len(draw) in (len(ids), total)
    for name, k in zip(names, draw):
        if k < len(ids):
            out.table.append(name, evaluator.table.get(ids[k]))
    return out


def plain(evaluator, num_resamples, seed, missing_as_miss=False):
    """Return each score of each resample, computed by `BoxEvaluator.compute`."""
    total = len(evaluator.boxes.image_ids) if missing_as_miss else len(evaluator)
    rng = np.random.default_rng(seed)
    out = {}
    for _ in range(num_resamples):
        draw = rng.integers(0, total, total)
        result = resampled(evaluator, draw).compute(missing_as_miss=missing_as_miss)
        for mode in result.modes:
            for iou in result.iou_thresholds:
                value = result.accuracy(mode, iou)
                out.setdefault(("box_acc", mode, iou), []).append(value)
        if result.max_box_acc_v2 is not None:
            out.setdefault(("max_box_acc_v2", None, None), []).append(result.max_box_acc_v2)
    return {key: np.array(values) for key, values in out.items()}


@pytest.mark.parametrize("contours", ["largest", "both"])
@pytest.mark.parametrize("total", [None, 50])
def test_intervals_equal_the_plain_ones(contours, total):
    evaluator = make_evaluator(37, 1, contours=contours, total=total)
    kwargs = {"missing_as_miss": total is not None}
    found = bootstrap(evaluator, num_resamples=40, confidence=0.8, seed=3, **kwargs)
    result = evaluator.compute(**kwargs)
    want = plain(evaluator, 40, 3, **kwargs)
    assert found.num_images == result.num_images
    keys = [(i.metric, i.contours, i.iou) for i in found.intervals]
    assert keys == list(want)
    for interval, (key, drawn) in zip(found.intervals, want.items()):
        estimate = result.max_box_acc_v2 if key[1] is None else result.accuracy(*key[1:])
        assert interval.estimate == pytest.approx(estimate, abs=1e-12)
        low, high = np.quantile(drawn, [0.1, 0.9])
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)
        assert interval.standard_error == pytest.approx(np.std(drawn, ddof=1))
        assert interval.bias == pytest.approx(np.mean(drawn) - estimate, abs=1e-9)
    assert found.find("box_acc", "largest", 0.5) is found.intervals[keys.index(
        ("box_acc", "largest", 0.5))]  # fmt: skip
    with pytest.raises(KeyError):
        found.find("box_acc", "largest", 0.123)


def test_batches_of_resamples_and_images_do_not_matter(monkeypatch):
    evaluator = make_evaluator(37, 2)
    whole = bootstrap(evaluator, num_resamples=50)
    assert bootstrap(evaluator, num_resamples=50) == whole
    assert bootstrap(evaluator, num_resamples=50, seed=1) != whole
    monkeypatch.setattr(bootstrap_module, "BATCH_BYTES", 4 * 6 * 4 * 3)
    monkeypatch.setattr(bootstrap_module, "IMAGES", 5)
    assert bootstrap(evaluator, num_resamples=50) == whole


def test_top1_localization_is_resampled_at_each_own_threshold():
    evaluator = make_evaluator(60, 4, contours="largest")
    ids = list(evaluator.table.index)
    rng = np.random.default_rng(0)
    predictions = {i: rng.permutation(7).tolist() for i in ids}
    correct = correct_classes(ids, predictions, evaluator.boxes.labels)
    scores = classification_scores(evaluator, evaluator.compute(), correct)
    found = bootstrap(evaluator, num_resamples=30, seed=5, correct=correct)
    draws = np.random.default_rng(5)
    for name in ("top1", "top5"):
        drawn = []
        draws = np.random.default_rng(5)
        for _ in range(30):
            draw = draws.integers(0, 60, 60)
            again = resampled(evaluator, draw)
            right = {name: correct[name][draw], "top1": correct["top1"][draw]}
            all_scores = classification_scores(again, again.compute(), right)
            drawn.append(all_scores[f"{name}_localization"])
        interval = found.find(f"{name}_localization")
        assert interval.estimate == pytest.approx(scores[f"{name}_localization"])
        assert (interval.low, interval.high) == pytest.approx(
            tuple(np.quantile(drawn, [0.025, 0.975]))
        )


@pytest.mark.parametrize("missing_as_miss", [False, True])
def test_a_comparison_is_paired(missing_as_miss):
    a = make_evaluator(41, 6, total=45)
    b = make_evaluator(41, 7, total=45, thresholds=[0.0, 0.7])
    found = compare(a, b, num_resamples=60, seed=2, missing_as_miss=missing_as_miss)
    x = plain(a, 60, 2, missing_as_miss)
    # the order of b's images must be a's for the same draw to mean the same images
    b_in_order = make_evaluator(41, 7, total=45, thresholds=[0.0, 0.7])
    b_in_order.table = RowTable(b.table.row_shape)
    for image_id in a.table.index:
        b_in_order.table.append(image_id, b.table.get(image_id))
    y = plain(b_in_order, 60, 2, missing_as_miss)
    assert len(found.intervals) == len(x)
    for d in found.intervals:
        drawn = x[d.metric, d.contours, d.iou] - y[d.metric, d.contours, d.iou]
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (d.low, d.high) == pytest.approx((low, high), abs=1e-9)
        assert d.estimate == pytest.approx(d.a - d.b)
        below, above = (drawn <= 1e-9).sum(), (drawn >= -1e-9).sum()
        assert d.p_value == pytest.approx(min(1, 2 * min(1 + below, 1 + above) / 61))


def test_equal_runs_do_not_differ_and_better_ones_do():
    a = make_evaluator(200, 8)
    same = compare(a, a, num_resamples=50)
    for d in same.intervals:
        assert (d.estimate, d.low, d.high, d.p_value) == (0, 0, 0, 1)
    b = BoxEvaluator(a.boxes, thresholds=THRESHOLDS, iou_thresholds=[0.4])
    for k, (image_id, _) in enumerate(a.table.index.items()):
        row = a.table.get(image_id)
        b.table.append(image_id, np.zeros_like(row) if k % 5 == 0 else row)
    better = compare(a, b, num_resamples=200).find("max_box_acc_v2")
    assert better.low > 0
    assert better.p_value == pytest.approx(2 / 201)
    worse = compare(b, a, num_resamples=200).find("max_box_acc_v2")
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))
    assert worse.p_value == better.p_value


def test_the_interval_covers_what_it_says():
    """Of runs drawn from a known population, the 90 % interval holds the true score in most."""
    rng = np.random.default_rng(9)
    hits, runs, n = 0, 60, 120
    rates = np.array([0.30, 0.55, 0.62, 0.40])  # the best of the population: 62 %
    for run in range(runs):
        evaluator = make_evaluator(n, 0, contours="largest", thresholds=[0.1, 0.3, 0.5, 0.7])
        evaluator.table = RowTable((1, 4))
        hard = rng.random(n)
        for k, image_id in enumerate(evaluator.boxes.image_ids):
            evaluator.table.append(image_id, np.where(hard[k] < rates, 4, 0)[None].astype(np.uint8))
        found = bootstrap(evaluator, num_resamples=200, confidence=0.9, seed=run)
        interval = found.find("box_acc", "largest", 0.5)
        hits += interval.low <= 62 <= interval.high
    # 54 expected; four standard deviations of a binomial count of 60 at 0.9 are 9.3
    assert hits >= 45


def test_bad_use_is_refused():
    a = make_evaluator(5, 0)
    with pytest.raises(InputError, match="no image"):
        bootstrap(BoxEvaluator(a.boxes))
    with pytest.raises(InputError, match="at least 2, got 1"):
        bootstrap(a, num_resamples=1)
    for confidence in (0, 1, float("nan")):
        with pytest.raises(InputError, match="confidence"):
            bootstrap(a, confidence=confidence)
    with pytest.raises(InputError, match="'largest'"):
        bootstrap(make_evaluator(5, 0, contours="all"), correct={"top1": np.ones(5, bool)})
    with pytest.raises(InputError, match=r"1 are in one of them only, such as 'c/4\.jpg'"):
        compare(a, make_evaluator(4, 0, total=5))
    moved = make_evaluator(5, 0)
    moved.boxes.boxes["c/2.jpg"] = np.array([[1, 1, 2, 2]])
    with pytest.raises(InputError, match=r"different boxes of 'c/2\.jpg'"):
        compare(a, moved)
    with pytest.raises(InputError, match="in common"):
        compare(make_evaluator(5, 0, contours="all"), make_evaluator(5, 0, contours="largest"))


def test_a_comparison_with_misses_takes_images_of_either_run():
    """As if the absent images had been added with rows of zeros; their classes count as wrong."""
    a, b = make_evaluator(30, 1, total=34), make_evaluator(32, 2, total=34)
    short = make_evaluator(30, 1, total=34)
    short.table = RowTable(a.table.row_shape)
    ids = a.boxes.image_ids
    for image_id in ids[5:30]:
        short.table.append(image_id, a.table.get(image_id))
    full = []
    for run in (short, b):
        whole = make_evaluator(1, 0, total=34)
        whole.table = RowTable(run.table.row_shape)
        # in the order of `compare`, which decides what a draw means
        for image_id in [*short.table.index, *(i for i in b.table.index if i not in ids[5:30])]:
            row = run.table.get(image_id)
            whole.table.append(image_id, np.zeros(whole.table.row_shape) if row is None else row)
        full.append(whole)
    right = {i: k % 3 > 0 for k, i in enumerate(ids)}

    def correct(run, held):
        return {"top1": np.array([right[i] and i in held.table.index for i in run.table.index])}

    found = compare(
        *(short, b), num_resamples=40, missing_as_miss=True,
        correct=(correct(short, short), correct(b, b)),
    )  # fmt: skip
    want = compare(
        *full, num_resamples=40, missing_as_miss=True,
        correct=(correct(full[0], short), correct(full[1], b)),
    )  # fmt: skip
    assert found == want
    assert found.num_images == 34
    assert found.find("top1_localization").b > 0
    with pytest.raises(InputError, match="ground truths must list the same images; 1 are in one"):
        compare(a, make_evaluator(30, 1, total=33), missing_as_miss=True)
    with pytest.raises(InputError, match="no image was evaluated"):
        compare(a, BoxEvaluator(a.boxes, thresholds=THRESHOLDS), missing_as_miss=True)
