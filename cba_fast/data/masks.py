"""Ground-truth masks of a split, from wsolevaluation's metadata (OpenImages)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import ImageError, InputError
from ..files import open_regular
from ..shapes import Size, map_shape
from ..short import Short
from . import metadata
from .metadata import MaskPaths

BACKGROUND, FOREGROUND, IGNORED = 0, 1, 2
OFFICIAL_SIZE = 224


@dataclass(repr=False)
class Masks(Short):
    """The mask files of one split.

    Attributes:
        root: the folder that the paths are relative to.
        image_ids: the ids in data set order.
        paths: the mask files by id.
        size: the side or (H, W) in pixels to which the masks are resized.
    """

    root: Path
    image_ids: tuple[str, ...]
    paths: dict[str, MaskPaths]
    size: Size = OFFICIAL_SIZE

    @property
    def shape(self) -> tuple[int, int]:
        """The (H, W) of the masks."""
        return map_shape(self.size, name="size")

    def read(self, image_id: str) -> np.ndarray:
        """Read the mask of an image: the union of its objects, and the region to ignore.

        Each file is read as grey and resized to `size` with OpenCV's nearest neighbour; pixels
        above 0.5 are set. Pixels of the foreground are never ignored.

        Returns:
            (H, W) uint8: `BACKGROUND`, `FOREGROUND` or `IGNORED`.

        Raises:
            KeyError: unknown `image_id`.
            ImageError: a file cannot be read; the message names it.

        Source: wsolevaluation (Choe et al., 2020), equal to its ``get_mask``.
        """
        paths = self.paths[image_id]
        foreground = np.zeros(self.shape, bool)
        for path in paths.masks:
            foreground |= self._read_one(path)
        mask = np.where(foreground, np.uint8(FOREGROUND), np.uint8(BACKGROUND))
        if paths.ignore is not None:
            mask[self._read_one(paths.ignore) & ~foreground] = IGNORED
        return mask

    def _read_one(self, path: str) -> np.ndarray:
        try:
            with open_regular(self.root / path) as f:
                data = np.frombuffer(f.read(), np.uint8)
            grey = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
        except OSError as e:
            raise ImageError(f"{self.root / path}: cannot be read: {e.strerror}") from e
        except cv2.error:  # more pixels than OpenCV's limit
            grey = None
        if grey is None:
            raise ImageError(f"{self.root / path}: not a readable image")
        return cv2.resize(grey, self.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0


def load_masks(
    metadata_root: str | os.PathLike,
    mask_root: str | os.PathLike,
    *,
    dataset_name: str | None = None,
    split: str | None = None,
    size: Size = OFFICIAL_SIZE,
    image_ids: Sequence[str] | None = None,
) -> Masks:
    """List the mask files of the images of a split, without opening them.

    Args:
        metadata_root, dataset_name, split: as for :func:`cba_fast.data.load_boxes`.
        mask_root: the folder that the paths in ``localization.txt`` are relative to.
        size: the side or (H, W) of the masks; 224 in the official protocol.
        image_ids: the images to take, in this order; None takes the whole split.

    Raises:
        InputError: a file of the metadata is missing or malformed, or describes boxes; there is no
            folder `mask_root`; an id of `image_ids` is not in the split.

    Example:
        >>> from cba_fast.data import load_masks
        >>> masks = load_masks("metadata/OpenImages/test", "OpenImages", size=64)
        >>> mask = masks.read(masks.image_ids[0])
        >>> mask.shape, mask.dtype
        ((64, 64), dtype('uint8'))
    """
    folder = metadata.find_folder(metadata_root, dataset_name, split)
    root = Path(mask_root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder of masks")
    ids = metadata.read_ids(folder)
    paths = metadata.read_masks(folder, ids)
    for image_id in image_ids or ():
        if image_id not in paths:
            raise InputError(f"image {image_id!r} has no mask in {folder}")
    return Masks(root, tuple(image_ids or ids), paths, size)
