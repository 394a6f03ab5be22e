"""Report an ERF map's area ratios and shape descriptors, in print and in a JSON file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import ops
from ..errors import InputError
from ..files import write_json, write_npy
from ..short import Short
from . import AreaRatio, ErfMap, ErfShape, area_ratio, erf_shape, scale_free_area_ratio
from .maps import THRESHOLDS


@dataclass(repr=False)
class MapRun(Short):
    """A finished ERF map with its area ratios and shape descriptors.

    Attributes:
        erf: the map.
        ratios: its area ratios as published, see :func:`~cba_fast.erf.area_ratio`; none where the
            map belongs to another position than the centre, as their squares are central.
        notes: lines to print at the end of the run.
        scale_free: its area ratios without the logarithm.
        shape: its shape descriptors.
        pixels: by share, the fewest pixels that hold it, wherever they lie.
    """

    erf: ErfMap
    ratios: list[AreaRatio]
    notes: list[str]
    scale_free: list[AreaRatio]
    shape: ErfShape
    pixels: dict[float, int]


@dataclass(repr=False)
class DepthRun(Short):
    """The finished ERF maps of the layers of a network.

    Attributes:
        layers: by the layer's name, in the order in which they run; None where the map is zero
            everywhere, because no feature at the position is above zero.
        notes: lines to print at the end of the run.
    """

    layers: dict[str, MapRun | None]
    notes: list[str]


def with_figures(erf: ErfMap, notes: list[str], *, central: bool = True) -> MapRun:
    """Return a map with its figures; only maps of the central position have area ratios.

    Raises:
        InputError: the map is zero everywhere, or no ERF map for another reason.
    """
    try:
        shape = erf_shape(erf.map)
    except ValueError as e:
        raise InputError(f"no ERF map: {e}") from e
    sizes = ops.erf_size(torch.from_numpy(erf.map)[None, None], list(THRESHOLDS))[0]
    pixels = dict(zip(THRESHOLDS, sizes.tolist(), strict=True))
    ratios = [rule(erf.map) if central else [] for rule in (area_ratio, scale_free_area_ratio)]
    return MapRun(erf, ratios[0], notes, ratios[1], shape, pixels)


def json_beside(output: str | os.PathLike) -> Path:
    """Return the path of the JSON file that :func:`write_map` writes beside `output`."""
    return Path(output).with_suffix(".json")


def write_map(
    output: str | os.PathLike, found: MapRun | DepthRun, definition: str, settings: dict
) -> None:
    """Write an ERF map, and a JSON file beside it that describes it.

    The JSON object has ``definition``, ``num_images``, ``size`` (H, W), ``shape`` (the fields of
    :class:`~cba_fast.erf.ErfShape`), ``area_ratio_log10_published`` and ``area_ratio_scale_free``
    (lists of threshold, side, ratio), ``pixels`` (by share) and ``settings``. A run over several
    layers has a list ``layers`` of such objects, and one array (L,H,W) of their maps.

    Args:
        output: the ``.npy`` file.
        found: the map, or those of several layers.
        definition: "study" or "replknet", see docs/erf.md.
        settings: how the map was measured, as JSON values.
    """
    runs = found.layers if isinstance(found, DepthRun) else {"": found}
    first = next(run for run in runs.values() if run is not None).erf
    each = {name: {} if run is None else _told(run) for name, run in runs.items()}
    if isinstance(found, DepthRun):
        told = {"layers": [{"layer": name, **figures} for name, figures in each.items()]}
        maps = np.stack(
            [np.zeros_like(first.map) if r is None else r.erf.map for r in runs.values()]
        )
    else:
        told, maps = each[""], first.map
    description = {
        "definition": definition,
        "num_images": first.count,
        "size": list(first.map.shape),
        **told,
        "settings": settings,
    }
    write_json(json_beside(output), description)
    write_npy(output, maps)  # written last, so that no map lacks its description


def _told(run: MapRun) -> dict:
    return {
        "shape": run.shape.as_dict(),
        "area_ratio_log10_published": [r._asdict() for r in run.ratios],
        "area_ratio_scale_free": [r._asdict() for r in run.scale_free],
        "pixels": {f"{share:g}": count for share, count in run.pixels.items()},
    }


def ratio_rows(ratios: Sequence[AreaRatio], variant: str = "published, after log10") -> list[str]:
    """Return a line to print for each area ratio of an ERF map."""
    return [
        f"ERF map: {r.threshold:.0%} of the contribution in "
        + (
            f"no square inside the map ({variant})"
            if r.side is None
            else f"{r.ratio:.2%} of the area (side {r.side}; {variant})"
        )
        for r in ratios
    ]


def map_rows(found: MapRun) -> list[str]:
    """Return the lines to print on an ERF map: both kinds of area ratios, and its shape."""
    s, (h, w) = found.shape, found.erf.map.shape
    return [
        *ratio_rows(found.ratios),
        *ratio_rows(found.scale_free, "scale-free"),
        "ERF map: "
        + ", ".join(f"{p:.0%} in {n} pixels ({n / (h * w):.2%})" for p, n in found.pixels.items()),
        f"ERF map: sigma {s.sigma_major:.1f} and {s.sigma_minor:.1f} pixels, axis ratio"
        f" {s.axis_ratio:.3f}, centre ({s.center_y:.1f}, {s.center_x:.1f})",
        f"ERF map: {s.cross_share:.1%} on the central cross, fourfold {s.fourfold:+.3f}, roundness"
        f" {s.roundness:.3f}, participation {s.participation:.2%}",
    ]


def depth_rows(found: DepthRun) -> list[tuple[str, ...]]:
    """Return a row for each layer: its name, pixels that hold 20 and 50 %, two squares, sigma."""
    rows: list[tuple[str, ...]] = []
    for name, run in found.layers.items():
        if run is None:
            rows.append((name, "0", "0", "none", "none", "none"))
            continue
        free = {r.threshold: r.ratio for r in run.scale_free}
        squares = [free.get(t) for t in (0.5, 0.99)]
        rows.append(
            (
                name,
                *(str(run.pixels[p]) for p in (0.2, 0.5)),
                *("none" if ratio is None else f"{ratio:.2%}" for ratio in squares),
                f"{run.shape.sigma_major:.1f} x {run.shape.sigma_minor:.1f}",
            )
        )
    return rows
