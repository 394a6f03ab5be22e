"""What one image of a data set is, and the name that its score map gets."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..short import Short


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set.

    Attributes:
        image_id: path below the data root with "/" (official metadata: the official id).
        path: where the file is, or should be: it is opened only when the image is read.
        folder: name of the image's immediate parent inside the id, "" for a flat id.
        stem: file name up to its *first* dot, as the study cuts it.
        label: 0-based class, or None where the data set has none.
    """

    image_id: str
    path: Path
    folder: str
    stem: str
    label: int | None

    @property
    def map_name(self) -> str:
        """The path of this image's score map below the map folder, ``<folder>/<stem>.npy``."""
        return map_name(self.image_id)


@dataclass(frozen=True, repr=False)
class ImageSet(Short):
    """The images of one split, in data set order.

    Attributes:
        root: the folder that the ids are relative to ("cub": the folder with ``images.txt``).
        kind: "imagefolder", "cub" or "metadata".
        records: the images.
        class_names: the name of each label.
    """

    root: Path
    kind: str
    records: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)


def map_name(image_id: str) -> str:
    """Return the score map's name of an image id: ``<parent>/<name up to its first dot>.npy``."""
    folder, _, name = image_id.rpartition("/")
    stem = name.split(".", 1)[0]
    return f"{folder.rpartition('/')[2]}/{stem}.npy" if folder else f"{stem}.npy"


def make_record(image_id: str, path: Path, label: int | None, where: str) -> ImageRecord:
    """Return the record of `image_id`; `where` (file and line) opens the message if it is refused.

    Score maps are written to a path made from the id, so an id that is absolute, climbs with ".."
    or has no stem would write outside the map folder, or a hidden file.

    Raises:
        InputError: the id is not a plain relative path with "/".
    """
    parts = image_id.split("/")
    if any(p in ("", ".", "..") for p in parts) or "\0" in image_id or "\\" in image_id:
        raise InputError(f"{where}: image id {image_id!r} is not a plain relative path")
    stem = parts[-1].split(".", 1)[0]
    if not stem:
        raise InputError(f"{where}: image id {image_id!r} has nothing before its first dot")
    return ImageRecord(image_id, path, parts[-2] if len(parts) > 1 else "", stem, label)


def check_map_names(records: Iterable[ImageRecord]) -> None:
    """Make sure that no two images would write the same score map.

    Raises:
        InputError: two would; the message names both images and the map.
    """
    seen: dict[str, ImageRecord] = {}
    for record in records:
        first = seen.setdefault(record.map_name, record)
        if first is not record:
            raise InputError(
                f"{first.image_id} and {record.image_id} would write the same score map "
                f"{record.map_name} (folder and file name up to the first dot are equal)"
            )
