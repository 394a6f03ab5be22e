"""The effective receptive fields of a report's runs, and what they have to do with the scores."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import resume
from ..analysis.correlations import BetweenModels, between_models
from ..analysis.models import load_sizes
from ..erf import ErfMap
from ..erf.report import MapRun, json_beside, with_figures
from ..errors import InputError
from ..files import read_json
from ..npy import read_npy
from ..runs.erf.statistics import size_stats
from ..short import Short

# What must agree before the sizes of two runs are compared, in the settings of `erf-compute`.
_SAME = ("input_size", "sizes.shares", "sizes.score", "sizes.layer")
# What the page tells of a map, of the settings in its JSON file.
_OF_MAPS = ("input_size", "layer", "point", "score")


@dataclass(frozen=True)
class Sizes:
    """ERF sizes in pixels: mean, standard deviation (ddof 0), number of images."""

    mean: float
    std: float
    count: int


@dataclass(repr=False)
class RunErf(Short):
    """The ERF of a run's network.

    Attributes:
        sizes: the ERF sizes, or None.
        map: the ERF map with its figures, or None.
        told: how they were measured, as far as their files say: by setting.
    """

    sizes: Sizes | None = None
    map: MapRun | None = None
    told: dict[str, object] = field(default_factory=dict)


def read_erf(*paths: str | os.PathLike) -> RunErf:
    """Read files of ERF sizes and of an ERF map, as `erf-compute` and `erf-map` write them.

    Args:
        paths: ``.npy`` files, in any order; a map is (H,W) float64.

    Raises:
        InputError: a file is neither, or there are two of a kind; the message names it.

    Example:
        >>> import numpy as np
        >>> from cba_fast.report import read_erf
        >>> np.save("erf_sizes.npy", np.float32([90, 110]))
        >>> np.save("erf_map.npy", np.ones((32, 32)))
        >>> found = read_erf("erf_sizes.npy", "erf_map.npy")
        >>> found.sizes, found.map.pixels[0.5]
        (Sizes(mean=100.0, std=10.0, count=2), 512)
    """
    found = RunErf()
    for path in map(Path, paths):
        try:
            array = read_npy(path)
        except (OSError, ValueError) as e:
            raise InputError(f"{path}: not a .npy file of numbers: {e}") from e
        is_map = array.ndim > 1 and array.dtype == np.float64
        if (found.map if is_map else found.sizes) is not None:
            raise InputError(f"{path}: a second file of ERF {'maps' if is_map else 'sizes'}")
        if is_map:
            _add_map(found, path, array)
        else:
            stats = size_stats(load_sizes(path))
            found.sizes = Sizes(stats.mean, stats.std, stats.count)
            record = resume.beside(path, {}).recorded() or {}
            known = _flat(record.get("settings", {}))
            found.told |= {key: known[key] for key in (*_SAME, "sizes.point") if key in known}
    return found


def _add_map(found: RunErf, path: Path, array: np.ndarray) -> None:
    if array.ndim != 2:
        raise InputError(f"{path}: an array of shape {array.shape} is not one ERF map")
    told = read_json(json_beside(path)) if json_beside(path).is_file() else {}
    told = told if isinstance(told, dict) else {}
    count = told.get("num_images")
    try:
        erf = ErfMap(array, count if isinstance(count, int) else 0, [])
        found.map = with_figures(erf, [])
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    settings = told.get("settings")
    inside = _flat(settings) if isinstance(settings, dict) else {}
    found.told |= {f"map.{key}": inside[key] for key in _OF_MAPS if key in inside}
    if "definition" in told:
        found.told["map.definition"] = told["definition"]


def _flat(settings: Mapping[str, object]) -> dict[str, object]:
    """Return settings with those of an inner mapping under ``outer.inner``."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        inner = value.items() if isinstance(value, dict) else ()
        flat |= {f"{key}.{k}": v for k, v in inner} if inner else {key: value}
    return flat


def check_names(erf: Mapping[str, RunErf], runs: Iterable[str]) -> None:
    """Refuse an ERF of a run that the report does not have.

    Raises:
        InputError: the message names it, and the runs.
    """
    runs = list(runs)
    for name in erf:
        if name not in runs:
            raise InputError(f"the ERF of {name!r} belongs to none of the runs {', '.join(runs)}")


@dataclass(frozen=True, repr=False)
class Together(Short):
    """ERF size and score of the runs that have both.

    Attributes:
        names: the runs.
        erf, score: (N,) mean ERF size in pixels, and MaxBoxAcc in percent.
        found: their correlation; None if there is none, and `reason` says why.
    """

    names: list[str]
    erf: np.ndarray
    score: np.ndarray
    found: BetweenModels | None
    reason: str = ""


def together(
    erf: Mapping[str, RunErf], scores: Mapping[str, float], confidence: float
) -> Together | None:
    """Correlate ERF size and score over runs; None if fewer than two runs have both.

    Args:
        erf: the ERF by run.
        scores: MaxBoxAcc in percent by run.
        confidence: of the interval.
    """
    names = [n for n in scores if n in erf and erf[n].sizes is not None]
    if len(names) < 2:
        return None
    sizes = [s for n in names if (s := erf[n].sizes) is not None]
    x, y = np.array([s.mean for s in sizes]), np.array([scores[n] for n in names])
    different = _different(erf[n].told for n in names)
    networks = len(set(sizes))
    reason = ""
    if different:
        reason = f"their ERF sizes were measured in different ways ({', '.join(different)} differ)"
    elif networks < len(names):
        reason = "several of the runs have the same ERF, as those of one network have"
    elif len(names) < 3:
        reason = "a line through two points always fits"
    elif np.ptp(y) == 0:
        reason = "their scores are equal"
    if reason:
        return Together(names, x, y, None, reason)
    return Together(names, x, y, between_models("erf_size", x, y, confidence))


def _different(told: Iterable[Mapping[str, object]]) -> list[str]:
    """Return which settings of the sizes differ, of those that are known of two runs."""
    told = list(told)
    known = {key: [repr(t[key]) for t in told if key in t] for key in _SAME}
    return [key.rpartition(".")[2] for key, values in known.items() if len(set(values)) > 1]
