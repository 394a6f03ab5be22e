"""Pictures of ERF maps with both kinds of area ratios."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..erf.maps import checked_map, log_scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..erf.report import MapRun

COLOR_MAP = "magma"
DECADES = 3  # below the maximum, that the scale-free pictures show
_LINES = ("-", "--", "-.", ":")


def plot_map(found: "MapRun", title: str = "") -> "Figure":
    """Draw an ERF map twice: as published, and free of its scale.

    Left log10(map + 1) scaled to 1, with the squares of the published area ratios; right
    log10(map / maximum) down to three decades, with the squares of the scale-free ratios and the
    shape descriptors below. In maps far below 1 the published picture is linear.

    Args:
        found: of :func:`~cba_fast.runs.erf.compute_map`.
        title: of the figure.
    """
    fig = make_figure((12, 5.8))
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


def make_figure(figsize: tuple[float, float]) -> "Figure":
    """Return an empty figure of this size in inches that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=figsize, layout="constrained")
    FigureCanvasAgg(fig)
    return fig
