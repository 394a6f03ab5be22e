"""Tables of the official metadata, parsed at once: what a line may be, by its specification."""

import random
import re

import numpy as np
import pytest
from data_factory import metadata_folder

from cba_fast.data import load_boxes
from cba_fast.data.metadata import MAX_NUMBER, _read_table, read_ids
from cba_fast.errors import InputError

IDS = ["a", "id/x.jpg", "é,b", "x,1", "", "ß/日本.jpg", ",", "a b"]
NUMBERS = [
    "0",
    "-3",
    "12",
    "4294967295",
    "2147483647",
    "00000000001",
    "1e3",
    "",
    "-",
    "+1",
    "\u0661",
]


def specified(lines, count):
    """Return ids and numbers of lines, one regular expression per line, or None if one is bad."""
    pattern = re.compile("(.+)" + ",(-?[0-9]{1,10})" * count)
    found = [pattern.fullmatch(line) for line in lines if line]
    if None in found:
        return None
    values = [list(map(int, match.groups()[1:])) for match in found]
    if any(abs(value) > MAX_NUMBER for row in values for value in row):
        return None
    return tuple(match[1] for match in found), values


@pytest.mark.parametrize("count", [1, 2, 4])
def test_tables_are_read_as_specified(tmp_path, count):
    draw = random.Random(count)
    path, good = tmp_path / "table.txt", 0
    for _ in range(300):
        lines = []
        for _ in range(draw.randint(0, 3)):
            fields = count + draw.choice([0] * 9 + [1, -1])
            numbers = [draw.choice([*NUMBERS, *["77"] * 40]) for _ in range(fields)]
            lines.append(",".join([draw.choice(IDS), *numbers]))
        path.write_text("\n".join(lines), encoding="utf-8")
        want = specified(lines, count)
        if want is None:
            with pytest.raises(InputError, match=r"table.txt, line [123]: expected FORM"):
                _read_table(path, count, "FORM")
            continue
        owners, values = _read_table(path, count, "FORM")
        assert owners == want[0]
        assert values.dtype == np.int64
        assert values.tolist() == want[1]
        good += 1
    assert 50 < good < 280


@pytest.mark.parametrize(
    "bad", ["/a", "a//b", "a/", ".", "./a", "a/../b", "..", "a\\b", "c/.jpg", "\x7fa"]
)
def test_ids_that_lead_elsewhere_are_refused_wherever_they_stand(tmp_path, bad):
    for ids in ([bad, "x"], ["x", bad], ["x", bad, "y"]):
        (tmp_path / "image_ids.txt").write_text("\n".join(ids) + "\n")
        with pytest.raises(InputError, match="image id"):
            read_ids(tmp_path)
    (tmp_path / "image_ids.txt").write_text(".hidden/a.jpg\nb..c/d...jpg\n")
    assert read_ids(tmp_path) == (".hidden/a.jpg", "b..c/d...jpg")


def test_boxes_in_another_order_than_the_ids_stay_with_their_images(tmp_path):
    boxes = {f"{k}.jpg": [(k, k, 50 + k, 60)] for k in range(9)}
    sizes = dict.fromkeys(boxes, (200, 100))
    plain = load_boxes(
        metadata_root=metadata_folder(tmp_path / "a", boxes, sizes, dict.fromkeys(boxes, 0))
    )
    folder = metadata_folder(tmp_path / "b", boxes, sizes, dict.fromkeys(boxes, 0))
    lines = (folder / "localization.txt").read_text().split()
    (folder / "localization.txt").write_text("\n".join(lines[::-1]))
    turned = load_boxes(metadata_root=folder)
    for image_id, want in boxes.items():
        assert plain.boxes[image_id].tolist() == turned.boxes[image_id].tolist() == [list(*want)]


@pytest.mark.parametrize(
    ("image_id", "told"), [("a" * 10**6, "(1000000 characters)"), ("a\u200bb", "'a")]
)
def test_ids_that_would_fill_the_screen_are_cut_or_quoted(tmp_path, image_id, told):
    boxes, sizes = {"x.jpg": [(0, 0, 5, 5)]}, {"x.jpg": (9, 9)}
    folder = metadata_folder(tmp_path / "m", boxes, sizes, {"x.jpg": 0})
    with open(folder / "image_ids.txt", "a", newline="") as f:
        f.write(f"{image_id}\n")
    with pytest.raises(InputError, match="localization.txt lacks 1 id") as caught:
        load_boxes(metadata_root=folder)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(folder))
    assert str(caught.value).isprintable()
