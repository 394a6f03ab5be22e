"""Which class of the model each image has: by name, number or count, and never by guessing."""

from pathlib import Path

import pytest
from data_factory import write_file

from cba_fast.data import ImageSet, model_labels, read_class_names
from cba_fast.data.records import make_record
from cba_fast.errors import InputError


def folders(*names, kind="imagefolder", labels=None):
    labels = range(len(names)) if labels is None else labels
    records = [
        make_record(f"{name}/1.png", Path(), label, "test")
        for name, label in zip(names, labels, strict=True)
    ]
    return ImageSet(Path("root"), kind, tuple(records), tuple(names))


def labels(images, *args):
    return [*model_labels(images, *args).values()]


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (("a", "b", "c"), 3, [0, 1, 2]),
        (("0", "1", "10", "2"), 11, [0, 1, 10, 2]),
        (("0", "3"), 4, [0, 3]),
        (("1", "10", "2"), 10, [0, 9, 1]),
        (("001.Auk", "002.Jay", "003.Owl"), 3, [0, 1, 2]),
        (("002.Jay", "003.Owl"), 3, [1, 2]),
        (("0_x", "7 y", "2-z"), 8, [0, 7, 2]),
        # No numbers in front of all names, or none that tell the folders apart: the counts count.
        (("1", "2", "x"), 3, [0, 1, 2]),
        (("3d", "4d"), 2, [0, 1]),
        (("2024.a", "2024.b"), 2, [0, 1]),
        (("n01440764", "n01443537"), 2, [0, 1]),
    ],
    ids=str,
)
def test_class_folders(names, classes, expected):
    assert labels(folders(*names), classes) == expected


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (("a", "b", "d"), 4, "has 3 class folders and the model 4 classes.*`classes`"),
        (("a", "b", "d"), 2, "has 3 class folders and the model 2 classes"),
        (("3", "7"), 10, "numbered from 3 to 7, which may count the model's 10 classes from 0 or"),
        (("0", "4"), 4, "the class folder 4 is outside the model's 4 classes"),
        (("1", "5"), 4, "the class folder 5 is outside the model's 4 classes"),
    ],
    ids=str,
)
def test_class_folders_that_do_not_say_it(names, classes, message):
    with pytest.raises(InputError, match=message):
        model_labels(folders(*names), classes)


def test_names_decide_where_they_are_known():
    listed = ("d", "c", "b", "10")
    assert labels(folders("10", "b", "d"), 4, listed) == [3, 2, 0]
    with pytest.raises(InputError, match=r"folder\(s\) e are not among the model's 4 classes \(d,"):
        model_labels(folders("b", "e"), 4, listed)
    with pytest.raises(InputError, match="4 class names are given, and the model has 3 classes"):
        model_labels(folders("b"), 3, listed)
    # A CUB folder, too: the model may have been trained on some of its classes.
    assert labels(folders("d", "b", kind="cub"), 4, listed) == [0, 2]
    assert labels(folders("x", "y", kind="cub"), 4, listed) == [0, 1]


def test_true_labels_are_taken_and_checked():
    truth = {"a/1.png": 3, "b/1.png": 0}
    assert model_labels(folders("a", "b"), 4, None, truth) == truth
    assert model_labels(folders("a", "b"), 4, ("w", "x", "y", "z"), truth) == truth
    for images, true_labels in (
        (folders("a", "b"), truth),
        (folders("a", "b", kind="metadata", labels=[3, 0]), None),
        (folders("a", "b", kind="cub", labels=[3, 0]), None),
    ):
        with pytest.raises(InputError, match=r"a/1.png has label 3, which is outside the model's"):
            model_labels(images, 3, None, true_labels)


def test_numbers_that_stand_for_names_are_no_names():
    # Metadata whose images lie in no class folders calls class 2 "2".
    images = folders("0", "1", "2", kind="metadata")
    assert labels(images, 3, ("2", "1", "0")) == [0, 1, 2]
    unlabelled = ImageSet(images.root, "metadata", folders("a", labels=[None]).records, ())
    assert labels(unlabelled, 3, ("2", "1", "0")) == []


def test_class_names_are_read_in_order(tmp_path):
    path = write_file(tmp_path / "classes.txt", "\ufeffd\r\n\r\n b c \r\na\n")
    assert read_class_names(path) == ("d", "b c", "a")
    with pytest.raises(InputError, match=r"classes\.txt, line 3: duplicate id a"):
        read_class_names(write_file(path, "a\nb\na\n"))
    with pytest.raises(InputError, match="names no classes"):
        read_class_names(write_file(path, "\n"))
    with pytest.raises(InputError, match="no file"):
        read_class_names(tmp_path / "none.txt")
