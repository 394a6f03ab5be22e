"""Correlations at all levels against SciPy and regressions; intervals against simulation."""

import json

import numpy as np
import pytest
from scipy import stats

from cba_fast.analysis import moments
from cba_fast.analysis.correlations import BETWEEN, POOLED, WITHIN, Question, correlate

NAMES = ("a", "b", "c")
X, GIVEN_Z = Question(("x",)), Question(("x",), ("z",))
BOTH = Question(("x", "w"), ("z",))


def data(seed=0, images=30, counts=(30, 28, 25), ties=False):
    """Rows of three models on shared images (some are missing), with trends and confounding."""
    rng = np.random.default_rng(seed)
    models = np.repeat(np.arange(len(counts)), counts)
    ids = np.concatenate([rng.permutation(images)[:n] for n in counts])
    z = rng.normal(size=images)[ids] + 0.5 * models
    x = z + rng.normal(size=len(ids)) + models
    w = rng.normal(size=len(ids)) - 0.4 * z
    y = 0.3 * x - 0.5 * z + 0.6 * w + rng.normal(size=len(ids)) - 0.7 * models
    values = {"y": y, "x": x, "z": z, "w": w}
    if ties:
        values = {k: np.round(v) for k, v in values.items()}
    return values, models, ids


def run(values, models, ids, questions=(X, GIVEN_Z, BOTH), names=NAMES, **kwargs):
    kwargs = {"num_resamples": 50} | kwargs
    return correlate(values, models, ids, names, "y", list(questions), **kwargs)


def residuals(values, target, controls, models=None):
    """What a least-squares fit on the controls leaves, with an intercept for each model."""
    n = len(values[target])
    models = np.zeros(n, int) if models is None else models
    design = np.column_stack([*np.eye(models.max() + 1)[models].T, *(values[c] for c in controls)])
    beta = np.linalg.lstsq(design, values[target], rcond=None)[0]
    return values[target] - design @ beta


def r_squared(values, controls, models=None):
    total = residuals(values, "y", [], models)
    return 1 - (residuals(values, "y", controls, models) ** 2).sum() / (total**2).sum()


@pytest.mark.parametrize("ties", [False, True])
def test_plain_correlations_are_those_of_scipy(ties):
    values, models, ids = data(ties=ties)
    found = run(values, models, ids)
    x, y = values["x"], values["y"]
    for m, name in enumerate(NAMES):
        own = found.find("model", "x", model=name)
        at = models == m
        assert own.pearson.estimate == pytest.approx(stats.pearsonr(x[at], y[at])[0])
        assert own.spearman.estimate == pytest.approx(stats.spearmanr(x[at], y[at])[0])
        assert own.r2.estimate == pytest.approx(stats.linregress(x[at], y[at]).rvalue ** 2)
    pooled = found.find(POOLED, "x")
    assert pooled.pearson.estimate == pytest.approx(stats.pearsonr(x, y)[0])
    assert pooled.spearman.estimate == pytest.approx(stats.spearmanr(x, y)[0])
    within = [residuals(values, v, [], models) for v in "xy"]
    assert found.find(WITHIN, "x").pearson.estimate == pytest.approx(stats.pearsonr(*within)[0])
    means = [[values[v][models == m].mean() for m in range(3)] for v in "xy"]
    between = found.find(BETWEEN, "x")
    assert between.pearson.estimate == pytest.approx(stats.pearsonr(*means)[0])
    assert between.spearman.estimate == pytest.approx(stats.spearmanr(*means)[0])


def test_within_ranks_are_those_of_each_model():
    values, models, ids = data(counts=(30, 30, 30))
    ranks = {}
    for v in "xy":
        ranked = [stats.rankdata(values[v][models == m]) for m in range(3)]
        ranks[v] = np.concatenate([r - r.mean() for r in ranked])
    found = run(values, models, ids).find(WITHIN, "x").spearman.estimate
    assert found == pytest.approx(stats.pearsonr(ranks["x"], ranks["y"])[0])


def test_partial_correlations_are_those_of_residuals():
    values, models, ids = data()
    found = run(values, models, ids)
    for level, of in ((WITHIN, models), (POOLED, None)):
        left = [residuals(values, v, ["z"], of) for v in "xy"]
        one = found.find(level, "x", ("z",))
        assert one.pearson.estimate == pytest.approx(stats.pearsonr(*left)[0])
        assert one.r2.estimate == pytest.approx(one.pearson.estimate**2)
        before, after = (r_squared(values, c, of) for c in (["z"], ["z", "x", "w"]))
        both = found.find(level, ("x", "w"), ("z",))
        assert both.r2.estimate == pytest.approx((after - before) / (1 - before))
        assert both.pearson is None
        assert both.spearman is None


def test_partial_correlation_with_one_control_in_closed_form():
    values, models, ids = data(counts=(30,))
    found = run(values, models, ids, names=("a",)).find("model", "x", ("z",), "a")
    xy, xz, yz = (stats.pearsonr(values[a], values[b])[0] for a, b in ("xy", "xz", "yz"))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert found.pearson.estimate == pytest.approx(expected)
    xy, xz, yz = (stats.spearmanr(values[a], values[b])[0] for a, b in ("xy", "xz", "yz"))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert found.spearman.estimate == pytest.approx(expected)


def test_a_confounder_explains_the_correlation_away():
    rng = np.random.default_rng(1)
    z = rng.normal(size=400)
    values = {"y": z + rng.normal(size=400), "x": z + rng.normal(size=400), "z": z}
    found = run(values, np.zeros(400, int), np.arange(400), (X, GIVEN_Z), ("a",), num_resamples=400)
    plain, given = (found.find("model", "x", g, "a").pearson for g in ((), ("z",)))
    assert plain.excludes_zero
    assert plain.estimate == pytest.approx(0.5, abs=0.1)  # the population's value
    assert not given.excludes_zero
    assert abs(given.estimate) < 0.1


@pytest.mark.parametrize("ranked", [False, True])
def test_weights_stand_for_repeated_rows(ranked):
    values, models, ids = data(ties=True)
    rows = moments.make_rows(np.column_stack(list(values.values())), models, ids)
    weights = np.random.default_rng(5).integers(0, 4, (3, len(ids)))
    found = moments.level_correlations(rows, weights.astype(float), ranked)
    for w, c in zip(weights, found):
        repeated = np.repeat(np.arange(len(ids)), w)
        copied = moments.Rows(rows.values[repeated], models[repeated], ids[repeated], 3, 30)
        expected = moments.level_correlations(copied, np.ones((1, len(repeated))), ranked)[0]
        np.testing.assert_allclose(c, expected, atol=1e-12)


def test_a_resample_keeps_the_rows_of_an_image_together(monkeypatch):
    values, models, ids = data()
    rows = moments.make_rows(np.column_stack(list(values.values())), models, ids)
    whole = np.concatenate(list(moments.resampled(rows, 40, 3)))
    assert (whole[0] == 1).all()
    for image in np.unique(rows.images):
        own = whole[:, rows.images == image]
        assert (own == own[:, :1]).all()
    first = [np.flatnonzero(rows.images == i)[0] for i in range(rows.num_images)]
    assert (whole[1:, first].sum(axis=1) == rows.num_images).all()
    # how many resamples are held at a time is no part of the result
    monkeypatch.setattr(moments, "_CHUNK", 7 * rows.values.size)
    assert (np.concatenate(list(moments.resampled(rows, 40, 3))) == whole).all()


def test_equal_seeds_give_equal_results_as_json():
    found = [json.dumps(run(*data(), seed=s).to_json(), allow_nan=False) for s in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_intervals_cover_the_truth_and_need_the_clusters():
    """Four models see the same images: rows taken for independent give too narrow intervals."""
    rng = np.random.default_rng(0)
    rho, images, runs = 0.5, 60, 80
    covered = {"clusters": 0, "rows": 0}
    models = np.repeat(np.arange(4), images)
    ids = np.tile(np.arange(images), 4)
    share = 0.95  # of the variance is the image's, the same for all models
    for _ in range(runs):
        common, own = rng.normal(size=(2, images)), rng.normal(size=(2, 4 * images))
        x, e = share**0.5 * common[:, ids] + (1 - share) ** 0.5 * own
        y = rho * x + (1 - rho**2) ** 0.5 * e
        for name, cluster in (("clusters", ids), ("rows", np.arange(4 * images))):
            found = run({"y": y, "x": x}, models, cluster, (X,), "abcd", num_resamples=150)
            value = found.find(WITHIN, "x").pearson
            covered[name] += value.low <= rho <= value.high
    # nominal 0.95, standard error 0.02; the rows' intervals are half as wide, and hold 0.7
    assert covered["clusters"] / runs > 0.88
    assert covered["rows"] / runs < 0.83


def test_contrast_is_the_difference_of_adjusted_r2_with_an_interval_of_its_own():
    values, models, ids = data()
    asked = (GIVEN_Z, BOTH)
    found = run(values, models, ids, asked, contrast=asked, num_resamples=200)
    within = next(c for c in found.contrasts if c.level == WITHIN)
    one, two = found.find(WITHIN, "x", ("z",)).r2, found.find(WITHIN, ("x", "w"), ("z",)).r2
    left = 83 - 3 - 1  # rows, means of models, control
    one, two = (1 - (1 - r.estimate) * left / (left - k) for r, k in ((one, 1), (two, 2)))
    assert within.difference.estimate == pytest.approx(two - one)
    assert within.difference.low < within.difference.estimate < within.difference.high
    assert [c.level for c in found.contrasts] == ["model"] * 3 + [WITHIN, POOLED, BETWEEN]
    assert found.contrasts[-1].difference.estimate is None


def test_models_as_the_sample():
    values, models, ids = data(counts=(30, 28, 25, 20))
    found = run(values, models, ids, names=("a", "b", "c", "d")).between_models
    means = [[values[v][models == m].mean() for m in range(4)] for v in "xy"]
    expected = stats.pearsonr(*means)
    (x,) = found
    assert (x.x, x.count) == ("x", 4)
    assert x.r == pytest.approx(expected.statistic)
    assert x.p_value == pytest.approx(expected.pvalue)
    assert x.low == pytest.approx(expected.confidence_interval().low)
    three = run(*data()).between_models[0]
    assert (three.low, three.high) == (None, None)


# What is undefined


def test_few_models_have_no_correlation_of_their_means():
    values, models, ids = data(counts=(30, 28))
    found = run(values, models, ids, names=("a", "b"))
    between = found.find(BETWEEN, "x")
    assert between.reason.startswith("too few models")
    assert between.r2.estimate is None
    assert between.pearson.estimate is None
    assert found.between_models == []
    # and three models none given a control
    assert run(*data()).find(BETWEEN, "x", ("z",)).reason.startswith("too few models")


def test_columns_that_do_not_vary_are_undefined_where_they_do_not():
    values, models, ids = data()
    values["x"] = np.array([0.1, 0.2, 0.7])[models]  # a constant of each model
    found = run(values, models, ids)
    assert found.find("model", "x", model="b").reason == "a variable does not vary"
    assert found.find(WITHIN, "x").pearson.estimate is None
    assert found.find(WITHIN, "x", ("z",)).r2.estimate is None
    assert found.find(POOLED, "x").pearson.estimate is not None
    values["x"] = np.full(len(ids), 0.1)
    values["y"] = values["x"] * 3
    found = run(values, models, ids)
    assert all(r.r2.estimate is None for r in found.relations)
    json.dumps(found.to_json(), allow_nan=False)


def test_controls_that_depend_on_each_other_count_once():
    values, models, ids = data()
    values["w"] = 2 * values["z"] - 1
    again = Question(("x",), ("z", "w"))
    found = run(values, models, ids, (GIVEN_Z, again))
    one, two = (found.find(WITHIN, "x", g).pearson.estimate for g in (("z",), ("z", "w")))
    assert one == pytest.approx(two)
    values["x"] = values["z"] + values["w"]  # the control leaves nothing of x
    assert run(values, models, ids, (GIVEN_Z,)).find(WITHIN, "x", ("z",)).pearson.estimate is None


def test_chance_level_of_r2_is_its_mean_under_independence():
    rng = np.random.default_rng(2)
    found, chance = [], None
    for _ in range(100):
        values = dict(zip("yxzw", rng.normal(size=(4, 40))))
        models = np.repeat([0, 1], 20)
        answer = run(values, models, np.arange(40), (BOTH,), ("a", "b"), num_resamples=2)
        relation = answer.find(WITHIN, ("x", "w"), ("z",))
        found.append(relation.r2.estimate)
        chance = relation.r2_by_chance
    assert chance == pytest.approx(2 / (40 - 2 - 1))
    assert np.mean(found) == pytest.approx(chance, abs=4 * np.std(found) / 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": np.array([0, 0, 2, 2])}, "without a gap"),
        ({"values": {"y": [1, 2, 3, np.nan], "x": [1, 2, 3, 4]}}, "finite"),
        ({"ids": np.arange(3)}, "expected"),
        ({"names": ("a",)}, "1 names for 2 models"),
        ({"confidence": 1.0}, "confidence"),
        ({"num_resamples": 1}, "num_resamples"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    good = {
        "values": {"y": np.arange(4.0), "x": np.ones(4)},
        "models": np.array([0, 0, 1, 1]),
        "ids": np.arange(4),
        "names": ("a", "b"),
    }
    with pytest.raises(ValueError, match=message):
        run(**good | {"questions": (X,)} | change)
