"""The pictures: what is drawn, and that it is written."""

import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from cba_fast.analysis import plots, plots_erf
from cba_fast.analysis.models import ModelScore, SizeStats, fit_models
from cba_fast.cli import progress
from cba_fast.erf import AreaRatio, area_ratio
from cba_fast.errors import InputError


def model(name: str, mean: float, score: float, family: str = "", std: float = 2.0) -> ModelScore:
    return ModelScore(name, SizeStats(mean, std, 0, 2 * mean, 10), score, family)


MODELS = [
    model("r1", 10, 80, "replknet"),
    model("c1", 20, 60, "convnext"),
    model("s1", 30, 90, "slak"),
    model("r2", 40, 70, "replknet"),
]


def test_analysis_draws_points_bars_and_fit():
    fit = fit_models(MODELS)
    ax = plots.plot_analysis(MODELS, fit).axes[0]
    (bars,) = ax.containers
    points = next(c for c in ax.collections if c.get_label().startswith("models"))
    assert points.get_offsets().tolist() == [[10, 80], [20, 60], [30, 90], [40, 70]]
    assert bars.lines[2][0].get_segments()[0][:, 0].tolist() == [8, 12]
    colors = bars.lines[2][0].get_colors()[:, :3]
    assert (colors == points.get_facecolors()[:, :3]).all()  # each bar is seen to be its point's
    assert len({tuple(c) for c in colors.tolist()}) == 4
    line = ax.lines[-1].get_xydata()
    np.testing.assert_allclose(line[:, 1], fit.slope * line[:, 0] + fit.intercept)
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert any(f"{fit.r2:.2f}" in t for t in texts)
    assert {t.get_text() for t in ax.texts} == {"r1", "c1", "s1", "r2"}


def test_analysis_without_a_fit_has_no_line():
    ax = plots.plot_analysis(MODELS[:1], None).axes[0]
    assert len(ax.get_legend().get_texts()) == 1


def test_points_are_coloured_by_family():
    ax = plots.plot_points(MODELS).axes[0]
    drawn = {c.get_label(): c for c in ax.collections}
    assert set(drawn) == {"replknet", "convnext", "slak"}
    assert drawn["replknet"].get_offsets().tolist() == [[10, 80], [40, 70]]
    assert to_hex(drawn["replknet"].get_facecolor()[0]) == "#ff7f0e"
    assert to_hex(drawn["convnext"].get_facecolor()[0]) == "#2ca02c"
    assert to_hex(drawn["slak"].get_facecolor()[0]) not in ("#ff7f0e", "#2ca02c")


def test_both_scatter_plots_have_the_same_axes():
    axes = [plots.plot_analysis(MODELS, None).axes[0], plots.plot_points(MODELS).axes[0]]
    assert len({(ax.get_xlabel(), ax.get_ylabel()) for ax in axes}) == 1
    for ax in axes:
        assert {t.get_text(): t.xy for t in ax.texts} == {
            m.name: (m.erf.mean, m.maxboxacc) for m in MODELS
        }


def test_family_colours_do_not_depend_on_the_order_of_points():
    names = ["slak_flex", "replknet", "slak", "convnext", "resnet"]
    assert plots.family_colors(names) == plots.family_colors(names[::-1])
    assert len(set(plots.family_colors(names).values())) == 5


def test_family_colours_differ_however_the_cycle_names_them():
    with matplotlib.rc_context({"axes.prop_cycle": "cycler(color=['tab:orange', '#2CA02C', 'b'])"}):
        assert plots.family_colors(["replknet", "slak"])["slak"] == "#0000ff"


def test_erf_map_draws_the_squares_on_their_pixels():
    erf = np.zeros((9, 9))
    erf[3:6, 3:6] = 1
    fig = plots_erf.plot_erf_map(erf, [*area_ratio(erf, (0.5,)), AreaRatio(0.99, None, None)])
    (square,) = fig.axes[0].patches
    assert square.get_bbox().extents.tolist() == [2.5, 2.5, 5.5, 5.5]
    assert fig.axes[0].get_xlabel() == "9 x 9 pixels"
    named = plots_erf.plot_erf_map(erf, title="a model").axes[0].get_xlabel()
    assert named == "a model, 9 x 9 pixels"
    with pytest.raises(ValueError, match="zero everywhere"):
        plots_erf.plot_erf_map(np.zeros((4, 4)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "new/a.png", "a.pdf", "a.svg"])
def test_figures_are_written(tmp_path, name):
    plots.save_figure(plots.plot_points(MODELS), tmp_path / name)
    assert [p.name for p in (tmp_path / name).parent.iterdir()] == [name.split("/")[-1]]
    if name.endswith("g") and not name.endswith("svg"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert pixels.shape == (1000, 1400, 3)  # 7 x 5 inches at 200 dpi
        orange = np.abs(pixels.astype(int) - (255, 127, 14)).max(2) < 12
        assert orange.sum() > 100


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.xyz: unknown picture format"):
        plots.save_figure(plots.plot_points(MODELS), tmp_path / "a.xyz")
    assert not list(tmp_path.iterdir())


def test_figures_do_not_need_pyplot(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    plots.plot_analysis(MODELS, None)


def test_show_without_a_display_is_refused():
    matplotlib.use("agg")  # what pyplot falls back to
    with pytest.raises(InputError, match="needs a display"):
        plots.plot_points(MODELS, show=True)


NAMES = ["$x_{", r"$\frac{$", "a $ b", "<b>&amp;</b>", "[/red]", "_hidden"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_names_are_drawn_as_they_are(suffix, tmp_path):
    models = [model(n, 10 * i, 50 + i, n) for i, n in enumerate(NAMES)]
    columns = {n: (np.arange(3.0), np.arange(3.0)) for n in NAMES}
    bars = {n: [plots.Bar(n, 0.1, None, None)] for n in NAMES}
    erf = np.eye(9)
    figures = [
        plots.plot_analysis(models, fit_models(models)),
        plots.plot_points(models),
        plots.plot_images(columns, NAMES[0], NAMES[1]),
        plots.plot_forest(bars, NAMES),
        plots_erf.plot_erf_map(erf, title=NAMES[0]),
    ]
    for i, figure in enumerate(figures):
        plots.save_figure(figure, tmp_path / f"{i}.{suffix}")
    legend = [t.get_text().strip() for t in figures[1].axes[0].get_legend().get_texts()]
    assert sorted(legend) == sorted(NAMES)
    assert sum("_hidden" in t.get_text() for t in figures[2].legends[0].get_texts()) == 1


def test_no_picture_has_a_title():
    columns, bars = {"a": (np.arange(3.0), np.arange(3.0))}, {"a": [plots.Bar("a", 0.1, 0, 0.2)]}
    figures = [
        plots.plot_analysis(MODELS, fit_models(MODELS)),
        plots.plot_points(MODELS),
        plots.plot_images(columns, "x", "y"),
        plots.plot_forest(bars, ["a"]),
        plots_erf.plot_erf_map(np.eye(9), title="a model"),
    ]
    for figure in figures:
        assert figure.get_suptitle() == ""
        assert [ax.get_title() for ax in figure.axes if ax.get_title()] == []


def test_thousands_of_models_name_the_ends_alone():
    models = [model(f"m{i}", i % 997, i % 89, f"f{i}") for i in range(5000)]
    for figure in (plots.plot_analysis(models, None), plots.plot_points(models)):
        assert {t.get_text() for t in figure.axes[0].texts} <= {"m0", "m996", "m88"}
    ax = plots.plot_points(models).axes[0]
    assert len(ax.collections) == plots.MOST_FAMILIES + 1
    assert ax.get_legend().get_texts()[-1].get_text() == "and 4980 more"
    assert sum(len(c.get_offsets()) for c in ax.collections) == 5000


GRID = [
    model(f"convnext_tiny-lr{lr}-wd{wd}-{aug}", 900 + 20 * i + j, 50 + i / 3 + j / 9, "convnext")
    for i, (lr, wd) in enumerate([("1e-4", "0.05"), ("1e-4", "1e-4"), ("3e-4", "0.05")])
    for j, aug in enumerate(["light", "strong", "strong-long"])
]


@pytest.mark.parametrize("many", [1, 3])
def test_names_cover_no_other_name_and_no_point(many):
    seeds = [(m, k) for m in GRID for k in range(many)]
    models = [model(f"{m.name}-{k}", m.erf.mean + k, m.maxboxacc, "slak") for m, k in seeds]
    for figure in (plots.plot_analysis(models, fit_models(models)), plots.plot_points(models)):
        figure.canvas.draw()
        (ax,) = figure.axes
        boxes = [Text.get_window_extent(t) for t in ax.texts]
        assert len(boxes) >= len(models) * 0.8
        inside = ax.get_window_extent().padded(1)
        spots = ax.transData.transform([(m.erf.mean, m.maxboxacc) for m in models])
        for n, box in enumerate(boxes):
            assert all(inside.contains(*corner) for corner in box.corners())
            assert not any(box.padded(-0.5).overlaps(other) for other in boxes[:n])
            assert not any(box.padded(-0.5).contains(*spot) for spot in spots)


def test_names_of_the_analysis_cover_neither_the_fit_nor_a_bar():
    models = [model(f"model {i}", 10.0 * i, 50.0 + i + 3 * (i % 2), std=8.0) for i in range(8)]
    fit = fit_models(models)
    figure = plots.plot_analysis(models, fit)
    figure.canvas.draw()
    (ax,) = figure.axes
    x = np.linspace(0, 70, 300)
    lines = [(x, fit.slope * x + fit.intercept)]
    lines += [(x[abs(x - m.erf.mean) <= 8], m.maxboxacc) for m in models]
    spots = [ax.transData.transform(np.stack(np.broadcast_arrays(*line), 1)) for line in lines]
    boxes = [Text.get_window_extent(t).padded(-0.5) for t in ax.texts]
    assert len(boxes) == len(models)
    assert not any(box.contains(*spot) for box in boxes for spot in np.concatenate(spots))


def test_progress_bars_take_any_name(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(progress.bar("[/red]")(range(3), 3)) == [0, 1, 2]
    assert "[/red]" in capsys.readouterr().err
