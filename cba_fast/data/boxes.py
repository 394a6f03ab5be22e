"""Ground-truth boxes of a split, from CUB_200_2011 or from wsolevaluation's metadata."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BoxError, InputError
from ..short import Short
from . import cub, metadata
from .images import read_size
from .textlines import some

log = logging.getLogger("cba_fast")


class HeaderSizes(dict):
    """Image sizes by id, each read from the image's header when first asked for.

    A score needs the sizes of the images that have a map; the others need not even be there.
    """

    def __init__(self, root: Path):
        super().__init__()
        self.root = root

    def __missing__(self, image_id: str) -> tuple[int, int]:
        self[image_id] = size = read_size(self.root / image_id)
        return size


@dataclass(repr=False)
class Boxes(Short):
    """The ground truth of one split.

    Attributes:
        image_ids: the ids in data set order.
        boxes: (G,4) int64 x0, y0, x1, y1 in pixels of the original image, G >= 1, per id.
        sizes: (width, height) of the original image, per id; for CUB a `HeaderSizes`.
        labels: 0-based class per id, or None where the data set has none.
    """

    image_ids: tuple[str, ...]
    boxes: dict[str, np.ndarray]
    sizes: dict[str, tuple[int, int]]
    labels: dict[str, int] | None

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
        return (self.boxes[image_id].astype(np.float64) * new / old).astype(np.int64)


def load_boxes(
    *,
    cub_root: str | os.PathLike | None = None,
    metadata_root: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    split: str = "test",
    image_ids: Sequence[str] | None = None,
) -> Boxes:
    """Read the ground-truth boxes of a split.

    Args:
        cub_root: a CUB_200_2011 folder; image sizes come from the image headers, when needed.
        metadata_root: instead, the folder with the four text files of the official metadata, or
            the official root above ``<dataset_name>/<split>``.
        dataset_name: "CUB", "ILSVRC", ... below an official root.
        split: "train", "test" or "all" for CUB, a folder of the metadata.
        image_ids: only these, in this order; None takes the whole split.

    Raises:
        InputError: not exactly one root is given, a file is missing or malformed, ids are duplicate
            or missing in one of the files, the annotation is by masks, or an id of `image_ids` is
            not in the split.
        BoxError: a box is negative or reversed. Boxes of metadata that reach beyond the image are
            kept as they are, with one warning in the log.
    """
    if (cub_root is None) == (metadata_root is None):
        raise InputError("boxes come from either a CUB folder or a metadata folder: give one")
    if cub_root is not None:
        found = _from_cub(cub.find_root(cub_root), split, image_ids)
    else:
        folder = metadata.find_folder(metadata_root, dataset_name, split)
        found = _from_metadata(folder, image_ids)
        _warn_beyond(found)
    return found


def _from_cub(root: Path, split: str, image_ids: Sequence[str] | None) -> Boxes:
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
    )


def _from_metadata(folder: Path, image_ids: Sequence[str] | None) -> Boxes:
    ids = metadata.read_ids(folder)
    boxes = metadata.read_boxes(folder, ids)
    sizes = metadata.read_sizes(folder, ids)
    labels = metadata.read_labels(folder, ids)
    wanted = _choose(ids, image_ids, str(folder))
    return Boxes(
        wanted,
        {i: np.array(boxes[i], dtype=np.int64) for i in wanted},
        {i: sizes[i] for i in wanted},
        None if labels is None else {i: labels[i] for i in wanted},
    )


def _choose(have: tuple[str, ...], wanted: Sequence[str] | None, where: str) -> tuple[str, ...]:
    if wanted is None:
        return have
    known = set(have)
    unknown = [i for i in wanted if i not in known]
    if unknown:
        raise BoxError(f"{len(unknown)} image(s) have no box in {where}: {some(unknown)}")
    return tuple(wanted)


def _warn_beyond(found: Boxes) -> None:
    """Log once which boxes end beyond their image; they count as they are (SPEC: never clipped)."""
    beyond = [i for i in found.image_ids if (found.boxes[i][:, 2:] > found.sizes[i]).any()]
    if beyond:
        log.warning(
            "%d image(s) have a box that reaches beyond the image; kept as it is: %s",
            len(beyond),
            some(beyond),
        )
