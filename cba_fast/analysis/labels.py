"""Writes names beside the points of a plot such that none covers a point or another name."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT, GAP, STEP = 8, 5, 10  # in points: of the text, to its own marker, between places to try
FARTHEST = 6  # steps that a name may stand away from its point
_TEXT: dict[str, Any] = {"fontsize": FONT, "va": "bottom", "parse_math": False}
_LEADER = {"arrowstyle": "-", "lw": 0.5, "color": "0.5", "shrinkA": 0, "shrinkB": 2}


def name_points(
    ax: "Axes",
    names: Sequence[tuple[str, float, float]],
    points: tuple[np.ndarray, np.ndarray],
    lines: np.ndarray | None = None,
) -> None:
    """Write each name beside its point, or away from it with a thin line to it.

    Where no place is free, the name is left out, which is better than two that nobody can read.

    Args:
        ax: finished axes: their limits and their legend stay as they are.
        names: text, x and y.
        points: x and y of all points, which no name may cover.
        lines: (2,n), x and y along drawn lines, which names cover only where nothing else is free.
    """
    from matplotlib.patheffects import withStroke

    fig = ax.figure.canvas.figure
    fig.draw_without_rendering()  # the layout is known only then
    pixel = fig.dpi / 72
    inside = np.array(ax.get_window_extent().extents)
    taken = _around(ax, np.column_stack(points), pixel)
    avoided = np.empty((0, 4)) if lines is None else _around(ax, lines.T, pixel)
    if (legend := ax.get_legend()) is not None:
        taken = np.vstack([taken, legend.get_window_extent().extents])
    for name, x, y in names:
        size = _size(ax, name)
        spot = ax.transData.transform((x, y))
        lows = [(spot + np.array(c) * pixel, c, end) for c, end in _corners(*(size / pixel))]
        places = [(np.hstack([low, low + size]), corner, end) for low, corner, end in lows]
        for obstacles in (np.vstack([taken, avoided]), taken):
            place = next((p for p in places if _is_free(p[0], inside, obstacles)), None)
            if place is not None:
                break
        if place is None:
            continue
        box, corner, end = place
        line = None if end is None else _LEADER | {"relpos": end}
        text = ax.annotate(
            *(name, (x, y), corner), textcoords="offset points", arrowprops=line, **_TEXT
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="w")])
        taken = np.vstack([taken, box])


def _around(ax: "Axes", points: np.ndarray, pixel: float) -> np.ndarray:
    """Return boxes (n,4) in pixels around points (n,2) of the data, which leave them visible."""
    spots = ax.transData.transform(points)
    return np.hstack([spots - 0.8 * GAP * pixel, spots + 0.8 * GAP * pixel])


def _is_free(box: np.ndarray, inside: np.ndarray, taken: np.ndarray) -> bool:
    """Say whether a box lies inside the axes and touches none of those that are taken."""
    apart = (box[:2] >= taken[:, 2:]) | (box[2:] <= taken[:, :2])
    within = (box[:2] >= inside[:2]).all() and (box[2:] <= inside[2:]).all()
    return bool(within and apart.any(axis=1).all())


def _size(ax: "Axes", name: str) -> np.ndarray:
    """Return width and height of a name in pixels."""
    text = ax.text(0, 0, name, **_TEXT)
    size = np.array(text.get_window_extent().size)
    text.remove()
    return size


def _corners(width: float, height: float) -> Iterator[tuple]:
    """Yield places of a name, the nearest first.

    Each is the lower left corner, in points from the spot, and where on the text a line to the spot
    ends, as shares of its width and height; None for no line.
    """
    sides = ((GAP, 0.0), (-GAP - width, 1.0), (-width / 2, 0.5))
    for step in range(FARTHEST + 1):
        for dy, edge in ((GAP + STEP * step, 0.0), (-GAP - STEP * step - height, 1.0)):
            yield from (((dx, dy), (side, edge) if step else None) for dx, side in sides)
        if step == 0:
            yield from (((dx, -height / 2), None) for dx, _ in sides[:2])
