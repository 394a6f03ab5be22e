"""The answer and the pictures of analysis-per-image, on made-up figures."""

from types import SimpleNamespace

import numpy as np
import pytest

from cba_fast.analysis import plots
from cba_fast.errors import InputError
from cba_fast.experiments import per_image
from cba_fast.experiments.per_image_answer import answer_lines, forest_groups
from cba_fast.experiments.per_image_report import COLUMNS, ModelColumns, find, model_columns
from cba_fast.experiments.per_image_sample import Sample


def made_up(name, n=80, seed=0, maps=0.8, erf=0.0, input_size=96, **change):
    """A model whose IoU follows the object channels by `maps` and the ERF size by `erf`."""
    rng = np.random.default_rng(seed)
    columns = {c: rng.normal(size=n) for c in COLUMNS}
    noise = rng.normal(size=n)
    columns["iou"] = maps * columns["object_channels"] + erf * columns["erf_size"] + 0.5 * noise
    ids = [f"{i}.jpg" for i in range(n)]
    return ModelColumns(name, "f", input_size, ids, columns | change, 50.0, 0.3, [])


SAMPLE = Sample([], [], None, 80, [], [], None)


def answer(*models):
    return "\n".join(answer_lines(find(models, SAMPLE, num_resamples=200)))


def test_the_answer_follows_the_data():
    text = answer(made_up("a"), made_up("b", seed=1))
    assert "the feature maps explain more of the IoU than the ERF size does" in text
    assert "the ERF size shows no clear relation" in text
    assert "too narrow" not in text
    text = answer(made_up("a", maps=0, erf=1), made_up("b", seed=1, maps=0, erf=1))
    assert "the ERF size explains more" in text
    assert "the ERF size still goes with a higher IoU" in text
    assert "clearly rises with the ERF size in 2 of 2 models and falls in 0; given" in text
    text = answer(made_up("a", maps=0), made_up("b", seed=1, maps=0))
    assert "do not tell which" in text


def test_measures_that_a_model_lacks_are_left_out():
    nan = np.full(80, np.nan)
    models = [made_up("a", pc1_cam_iou=nan), made_up("b", seed=1)]
    found = find(models, SAMPLE, num_resamples=10)
    assert found.quality == ["object_channels", "pc1_explained"]
    assert found.correlations.num_rows == 160
    assert found.notes == ["PC1-CAM IoU is undefined for a: left out"]
    assert answer_lines(found)
    hole = np.arange(80.0)
    hole[:3] = np.nan
    found = find([made_up("a", object_channels=hole)], SAMPLE, num_resamples=10)
    assert (found.left_out_rows, found.correlations.num_rows) == (3, 77)
    none = {"object_channels": nan, "pc1_explained": nan, "pc1_cam_iou": nan}
    found = find([made_up("a", **none)], SAMPLE, num_resamples=10)
    assert found.quality == []
    assert answer_lines(found)
    even, odd = np.where(np.arange(80) % 2, [[1], [np.nan]], [[np.nan], [1]])
    with pytest.raises(InputError, match="no image has all measures"):
        find([made_up("a", erf_size=even, object_channels=odd)], SAMPLE)


def test_constant_columns_are_undefined_in_words():
    text = answer(made_up("a", erf_size=np.zeros(80)), made_up("b", erf_size=np.zeros(80)))
    assert "IoU with ERF size, within models: undefined (a variable does not vary)" in text
    assert "nan" not in text.lower()


def test_erf_sizes_of_several_input_sizes_count_as_shares():
    a, b = made_up("a"), made_up("b", seed=1, input_size=48)
    b.columns["erf_size"] = b.columns["erf_size"] / 4
    found = find([a, b], SAMPLE, num_resamples=10)
    b.columns["erf_size"] = b.columns["erf_size"] * 4
    b.input_size = 96
    same = find([a, b], SAMPLE, num_resamples=10)
    assert "input sizes differ" in found.notes[0]
    value, expected = (f.correlations.find("pooled", "erf_size").pearson for f in (found, same))
    assert value.estimate == pytest.approx(expected.estimate)


def test_the_threshold_is_the_lowest_best_one():
    found = per_image.Measurement(
        index=np.array([1, 0]),
        iou=np.array([[0.2, 0.6, 0.5, 0.1], [0.5, 0.4, 0.7, 0.8]]),
        active=np.array([[4, 3, 2, 1], [40, 30, 20, 10]]),
        object_pixels=np.array([8, 0]),
        **{k: np.zeros(2) for k in ("erf_size", "object_channels", "pc1_explained")},
        **{k: np.zeros(2) for k in ("pc1_cam_iou", "other_box_channels", "constant")},
        notes=[],
    )
    subject = subject_stub(cam_curve_interval=0.25, map_shape=lambda: (4, 4))
    columns = model_columns(subject, Sample([], ["a", "b"], None, 2, [], [], None), found)
    assert (columns.threshold, columns.max_box_acc) == (0.5, 100.0)
    assert columns.image_ids == ["b", "a"]
    assert columns.columns["iou"].tolist() == [0.5, 0.7]
    np.testing.assert_array_equal(columns.columns["activated_area"], [2 / 8, np.nan])
    np.testing.assert_array_equal(columns.columns["object_area"], [8 / 16, np.nan])


def subject_stub(**settings):
    settings = SimpleNamespace(model_family="f", input_size=4, **settings)
    return SimpleNamespace(name="m", settings=settings)


# Pictures


def test_scatter_has_a_line_within_each_model():
    a, b = made_up("a", erf=1), made_up("b", seed=1, erf_size=np.zeros(80))
    columns = {m.name: (m.columns["erf_size"], m.columns["iou"]) for m in (a, b)}
    fig = plots.plot_images(columns, "x", "y")
    ax = fig.axes[0]
    assert [len(c.get_offsets()) for c in ax.collections] == [80, 80]
    x, y = ax.lines[0].get_xydata().T
    slope, intercept = np.polyfit(*columns["a"], 1)
    np.testing.assert_allclose(y, slope * x + intercept)
    texts = [t.get_text() for t in fig.legends[0].get_texts()]
    assert texts[0].startswith("a (80 images), r +")
    assert texts[1] == "b (80 images), no line"


def test_forest_shows_every_model_and_the_intervals():
    found = find([made_up("a"), made_up("b", seed=1)], SAMPLE, num_resamples=50)
    groups, labels = forest_groups(found)
    assert labels == ["a", "b", "within models"]
    assert "ERF size | feature maps" in groups
    fig = plots.plot_forest(groups, labels)
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(groups)
    bars = [bar for group in groups.values() for bar in group]
    drawn = {tuple(line.get_xdata()) for line in ax.lines}
    assert {(b.low, b.high) for b in bars} <= drawn
    assert {(b.estimate,) for b in bars} <= drawn
    assert [t.get_text() for t in fig.legends[0].get_texts()] == labels
