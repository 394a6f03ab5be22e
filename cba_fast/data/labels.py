"""Find out which of a model's classes each class of a data set is, without guessing."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from .records import ImageSet
from .textlines import counted, duplicate, read_lines, some


def read_class_names(path: str | os.PathLike) -> tuple[str, ...]:
    """Read the names of a model's classes, one per line in the order of their labels.

    Raises:
        InputError: no such file, no names, or a name that is given twice.

    Example:
        >>> from cba_fast.data import read_class_names
        >>> read_class_names("class_names.txt")
        ('001.Wren', '002.Jay')
    """
    names: dict[str, None] = {}
    for number, name in read_lines(Path(path)):
        if name in names:
            raise duplicate(Path(path), number, name)
        names[name] = None
    if not names:
        raise InputError(f"{path} names no classes")
    return tuple(names)


def model_labels(
    images: ImageSet,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    true_labels: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return each image's label in the numbering of the model, by image id.

    The first of these rules that applies decides:

    1. `class_names` contains every class of the set: a label is a position in `class_names`.
    2. There are true labels: those given, or those of a CUB_200_2011 folder or of metadata.
    3. All class folders begin with different numbers ("003.Sooty_Albatross", "10", "7_x"): these
       count from 0 if there is a 0, and from 1 if the largest is the number of classes.
    4. No `class_names` are given, and there are as many class folders as classes, not numbered as
       in rule 3: a label is the position in the sorted list of folders.

    Args:
        images: the data set.
        num_classes: number of classes of the model.
        class_names: names of the model's classes, in the order of their labels; None if not known.
        true_labels: labels of the ground truth that belongs to the images, by image id.

    Returns:
        The labels, from 0; images without a label in the data set are left out.

    Raises:
        InputError: no rule applies, or a label is outside of the model's classes; the message says
            what would help.

    Example:
        >>> from cba_fast.data import model_labels, open_image_set
        >>> labels = model_labels(open_image_set("CUB_200_2011"), num_classes=2)
        >>> sorted(labels.values())
        [0, 0, 0, 1, 1, 1]
    """
    if class_names is not None and len(class_names) != num_classes:
        raise InputError(
            f"{len(class_names)} class names are given, and the model has {_classes(num_classes)}"
        )
    if (
        class_names is not None
        and set(images.class_names) <= set(class_names)
        and not (_are_made_up(images))
    ):
        position = {name: label for label, name in enumerate(class_names)}
        table = [position[name] for name in images.class_names]
    elif true_labels is not None or images.kind != "imagefolder":
        found = true_labels
        if found is None:
            found = {r.image_id: r.label for r in images.records if r.label is not None}
        for image_id, label in found.items():
            if label >= num_classes:
                raise InputError(
                    f"image {image_id} has label {label}, which is outside the model's "
                    f"{_classes(num_classes)}"
                )
        return dict(found)
    else:
        table = _folder_labels(images, num_classes, class_names)
    return {r.image_id: table[r.label] for r in images.records if r.label is not None}


def _folder_labels(images: ImageSet, num_classes: int, class_names) -> list[int]:
    """Return the label of each class folder, if the folders' names tell it (rules 3 and 4)."""
    folders = images.class_names
    way_out = "name the classes in label order in a file, `classes`, one per line"
    if class_names is not None:
        unknown = [name for name in folders if name not in set(class_names)]
        raise InputError(
            f"{images.root}: the class folder(s) {some(unknown)} are not among the model's "
            f"{_classes(num_classes)} ({some(class_names)}); rename them, or {way_out}"
        )
    numbers = [int(m[1]) if (m := _NUMBERED.match(name)) else -1 for name in folders]
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        if len(folders) == num_classes:
            return list(range(num_classes))
        raise InputError(
            f"{images.root} has {counted(len(folders), 'class folder')} and the model "
            f"{_classes(num_classes)}, so that a folder's place is not its label; {way_out}"
        )
    largest = max(numbers)
    if 0 in numbers and largest < num_classes:
        return numbers
    if 0 not in numbers and largest == num_classes:
        return [n - 1 for n in numbers]
    if largest < num_classes:
        raise InputError(
            f"{images.root}: the class folders are numbered from {min(numbers)} to {largest}, "
            f"which may count the model's {_classes(num_classes)} from 0 or from 1; {way_out}"
        )
    raise InputError(
        f"{images.root}: the class folder {folders[numbers.index(largest)]} is outside the model's "
        f"{_classes(num_classes)}; {way_out}"
    )


# "003.Sooty_Albatross", "10", "7_x" and "7 x", but not "3d" or "2-3x".
_NUMBERED = re.compile(r"(\d{1,9})(?:$|[._\- ](?!\d))", re.ASCII)


def _are_made_up(images: ImageSet) -> bool:
    """Whether metadata without class folders has only numbers for the names of its classes."""
    numbers = tuple(str(i) for i in range(len(images.class_names)))
    return images.kind == "metadata" and images.class_names in ((), numbers)


def _classes(count: int) -> str:
    return f"{count} class" if count == 1 else f"{count} classes"
