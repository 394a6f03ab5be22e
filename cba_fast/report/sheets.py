"""Contact sheets: the best, the worst and the most changed images with maps, boxes and scores."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import resume
from ..analysis.plots import make_figure, save_figure
from ..data.images import read_image
from ..errors import ImageError
from ..resume import Outputs
from ..shapes import pair
from ..wsol import read_maps
from .causes import HIT
from .collect import Collected, ReportRun
from .gallery import Images, image_paths, ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

FORMATS = ("png", "pdf")
# In inches: the width of a picture, between pictures, above a row, the colour bar, the legend.
SIDE, GAP, HEAD, BAR, FOOT = 2.4, 0.12, 0.5, 0.8, 0.4
HEAT = 0.55  # opacity of a map over its image
_RECORD = ".sheets.json"


def write_sheets(
    folder: str | os.PathLike, collected: Collected, images: Images = None
) -> list[Path]:
    """Write a contact sheet of each kind of images, and a strip for each image.

    The kinds are worst and best by the IoU of the first run, and changed: where the IoU of the
    first two runs differs most. ``<kind>.png`` and ``<kind>.pdf`` hold all images of a kind, and
    ``<kind>/<image>.png`` and ``.pdf`` one image; ``__`` stands for the slashes of its id. Each row
    has the image with its true box, and for each run the map over it, the predicted box and its
    IoU. What an earlier call wrote there is replaced.

    Args:
        folder: where the files go.
        collected: the runs.
        images: as for `cba_fast.report.write_report`.

    Raises:
        InputError: none of the images is below the folder `images`, or `folder` holds other files
            of these names.

    Example:
        >>> from pathlib import Path
        >>> from cba_fast.report import collect, write_sheets
        >>> from cba_fast.runs.settings import BoxConfig, ReportConfig
        >>> config = BoxConfig(cub_root=Path("CUB_200_2011"))
        >>> collected = collect({"CAM": "maps"}, config, ReportConfig(sheet_images=1))
        >>> written = write_sheets("sheets", collected, "CUB_200_2011/images")
        >>> [path.as_posix() for path in written[:2]]
        ['sheets/worst.png', 'sheets/worst.pdf']
    """
    folder, count = Path(folder), collected.report.sheet_images
    kinds = {kind: ids[:count] for kind, ids in ranked(collected).items()}
    stems = _stems([i for ids in kinds.values() for i in ids])
    figures = [(kind, kind, ids) for kind, ids in kinds.items()]
    figures += [(kind, f"{kind}/{stems[i]}", [i]) for kind, ids in kinds.items() for i in ids]
    names = [f"{name}.{suffix}" for _, name, _ in figures for suffix in FORMATS]
    outputs = Outputs(folder / _RECORD, names, resume.describe({}), owns_folder=False)
    outputs.prepare(overwrite=True)
    pictures = _Pictures(collected, list(stems), images)
    for _, name, ids in figures:
        figure = plot_strips(collected, ids, pictures)
        for suffix in FORMATS:
            save_figure(figure, folder / f"{name}.{suffix}")
    return [folder / name for name in names]


class _Pictures:
    """The photos, as far as they can be read, and the maps of some images."""

    def __init__(self, collected: Collected, ids: Sequence[str], images: Images):
        self.photos: dict[str, np.ndarray] = {}
        paths = image_paths(ids, images)
        longest = max(collected.report.thumbnail, 2 * 224)
        for image_id in (i for i in ids if i in paths):
            try:
                photo, _ = read_image(paths[image_id])
            except ImageError:
                continue
            photo.thumbnail((longest, longest))
            self.photos[image_id] = np.asarray(photo)
        self.maps: dict[str, Mapping[str, np.ndarray]] = {}
        for run in collected.runs:
            found = {i: run.found[i] for i in ids if i in run.found}
            read = read_maps(run.source, found, collected.reading)
            self.maps[run.name] = {i: u for some, maps in read for i, u in zip(some, maps)}


def plot_strips(collected: Collected, ids: Sequence[str], pictures: _Pictures) -> "Figure":
    """Draw a row for each image: the image with its true box, then the map of each run over it."""
    sizes = [pair([int(v) for v in collected.boxes.sizes[i]]) for i in ids]
    heights = [SIDE * min(2.0, max(0.3, h / w)) for w, h in sizes]
    place = _Places(1 + len(collected.runs), heights)
    figure = place.figure
    drawn = None
    for n, (image_id, size) in enumerate(zip(ids, sizes, strict=True)):
        photo = pictures.photos.get(image_id)
        ax = place.axes(n, 0)
        _empty(ax, size, photo)
        if photo is None:
            where: dict = {"ha": "center", "va": "center", "transform": ax.transAxes}
            ax.text(0.5, 0.5, "image not given", fontsize=7, color="#555", **where)
        _rectangles(ax, collected.boxes.scaled(image_id, size), size, size, truth=True)
        ax.set_title(_folded(image_id), fontsize=7)
        for column, run in enumerate(collected.runs, 1):
            ax = place.axes(n, column)
            drawn = _map(ax, collected, run, image_id, size, photo, pictures) or drawn
    if drawn is not None:
        bar = figure.colorbar(drawn, cax=place.bar(), ticks=[0, 1])
        bar.set_label("map, 0 to its maximum", fontsize=8)
    _legend(figure)
    return figure


class _Places:
    """Where the pictures of a sheet stand, in inches: much faster than a layout that is searched.

    Args:
        columns: pictures in a row.
        heights: of the pictures of each row.
    """

    def __init__(self, columns: int, heights: Sequence[float]):
        self.heights = heights
        self.width = columns * (SIDE + GAP) + GAP + BAR
        self.height = sum(heights) + len(heights) * (HEAD + GAP) + FOOT
        self.figure = make_figure((self.width, self.height))
        self.figure.set_layout_engine("none")

    def _add(self, left: float, bottom: float, width: float, height: float) -> "Axes":
        share = (left / self.width, bottom / self.height)
        return self.figure.add_axes((*share, width / self.width, height / self.height))

    def axes(self, row: int, column: int) -> "Axes":
        """Add the axes of a picture."""
        above = sum(self.heights[: row + 1]) + (row + 1) * HEAD + row * GAP
        return self._add(GAP + column * (SIDE + GAP), self.height - above, SIDE, self.heights[row])

    def bar(self) -> "Axes":
        """Add the axes of the colour bar, beside the first row."""
        height = self.heights[0]
        return self._add(self.width - BAR + GAP, self.height - HEAD - height, 0.15, height)


def _map(
    ax: "Axes",
    collected: Collected,
    run: ReportRun,
    image_id: str,
    size: tuple[int, int],
    photo: np.ndarray | None,
    pictures: _Pictures,
) -> "AxesImage | None":
    _empty(ax, size, photo)
    if image_id not in run.judged:
        ax.set_title(f"{run.name}\nno map", fontsize=8)
        return None
    u, judged = pictures.maps[run.name][image_id], run.judged[image_id]
    height, width = u.shape
    heat = u / max(1, int(u.max()))
    cmap, alpha = collected.report.colormap, HEAT if photo is not None else 1
    extent = (0, size[0], size[1], 0)
    drawn = ax.imshow(heat, extent=extent, alpha=alpha, cmap=cmap, vmin=0, vmax=1)
    truth = collected.boxes.scaled(image_id, (width, height))
    _rectangles(ax, truth, (width, height), size, truth=True)
    _rectangles(ax, [judged.box], (width, height), size, truth=False)
    answer = "localized" if judged.cause == HIT else judged.cause
    ax.set_title(f"{run.name}\nIoU {judged.iou:.2f}, {answer}", fontsize=8)
    return drawn


def _empty(ax: "Axes", size: tuple[int, int], photo: np.ndarray | None) -> None:
    if photo is not None:
        ax.imshow(photo, extent=(0, size[0], size[1], 0))
    ax.set(xlim=(0, size[0]), ylim=(size[1], 0), xticks=[], yticks=[], aspect="equal")


def _rectangles(ax: "Axes", boxes, scale, size, truth: bool) -> None:
    """Draw boxes of a grid `scale` (width, height) on an image of `size`; both corners belong."""
    from matplotlib.patches import Rectangle

    factor = np.array([size[0] / scale[0], size[1] / scale[1]])
    for box in np.asarray(boxes, dtype=float):
        corner, end = box[:2] * factor, (box[2:] + 1) * factor
        for width, style in ((3.0, _CASING), (1.6, _TRUTH if truth else _PREDICTED)):
            ax.add_patch(Rectangle(corner, *(end - corner), fill=False, lw=width, **style))


_CASING = {"ec": "k"}
_TRUTH: dict[str, Any] = {"ec": "#ffd60a", "ls": (0, (4, 2))}
_PREDICTED: dict[str, Any] = {"ec": "w"}


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    handles = []
    for label, style in (("true box (dashed)", _TRUTH), ("predicted box (solid)", _PREDICTED)):
        line = {"color": style["ec"], "ls": style.get("ls", "-"), "lw": 1.6, "label": label}
        casing = [withStroke(linewidth=3.0, foreground="k")]
        handles.append(Line2D([], [], path_effects=casing, **line))
    figure.legend(handles=handles, loc="lower left", ncols=2, fontsize=8, frameon=False)


def _folded(image_id: str) -> str:
    """Return an id over several lines, folder by folder, so that it does not leave its picture."""
    folders = image_id.replace("/", "/\n").split("\n")
    return "\n".join(part[n : n + 42] for part in folders for n in range(0, len(part), 42))


def _stems(ids: Sequence[str]) -> dict[str, str]:
    """Return a name of files for each id, which is the id as far as a file name may be."""
    stems: dict[str, str] = {}
    for image_id in dict.fromkeys(ids):
        folder, _, name = image_id.rpartition("/")
        stem = "__".join([*folder.split("/"), name.rpartition(".")[0] or name])
        plain = re.sub(r"[^\w.+-]", "_", stem).encode()[-150:]  # such as file systems take
        stem = plain.decode(errors="ignore").strip("_.")
        taken = sum(stem == other for other in stems.values())
        stems[image_id] = stem + f"_{len(stems)}" * bool(taken)
    return stems
