"""Ground-truth boxes of a split, from CUB_200_2011 or from wsolevaluation's metadata."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from ..errors import BoxError, ImageError, InputError
from ..short import Short
from . import cub, metadata
from .images import read_header
from .records import DEFAULT_SPLIT
from .textlines import counted, some

log = logging.getLogger("cba_fast")
MOST_OUTSIDE = 0.1  # where a larger share of the boxes lies outside, they fit other images


class HeaderSizes(dict):
    """(width, height) by image id, each read from the image's header when first asked for.

    A score needs the sizes of the images that have a map; the other files need not exist. `turned`
    lists the images read so far whose EXIF orientation turns them by a quarter.
    """

    def __init__(self, root: Path):
        super().__init__()
        self.root = root
        self.turned: list[str] = []

    def __missing__(self, image_id: str) -> tuple[int, int]:
        self[image_id], turned = read_header(self.root / image_id)
        if turned:
            self.turned.append(image_id)
        return self[image_id]


@dataclass(repr=False)
class Boxes(Short):
    """The ground truth of one split.

    Attributes:
        image_ids: the ids in data set order.
        boxes: (G,4) int64 x0, y0, x1, y1 in pixels of the original image, G >= 1, per id.
        sizes: (width, height) of the original image, per id; for CUB a `HeaderSizes`.
        labels: 0-based class per id, or None where the data set has none.
        source: what was read, as commands print it: a folder, perhaps with a split.
    """

    image_ids: tuple[str, ...]
    boxes: dict[str, np.ndarray]
    sizes: dict[str, tuple[int, int]]
    labels: dict[str, int] | None
    source: str = ""

    def scaled(self, image_id: str, size: tuple[int, int]) -> np.ndarray:
        """Return the boxes of `image_id` in the coordinates of a map of `size`.

        int(x * new / size), evaluated in that order in float64 and truncated.

        Args:
            image_id: one of `image_ids`.
            size: (width, height) of the map.

        Returns:
            (G,4) int64.

        Raises:
            KeyError: unknown `image_id`.
            ImageError: the header of a CUB image cannot be read.

        Source: wsolevaluation (Choe et al., 2020), bit-exact with its `resize_bbox`.
        """
        new = np.array([*size, *size], dtype=np.float64)
        old = np.array([*self.sizes[image_id]] * 2, dtype=np.float64)
        return (np.asarray(self.boxes[image_id], np.float64) * new / old).astype(np.int64)


def load_boxes(
    *,
    cub_root: str | os.PathLike | None = None,
    metadata_root: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    split: str | None = None,
    image_ids: Sequence[str] | None = None,
    allow_beyond: bool = False,
) -> Boxes:
    """Read the ground-truth boxes of a split.

    Args:
        cub_root: a CUB_200_2011 folder; image sizes come from the image headers, when needed.
        metadata_root: instead, the folder with the four text files of the official metadata, or
            the official root above ``<dataset_name>/<split>``.
        dataset_name: folder below an official root, such as "CUB" or "ILSVRC".
        split: "train", "test" or "all" for CUB, the name of a folder for metadata. None means
            "test", or the split whose folder `metadata_root` itself is.
        image_ids: the images to take, in this order; None takes the whole split.
        allow_beyond: accept any number of boxes that lie outside of their images.

    Returns:
        The boxes. Those that reach beyond their image are kept as they are, with a warning in the
        log; so are photos that EXIF turns by a quarter.

    Raises:
        InputError: not exactly one root is given, a file is missing or malformed, ids are duplicate
            or missing in one of the files, the annotation is by masks, or `metadata_root` is the
            folder of another split or data set.
        BoxError: a box is negative or reversed, an id of `image_ids` is not in the split, or more
            than a tenth of the boxes lie wholly outside of their images.

    Example:
        >>> from cba_fast.data import load_boxes
        >>> boxes = load_boxes(cub_root="CUB_200_2011")
        >>> image_id = boxes.image_ids[0]
        >>> boxes.boxes[image_id], boxes.sizes[image_id]
        (array([[10,  2, 41, 24]]), (64, 64))
        >>> boxes.scaled(image_id, (224, 224))
        array([[ 35,   7, 143,  84]])
    """
    if cub_root is not None and metadata_root is None:
        found = _from_cub(cub.find_root(cub_root), split, image_ids)
    elif metadata_root is not None and cub_root is None:
        folder = metadata.find_folder(metadata_root, dataset_name, split)
        found = _from_metadata(folder, image_ids)
    else:
        raise InputError("boxes come from `cub_root` or from `metadata_root`: give one of the two")
    _check_inside(found, allow_beyond)
    return found


def truth_files(
    *,
    cub_root: str | os.PathLike | None = None,
    metadata_root: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    split: str | None = None,
) -> list[Path]:
    """Return the text files that hold the ground truth; for arguments see :func:`load_boxes`.

    Raises:
        InputError: there is no such folder.
    """
    if cub_root is not None:
        return [cub.find_root(cub_root) / name for name in cub.TEXT_FILES]
    assert metadata_root is not None  # one of the two is given
    folder = metadata.find_folder(metadata_root, dataset_name, split)
    return [folder / name for name in metadata.TEXT_FILES]


def _from_cub(root: Path, split: str | None, image_ids: Sequence[str] | None) -> Boxes:
    split = DEFAULT_SPLIT if split is None else split
    index = cub.read_index(root)
    path = root / "bounding_boxes.txt"
    all_boxes = cub.read_boxes(root)
    cub.check_same_ids(root / "images.txt", index.names, path, all_boxes)
    by_name = {index.names[i]: i for i in index.ids(split)}
    wanted = _choose(tuple(by_name), image_ids, f"the split {split!r} of {root}")
    return Boxes(
        wanted,
        {n: np.array([all_boxes[by_name[n]]], dtype=np.int64) for n in wanted},
        HeaderSizes(root / "images"),
        {n: index.labels[by_name[n]] for n in wanted},
        f"{root}, split {split}",
    )


def _from_metadata(folder: Path, image_ids: Sequence[str] | None) -> Boxes:
    ids = metadata.read_ids(folder)
    boxes = metadata.read_boxes(folder, ids)
    sizes = metadata.read_sizes(folder, ids)
    labels = metadata.read_labels(folder, ids)
    wanted = _choose(ids, image_ids, str(folder))
    if image_ids is None:
        return Boxes(wanted, boxes, sizes, labels, str(folder))
    return Boxes(
        wanted,
        {i: boxes[i] for i in wanted},
        {i: sizes[i] for i in wanted},
        None if labels is None else {i: labels[i] for i in wanted},
        str(folder),
    )


def _choose(have: tuple[str, ...], wanted: Sequence[str] | None, where: str) -> tuple[str, ...]:
    if wanted is None:
        return have
    known = set(have)
    unknown = [i for i in wanted if i not in known]
    if unknown:
        raise BoxError(f"{len(unknown)} image(s) have no box in {where}: {some(unknown)}")
    return tuple(wanted)


def _check_inside(found: Boxes, allow_beyond: bool) -> None:
    """Warn of boxes that reach beyond their images; refuse many that lie wholly outside of them.

    Images whose size cannot be read are left out.
    """
    sizes = found.sizes
    if isinstance(sizes, HeaderSizes):
        sizes = {i: size for i in found.image_ids if (size := _size(found, i)) is not None}
    if not sizes:
        return
    parts = [found.boxes[i] for i in sizes]
    boxes, counts = np.concatenate(parts), [len(part) for part in parts]
    owners = np.repeat(np.array(list(sizes), object), counts)
    each = np.fromiter(chain.from_iterable(sizes.values()), np.int64).reshape(-1, 2)
    corner = np.repeat(each, counts, axis=0)  # (boxes, 2): width, height
    beyond = np.any(boxes[:, 2:] > corner, axis=1)
    outside = np.any(boxes[:, :2] >= corner, axis=1)
    if outside.sum() > MOST_OUTSIDE * len(boxes) and not allow_beyond:
        raise BoxError(
            f"{found.source}: {outside.sum()} of {len(boxes)} boxes lie wholly outside of their "
            f"images ({_named(owners, outside)}): the images were resized, cropped or turned, or "
            "are others; give `allow_beyond` to score them as they are"
        )
    if beyond.any():
        turned = beyond & (boxes[:, 2:] <= corner[:, ::-1]).all(1)
        hint = f" ({turned.sum()} of them would fit a turned image)" if turned.any() else ""
        log.warning(
            "%d image(s) have a box that reaches beyond the image%s; kept as it is: %s",
            *(len(set(owners[beyond])), hint, _named(owners, beyond)),
        )
    if turned_photos := getattr(found.sizes, "turned", []):
        log.warning("%s", _turned_line(turned_photos))


def turned_notes(found: Boxes, paths: Mapping[str, Path]) -> list[str]:
    """Return a note on images whose header contradicts the ground truth by a quarter turn.

    Args:
        found: the ground truth; `load_boxes` has warned already if its sizes come from headers.
        paths: the image files, by id.
    """
    turned = []
    for image_id, path in () if isinstance(found.sizes, HeaderSizes) else paths.items():
        try:
            size, rotated = read_header(path)
        except ImageError:
            continue  # the run reports it when it reads the image
        if rotated or (size != found.sizes[image_id] == size[::-1]):
            turned.append(image_id)
    return [_turned_line(turned)] if turned else []


def _turned_line(image_ids: Sequence[str]) -> str:
    return (
        f"{counted(len(image_ids), 'photo')} turned by EXIF or against the recorded size: images "
        "are read as their pixels are stored, unturned, and boxes that were drawn on the turned "
        f"photo do not fit: {some(image_ids)}"
    )


def _size(found: Boxes, image_id: str) -> tuple[int, int] | None:
    try:
        return found.sizes[image_id]
    except ImageError:
        return None  # the file is needed only if the image has a map, and is read again then


def _named(owners: np.ndarray, rows: np.ndarray) -> str:
    return some(dict.fromkeys(owners[rows]))
