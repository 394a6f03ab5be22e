"""Does a larger effective receptive field localize better? ERF sizes against MaxBoxAcc."""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.textlines import shown, unprintable
from ..errors import InputError
from ..npy import read_npy
from ..runs.erf.statistics import SizeStats, size_stats
from .documents import read_document
from .points import Point, read_points
from .tables import PaperTable

# Larger whole numbers are not exact in float64; no image has as many pixels, and the squares of
# sizes near the largest float would overflow.
MOST_PIXELS = 2**53

MODEL_KEYS = ("name", "erf_path", "maxboxacc")


@dataclass(frozen=True)
class ModelScore:
    """One model of the analysis.

    Attributes:
        name: its label.
        erf: statistics of its ERF sizes.
        maxboxacc: MaxBoxAcc in percent.
        family: its family, where known.
    """

    name: str
    erf: SizeStats
    maxboxacc: float
    family: str = ""


@dataclass(frozen=True)
class Fit:
    """The line MaxBoxAcc = slope * ERF mean + intercept, and how well it explains the scores.

    Attributes:
        slope: percent per pixel.
        intercept: percent.
        r2: 1 - ss_res / (ss_tot + 1e-8).
        pearson: the correlation coefficient; None where all scores are equal (undefined).
        p_value: two-sided, of no correlation under normality; None for fewer than 3 models (it
            says nothing there) or without `pearson`.
        count: number of models.
    """

    slope: float
    intercept: float
    r2: float
    pearson: float | None
    p_value: float | None
    count: int


def load_sizes(path: str | os.PathLike) -> np.ndarray:
    """Read a ``.npy`` file of ERF sizes, (N,) or (N,1), as a float64 vector.

    Raises:
        InputError: the file is missing, is not a NumPy array file, holds another shape, no value,
            or values that are no numbers of pixels: NaN, negative, or above `MOST_PIXELS`.
    """
    try:
        sizes = read_npy(path)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file (paths are relative to the working directory)"
        ) from None
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise InputError(f"{path}: not a .npy file of numbers: {reason}") from e
    if sizes.dtype.kind not in "fiu":
        raise InputError(f"{path}: not a .npy file of real numbers")
    if sizes.ndim == 2 and sizes.shape[1] == 1:
        sizes = sizes[:, 0]
    if sizes.ndim == 2:
        raise InputError(
            f"{path}: sizes for {sizes.shape[1]} values of p, shape {sizes.shape}; the analysis"
            " needs one value: run erf-compute with a single `p`"
        )
    if sizes.ndim != 1 or sizes.size == 0:
        raise InputError(f"{path}: expected a vector of ERF sizes, got shape {sizes.shape}")
    sizes = sizes.astype(np.float64)
    bad = sizes[~((sizes >= 0) & (sizes <= MOST_PIXELS))]
    if bad.size:
        raise InputError(
            f"{path}: ERF sizes are numbers of pixels, 0 to {MOST_PIXELS:.3g}, got {bad[0]:.6g}"
        )
    return sizes


def percent(maxboxacc: float) -> float:
    """Return MaxBoxAcc in percent: values up to 1 are fractions, as the study takes them."""
    return maxboxacc * 100 if maxboxacc <= 1 else maxboxacc


def load_models(path: str | os.PathLike) -> list[ModelScore]:
    """Read models and their ERF sizes from a list, or from the CSV of `collect-erf-wsol`.

    A list is JSON or YAML, of ``{"name", "erf_path", "maxboxacc"}`` and, if wanted, ``"family"``;
    a file that ends in ``.csv`` has the columns of `Point`. ``erf_path`` is relative to the working
    directory; MaxBoxAcc is a fraction (up to 1) or percent.

    Raises:
        InputError: the file is neither, an entry lacks a key or has an unknown one, a value does
            not fit, or two models of a list have one name; the message names the file and the
            entry.
    """
    if Path(path).suffix == ".csv":
        points = read_points(path)
        if not points:
            raise InputError(f"{path}: no points below the header")
        return score_points(points)
    entries = read_document(Path(path))
    if isinstance(entries, dict) and entries.keys() & {"experiments", "grid"}:
        raise InputError(f"{path}: a plan; collect-erf-wsol runs it and writes a CSV to give here")
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{path}: expected a non-empty list of {{{', '.join(MODEL_KEYS)}}}, or a .csv of points"
        )
    found: dict[str, ModelScore] = {}
    for i, entry in enumerate(entries, 1):
        model = _entry(entry, f"{path}, entry {i}")
        if model.name in found:
            number = list(found).index(model.name) + 1
            raise InputError(
                f"{path}, entry {i}: {model.name!r} is also the name of entry {number}"
            )
        found[model.name] = model
    return list(found.values())


def score_points(points: Sequence[Point]) -> list[ModelScore]:
    """Return the models of a CSV's points, their size files read.

    Raises:
        InputError: a size file cannot be used; the message names it.
    """
    return [
        ModelScore(p.model_name, size_stats(load_sizes(p.erf_path)), p.wsol * 100, p.family)
        for p in points
    ]


def fit_line(erf_means: Sequence[float], scores: Sequence[float]) -> Fit | None:
    """Fit scores = slope * erf_means + intercept by least squares.

    R2 = 1 - ss_res / (ss_tot + 1e-8), the study's, where ss_res is the sum of squared residuals and
    ss_tot that of deviations from the mean; equal scores thus give 1 for their (exact) fit.

    Args:
        erf_means: (M,) mean ERF sizes.
        scores: (M,) MaxBoxAcc.

    Returns:
        The fit; None where no line is determined: fewer than 2 models, or equal `erf_means`.

    Raises:
        ValueError: the lengths differ or a value is not finite.
    """
    from scipy import stats

    x, y = np.asarray(erf_means, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"expected two finite vectors of one length, got {x.shape} and {y.shape}")
    if len(x) < 2 or _equal(x):
        return None
    with warnings.catch_warnings():
        # Equal scores: SciPy warns that its r is not defined; `pearson` says so below.
        warnings.simplefilter("ignore", RuntimeWarning)
        line = stats.linregress(x, y)
    residuals = y - (line.slope * x + line.intercept)
    r2 = 1 - (residuals**2).sum() / (((y - y.mean()) ** 2).sum() + 1e-8)
    pearson = p_value = None
    if not _equal(y):
        pearson = float(line.rvalue)
        p_value = float(line.pvalue) if len(x) > 2 else None
    return Fit(float(line.slope), float(line.intercept), float(r2), pearson, p_value, len(x))


def fit_models(models: Sequence[ModelScore]) -> Fit | None:
    """Return :func:`fit_line` of the models' mean ERF sizes and MaxBoxAcc in percent."""
    return fit_line([m.erf.mean for m in models], [m.maxboxacc for m in models])


def report_lines(models: Sequence[ModelScore], fit: Fit | None) -> list[str]:
    """Return the printed statistics: one line per model, then the fit or why there is none."""
    width = max(len(m.name) for m in models)
    lines = [
        f"{m.name:<{width}}  ERF mean {m.erf.mean:.2f}, std {m.erf.std:.2f}"
        f" ({m.erf.count} images)  MaxBoxAcc {m.maxboxacc:.2f}%"
        for m in models
    ]
    if len(models) == 1:
        return [*lines, "One model only: no correlation and no fit."]
    if fit is None:
        return [*lines, "All ERF means are equal: no line is determined, Pearson is undefined."]
    if fit.pearson is None:
        pearson = "undefined (all MaxBoxAcc are equal)"
    else:
        pearson = f"{fit.pearson:.4f}"
        if fit.p_value is not None:
            pearson += f" (p = {fit.p_value:.3g}, {fit.count} models)"
    return [
        *lines,
        f"Pearson correlation (ERF mean, MaxBoxAcc): {pearson}",
        f"Linear fit: MaxBoxAcc = {fit.slope:.6g} * ERF mean + {fit.intercept:.6g}",
        f"R2: {fit.r2:.4f}",
    ]


def models_table(models: Sequence[ModelScore], fit: Fit | None) -> PaperTable:
    """Return the models' figures as a table, with the fit in its caption."""
    heads = ("Model", "ERF mean", "ERF std", "Images", "MaxBoxAcc %")
    rows = [
        (
            m.name,
            f"{m.erf.mean:.2f}",
            f"{m.erf.std:.2f}",
            str(m.erf.count),
            f"{m.maxboxacc:.2f}",
        )
        for m in models
    ]
    told = "ERF size (pixels) and localization." + "".join(
        f" {line}." for line in report_lines(models, fit)[len(models) :]
    )
    return PaperTable("erf_vs_wsol", told, heads, rows)


def _entry(entry: object, where: str) -> ModelScore:
    if not isinstance(entry, dict):
        keys = ", ".join(MODEL_KEYS)
        raise InputError(f"{where}: expected an object with {keys}, got {shown(entry)}")
    missing = [k for k in MODEL_KEYS if k not in entry]
    unknown = [k for k in entry if k not in (*MODEL_KEYS, "family")]
    if missing or unknown:
        raise InputError(f"{where}: missing keys {missing}, unknown keys {unknown}")
    for key in ("name", "erf_path", *{"family"} & entry.keys()):
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise InputError(f"{where}: {key} must be a non-empty string, got {shown(entry[key])}")
        if what := unprintable(entry[key]):
            raise InputError(f"{where}: {key} {entry[key]!r} holds {what}")
    score = entry["maxboxacc"]
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not number or not math.isfinite(score) or not 0 <= score <= 100:
        raise InputError(f"{where}: maxboxacc must be a number in 0 to 100, got {shown(score)}")
    try:
        sizes = load_sizes(entry["erf_path"])
    except InputError as e:
        raise InputError(f"{where}: {e}") from e
    family = entry.get("family", "")
    return ModelScore(entry["name"], size_stats(sizes), percent(float(score)), family)


def _equal(values: np.ndarray) -> bool:
    # Within rounding: 0.8968 * 100 and 89.68 are one score, and their difference is no spread.
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())
