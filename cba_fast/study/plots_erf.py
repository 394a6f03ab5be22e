"""Pictures of ERF maps with both kinds of area ratios, and of what slak_flex's mixture does."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cba_fast.erf import ErfShape, erf_shape
from cba_fast.erf.maps import checked_map, log_scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .erf_report import MapRun
    from .erf_shape import Mixture

COLOR_MAP = "magma"
DECADES = 3  # below the maximum, that the scale-free pictures show
_LINES = ("-", "--", "-.", ":")


def plot_map(found: "MapRun", title: str = "") -> "Figure":
    """Draw an ERF map twice: as published, and free of its scale.

    Left log10(map + 1) scaled to 1, with the squares of the published area ratios; right
    log10(map / maximum) down to three decades, with the squares of the scale-free ratios and the
    shape descriptors below. In maps far below 1 the published picture is linear.

    Args:
        found: of :func:`~cba_fast.study.erf_runs.compute_map`.
        title: of the figure.
    """
    fig = _figure((12, 5.8))
    published, free = fig.subplots(1, 2)
    image = published.imshow(
        log_scaled(found.erf.map), vmin=0, vmax=1, cmap=COLOR_MAP, interpolation="nearest"
    )
    fig.colorbar(image, ax=published, label="log10(map + 1), scaled to 1")
    _squares(published, found.ratios, found.erf.map.shape)
    published.set_title("as published: area ratios after log10")
    image = free.imshow(
        decades(found.erf.map), vmin=-DECADES, vmax=0, cmap=COLOR_MAP, interpolation="nearest"
    )
    fig.colorbar(image, ax=free, label="log10(map / maximum)")
    _squares(free, found.scale_free, found.erf.map.shape)
    free.set_title("scale-free: area ratios of the map itself")
    s = found.shape
    free.set_xlabel(
        f"sigma {s.sigma_major:.0f} and {s.sigma_minor:.0f} px, axis ratio {s.axis_ratio:.2f},"
        f" roundness {s.roundness:.2f}\n{s.cross_share:.0%} on the central cross,"
        f" fourfold {s.fourfold:+.2f}, participation {s.participation:.1%}"
    )
    h, w = found.erf.map.shape
    lead = f"{title}: " if title else ""
    fig.suptitle(f"{lead}effective receptive field, {h} x {w} pixels, {found.erf.count} images")
    return fig


def decades(erf: np.ndarray) -> np.ndarray:
    """Return log10(erf / maximum), not below -DECADES, (H,W) float64.

    Raises:
        ValueError: `erf` is not an ERF map.
    """
    erf = checked_map(erf)
    return np.log10(np.maximum(erf / erf.max(), 10.0**-DECADES))


def plot_mixtures(
    mixtures: Sequence["Mixture"],
    match: "Mixture | None" = None,
    target: np.ndarray | None = None,
) -> "Figure":
    """Draw one panel per mixture of slak_flex, and how the descriptors change with it.

    Args:
        mixtures: of a sweep, at least one, in the order of their share of the square kernel.
        match: the mixture nearest to `target`: one more panel, and a line in the curves.
        target: an ERF map (H,W), the last panel; None for none.
    """
    panels = [(m.map, m.shape, f"alpha {m.alpha:.3g}, beta {m.beta:.3g}") for m in mixtures]
    if match is not None:
        title = f"nearest: alpha {match.alpha:.3g}, beta {match.beta:.3g}"
        panels.append((match.map, match.shape, title))
    if target is not None:
        panels.append((target, erf_shape(target), "target"))
    columns = min(len(panels), 5)
    rows = -(-len(panels) // columns)
    fig = _figure((2.5 * columns + 0.6, 2.8 * rows + 3.4))
    above, below = fig.subfigures(2, 1, height_ratios=(2.8 * rows, 3.4))
    axes = above.subplots(rows, columns, squeeze=False).ravel()
    for ax, panel in zip(axes, panels):
        _panel(ax, *panel)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    above.suptitle(f"log10(map / maximum), {DECADES} decades")
    _curves(below.subplots(), mixtures, match)
    return fig


def _panel(ax: "Axes", erf: np.ndarray, shape: ErfShape, title: str) -> None:
    ax.imshow(decades(erf), vmin=-DECADES, vmax=0, cmap=COLOR_MAP, interpolation="nearest")
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(
        f"on the cross {shape.cross_share:.0%}\nroundness {shape.roundness:.2f}", fontsize=8
    )
    ax.set_xticks([])
    ax.set_yticks([])


def _curves(ax: "Axes", mixtures: Sequence["Mixture"], match: "Mixture | None") -> None:
    share = [m.square_share for m in mixtures]
    curves = {
        "on the central cross": [m.shape.cross_share for m in mixtures],
        "fourfold": [m.shape.fourfold for m in mixtures],
        "roundness": [m.shape.roundness for m in mixtures],
        "participation": [m.shape.participation for m in mixtures],
        "area of 50 %, scale-free": [_half_area(m) for m in mixtures],
    }
    for (label, values), marker in zip(curves.items(), "os^vD"):
        ax.plot(share, values, marker=marker, ms=4, label=label)
    if match is not None:
        ax.axvline(match.square_share, color="0.4", ls="--", label="nearest to the target")
    ax.axhline(0, color="0.7", lw=0.8)
    ax.set_xlabel("share of the square kernel, beta / (alpha + beta)")
    ax.set_ylabel("descriptor (no unit)")
    ax.grid(True, linestyle="--", alpha=0.4)
    # Beside the axes: the curves may be anywhere from 0 to 1.
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _half_area(mixture: "Mixture") -> float:
    ratio = next(r.ratio for r in mixture.scale_free if r.threshold == 0.5)
    return np.nan if ratio is None else ratio


def _squares(ax: "Axes", ratios: Sequence, shape: tuple[int, int]) -> None:
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
        ax.legend(fontsize=8, facecolor="0.25", labelcolor="w", loc="upper right")
    ax.set_xticks([])
    ax.set_yticks([])


def _figure(figsize: tuple[float, float]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=figsize, layout="constrained")
    FigureCanvasAgg(fig)
    return fig
