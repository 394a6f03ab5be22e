"""Pictures of ERF maps and of slak_flex's mixtures."""

import numpy as np
import pytest

from cba_fast.analysis import plots_erf
from cba_fast.analysis.plots import save_figure
from cba_fast.erf import ErfMap, area_ratio, erf_shape, scale_free_area_ratio
from cba_fast.erf.report import DepthRun, MapRun, map_rows, with_figures
from cba_fast.experiments.erf_shape import Mixture
from cba_fast.experiments.plots_mixtures import plot_mixtures


def block(size: int = 21, half: int = 2) -> np.ndarray:
    m = np.zeros((size, size))
    m[size // 2 - half : size // 2 + half + 1, size // 2 - half : size // 2 + half + 1] = 50.0
    return m


def run_of(m: np.ndarray) -> MapRun:
    return with_figures(ErfMap(m, 3, []), [])


def mixture(share: float, m: np.ndarray) -> Mixture:
    return Mixture(share, m, area_ratio(m), scale_free_area_ratio(m), erf_shape(m))


def test_both_pictures_of_a_map_have_their_squares_on_the_pixels(tmp_path):
    fig = plots_erf.plot_map(run_of(block()), "a model")
    published, free = fig.axes[:2]
    for ax in (published, free):
        extents = [p.get_bbox().extents.tolist() for p in ax.patches]
        assert extents[-1] == [7.5, 7.5, 12.5, 12.5]  # 99 % lies in the block of 5 x 5 pixels
        assert len(extents) == 4
    assert published.get_xlabel() == "a model, 21 x 21 pixels, 3 images"
    assert fig.get_suptitle() == ""
    save_figure(fig, tmp_path / "m.png")
    assert (tmp_path / "m.png").stat().st_size > 10000


def test_labels_are_not_cut_off():
    layers = DepthRun({f"stages.{i}.blocks.10": run_of(block(half=2 + i)) for i in range(3)}, [])
    figures = [
        plots_erf.plot_map(run_of(block()), "a model"),
        plots_erf.plot_depth({"a model": layers}),
        *(plots_erf.plot_side_by_side({str(i): run_of(block()) for i in range(n)}) for n in (1, 3)),
    ]
    for figure in figures:
        figure.canvas.draw()
        for ax in figure.axes:
            texts = (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels())
            for text in (t for t in texts if t.get_text()):
                (x0, y0), (x1, y1) = text.get_window_extent().get_points()
                assert min(x0, y0) >= 0, text
                assert x1 <= figure.bbox.x1, text
                assert y1 <= figure.bbox.y1, text


def test_decades_end_at_the_floor_and_at_the_maximum():
    m = np.array([[1e-9, 1e-2], [1.0, 1e-5]]) * 1e-30
    np.testing.assert_allclose(plots_erf.decades(m), [[-3, -2], [0, -3]])
    with pytest.raises(ValueError, match="zero everywhere"):
        plots_erf.decades(np.zeros((3, 3)))


def test_a_panel_for_each_mixture_and_the_curves(tmp_path):
    shapes = [mixture(s, block(half=2 + i)) for i, s in enumerate((0.0, 0.5, 1.0))]
    fig = plot_mixtures(shapes, title="slak_flex_nano: 4 images")
    maps, scale = fig.subfigs[0].subfigs
    assert maps.get_supxlabel() == "slak_flex_nano: 4 images"
    assert scale.axes[0].get_ylabel() == "log10(map / maximum)"
    fig.canvas.draw()
    tops = [ax.title.get_window_extent().y1 for ax in maps.axes if ax.images]
    assert max(tops) < fig.bbox.y1, "the titles are cut off"
    titles = [ax.get_title() for ax in maps.axes if ax.images]
    assert titles == ["alpha 1, beta 0", "alpha 0.5, beta 0.5", "alpha 0, beta 1"]
    (curves,) = fig.subfigs[1].axes
    drawn = {line.get_label(): line.get_ydata() for line in curves.lines}
    assert drawn["roundness"].tolist() == [m.shape.roundness for m in shapes]


def test_a_match_adds_two_panels_and_a_line():
    shapes = [mixture(s, block(half=2 + i)) for i, s in enumerate((0.0, 1.0))]
    near = mixture(0.3, block(half=3))
    fig = plot_mixtures(shapes, near, block(half=4))
    titles = [ax.get_title() for ax in fig.subfigs[0].subfigs[0].axes if ax.images]
    assert titles[-2:] == ["nearest: alpha 0.7, beta 0.3", "target"]
    (curves,) = fig.subfigs[1].axes
    assert [0.3, 0.3] in [list(line.get_xdata()) for line in curves.lines]


def test_printed_rows_name_the_variant_of_every_ratio():
    rows = map_rows(run_of(block()))
    assert len(rows) == 11
    assert all("published, after log10" in row for row in rows[:4])
    assert all("scale-free" in row for row in rows[4:8])
    assert "20% in" in rows[8]
    assert not any(row.count("scale-free") and row.count("published") for row in rows)
