"""Plot localization against the ERF along the changes of a network."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...analysis.plots import make_figure
from .answer import KINDS
from .findings import AREA, BOX, SIZE, TITLES, UNITS, Effect, Findings, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = {
    "outer": ("#000000", "o"),
    "random": ("#1f77b4", "s"),
    "inner": ("#d62728", "D"),
    "blur": ("#2ca02c", "^"),
    "drop": ("#9467bd", "v"),
}


def plot_interventions(found: Findings, *, show: bool = False) -> "Figure":
    """Draw MaxBoxAcc against ERF size, ERF area and dose, one line per kind of change.

    Each line begins at the untouched network, a star at the crossing of the dashed lines, and goes
    to stronger changes. Markers hold the radius of the cut, controls that of the cut they match.
    Bars are the paired intervals of the difference to the untouched network, drawn from its value:
    where a bar crosses a dashed line, the difference may be chance.

    Args:
        found: the comparisons.
        show: make the figure in a window's backend, for `cba_fast.analysis.plots.show_figures`.
    """
    fig = make_figure((14, 5.2), show)
    axes = fig.subplots(1, 3, sharey=True)
    for ax, metric in zip(axes, (SIZE, AREA), strict=False):
        _panel(ax, found, metric)
    _by_dose(axes[2], found)
    axes[0].set_ylabel(f"{TITLES[BOX]} ({UNITS[BOX]})")
    handles, labels = axes[0].get_legend_handles_labels()
    note = (
        "Numbers: radius r of the cut in taps, or of the cut that a control matches. Bars:"
        f" {100 * found.confidence:g} % interval of the difference to the untouched network."
    )
    legend = {"title": note, "title_fontsize": 8.5, "fontsize": 9, "ncols": 6}
    fig.legend(handles, labels, loc="outside lower center", **legend)
    return fig


def _panel(ax: "Axes", found: Findings, metric: str) -> None:
    base = found.untouched.effects
    start = _value(base, metric), _value(base, BOX)
    if not math.isnan(start[0]):
        ax.axvline(start[0], color="0.5", lw=1, ls="--", zorder=1)
    ax.axhline(start[1], color="0.5", lw=1, ls="--", zorder=1)
    for kind in KINDS:
        rows = [r for r in found.of_kind(kind) if r.effects[metric].value is not None]
        if rows:
            _line(ax, kind, rows, metric, start)
    ax.plot(*start, "*", color="gold", mec="k", ms=17, zorder=2, label="untouched network")
    ax.set_xlabel(f"{TITLES[metric]} ({UNITS[metric]})")
    ax.grid(True, linestyle=":", alpha=0.4)
    ax.margins(0.06)


def _line(ax: "Axes", kind: str, rows: list[Row], metric: str, start: tuple) -> None:
    color, marker = _STYLES[kind]
    x = [_value(r.effects, metric) for r in rows]
    y = [_value(r.effects, BOX) for r in rows]
    above = 5 if kind == "outer" else 3
    line = [start[0], *x], [start[1], *y]
    ax.plot(*line, "-", color=color, lw=2 if kind == "outer" else 1.2, alpha=0.6, zorder=2)
    for row, a, b in zip(rows, x, y, strict=True):
        bars: dict[str, Any] = {
            "xerr": _bar(row, metric, a, start[0]),
            "yerr": _bar(row, BOX, b, start[1]),
        }
        ax.errorbar(a, b, fmt="none", ecolor=color, elinewidth=0.9, alpha=0.5, zorder=2, **bars)
        ax.plot(a, b, marker, color=color, mec="w", mew=0.6, ms=11, zorder=above)
        if row.setting.radius is not None:
            text: dict[str, Any] = {
                "ha": "center",
                "va": "center_baseline",
                "fontsize": 7,
                "color": "w",
            }
            ax.text(a, b, str(row.setting.radius), zorder=above + 0.5, clip_on=True, **text)
    ax.plot([], [], f"-{marker}", color=color, label=KINDS[kind])


def _by_dose(ax: "Axes", found: Findings) -> None:
    """Draw MaxBoxAcc from dose to dose, the kinds beside each other."""
    doses = list(dict.fromkeys(r.setting.dose for r in found.rows))
    base = _value(found.untouched.effects, BOX)
    ax.axhline(base, color="0.5", lw=1, ls="--", zorder=1)
    for number, kind in enumerate(KINDS):
        rows, (color, marker) = found.of_kind(kind), _STYLES[kind]
        if not rows:
            continue
        x = [doses.index(r.setting.dose) + 0.12 * (number - 2) for r in rows]
        y = [_value(r.effects, BOX) for r in rows]
        ax.plot([0, *x], [base, *y], "-", color=color, lw=1, alpha=0.5)
        for row, a, b in zip(rows, x, y, strict=True):
            bar = _bar(row, BOX, b, base)
            ax.errorbar(a, b, yerr=bar, fmt=marker, color=color, ms=5, elinewidth=0.9)
    ax.plot(0, base, "*", color="gold", mec="k", ms=17)
    ax.set_xticks(range(len(doses)), ["untouched", *(d.removeprefix("r = ") for d in doses[1:])])
    radii = all(r.setting.radius is not None for r in found.rows[1:])
    ax.set_xlabel("radius r (taps)" if radii else "dose (change of the feature maps)")
    ax.grid(True, linestyle=":", alpha=0.4)


def _value(effects: Mapping[str, Effect], metric: str) -> float:
    value = effects[metric].value
    return math.nan if value is None else value


def _bar(row: Row, metric: str, value: float, base: float) -> list[list[float]] | None:
    effect = row.effects[metric]
    if effect.low is None or effect.high is None:
        return None
    # A percentile interval need not contain the estimate; a bar cannot end beyond its point.
    return [[max(0.0, value - base - effect.low)], [max(0.0, effect.high - (value - base))]]
