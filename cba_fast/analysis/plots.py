"""Pictures of the study: ERF size against localization, by model and by image."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..files import atomic_path
from .labels import name_points
from .models import Fit, ModelScore, fit_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAMILY_COLORS = {"replknet": "#ff7f0e", "convnext": "#2ca02c"}
MOST_NAMES = 60  # points that carry names; of more, those at the ends of both axes do
MOST_FAMILIES = 20  # that a legend names
_TIMELESS = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # equal runs, equal files
ERF_AXIS, SCORE_AXIS = "Mean ERF size (pixels)", "MaxBoxAcc (%)"


def plot_analysis(models: Sequence[ModelScore], fit: Fit | None, *, show: bool = False) -> "Figure":
    """Draw mean ERF size (x, standard deviation as error bar) against MaxBoxAcc (y, percent).

    Each model has a colour of its own, which its bar shares. The fitted line spans the points'
    range, with R2 in the legend. Up to `MOST_NAMES` points carry their models' names, else those
    with the lowest and highest sizes and scores; a name that finds no free place is left out.

    Args:
        models: at least one.
        fit: their fit, None for none.
        show: make the figure in a window's backend, for :func:`show_figures`.

    Raises:
        InputError: `show` without a display.
    """
    fig, ax = _figure(show)
    x, y = _places(models)
    colors = _model_colors(len(models))
    std = np.array([m.erf.std for m in models])
    # matplotlib takes a colour for each bar, which its types do not know.
    ax.errorbar(x, y, xerr=std, fmt="none", ecolor=colors, alpha=0.6)  # type: ignore[arg-type]
    label = "models (bar: std over images)"
    ax.scatter(x, y, s=36, c=colors, label=label, zorder=3)
    lines = [np.stack([np.linspace(x - std, x + std, 25), np.tile(y, (25, 1))]).reshape(2, -1)]
    if fit is not None:
        along = np.linspace(x.min(), x.max(), 100)
        lines.append(np.stack([along, fit.slope * along + fit.intercept]))
        label = f"linear fit (R² = {fit.r2:.2f})"
        ax.plot(*lines[1][:, [0, -1]], "--", c="0.3", label=label, zorder=1)
    _dress(ax, ERF_AXIS, SCORE_AXIS)
    _name_models(ax, models, np.hstack(lines))
    return fig


def plot_points(models: Sequence[ModelScore], *, show: bool = False) -> "Figure":
    """Draw mean ERF size (x) against MaxBoxAcc (y, percent), one colour per family.

    RepLKNet is orange and ConvNeXt green, as in the study; other families take the colours of
    matplotlib's cycle that are left, in the order of their names. Names as in
    :func:`plot_analysis`.

    Args:
        models: at least one.
        show: as in :func:`plot_analysis`.
    """
    fig, ax = _figure(show)
    colors = family_colors([m.family for m in models])
    shown, rest = list(colors)[:MOST_FAMILIES], set(list(colors)[MOST_FAMILIES:])
    groups = {family: [m for m in models if m.family == family] for family in shown}
    groups |= {f"and {len(rest)} more": [m for m in models if m.family in rest]} if rest else {}
    for label, group in groups.items():
        color = colors.get(label) or [colors[m.family] for m in group]
        ax.scatter(*_places(group), s=40, color=color, label=_legend_text(label))
    _dress(ax, ERF_AXIS, SCORE_AXIS)
    _name_models(ax, models)
    return fig


def _name_models(ax: "Axes", models: Sequence[ModelScore], lines: np.ndarray | None = None) -> None:
    """Name the models; see :func:`~cba_fast.analysis.labels.name_points`."""
    named = models if len(models) <= MOST_NAMES else extremes(models)
    _take_text_as_it_is(ax.figure.canvas.figure)  # the legend is drawn to find free places
    names = [(m.name, m.erf.mean, m.maxboxacc) for m in named]
    name_points(ax, names, _places(models), lines)


def _places(models: Sequence[ModelScore]) -> tuple[np.ndarray, np.ndarray]:
    """Return the models' places in both scatter plots: mean ERF size (x) and MaxBoxAcc (y)."""
    return np.array([m.erf.mean for m in models]), np.array([m.maxboxacc for m in models])


def plot_images(
    columns: Mapping[str, tuple[np.ndarray, np.ndarray]],
    xlabel: str,
    ylabel: str,
    *,
    show: bool = False,
) -> "Figure":
    """Draw one point per image and model, and each model's own least-squares line.

    Args:
        columns: (n,) x and (n,) y by model name; rows with NaN are left out.
        xlabel, ylabel: of the axes.
        show: as in :func:`plot_analysis`.
    """
    fig, ax = _figure(show)
    for (name, (x, y)), color in zip(columns.items(), _model_colors(len(columns))):
        known = np.isfinite(x) & np.isfinite(y)
        x, y = x[known], y[known]
        ax.scatter(x, y, s=10, color=color, alpha=0.35, linewidths=0)
        label = f"{_legend_text(name)} ({len(x)} images)"
        fit = fit_line(x, y) if len(x) else None
        if fit is None:
            ax.plot([], [], "-", color=color, label=f"{label}, no line")
            continue
        ends = np.array([x.min(), x.max()])
        r = "undefined" if fit.pearson is None else f"{fit.pearson:+.2f}"
        ax.plot(ends, fit.slope * ends + fit.intercept, "-", color=color, label=f"{label}, r {r}")
    _dress(ax, xlabel, ylabel)
    _legend_below(fig, ax, 2)
    return fig


@dataclass(frozen=True)
class Bar:
    """A statistic and its interval in a forest plot; `low` and `high` None draw the point alone."""

    label: str
    estimate: float
    low: float | None
    high: float | None


def plot_forest(
    groups: Mapping[str, Sequence[Bar]], labels: Sequence[str], *, show: bool = False
) -> "Figure":
    """Draw correlations with their intervals, group by group from top to bottom.

    Args:
        groups: the bars of each group by its title; what is undefined is left out.
        labels: all labels, in the order of their colours; the last one is drawn black and larger.
        show: as in :func:`plot_analysis`.
    """
    colors = dict(zip(labels, [*_model_colors(len(labels) - 1), "k"]))
    count = sum(len(bars) for bars in groups.values()) + len(groups)
    fig, ax = _figure(show, figsize=(8, 1.5 + 0.11 * count))
    y, ticks, seen = 0.0, [], set()
    for bars in groups.values():
        top = y
        for bar in bars:
            main = bar.label == labels[-1]
            if bar.low is not None and bar.high is not None:
                ax.plot(
                    [bar.low, bar.high], [y, y], color=colors[bar.label], lw=2.2 if main else 1.1
                )
            ax.plot(
                bar.estimate,
                y,
                "D" if main else "o",
                color=colors[bar.label],
                ms=5 if main else 3.5,
                label=None if bar.label in seen else bar.label,
            )
            seen.add(bar.label)
            y += 1
        ticks.append((top + max(y - 1, top)) / 2)
        y += 1
    ax.axvline(0, color="0.4", lw=1)
    ax.set_yticks(ticks, list(groups))
    ax.set_ylim(y - 0.5, -1)
    ax.set_xlim(-1, 1)
    label = "correlation with the IoU (after |: what is held fixed), and its interval"
    _dress(ax, label, "")
    ax.grid(False, axis="y")
    _legend_below(fig, ax, 4)
    return fig


def family_colors(families: Sequence[str]) -> dict[str, str]:
    """Return a colour for each family, in the order of the study's families, then by name."""
    from matplotlib import rcParams
    from matplotlib.colors import to_hex

    # A cycle may name its colours in any way ("tab:orange").
    cycle = [to_hex(c) for c in rcParams["axes.prop_cycle"].by_key()["color"]]
    free = [c for c in cycle if c not in FAMILY_COLORS.values()]
    others = sorted(set(families) - FAMILY_COLORS.keys())
    known = {f: c for f, c in FAMILY_COLORS.items() if f in families}
    return known | {f: free[i % len(free)] for i, f in enumerate(others)}


def _model_colors(count: int) -> list:
    from matplotlib import colormaps

    if count <= 10:
        return list(colormaps["tab10"].colors[:count])  # type: ignore[attr-defined]
    return list(colormaps["turbo"](np.linspace(0.05, 0.95, count)))


def extremes(models: Sequence[ModelScore]) -> list[ModelScore]:
    """Return the models with the lowest and highest mean ERF sizes and scores."""
    found = [
        end(models, key=key)
        for key in (lambda m: m.erf.mean, lambda m: m.maxboxacc)
        for end in (min, max)
    ]
    return [m for i, m in enumerate(found) if m not in found[:i]]


def save_figure(fig: "Figure", path: str | os.PathLike) -> None:
    """Write the figure, in the format that the file's ending names, in one step.

    Raises:
        InputError: matplotlib does not write such files.
    """
    check_picture(path)
    _take_text_as_it_is(fig)
    with atomic_path(path) as tmp:
        fig.savefig(tmp, dpi=200, metadata=_TIMELESS.get(tmp.suffix.lower()))


def _take_text_as_it_is(fig: "Figure") -> None:
    """Let no name be read as a formula: a name such as ``$x_{`` would end the drawing."""
    from matplotlib.text import Text

    for text in fig.findobj(Text):
        text.set_parse_math(False)


def _legend_text(name: str) -> str:
    """Return a name as legends show it: they leave out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def check_picture(path: str | os.PathLike) -> None:
    """Refuse a file name whose ending is not a picture format that matplotlib writes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = FigureCanvasAgg.get_supported_filetypes()
    suffix = os.path.splitext(os.fspath(path))[1][1:].lower()
    if suffix not in known:
        raise InputError(f"{path}: unknown picture format; use one of {', '.join(sorted(known))}")


def check_display() -> None:
    """Refuse to open windows where there are none, before a long run as well as after it."""
    import matplotlib.pyplot as plt

    # What pyplot falls back to without a display, and the backends that only write files.
    if plt.get_backend().lower() in {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}:
        raise InputError("`show` needs a display; without it, save the figure to a file")


def show_figures() -> None:
    """Open the figures that were made with ``show=True`` and wait until they are closed."""
    import matplotlib.pyplot as plt

    for number in plt.get_fignums():
        _take_text_as_it_is(plt.figure(number))
    plt.show()


def make_figure(figsize: tuple[float, float], show: bool = False) -> "Figure":
    """Return an empty figure of this size in inches; with `show`, one for :func:`show_figures`."""
    if show:
        import matplotlib.pyplot as plt

        check_display()
        return plt.figure(figsize=figsize, layout="constrained")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=figsize, layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def _figure(show: bool, figsize: tuple[float, float] = (7, 5)) -> tuple["Figure", "Axes"]:
    fig = make_figure(figsize, show)
    return fig, fig.add_subplot()


def _dress(ax: "Axes", xlabel: str, ylabel: str) -> None:
    """Label the axes; a figure has no title, because its caption is the paper's."""
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(True, linestyle="--", alpha=0.4)
    ax.set_axisbelow(True)
    ax.legend()


def _legend_below(fig: "Figure", ax: "Axes", columns: int) -> None:
    """Move the legend out of the axes, where points fill them."""
    if (legend := ax.get_legend()) is not None:
        legend.remove()
    fig.legend(loc="outside lower center", ncols=columns, fontsize=8)
