"""Report an ERF map's area ratios and shape descriptors, in print and in a JSON file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import write_json, write_npy
from ..short import Short
from . import AreaRatio, ErfMap, ErfShape, area_ratio, erf_shape, scale_free_area_ratio


@dataclass(repr=False)
class MapRun(Short):
    """A finished ERF map with its area ratios and shape descriptors.

    Attributes:
        erf: the map.
        ratios: its area ratios as published, see :func:`~cba_fast.erf.area_ratio`.
        notes: lines to print at the end of the run.
        scale_free: its area ratios without the logarithm.
        shape: its shape descriptors.
    """

    erf: ErfMap
    ratios: list[AreaRatio]
    notes: list[str]
    scale_free: list[AreaRatio]
    shape: ErfShape


def with_figures(erf: ErfMap, notes: list[str]) -> MapRun:
    """Return a map with its area ratios and shape descriptors.

    Raises:
        InputError: the map is zero everywhere, or no ERF map for another reason.
    """
    try:
        ratios = area_ratio(erf.map)
    except ValueError as e:
        raise InputError(f"no ERF map: {e}") from e
    return MapRun(erf, ratios, notes, scale_free_area_ratio(erf.map), erf_shape(erf.map))


def json_beside(output: str | os.PathLike) -> Path:
    """Return the path of the JSON file that :func:`write_map` writes beside `output`."""
    return Path(output).with_suffix(".json")


def write_map(output: str | os.PathLike, found: MapRun, definition: str, settings: dict) -> None:
    """Write an ERF map, and a JSON file beside it that describes it.

    The JSON object has ``definition``, ``num_images``, ``size`` (H, W), ``shape`` (the fields of
    :class:`~cba_fast.erf.ErfShape`), ``area_ratio_log10_published`` and ``area_ratio_scale_free``
    (lists of threshold, side, ratio), and ``settings``.

    Args:
        output: the ``.npy`` file.
        found: the map.
        definition: "study" or "replknet", see docs/erf.md.
        settings: how the map was measured, as JSON values.
    """
    description = {
        "definition": definition,
        "num_images": found.erf.count,
        "size": list(found.erf.map.shape),
        "shape": found.shape.as_dict(),
        "area_ratio_log10_published": [r._asdict() for r in found.ratios],
        "area_ratio_scale_free": [r._asdict() for r in found.scale_free],
        "settings": settings,
    }
    write_json(json_beside(output), description)
    write_npy(output, found.erf.map)  # written last, so that no map lacks its description


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
    s = found.shape
    return [
        *ratio_rows(found.ratios),
        *ratio_rows(found.scale_free, "scale-free"),
        f"ERF map: sigma {s.sigma_major:.1f} and {s.sigma_minor:.1f} pixels, axis ratio"
        f" {s.axis_ratio:.3f}, centre ({s.center_y:.1f}, {s.center_x:.1f})",
        f"ERF map: {s.cross_share:.1%} on the central cross, fourfold {s.fourfold:+.3f}, roundness"
        f" {s.roundness:.3f}, participation {s.participation:.2%}",
    ]
