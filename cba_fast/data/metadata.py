"""Read the metadata format of wsolevaluation (Choe et al., CVPR 2020, clovaai/wsolevaluation).

A folder per split with ``image_ids.txt`` (``<id>``), ``class_labels.txt`` (``<id>,<0-based
label>``), ``image_sizes.txt`` (``<id>,<w>,<h>``) and ``localization.txt`` (``<id>,<x0>,<y0>,<x1>,
<y1>``, one line per box; for masks ``<id>,<mask path>,<ignore path>``).
"""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import BoxError, InputError
from ..short import Short
from .cub import check_same_ids
from .records import ImageSet, make_record
from .textlines import bad_line, duplicate, read_lines, some

MAX_NUMBER = 2**31 - 1  # of labels, sizes and box corners


@dataclass(frozen=True, repr=False)
class MaskPaths(Short):
    """Where the masks of an image lie, below the mask root.

    Attributes:
        masks: one mask per object; their union is the foreground.
        ignore: the mask of what is not scored (outside of the foreground), or None.
    """

    masks: tuple[str, ...]
    ignore: str | None


def find_folder(
    metadata_root: str | os.PathLike, dataset_name: str | None = None, split: str = "test"
) -> Path:
    """Return the folder with the four text files.

    It is `metadata_root` itself (`split` is not looked at then), ``metadata_root/<split>`` or
    ``metadata_root/<dataset_name>/<split>``.

    Raises:
        InputError: none of them holds ``image_ids.txt``; the message lists the places tried.
    """
    root = Path(metadata_root)
    tried = [root, root / split]
    if dataset_name is not None:
        tried = [root / dataset_name / split, *tried]
    for folder in tried:
        if (folder / "image_ids.txt").is_file():
            return folder
    hint = ""
    if dataset_name is None:
        names = sorted(p.parent.parent.name for p in root.glob(f"*/{split}/image_ids.txt"))
        if names:
            hint = f"; it holds the data sets {', '.join(names)}: choose one with `dataset_name`"
    raise InputError(f"no image_ids.txt in {some(tried)}{hint}")


def read_ids(folder: Path) -> tuple[str, ...]:
    """Read ``image_ids.txt``: the ids in file order.

    Raises:
        InputError: an id is duplicate or not a plain relative path, or there is none.
    """
    path = folder / "image_ids.txt"
    ids: dict[str, int] = {}
    for number, text in read_lines(path):
        make_record(text, path, None, str(path))  # refuses other than plain paths
        if text in ids:
            raise duplicate(path, number, repr(text))
        ids[text] = number
    if not ids:
        raise InputError(f"{path} lists no images")
    return tuple(ids)


def read_labels(folder: Path, ids: tuple[str, ...]) -> dict[str, int] | None:
    """Read ``class_labels.txt``: the 0-based label of each id, or None if there is no such file.

    Raises:
        InputError: a line is malformed, an id is duplicate, or the ids are not those of
            ``image_ids.txt``.
    """
    path = folder / "class_labels.txt"
    if not path.exists():
        return None
    labels: dict[str, int] = {}
    for number, text in read_lines(path):
        image_id, values = _split(path, number, text, 1, "<id>,<0-based label>")
        if values[0] < 0:
            raise bad_line(path, number, text, "a label of 0 or more")
        if image_id in labels:
            raise duplicate(path, number, repr(image_id))
        labels[image_id] = values[0]
    check_same_ids(folder / "image_ids.txt", dict.fromkeys(ids), path, labels)
    return labels


def read_sizes(folder: Path, ids: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Read ``image_sizes.txt``: (width, height) of each id in pixels.

    Raises:
        InputError: a line is malformed, a size is not positive, an id is duplicate, or the ids are
            not those of ``image_ids.txt``.
    """
    path = folder / "image_sizes.txt"
    sizes: dict[str, tuple[int, int]] = {}
    for number, text in read_lines(path):
        image_id, (w, h) = _split(path, number, text, 2, "<id>,<width>,<height>")
        if w <= 0 or h <= 0:
            raise bad_line(path, number, text, "a width and a height above 0")
        if image_id in sizes:
            raise duplicate(path, number, repr(image_id))
        sizes[image_id] = (w, h)
    check_same_ids(folder / "image_ids.txt", dict.fromkeys(ids), path, sizes)
    return sizes


def read_boxes(folder: Path, ids: tuple[str, ...]) -> dict[str, list[tuple[int, int, int, int]]]:
    """Read the boxes of ``localization.txt``: x0, y0, x1, y1 in pixels, in file order.

    Raises:
        InputError: a line is malformed or describes a mask, or the ids are not those of
            ``image_ids.txt``.
        BoxError: a box is negative or reversed.
    """
    path = folder / "localization.txt"
    boxes: dict[str, list[tuple[int, int, int, int]]] = {}
    for number, text in read_lines(path):
        if text.count(",") <= 2 and text.rstrip(",").lower().endswith(".png"):
            raise InputError(
                f"{path}, line {number} describes a mask ({text!r}): this data set is scored by "
                "pixels (PxAP), it has no boxes"
            )
        image_id, box = _split(path, number, text, 4, "<id>,<x0>,<y0>,<x1>,<y1>")
        x0, y0, x1, y1 = box
        if min(x0, y0) < 0 or x1 < x0 or y1 < y0:
            raise BoxError(
                f"{path}, line {number}: box of {image_id} is negative or reversed: "
                f"x0={x0} y0={y0} x1={x1} y1={y1}"
            )
        boxes.setdefault(image_id, []).append((x0, y0, x1, y1))
    check_same_ids(folder / "image_ids.txt", dict.fromkeys(ids), path, boxes)
    return boxes


def read_masks(folder: Path, ids: tuple[str, ...]) -> dict[str, MaskPaths]:
    """Read the masks of ``localization.txt``: one line ``<id>,<mask path>,<ignore path>`` per mask.

    Raises:
        InputError: a line is malformed or describes a box, a path is not a plain relative one, a
            line other than an image's first has an ignore path, or the ids are not those of
            ``image_ids.txt``.
    """
    path = folder / "localization.txt"
    want = "<id>,<mask path>,<ignore path>"
    found: dict[str, MaskPaths] = {}
    for number, text in read_lines(path):
        image_id, *paths = text.rsplit(",", 2)
        if len(paths) != 2 or not image_id or not paths[0]:
            raise bad_line(path, number, text, want)
        if all(p.isdecimal() for p in paths):
            raise InputError(
                f"{path}, line {number} describes a box ({text!r}): this data set is scored by "
                "boxes (MaxBoxAcc), it has no masks"
            )
        for one in filter(None, paths):
            if PurePosixPath(one).is_absolute() or ".." in one.split("/") or "\\" in one:
                raise InputError(f"{path}, line {number}: {one!r} is not a plain relative path")
        if image_id not in found:
            found[image_id] = MaskPaths((paths[0],), paths[1] or None)
        elif paths[1]:
            raise bad_line(path, number, text, "an ignore path on the first line of an image only")
        else:
            found[image_id] = MaskPaths((*found[image_id].masks, paths[0]), found[image_id].ignore)
    check_same_ids(folder / "image_ids.txt", dict.fromkeys(ids), path, found)
    return found


def image_set(
    root: Path, metadata_root: str | os.PathLike, dataset_name: str | None, split: str
) -> ImageSet:
    """Return the images that the metadata lists; see :func:`cba_fast.data.open_image_set`."""
    folder = find_folder(metadata_root, dataset_name, split)
    ids = read_ids(folder)
    labels = read_labels(folder, ids)
    where = str(folder / "image_ids.txt")
    records = tuple(make_record(i, root / i, labels[i] if labels else None, where) for i in ids)
    return ImageSet(root, "metadata", records, _class_names(records))


def _class_names(records) -> tuple[str, ...]:
    """Name each label by its images' folder where that is one-to-one, else by its number."""
    if any(r.label is None for r in records):
        return ()
    pairs = {(r.label, r.folder) for r in records}
    count = max(r.label for r in records) + 1
    if len(pairs) == count == len({folder for _, folder in pairs} - {""}):
        return tuple(folder for _, folder in sorted(pairs))
    return tuple(str(label) for label in range(count))


def _split(path: Path, number: int, text: str, count: int, want: str) -> tuple[str, list[int]]:
    # From the right: an id may hold commas, the numbers behind it may not.
    image_id, *values = text.rsplit(",", count)
    try:
        if len(values) != count or not image_id:
            raise ValueError
        numbers = [int(v) for v in values]
    except ValueError:
        raise bad_line(path, number, text, want) from None
    if max(map(abs, numbers)) > MAX_NUMBER:
        raise bad_line(path, number, text, f"{want}, numbers below 2**31")
    return image_id, numbers
