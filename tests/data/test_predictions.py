"""Files of predictions, and what follows from them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cba_fast.data import read_predictions, write_predictions
from cba_fast.errors import InputError
from cba_fast.runs.scoring.boxes import read_tuned
from cba_fast.wsol import correct_classes

TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00\r/\\"), min_size=1, max_size=8
).filter(lambda text: text not in (".", ".."))


@pytest.mark.parametrize("suffix", ["csv", "txt", "json"])
@given(st.dictionaries(TEXT, st.lists(st.integers(0, 999), min_size=1, max_size=5), min_size=1))
@settings(max_examples=30)
def test_files_come_back(tmp_path_factory, suffix, predictions):
    path = tmp_path_factory.mktemp("p") / f"p.{suffix}"
    write_predictions(path, {k: np.array(v) for k, v in predictions.items()})
    assert read_predictions(path) == predictions


def test_the_formats_are_those_of_the_docs(tmp_path):
    found = {"a/1.jpg": [4, 0, 17], "a,b/2.jpg": [3]}
    write_predictions(tmp_path / "p.csv", found)
    text = (tmp_path / "p.csv").read_text()
    assert text == 'image_id,top1,top2,top3\na/1.jpg,4,0,17\n"a,b/2.jpg",3\n'
    write_predictions(tmp_path / "p.json", found)
    assert json.loads((tmp_path / "p.json").read_text()) == found
    # as a spreadsheet saves it: a byte order mark, CRLF, cells filled up
    (tmp_path / "p.csv").write_bytes(
        b"\xef\xbb\xbfimage_id,top1,top2\r\na/1.jpg, 4 ,5\r\n\r\na/2.jpg,6,\r\n"
    )
    assert read_predictions(tmp_path / "p.csv") == {"a/1.jpg": [4, 5], "a/2.jpg": [6]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "a/1.jpg,3\n", "line 1: expected the header image_id,top1"),
        ("p.csv", "", "line 1: expected the header"),
        ("p.csv", "image_id,top1\n", "holds no predictions"),
        ("p.csv", "image_id,top1\na,1\nb,2\na,1\n", "line 4: image 'a' was given before"),
        ("p.csv", "image_id,top1\na\n", "line 2: image 'a' has no predicted class"),
        ("p.csv", "image_id,top1\na,1.5\n", "line 2: '1.5' of image 'a' is not a 0-based class"),
        ("p.csv", "image_id,top1\na,-1\n", "'-1' of image 'a'"),
        ("p.csv", "image_id,top1\na,,1\n", "'' of image 'a'"),
        ("p.csv", "image_id,top1\na,dog\n", "'dog' of image 'a'"),
        ("p.csv", "image_id,top1\na,1_0\n", "'1_0' of image 'a'"),
        ("p.csv", "image_id,top1\na,\0\n", "line 2: a NUL byte"),
        ("p.csv", "image_id,top1\n../a,1\n", "image id '../a' is not a plain relative path"),
        ("p.json", '{"a": {"b": 1}}', r"\('b', 1\) of image 'a'"),
        ("p.json", "{", "not JSON"),
        ("p.json", "[1]", "expected an object of lists"),
        ("p.json", '{"a": 3}', "image 'a' has no list of classes: 3"),
        ("p.json", '{"a": [1], "a": [2]}', "image 'a' was given before"),
        ("p.json", '{"a": [true]}', "True of image 'a'"),
        ("p.json", '{"a": []}', "image 'a' has no predicted class"),
        ("p.json", "{}", "holds no predictions"),
        ("p.csv", "\udcff", "is not UTF-8 text"),
        ("p.csv", f"image_id,top1\n{'a' * 140_000},1\n", "line 2: not CSV: field larger"),
        ("p.csv", f"{'a' * 140_000}\n", "line 1: not CSV"),
        ("p.csv", f"image_id,top1\na,{'7' * 5000}\n", r"line 2: '7{39}\.\.\. of image 'a'"),
        ("p.csv", f"image_id,top1\na,{2**31}\n", "line 2: '2147483648' of image 'a' is not"),
        ("p.json", f'{{"a": [{2**31}]}}', "2147483648 of image 'a' is not a 0-based class"),
        ("p.json", f'{{"a": [{"7" * 5000}]}}', "not JSON|is not a 0-based"),
        ("p.json", '{"a": ' + "[" * 100_000, "not JSON"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as e:
        read_predictions(path)
    assert str(path) in str(e.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no file .*nowhere\.csv"):
        read_predictions(tmp_path / "nowhere.csv")


def test_top5_needs_five_predictions_or_all_classes():
    labels = {"a": 0, "b": 6}
    right = correct_classes(["a", "b"], {"a": [0, 1, 2, 3, 4], "b": [0, 1, 2, 3, 6, 9]}, labels)
    assert right["top1"].tolist() == [True, False]
    assert right["top5"].tolist() == [True, True]
    right = correct_classes(["a", "b"], {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3, 6]}, labels)
    assert list(right) == ["top1"]
    few = correct_classes(["a", "b"], {"a": [1, 0], "b": [1, 0]}, {"a": 0, "b": 1})
    assert few["top5"].tolist() == [True, True]
    # the sixth and later predictions do not count
    late = correct_classes(["b"], {"b": [0, 1, 2, 3, 4, 6]}, labels)
    assert late["top5"].tolist() == [False]
    with pytest.raises(InputError, match="'b' has a score map but no prediction"):
        correct_classes(["a", "b"], {"a": [0]}, labels)
    with pytest.raises(InputError, match="no class labels"):
        correct_classes(["a"], {"a": [0]}, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not valid JSON: it is nested too deeply"),
        (
            '{"iou_thresholds": [1%s], "all": {"optimal_threshold": [0]}}' % ("0" * 400),
            "not valid JSON: it holds an integer",
        ),
    ],
)
def test_bad_files_of_tuned_thresholds_are_named(tmp_path, text, message):
    path = tmp_path / "val.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"val\.json: {message}"):
        read_tuned(path)
