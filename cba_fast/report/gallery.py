"""The gallery of a report: pictures, heatmaps, and the boxes of all thresholds of some images."""

import base64
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..analysis.plots_erf import DECADES, decades
from ..data.images import read_image
from ..data.textlines import counted
from ..errors import ImageError, InputError
from ..ops import box_sweep
from ..shapes import pair
from ..short import Short
from ..wsol import read_maps
from .collect import Collected

JPEG_QUALITY = 82
Images = str | os.PathLike | Mapping[str, Path] | None
ERF_COLORS = "magma"
COLORMAPS = {
    "viridis": cv2.COLORMAP_VIRIDIS,
    "jet": cv2.COLORMAP_JET,
    ERF_COLORS: cv2.COLORMAP_MAGMA,
}


@dataclass(repr=False)
class Shown(Short):
    """One run's map of an image, as the page shows it.

    Attributes:
        heat: data URI of the coloured map.
        width, height: of the map; `truth` and `steps` count its pixels.
        truth: the true boxes x0, y0, x1, y1.
        steps: the boxes over ascending thresholds: [first threshold, x0, y0, x1, y1], one entry
            where the box changes.
        box, iou, cause: at the run's best threshold.
    """

    heat: str
    width: int
    height: int
    truth: list[list[int]]
    steps: list[list[int]]
    box: tuple[int, int, int, int]
    iou: float
    cause: str


@dataclass(repr=False)
class Card(Short):
    """An image of the gallery; `photo` is a data URI or None, `shown` has an entry per run."""

    image_id: str
    folder: str
    photo: str | None
    size: tuple[int, int]
    shown: list[Shown | None]


def ranked(collected: Collected) -> dict[str, list[str]]:
    """Return all images of the first run in the orders worst and best, and changed with two runs.

    The last is by how much the IoU of the first two runs differs, over the images of both.
    """
    first, *others = collected.runs
    iou = {i: judged.iou for i, judged in first.judged.items()}
    orders = {
        "worst": sorted(iou, key=lambda i: iou[i]),
        "best": sorted(iou, key=lambda i: -iou[i]),
    }
    if others:
        other = others[0].judged
        both = [i for i in iou if i in other]
        orders["changed"] = sorted(both, key=lambda i: -abs(iou[i] - other[i].iou))
    return orders


def choose(collected: Collected) -> tuple[list[str], str]:
    """Choose the images of the gallery; return them and a sentence on how they were chosen."""
    first, *others = collected.runs
    iou = {i: judged.iou for i, judged in first.judged.items()}
    ids, count = list(iou), collected.report.gallery
    if len(ids) <= count:
        return ids, f"All {counted(len(ids), 'image')} that {first.name} has a map of."
    rng = np.random.default_rng(collected.report.seed)
    orders, near = ranked(collected), collected.config.iou_thr
    lists = {
        "the worst": orders["worst"],
        "the best": orders["best"],
        f"those closest to IoU {near:g}": sorted(ids, key=lambda i: abs(iou[i] - near)),
        "some drawn at random": [ids[k] for k in rng.permutation(len(ids))],
    }
    if others:
        lists[f"those that differ most from {others[0].name}"] = orders["changed"]
    chosen: dict[str, None] = {}
    for n in range(len(ids)):  # one of each kind in turn, so that all kinds get their share
        for one in lists.values():
            if len(chosen) < count and n < len(one):
                chosen.setdefault(one[n])
    text = (
        f"{counted(len(chosen), 'image')} of {len(ids)}, by the IoU of {first.name}: in equal "
        f"parts {', '.join(lists)}. They are not a fair sample; the tables count all images."
    )
    return list(chosen), text


def image_paths(ids: Iterable[str], images: Images) -> Mapping[str, Path]:
    """Return the file of each image, as far as it is known.

    Raises:
        InputError: none of the images lies below the folder `images`.
    """
    if images is None or isinstance(images, Mapping):
        return images or {}
    paths = {i: Path(images) / i for i in ids}
    if paths and not any(path.is_file() for path in paths.values()):
        raise InputError(f"{images}: holds none of the images, such as {next(iter(paths))}")
    return paths


def make_cards(collected: Collected, ids: list[str], images: Images) -> Iterator[Card]:
    """Yield the gallery's images with their maps and boxes.

    Args:
        collected: the runs.
        ids: the images to show.
        images: the folder below which the images lie under their ids, or the file of each id;
            None to show maps alone.

    Raises:
        InputError: none of the images lies below the folder `images`.
    """
    paths = image_paths(ids, images)
    shown: dict[str, list[Shown | None]] = {i: [None] * len(collected.runs) for i in ids}
    for n, run in enumerate(collected.runs):
        found = {i: run.found[i] for i in ids if i in run.found}
        for some, maps in read_maps(run.source, found, collected.reading):
            sweeps = box_sweep(maps, run.evaluator.thresholds).numpy()
            for image_id, u, sweep in zip(some, maps, sweeps, strict=True):
                shown[image_id][n] = _shown(collected, n, image_id, u, sweep)
    for image_id in ids:
        size = pair([int(v) for v in collected.boxes.sizes[image_id]])
        photo = None
        if image_id in paths:
            photo = _photo(paths[image_id], collected.report.thumbnail)
        folder = image_id.rpartition("/")[0].rpartition("/")[2]
        yield Card(image_id, folder, photo, size, shown[image_id])


def _shown(
    collected: Collected, run: int, image_id: str, u: np.ndarray, sweep: np.ndarray
) -> Shown:
    height, width = u.shape
    truth = collected.boxes.scaled(image_id, (width, height))
    new = np.append(True, (sweep[1:] != sweep[:-1]).any(axis=1))
    steps = [[int(t), *sweep[t].tolist()] for t in np.flatnonzero(new)]
    judged = collected.runs[run].judged[image_id]
    report = collected.report
    heat = _heat(u, report.thumbnail, COLORMAPS[report.colormap])
    return Shown(heat, width, height, truth.tolist(), steps, **vars(judged))


def _heat(u: np.ndarray, longest: int, colormap: int) -> str:
    """Return the coloured map as a data URI; the last colour is the map's maximum."""
    scale = min(1.0, longest / max(u.shape))
    size = [max(1, round(side * scale)) for side in u.shape[::-1]]
    small = cv2.resize(u, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    stretched = (255 * small / max(float(u.max()), 1.0)).round().clip(0, 255).astype(np.uint8)
    return _jpeg(cv2.applyColorMap(stretched, colormap))


def erf_picture(erf: np.ndarray, longest: int) -> str:
    """Return log10 of an ERF map over its maximum, coloured, as a data URI."""
    scale = min(1.0, longest / max(erf.shape))
    size = [max(1, round(side * scale)) for side in erf.shape[::-1]]
    small = decades(cv2.resize(erf, size, interpolation=cv2.INTER_AREA))
    levels = (255 * (1 + small / DECADES)).round().astype(np.uint8)
    return _jpeg(cv2.applyColorMap(levels, COLORMAPS[ERF_COLORS]))


def _photo(path: Path, longest: int) -> str | None:
    """Return a small copy of an image as a data URI; None if it cannot be read."""
    try:
        image, _ = read_image(path)
    except ImageError:
        return None
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return _jpeg(np.asarray(image)[:, :, ::-1])


def _jpeg(bgr: np.ndarray) -> str:
    ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not ok:
        raise OSError("a picture of the gallery could not be encoded as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def colour_bar(name: str) -> str:
    """Return the colour map as a CSS gradient from low to high."""
    levels = np.linspace(0, 255, 17).round().astype(np.uint8)[:, None]
    colours = cv2.applyColorMap(levels, COLORMAPS[name])[:, 0, ::-1]
    return f"linear-gradient(to right, {', '.join(f'rgb({r} {g} {b})' for r, g, b in colours)})"
