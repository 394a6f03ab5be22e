"""The plots of the page, as numbers that the template draws as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..analysis.plots_erf import DECADES
from ..erf import radial_profile
from ..short import Short
from ..wsol.scoring.box_result import V2_IOUS
from .collect import Collected
from .erf import Together

# Strokes that differ in dash and in brightness, so that colour alone tells nothing.
STROKES = (
    ("#0059a8", ""),
    ("#b34700", "7 3"),
    ("#00704e", "2 3"),
    ("#7d3c98", "9 3 2 3"),
    ("#333333", "5 2"),
    ("#8a6d00", "1 4"),
)
WIDTH, HEIGHT = 300, 200  # of a plot, without its labels


@dataclass(frozen=True)
class Line:
    """A run's line or point: its stroke, SVG points, a mark at (x, y) or None, and what is told.

    `bar` is (left, right, top, bottom) of the point's interval, or None.
    """

    name: str
    colour: str
    dash: str
    points: str
    x: float | None
    y: float | None
    told: str
    bar: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, repr=False)
class Plot(Short):
    """A plot: title, labels of the axes, ticks as (place, text), and lines."""

    title: str
    xlabel: str
    xticks: Sequence[tuple[float, str]]
    yticks: Sequence[tuple[float, str]]
    lines: list[Line] = field(default_factory=list)


def stroke(n: int) -> tuple[str, str]:
    """Return colour and dash of a run's line."""
    return STROKES[n % len(STROKES)]


def curves(collected: Collected) -> list[Plot]:
    """Return a plot of accuracy against threshold for each contour mode and IoU threshold."""
    plots = []
    for mode in ("largest", "all"):
        for iou in sorted({*V2_IOUS, collected.config.iou_thr}):
            contours = "largest contour" if mode == "largest" else "all contours"
            plot = Plot(
                f"IoU {iou:g}, {contours}, percent of the images",
                "threshold, share of the map's maximum",
                [(WIDTH * k / 4, f"{k / 4:g}") for k in range(5)],
                [(HEIGHT * k / 4, f"{100 - 25 * k}") for k in range(5)],
            )
            for n, run in enumerate(collected.runs):
                thresholds = np.array(run.result.thresholds)
                curve = run.result.curve(mode, iou)
                x, y = thresholds * WIDTH, HEIGHT - curve / 100 * HEIGHT
                best = int(np.flatnonzero(curve == curve.max())[0])
                told = f"{curve[best]:.2f} at {thresholds[best]:.4g}"
                plot.lines.append(
                    Line(run.name, *stroke(n), svg_points(x, y), x[best], y[best], told)
                )
            plots.append(plot)
    return plots


def profiles(collected: Collected) -> Plot | None:
    """Return the radial profiles of the runs' ERF maps, each as a share of its highest ring."""
    plot = Plot(
        "Radial profile: mean of the map at each distance from its centre",
        "distance from the centre, share of half the image",
        [(WIDTH * k / 4, f"{k / 4:g}") for k in range(5)],
        [(HEIGHT * k / DECADES, f"{10.0**-k:g}") for k in range(DECADES + 1)],
    )
    for n, run in enumerate(collected.runs):
        found = collected.erf.get(run.name)
        if found is None or found.map is None:
            continue
        profile = radial_profile(found.map.erf.map)
        x = np.linspace(0, 1, len(profile)) * WIDTH
        share = np.maximum(profile / profile.max(), 10.0**-DECADES)
        y = -np.log10(share) / DECADES * HEIGHT
        middle = share[len(share) // 2]
        told = f"{middle:.2g} of its maximum half way, {share[-1]:.2g} at the edge"
        plot.lines.append(Line(run.name, *stroke(n), svg_points(x, y), None, None, told))
    return plot if plot.lines else None


def erf_and_score(collected: Collected, both: Together) -> Plot:
    """Return the runs' ERF sizes against MaxBoxAcc, with the intervals of the scores."""
    intervals = {run.name: run.intervals.find("max_box_acc") for run in collected.runs}
    found = [intervals[name] for name in both.names]
    low, high = min(s.low for s in found), max(s.high for s in found)
    xticks, x_of = _scale(both.erf.min(), both.erf.max(), WIDTH)
    yticks, y_of = _scale(low, high, HEIGHT)
    plot = Plot(
        "MaxBoxAcc (percent, with its interval) against the mean ERF size",
        "mean ERF size in pixels",
        xticks,
        [(HEIGHT - place, text) for place, text in yticks],
    )
    order = [run.name for run in collected.runs]
    for name, size, score in zip(both.names, both.erf, found, strict=True):
        x, y = x_of(size), HEIGHT - y_of(score.estimate)
        bar = (x, x, HEIGHT - y_of(score.high), HEIGHT - y_of(score.low))
        told = f"{size:.0f} pixels, {score.estimate:.2f} %"
        plot.lines.append(Line(name, *stroke(order.index(name)), "", x, y, told, bar))
    return plot


def svg_points(x: np.ndarray, y: np.ndarray) -> str:
    """Return the points of a polyline."""
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _scale(low: float, high: float, length: int):
    """Return ticks at round numbers, and the function from a value to its place on the axis."""
    margin = 0.08 * (high - low) or 0.5
    low, high = low - margin, high + margin
    step = 10.0 ** np.floor(np.log10(high - low))
    step *= next(f for f in (0.2, 0.5, 1, 2) if (high - low) / (f * step) <= 5.5)

    def place(value: float) -> float:
        return float((value - low) / (high - low) * length)

    ticks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return [(place(t), f"{t:g}") for t in ticks], place
