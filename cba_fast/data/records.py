"""The images of a data set as records, and the names of their score maps."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ..choices import MapNames
from ..errors import InputError
from ..short import Short
from .textlines import check_relative, shown, unprintable

log = logging.getLogger("cba_fast")
DEFAULT_SPLIT = "test"  # what a split that is not given means
MAP_NAMES = get_args(MapNames)
_MOST_BYTES = 255  # of a file name


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set.

    Attributes:
        image_id: path below the data root with "/" (for official metadata, the official id).
        root: the folder that the id is relative to.
        label: 0-based class, or None where the data set has none.
    """

    image_id: str
    root: Path
    label: int | None

    # The rest is computed when asked for: a set may have millions of images.

    @property
    def path(self) -> Path:
        """Where the file is, or should be: it is opened only when the image is read."""
        return self.root / self.image_id

    @property
    def folder(self) -> str:
        """Name of the image's immediate parent inside the id, "" for a flat id."""
        return self.image_id.rpartition("/")[0].rpartition("/")[2]

    @property
    def stem(self) -> str:
        """File name up to its *first* dot, as the study cuts it."""
        return self.image_id.rpartition("/")[2].split(".", 1)[0]

    @property
    def map_name(self) -> str:
        """The study's path of this image's score map below the map folder; see :func:`map_name`."""
        return map_name(self.image_id)


@dataclass(frozen=True, repr=False)
class ImageSet(Short):
    """The images of one split, in data set order.

    Attributes:
        root: the folder that the ids are relative to ("cub": the folder with ``images.txt``).
        kind: "imagefolder", "cub" or "metadata".
        records: the images.
        class_names: the name of each label.
        source: what was read to list them, as commands print it: a folder, perhaps with a split.
    """

    root: Path
    kind: str
    records: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    source: str = ""

    def __len__(self) -> int:
        return len(self.records)


def map_name(image_id: str) -> str:
    """Return the score map's name of an image id: ``<parent>/<name up to its first dot>.npy``.

    Example:
        >>> from cba_fast.data import map_name
        >>> map_name("images/001.Wren/Wren_1.a.jpg")
        '001.Wren/Wren_1.npy'
    """
    folder, _, name = image_id.rpartition("/")
    stem = name.split(".", 1)[0]
    return f"{folder.rpartition('/')[2]}/{stem}.npy" if folder else f"{stem}.npy"


def check_image_id(image_id: str, where: str) -> None:
    """Refuse an image id whose score map would lie outside of the map folder, or be hidden.

    Raises:
        InputError: the id is not a plain relative path, has nothing before its first dot, or holds
            a control character or what is not UTF-8; the message starts with `where` (file and
            line).
    """
    check_relative(image_id, where, "image id")
    if image_id.rpartition("/")[2].startswith("."):
        raise InputError(f"{where}: image id {image_id!r} has nothing before its first dot")
    if not image_id.isprintable() and (what := unprintable(image_id)):
        raise InputError(f"{where}: image id {shown(image_id)} holds {what}; rename the file")


def make_record(image_id: str, root: Path, label: int | None, where: str) -> ImageRecord:
    """Return the record of an image.

    Raises:
        InputError: as :func:`check_image_id`; the message starts with `where` (file and line).
    """
    check_image_id(image_id, where)
    return ImageRecord(image_id, root, label)


def map_names(records: Sequence[ImageRecord], rule: str | None = None) -> list[str]:
    """Return the path of each image's score map below the map folder.

    Args:
        records: the images.
        rule: "study": ``<folder>/<name up to its first dot>.npy``; "official": the whole id and
            ``.npy``, as wsolevaluation names maps; None: the study's names, or the official ones if
            two of the study's would be the same.

    Raises:
        InputError: the rule is "study" and two images would write the same map (the message names
            both images and the map), or there is no such rule.

    Example:
        >>> from cba_fast.data import map_names, open_image_set
        >>> records = open_image_set("CUB_200_2011").records
        >>> map_names(records)[0]
        '001.Violet_spotted_head_Bird/Violet_spotted_head_Bird_0004.npy'
        >>> map_names(records, "official")[0]
        '001.Violet_spotted_head_Bird/Violet_spotted_head_Bird_0004.jpg.npy'
    """
    if rule not in (None, *MAP_NAMES):
        raise InputError(f"`map_names` is {rule!r}, not one of {', '.join(MAP_NAMES)}")
    if rule != "official":
        seen: dict[str, ImageRecord] = {}
        for record in records:
            first = seen.setdefault(record.map_name, record)
            if first is not record:
                if rule is None:
                    log.warning(
                        "%s and %s would write the same score map %s: maps get official names, the "
                        "whole image id",
                        *(first.image_id, record.image_id, record.map_name),
                    )
                    break
                raise InputError(
                    f"{first.image_id} and {record.image_id} would write the same score map "
                    f"{record.map_name}: the study's names end at the first dot of a file name; "
                    "`map_names` official keeps the whole name"
                )
        else:
            return _short_enough(list(seen))
    return _short_enough([f"{record.image_id}.npy" for record in records])


def _short_enough(names: list[str]) -> list[str]:
    for name in names:
        if len(name) * 4 > _MOST_BYTES:  # at most four bytes a character
            length = max(len(part.encode()) for part in name.split("/"))
            if length > _MOST_BYTES:
                raise InputError(
                    f"the score map {shown(name)} would have a name of {length} bytes, and file "
                    f"systems take {_MOST_BYTES}; rename its image"
                )
    return names
