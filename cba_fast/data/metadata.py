"""Read the metadata format of wsolevaluation (Choe et al., CVPR 2020, clovaai/wsolevaluation).

A folder per split with ``image_ids.txt`` (``<id>``), ``class_labels.txt`` (``<id>,<0-based
label>``), ``image_sizes.txt`` (``<id>,<w>,<h>``) and ``localization.txt`` (``<id>,<x0>,<y0>,<x1>,
<y1>``, one line per box; for masks ``<id>,<mask path>,<ignore path>``).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BoxError, InputError
from ..short import Short
from .cub import check_same_ids
from .records import DEFAULT_SPLIT, ImageRecord, ImageSet, check_image_id
from .textlines import bad_line, check_relative, duplicate, read_lines, read_text, shown, some

TEXT_FILES = ("image_ids.txt", "class_labels.txt", "image_sizes.txt", "localization.txt")
MAX_NUMBER = 2**31 - 1  # largest side of an image and coordinate of a box
MAX_LABEL = 10**6 - 1  # bounds the lists of classes, which are as long as the largest label


@dataclass(frozen=True, repr=False)
class MaskPaths(Short):
    """Where the masks of an image lie, below the mask root.

    Attributes:
        masks: the files of the objects' masks; their union is the foreground.
        ignore: the file of the region that is not scored (outside of the foreground), or None.
    """

    masks: tuple[str, ...]
    ignore: str | None


def find_folder(
    metadata_root: str | os.PathLike, dataset_name: str | None = None, split: str | None = None
) -> Path:
    """Return the folder with the four text files.

    It is the first that exists of ``metadata_root/<dataset_name>/<split>``, `metadata_root` itself
    and ``metadata_root/<split>``; a `split` of None means "test".

    Raises:
        InputError: none of them holds ``image_ids.txt`` (the message lists the places tried), or
            the one that does is not of the `split` or the `dataset_name` given: `metadata_root` is
            the folder of another split, or no folder of its path has the data set's name.
    """
    root, wanted = Path(metadata_root), DEFAULT_SPLIT if split is None else split
    tried = [root, root / wanted]
    if dataset_name is not None:
        tried = [root / dataset_name / wanted, *tried]
    for folder in tried:
        if (folder / "image_ids.txt").is_file():
            if folder in (root, root / wanted):  # the other folder's path holds both names
                _check_agrees(folder, root, dataset_name, split)
            return folder
    hint = ""
    if dataset_name is None:
        names = sorted(p.parent.parent.name for p in root.glob(f"*/{wanted}/image_ids.txt"))
        if names:
            hint = f"; it holds the data sets {', '.join(names)}: choose one with `dataset_name`"
    raise InputError(f"no image_ids.txt in {some(tried)}{hint}")


def _check_agrees(folder: Path, root: Path, dataset_name: str | None, split: str | None) -> None:
    """Refuse a folder that is not of the split and the data set which were asked for by name."""
    real = folder.resolve()
    if folder == root and split is not None and split not in (folder.name, real.name):
        raise InputError(
            f"{folder} holds image_ids.txt itself: it is the folder of one split, whose name is "
            f"not {split!r}; give the folder of that split, or leave out `split`"
        )
    if dataset_name is not None and dataset_name not in (*folder.parts, *real.parts):
        raise InputError(
            f"{folder} was found, but no folder of its path is named {dataset_name!r} as the data "
            "set that was asked for; give that folder, or leave out `dataset_name`"
        )


def read_ids(folder: Path) -> tuple[str, ...]:
    """Read ``image_ids.txt``: the ids in file order.

    Raises:
        InputError: an id is duplicate or not a plain relative path, or there is none.
    """
    path = folder / "image_ids.txt"
    ids = [text for line in read_text(path).split("\n") if (text := line.strip())]
    text = "\n".join(["", *ids, ""])
    # The two checks of each id, for all of them at once; lines are looked at for a message alone.
    plain = all(map(str.isprintable, ids)) and not any(part in text for part in _NOT_IN_IDS)
    if not plain or len(set(ids)) < len(ids):
        _check_ids(path)
    if not ids:
        raise InputError(f"{path} lists no images")
    return tuple(ids)


# No printable id that `check_image_id` refuses is without one of these; some good ones hold one.
_NOT_IN_IDS = ("\n.", "/.", "\n/", "/\n", "//", "\\")


def _check_ids(path: Path) -> None:
    seen: set[str] = set()
    for number, text in read_lines(path):
        check_image_id(text, str(path))
        if text in seen:
            raise duplicate(path, number, repr(text))
        seen.add(text)


def read_labels(folder: Path, ids: tuple[str, ...]) -> dict[str, int] | None:
    """Read ``class_labels.txt``: the 0-based label of each id, or None if there is no such file.

    Raises:
        InputError: a line is malformed, an id is duplicate, or the ids are not those of
            ``image_ids.txt``.
    """
    path = folder / "class_labels.txt"
    if not path.exists():
        return None
    owners, values = _read_table(path, 1, "<id>,<0-based label>")
    bad = (values < 0) | (values > MAX_LABEL)
    _refuse_row(path, bad, f"a label of 0 or more, at most {MAX_LABEL}")
    return _by_id(folder, path, ids, owners, values[:, 0].tolist())


def read_sizes(folder: Path, ids: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Read ``image_sizes.txt``: (width, height) of each id in pixels.

    Raises:
        InputError: a line is malformed, a size is not positive, an id is duplicate, or the ids are
            not those of ``image_ids.txt``.
    """
    path = folder / "image_sizes.txt"
    owners, values = _read_table(path, 2, "<id>,<width>,<height>")
    _refuse_row(path, values <= 0, "a width and a height above 0")
    return _by_id(folder, path, ids, owners, list(zip(*values.T.tolist())))


def read_boxes(folder: Path, ids: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read the boxes of ``localization.txt``: (G, 4) int64 x0, y0, x1, y1 in pixels, in file order.

    Raises:
        InputError: a line is malformed or describes a mask, or the ids are not those of
            ``image_ids.txt``.
        BoxError: a box is negative or reversed.
    """
    path = folder / "localization.txt"
    owners, boxes = _read_table(path, 4, "<id>,<x0>,<y0>,<x1>,<y1>")
    bad = (boxes[:, :2] < 0).any(1) | (boxes[:, 2:] < boxes[:, :2]).any(1)
    if bad.any():
        row = int(bad.argmax())
        x0, y0, x1, y1 = boxes[row]
        raise BoxError(
            f"{path}, line {_line(path, row)[0]}: box of {owners[row]} is negative or reversed: "
            f"x0={x0} y0={y0} x1={x1} y1={y1}"
        )
    if owners == ids:  # one box per image, in the same order
        return dict(zip(ids, boxes[:, None]))
    number = {image_id: k for k, image_id in enumerate(ids)}
    check_same_ids(folder / "image_ids.txt", number, path, dict.fromkeys(owners))
    numbers = np.fromiter(map(number.__getitem__, owners), np.int64, len(owners))
    boxes = boxes[np.argsort(numbers, kind="stable")]
    ends = np.cumsum(np.bincount(numbers, minlength=len(ids))).tolist()
    return {image_id: boxes[i:j] for image_id, i, j in zip(ids, [0, *ends], ends)}


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
            check_relative(one, f"{path}, line {number}", "mask")
        if image_id not in found:
            found[image_id] = MaskPaths((paths[0],), paths[1] or None)
        elif paths[1]:
            raise bad_line(path, number, text, "an ignore path on the first line of an image only")
        else:
            found[image_id] = MaskPaths((*found[image_id].masks, paths[0]), found[image_id].ignore)
    check_same_ids(folder / "image_ids.txt", dict.fromkeys(ids), path, found)
    return found


def image_set(
    root: Path, metadata_root: str | os.PathLike, dataset_name: str | None, split: str | None
) -> ImageSet:
    """Return the images that the metadata lists; see :func:`cba_fast.data.open_image_set`."""
    folder = find_folder(metadata_root, dataset_name, split)
    ids = read_ids(folder)
    labels = read_labels(folder, ids)
    records = tuple(ImageRecord(i, root, labels[i] if labels else None) for i in ids)
    return ImageSet(root, "metadata", records, _class_names(records), f"{root}, listed by {folder}")


def _class_names(records) -> tuple[str, ...]:
    """Name each label by its images' folder where that is one-to-one, else by its number."""
    if any(r.label is None for r in records):
        return ()
    pairs = {(r.label, r.folder) for r in records}
    count = max(r.label for r in records) + 1
    if len(pairs) == count == len({folder for _, folder in pairs} - {""}):
        return tuple(folder for _, folder in sorted(pairs))
    return tuple(str(label) for label in range(count))


def _read_table(path: Path, count: int, want: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Read lines of an id and `count` integers: the ids, and (lines, count) int64.

    All lines are parsed at once, as an array of bytes: there may be millions of them.

    Raises:
        InputError: no such file, or a line that is not of this form.
    """
    lines = [text for line in read_text(path).split("\n") if (text := line.strip())]
    data = np.frombuffer("".join(f"{line}\n" for line in lines).encode(), np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    starts = np.concatenate([[0], ends + 1])[:-1]
    # An id may hold commas, the numbers behind it may not: the last commas of a line count.
    commas = np.concatenate([np.full(count, -1), np.flatnonzero(data == ord(","))])
    behind = np.searchsorted(commas, ends)  # the first comma behind each line
    fields = commas[behind[:, None] - np.arange(count, 0, -1)]
    values, good = _integers(data, fields + 1, np.c_[fields[:, 1:], ends])
    bad = ~(good.all(1) & (fields[:, 0] > starts))
    if bad.any():
        number, text = _line(path, int(bad.argmax()))
        if count == 4 and text.count(",") <= 2 and text.rstrip(",").lower().endswith(".png"):
            raise InputError(
                f"{path}, line {number} describes a mask ({shown(text)}): this data set is "
                "scored by pixels (PxAP), it has no boxes"
            )
        raise bad_line(path, number, text, f"{want}, numbers below 2**31")
    _refuse_row(path, abs(values) > MAX_NUMBER, f"{want}, numbers below 2**31")
    lengths = (ends - fields[:, 0]).tolist()  # of all behind an id, which is ASCII
    return tuple(line[:-length] for line, length in zip(lines, lengths)), values


def _integers(data: np.ndarray, start: np.ndarray, end: np.ndarray):
    """Return the integers in `data` from `start` to `end`, and which of them are integers.

    Such are 1 to 10 ASCII digits, perhaps with a minus sign before them.
    """
    if not data.size:
        return np.zeros(start.shape, np.int64), np.ones(start.shape, bool)
    negative = data[start] == ord("-")
    start = start + negative
    length = end - start
    values, good = np.zeros(start.shape, np.int64), (length >= 1) & (length <= 10)
    for k in range(length[good].max(initial=0)):
        digit = data[np.minimum(start + k, data.size - 1)] - np.uint8(ord("0"))  # wraps below "0"
        inside = k < length
        good &= ~inside | (digit <= 9)
        values = np.where(inside, 10 * values + digit, values)
    return np.where(negative, -values, values), good


def _line(path: Path, row: int) -> tuple[int, str]:
    """Return the number and the text of the line that a row of :func:`_read_table` comes from."""
    return next(line for i, line in enumerate(read_lines(path)) if i == row)


def _refuse_row(path: Path, bad: np.ndarray, want: str) -> None:
    """Raise an `InputError` about the first row of `bad` (rows, count) that holds a True."""
    if bad.any():
        raise bad_line(path, *_line(path, int(bad.any(1).argmax())), want)


def _by_id(folder: Path, path: Path, ids: tuple[str, ...], owners: tuple, values: list) -> dict:
    """Return the values by id; the ids must be those of ``image_ids.txt``, each given once."""
    if owners == ids:  # the strings of `ids` know their hashes already
        return dict(zip(ids, values))
    found = dict(zip(owners, values))
    if len(found) != len(owners):
        seen: set[str] = set()
        row = next(i for i, owner in enumerate(owners) if owner in seen or seen.add(owner))  # type: ignore[func-returns-value]
        raise duplicate(path, _line(path, row)[0], repr(owners[row]))
    check_same_ids(folder / "image_ids.txt", dict.fromkeys(ids), path, found)
    return found
