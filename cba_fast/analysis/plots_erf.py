"""Pictures of ERF maps, as published and free of their scale, with their area ratios."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..data.textlines import counted
from ..erf.maps import checked_map, log_scaled
from .plots import make_figure

Corner = Literal["best", "upper right"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..erf import AreaRatio
    from ..erf.report import DepthRun, MapRun

COLOR_MAP = "magma"
DECADES = 3  # below the maximum, that the scale-free pictures show
_LINES = ("-", "--", "-.", ":")


def plot_erf_map(
    erf: np.ndarray, ratios: Sequence["AreaRatio"] = (), *, title: str = "", show: bool = False
) -> "Figure":
    """Draw an ERF map, log-scaled to [0,1], and the squares of its area ratios.

    Args:
        erf: (H,W), as :func:`cba_fast.erf.erf_map` gives it.
        ratios: of :func:`cba_fast.erf.area_ratio`; those without a square are left out.
        title: what the map is of, for the line below it.
        show: make the figure in a window's backend.

    Raises:
        ValueError: `erf` is not an ERF map.
    """
    fig = make_figure((6, 5), show)
    ax = fig.add_subplot()
    _published(ax, erf, ratios, "best")
    ax.set_xlabel(_told(title, erf))
    return fig


def plot_map(found: "MapRun", title: str = "") -> "Figure":
    """Draw an ERF map twice: as published, and free of its scale.

    Left log10(map + 1) scaled to 1, with the squares of the published area ratios; right
    log10(map / maximum) down to three decades, with the squares of the scale-free ratios and the
    shape descriptors below. In maps far below 1 the published picture is linear.

    Args:
        found: of :func:`~cba_fast.runs.erf.maps.compute_map`.
        title: what the map is of, for the line below it.
    """
    fig = make_figure((12, 5.8))
    published, free = fig.subplots(1, 2)
    _published(published, found.erf.map, found.ratios, "upper right")
    published.set_title("as published: area ratios after log10")
    image = free.imshow(
        decades(found.erf.map), vmin=-DECADES, vmax=0, cmap=COLOR_MAP, interpolation="nearest"
    )
    fig.colorbar(image, ax=free, label="log10(map / maximum)")
    _squares(free, found.scale_free, found.erf.map.shape, "upper right")
    free.set_title("scale-free: area ratios of the map itself")
    s = found.shape
    free.set_xlabel(
        f"sigma {s.sigma_major:.0f} and {s.sigma_minor:.0f} px, axis ratio {s.axis_ratio:.2f},"
        f" roundness {s.roundness:.2f}\n{s.cross_share:.0%} on the central cross,"
        f" fourfold {s.fourfold:+.2f}, participation {s.participation:.1%}"
    )
    published.set_xlabel(_told(title, found.erf.map, found.erf.count))
    return fig


def plot_side_by_side(runs: Mapping[str, "MapRun"]) -> "Figure":
    """Draw the ERF maps of several networks beside each other, each free of its own scale.

    Args:
        runs: the maps by the titles of their panels; their sizes may differ.
    """
    fig = make_figure((3.4 * len(runs) + 0.6, 4.3))
    for ax, (title, run) in zip(fig.subplots(1, len(runs), squeeze=False)[0], runs.items()):
        image = ax.imshow(
            decades(run.erf.map), vmin=-DECADES, vmax=0, cmap=COLOR_MAP, interpolation="nearest"
        )
        _squares(ax, [r for r in run.scale_free if r.threshold in (0.5, 0.99)], run.erf.map.shape)
        ax.set_title(title)
        share = run.pixels[0.5] / run.erf.map.size
        ax.set_xlabel(
            f"{_told('', run.erf.map, run.erf.count)}\nhalf in {share:.1%} of the pixels\n"
            f"sigma {run.shape.sigma_major:.0f} and {run.shape.sigma_minor:.0f} px"
        )
    fig.colorbar(image, ax=fig.axes, label="log10(map / maximum)", shrink=0.8, pad=0.01)
    return fig


def plot_depth(runs: Mapping[str, "DepthRun"]) -> "Figure":
    """Draw how ERF size and area grow from layer to layer, for one network or several.

    Above is the share of the image's pixels that hold half of the map; below the share of its area
    that the smallest central square with half of the map covers, and, dashed, the one with 99 %.

    Args:
        runs: by the names of the networks. If the layers have other names in one than in another,
            the curves are drawn over the relative depth.
    """
    names = list(next(iter(runs.values())).layers)
    same = all(list(run.layers) == names for run in runs.values())
    fig = make_figure((max(7.0, 0.22 * len(names) + 2), 7.0))
    size, area = fig.subplots(2, 1, sharex=True)
    for (title, run), color in zip(runs.items(), _colors(len(runs))):
        known = [(i, r) for i, r in enumerate(run.layers.values()) if r is not None]
        x = [i if same else i / max(1, len(run.layers) - 1) for i, _ in known]
        size.plot(x, [r.pixels[0.5] / r.erf.map.size for _, r in known], ".-", c=color, label=title)
        for threshold, style in ((0.5, ".-"), (0.99, ".--")):
            ratios = [{q.threshold: q.ratio for q in r.scale_free}.get(threshold) for _, r in known]
            area.plot(x, [np.nan if q is None else q for q in ratios], style, c=color)
    size.set_ylabel("share of the pixels that hold 50 %")
    area.set_ylabel("area of the central square\nwith 50 %, dashed 99 %")
    for ax in (size, area):
        ax.set_ylim(bottom=0)
        ax.grid(True, linestyle="--", alpha=0.4)
    size.legend()
    if same:
        area.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    else:
        area.set_xlabel("relative depth")
    return fig


def _told(title: str, erf: np.ndarray, count: int | None = None) -> str:
    """Return what a map is of: the model, its size, and the number of its images."""
    h, w = erf.shape
    images = "" if count is None else counted(count, "image")
    return ", ".join(filter(None, [title, f"{h} x {w} pixels", images]))


def _colors(count: int) -> list:
    from matplotlib import colormaps

    return [colormaps["tab10"](i % 10) for i in range(count)]


def decades(erf: np.ndarray) -> np.ndarray:
    """Return log10(erf / maximum), not below -DECADES, (H,W) float64.

    Raises:
        ValueError: `erf` is not an ERF map.
    """
    erf = checked_map(erf)
    return np.log10(np.maximum(erf / erf.max(), 10.0**-DECADES))


def _published(ax: "Axes", erf: np.ndarray, ratios: Sequence, legend: Corner) -> None:
    image = ax.imshow(log_scaled(erf), vmin=0, vmax=1, cmap=COLOR_MAP, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="log10(map + 1), scaled to 1")
    _squares(ax, ratios, erf.shape, legend)


def _squares(
    ax: "Axes", ratios: Sequence, shape: tuple[int, int], legend: Corner = "upper right"
) -> None:
    from matplotlib.patches import Rectangle

    h, w = shape
    for r, style in zip((r for r in ratios if r.side is not None), _LINES):
        # Pixel k covers k - 0.5 to k + 0.5.
        corner = (w // 2 - r.side // 2 - 0.5, h // 2 - r.side // 2 - 0.5)
        label = f"{r.threshold:.0%} in {r.ratio:.1%} of the area"
        ax.add_patch(
            Rectangle(corner, r.side, r.side, fill=False, ec="w", ls=style, lw=1.2, label=label)
        )
    if ax.patches:
        ax.legend(fontsize=8, facecolor="0.25", labelcolor="w", loc=legend)
    ax.set_xticks([])
    ax.set_yticks([])
