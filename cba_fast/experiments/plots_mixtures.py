"""Plot the effective receptive field of slak_flex over its mixtures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..analysis.plots import make_figure
from ..analysis.plots_erf import COLOR_MAP, DECADES, decades
from ..erf import ErfShape, erf_shape
from .erf_shape import Mixture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


def plot_mixtures(
    mixtures: Sequence[Mixture],
    match: Mixture | None = None,
    target: np.ndarray | None = None,
    title: str = "",
) -> "Figure":
    """Draw one panel per mixture of slak_flex, and how the descriptors change with it.

    Args:
        mixtures: at least one mixture of a sweep, in the order of their share of the square kernel.
        match: the mixture nearest to `target`, for another panel and a line in the curves; or None.
        target: an ERF map (H,W) for the last panel, or None.
        title: what the maps are of, such as the model and the number of its images.
    """
    panels = [(m.map, m.shape, f"alpha {m.alpha:.3g}, beta {m.beta:.3g}") for m in mixtures]
    if match is not None:
        nearest = f"nearest: alpha {match.alpha:.3g}, beta {match.beta:.3g}"
        panels.append((match.map, match.shape, nearest))
    if target is not None:
        panels.append((target, erf_shape(target), "target"))
    columns = min(len(panels), 5)
    rows = -(-len(panels) // columns)
    height = 3.1 * rows + 0.3  # the last for the line below the maps
    fig = make_figure((2.5 * columns + 1.1, height + 3.4))
    # Without `squeeze` they come as an array, as types tell.
    (above,), (below,) = fig.subfigures(2, 1, squeeze=False, height_ratios=(height, 3.4))
    maps, scale = above.subfigures(1, 2, width_ratios=(2.5 * columns, 1.1))
    axes = maps.subplots(rows, columns, squeeze=False).ravel()
    for ax, panel in zip(axes, panels):
        image = _panel(ax, *panel)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    # Beside them in a figure of its own: an axis between the panels would push them together.
    scale.colorbar(image, cax=scale.subplots(), label="log10(map / maximum)")
    maps.supxlabel(title, fontsize=9)
    _curves(below.subplots(), mixtures, match)
    return fig


def _panel(ax: "Axes", erf: np.ndarray, shape: ErfShape, title: str) -> "AxesImage":
    drawn = ax.imshow(decades(erf), vmin=-DECADES, vmax=0, cmap=COLOR_MAP, interpolation="nearest")
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(
        f"on the cross {shape.cross_share:.0%}\nroundness {shape.roundness:.2f}", fontsize=8
    )
    ax.set_xticks([])
    ax.set_yticks([])
    return drawn


def _curves(ax: "Axes", mixtures: Sequence[Mixture], match: Mixture | None) -> None:
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
    # The legend is beside the axes, because the curves may be anywhere from 0 to 1.
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _half_area(mixture: Mixture) -> float:
    ratio = next(r.ratio for r in mixture.scale_free if r.threshold == 0.5)
    return np.nan if ratio is None else ratio
