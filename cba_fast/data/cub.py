"""Read the text files of a CUB_200_2011 folder (Wah et al., 2011, The Caltech-UCSD Birds)."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import BoxError, InputError
from ..short import Short
from .records import DEFAULT_SPLIT, ImageSet, make_record
from .textlines import bad_line, check_relative, duplicate, parse_float, parse_int, read_lines, some

FOLDER = "CUB_200_2011"
SPLITS = ("train", "test", "all")
TEXT_FILES = (
    "images.txt",
    "image_class_labels.txt",
    "train_test_split.txt",
    "bounding_boxes.txt",
    "classes.txt",
)


def is_cub(folder: Path) -> bool:
    """Tell whether `folder` looks like CUB_200_2011: ``images.txt`` beside ``images/``."""
    return (folder / "images.txt").is_file() and (folder / "images").is_dir()


def find_root(folder: str | os.PathLike) -> Path:
    """Return `folder` if it holds ``images.txt``, else its subfolder CUB_200_2011 if that does.

    Raises:
        InputError: neither does.
    """
    folder = Path(folder)
    for root in (folder, folder / FOLDER):
        if (root / "images.txt").is_file():
            return root
    raise InputError(
        f"{folder} is not a CUB_200_2011 folder: no images.txt in it or in {folder / FOLDER}"
    )


@dataclass(frozen=True, repr=False)
class CubIndex(Short):
    """The lists of a CUB_200_2011 folder, keyed by the integer image id.

    Attributes:
        root: the folder.
        names: path of each image below ``images/``, in file order.
        labels: 0-based class of each image.
        is_training: the official split.
        class_names: name of each class.
    """

    root: Path
    names: dict[int, str]
    labels: dict[int, int]
    is_training: dict[int, bool]
    class_names: tuple[str, ...]

    def ids(self, split: str | None = None) -> list[int]:
        """Return the image ids of `split` in file order.

        Args:
            split: "train", "test" or "all"; None means "test".

        Raises:
            InputError: another split.
        """
        split = DEFAULT_SPLIT if split is None else split
        if split not in SPLITS:
            raise InputError(f"CUB_200_2011 has the splits {', '.join(SPLITS)}, not {split!r}")
        if split == "all":
            return list(self.names)
        return [i for i in self.names if self.is_training[i] == (split == "train")]


def read_index(root: Path) -> CubIndex:
    """Read and cross-check the lists of images, classes and the split.

    Raises:
        InputError: a file is missing, a line is malformed, an id is duplicate, missing in one of
            the files or unknown, or a class is out of range.
    """
    classes = _read_table(root / "classes.txt", "<class id> <class name>", str)
    if sorted(classes) != list(range(1, len(classes) + 1)):
        raise InputError(f"{root / 'classes.txt'}: class ids are not 1..{len(classes)}")
    names = _read_table(root / "images.txt", "<image id> <path below images/>", str)
    labels = _read_table(root / "image_class_labels.txt", "<image id> <class id>", parse_int)
    is_training = _read_table(root / "train_test_split.txt", "<image id> <0 or 1>", _flag)
    if not names:
        raise InputError(f"{root / 'images.txt'} lists no images")
    check_same_ids(root / "images.txt", names, root / "image_class_labels.txt", labels)
    check_same_ids(root / "images.txt", names, root / "train_test_split.txt", is_training)
    for image, label in labels.items():
        if label not in classes:
            raise InputError(
                f"{root / 'image_class_labels.txt'}: image {image} has class {label}, "
                f"classes.txt has 1..{len(classes)}"
            )
    seen: dict[str, int] = {}
    for image, name in names.items():
        check_relative(name, str(root / "images.txt"), "image")
        first = seen.setdefault(name, image)
        if first != image:
            raise InputError(f"{root / 'images.txt'}: {name} has the ids {first} and {image}")
    return CubIndex(
        root,
        names,
        {i: label - 1 for i, label in labels.items()},
        is_training,
        tuple(classes[i] for i in range(1, len(classes) + 1)),
    )


def image_set(root: Path, split: str | None = None) -> ImageSet:
    """Return the images of `split`; see :func:`cba_fast.data.open_image_set`."""
    index = read_index(root)
    where = str(root / "images.txt")
    records = tuple(
        make_record(index.names[i], root / "images", index.labels[i], where)
        for i in index.ids(split)
    )
    split = DEFAULT_SPLIT if split is None else split
    if not records:
        raise InputError(f"{root / 'train_test_split.txt'} has no images in the split {split!r}")
    return ImageSet(root, "cub", records, index.class_names, f"{root}, split {split}")


def read_boxes(root: Path) -> dict[int, tuple[int, int, int, int]]:
    """Read ``bounding_boxes.txt`` as x0, y0, x1, y1 per image id.

    The file holds x, y, w, h as decimals; the box is int(x), int(y), int(x + w), int(y + h) in
    float64, truncated, as in wsolevaluation's metadata.

    Raises:
        InputError: a line is malformed or an id is duplicate.
        BoxError: a box is not finite, starts below 0, has a negative width or height, or ends
            beyond 2**31.
    """
    path = root / "bounding_boxes.txt"
    boxes: dict[int, tuple[int, int, int, int]] = {}
    for number, text in read_lines(path):
        try:
            first, *rest = text.split()
            image = parse_int(first)
            x, y, w, h = map(parse_float, rest)
        except ValueError:
            raise bad_line(path, number, text, "<image id> <x> <y> <width> <height>") from None
        if image in boxes:
            raise duplicate(path, number, str(image))
        # NaN is below and above nothing, so that the comparison fails.
        if not (min(x, y, w, h) >= 0 and x + w < 2**31 and y + h < 2**31):
            raise BoxError(
                f"{path}, line {number}: box of image {image} is not finite, negative, reversed or "
                f"beyond 2**31: x={x:g} y={y:g} width={w:g} height={h:g}"
            )
        boxes[image] = (int(x), int(y), int(x + w), int(y + h))
    return boxes


def check_same_ids(path_a: Path, a: dict, path_b: Path, b: dict) -> None:
    """Make sure that two files list the same ids.

    Raises:
        InputError: an id is in one of them only; the message names the file that lacks it.
    """
    if a.keys() == b.keys():
        return
    for path, have, other, want in ((path_b, b, path_a, a), (path_a, a, path_b, b)):
        missing = [i for i in want if i not in have]
        if missing:
            raise InputError(f"{path} lacks {len(missing)} id(s) of {other.name}: {some(missing)}")


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


def _read_table(path: Path, want: str, parse) -> dict:
    table: dict = {}
    for number, text in read_lines(path):
        try:
            first, rest = text.split(maxsplit=1)
            key, value = parse_int(first), parse(rest)
        except ValueError:
            raise bad_line(path, number, text, want) from None
        if key in table:
            raise duplicate(path, number, str(key))
        table[key] = value
    return table
