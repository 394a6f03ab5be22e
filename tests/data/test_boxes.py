"""Ground-truth boxes: both sources, every broken line named, official scaling."""

import logging
import subprocess
import sys

import numpy as np
import pytest
from data_factory import cub_folder, edit_lines, metadata_folder, write_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cba_fast.data import Boxes, load_boxes, open_image_set
from cba_fast.data.boxes import turned_notes
from cba_fast.errors import BoxError, ImageError, InputError

BOXES = {"c/x.jpg": [(1, 2, 10, 12)], "d/y,1.jpg": [(0, 0, 5, 5), (4, 4, 9, 9)]}
SIZES = {"c/x.jpg": (20, 30), "d/y,1.jpg": (10, 10)}
LABELS = {"c/x.jpg": 0, "d/y,1.jpg": 1}


@pytest.fixture
def meta(tmp_path):
    return metadata_folder(tmp_path / "meta", BOXES, SIZES, LABELS)


@pytest.fixture
def cub(tmp_path):
    return cub_folder(tmp_path / "CUB_200_2011")


def test_metadata_boxes(meta):
    found = load_boxes(metadata_root=meta)
    assert found.image_ids == ("c/x.jpg", "d/y,1.jpg")
    assert {i: list(map(tuple, b)) for i, b in found.boxes.items()} == BOXES
    assert all(b.dtype == np.int64 for b in found.boxes.values())
    assert found.sizes == SIZES
    assert found.labels == LABELS


def test_metadata_of_one_image(meta):
    found = load_boxes(metadata_root=meta, image_ids=["d/y,1.jpg"])
    assert found.image_ids == ("d/y,1.jpg",)
    assert list(found.boxes) == list(found.sizes) == list(found.labels) == ["d/y,1.jpg"]
    with pytest.raises(BoxError, match=r"2 image\(s\) have no box in .*: no/a\.jpg, no/b\.jpg"):
        load_boxes(metadata_root=meta, image_ids=["no/a.jpg", "c/x.jpg", "no/b.jpg"])


def test_metadata_below_an_official_root(tmp_path):
    metadata_folder(tmp_path / "ILSVRC" / "test", BOXES, SIZES, LABELS)
    for where in (
        {"metadata_root": tmp_path, "dataset_name": "ILSVRC"},
        {"metadata_root": tmp_path / "ILSVRC"},
        {"metadata_root": tmp_path / "ILSVRC" / "test"},
        {"metadata_root": tmp_path / "ILSVRC" / "test", "split": "test"},
        {"metadata_root": tmp_path / "ILSVRC" / "test", "dataset_name": "ILSVRC"},
    ):
        assert load_boxes(**where).image_ids == tuple(BOXES)
        assert load_boxes(**where).source == str(tmp_path / "ILSVRC" / "test")
    with pytest.raises(InputError, match=r"test holds image_ids.txt itself: .* not 'val'"):
        load_boxes(metadata_root=tmp_path / "ILSVRC" / "test", split="val")
    for root in (tmp_path / "ILSVRC" / "test", tmp_path / "ILSVRC"):
        with pytest.raises(InputError, match="no folder of its path is named 'CUB'"):
            load_boxes(metadata_root=root, dataset_name="CUB")
    with pytest.raises(InputError, match="sets ILSVRC: choose one with `dataset_name`"):
        load_boxes(metadata_root=tmp_path)
    with pytest.raises(InputError, match=r"no image_ids\.txt in .*ILSVRC.val"):
        load_boxes(metadata_root=tmp_path, dataset_name="ILSVRC", split="val")


def test_blank_lines_crlf_and_byte_order_mark_are_tolerated(meta):
    for path in meta.iterdir():
        text = path.read_text().replace("\n", "\r\n\r\n")
        path.write_bytes(b"\xef\xbb\xbf\r\n" + text.encode())
    assert load_boxes(metadata_root=meta).boxes.keys() == BOXES.keys()


def test_labels_are_optional(meta):
    (meta / "class_labels.txt").unlink()
    assert load_boxes(metadata_root=meta).labels is None


@pytest.mark.parametrize("name", ["image_ids.txt", "class_labels.txt", "image_sizes.txt"])
def test_duplicate_ids_are_refused(meta, name):
    edit_lines(meta / name, lambda lines: [*lines, lines[0]])
    with pytest.raises(InputError, match=rf"{name}, line 3: duplicate id 'c/x\.jpg'"):
        load_boxes(metadata_root=meta)


@pytest.mark.parametrize("name", ["class_labels.txt", "image_sizes.txt", "localization.txt"])
def test_ids_missing_in_a_file_are_refused(meta, name):
    edit_lines(meta / name, lambda lines: lines[1:])
    with pytest.raises(InputError, match=rf"{name} lacks 1 id\(s\) of image_ids\.txt: c/x\.jpg"):
        load_boxes(metadata_root=meta)


def test_ids_missing_in_image_ids_are_refused(meta):
    edit_lines(meta / "image_ids.txt", lambda lines: lines[:1])
    with pytest.raises(InputError, match=r"image_ids\.txt lacks 1 id\(s\) of localization\.txt"):
        load_boxes(metadata_root=meta)


@pytest.mark.parametrize("name", ["image_ids.txt", "image_sizes.txt", "localization.txt"])
def test_missing_files_are_named(meta, name):
    (meta / name).unlink()
    with pytest.raises(InputError, match=rf"no .*{name}"):
        load_boxes(metadata_root=meta)


@pytest.mark.parametrize(
    ("name", "line", "want"),
    [
        ("class_labels.txt", "c/x.jpg;0", "<id>,<0-based label>, numbers below 2**31"),
        ("class_labels.txt", "c/x.jpg,zero", "<id>,<0-based label>, numbers below 2**31"),
        ("class_labels.txt", "c/x.jpg,-1", "a label of 0 or more, at most 999999"),
        ("image_sizes.txt", "c/x.jpg,20", "<id>,<width>,<height>, numbers below 2**31"),
        ("image_sizes.txt", "c/x.jpg,0,30", "a width and a height above 0"),
        ("image_sizes.txt", "c/x.jpg,20,-30", "a width and a height above 0"),
        ("localization.txt", "c/x.jpg,1,2,3", "<id>,<x0>,<y0>,<x1>,<y1>, numbers below 2**31"),
        ("localization.txt", "c/x.jpg,1,2,3,4.5", "<id>,<x0>,<y0>,<x1>,<y1>, numbers below 2**31"),
        ("localization.txt", ",1,2,3,4", "<id>,<x0>,<y0>,<x1>,<y1>, numbers below 2**31"),
        (
            "localization.txt",
            f"c/x.jpg,1,2,3,{10**20}",
            "<id>,<x0>,<y0>,<x1>,<y1>, numbers below 2**31",
        ),
        ("image_sizes.txt", f"c/x.jpg,{2**31},4", "<id>,<width>,<height>, numbers below 2**31"),
        ("class_labels.txt", f"c/x.jpg,{2**31}", "<id>,<0-based label>, numbers below 2**31"),
        ("class_labels.txt", "c/x.jpg,100000000", "a label of 0 or more, at most 999999"),
        ("image_sizes.txt", "c/x.jpg,1_0,30", "<id>,<width>,<height>, numbers below 2**31"),
        ("image_sizes.txt", "c/x.jpg, 20,30", "<id>,<width>,<height>, numbers below 2**31"),
    ],
)
def test_malformed_lines_are_quoted(meta, name, line, want):
    edit_lines(meta / name, lambda lines: [line, *lines[1:]])
    with pytest.raises(InputError) as caught:
        load_boxes(metadata_root=meta)
    assert f"{name}, line 1: expected {want}, got {line!r}" in str(caught.value)


@pytest.mark.parametrize("box", ["-1,2,3,4", "1,-2,3,4", "5,2,4,4", "1,5,3,4"])
def test_negative_and_reversed_boxes_are_refused(meta, box):
    edit_lines(meta / "localization.txt", lambda lines: [*lines[:1], f"d/y,1.jpg,{box}"])
    x0, y0, x1, y1 = box.split(",")
    with pytest.raises(BoxError) as caught:
        load_boxes(metadata_root=meta)
    assert "localization.txt, line 2: box of d/y,1.jpg is negative or reversed" in str(caught.value)
    assert f"x0={x0} y0={y0} x1={x1} y1={y1}" in str(caught.value)


def test_masks_are_refused_with_a_sentence(meta):
    edit_lines(meta / "localization.txt", lambda lines: ["c/x.jpg,test/m.png,test/ig.png"])
    with pytest.raises(InputError, match="describes a mask"):
        load_boxes(metadata_root=meta)


def test_binary_files_are_refused(meta):
    (meta / "image_sizes.txt").write_bytes(b"c/x.jpg\xff\xfe")
    with pytest.raises(InputError, match=r"image_sizes\.txt is not UTF-8 text \(byte 7\)"):
        load_boxes(metadata_root=meta)


def test_boxes_beyond_the_image_are_kept_with_one_warning(meta, caplog):
    edit_lines(meta / "localization.txt", lambda lines: ["c/x.jpg,1,2,21,12", *lines[1:]])
    with caplog.at_level(logging.WARNING, "cba_fast"):
        found = load_boxes(metadata_root=meta)
    assert found.boxes["c/x.jpg"].tolist() == [[1, 2, 21, 12]]
    assert [r.getMessage() for r in caplog.records] == [
        "1 image(s) have a box that reaches beyond the image (1 of them would fit a turned image); "
        "kept as it is: c/x.jpg"
    ]


def test_cub_boxes_beyond_the_image_give_the_same_warning(cub, caplog):
    edit_lines(cub / "bounding_boxes.txt", lambda lines: [*lines[:4], "5 5 5 23 31"])
    load_boxes(cub_root=cub)
    assert [r.getMessage() for r in caplog.records] == [
        "1 image(s) have a box that reaches beyond the image (1 of them would fit a turned image); "
        "kept as it is: 003.Wren/Wren_0001.jpg"
    ]


def test_boxes_that_have_nothing_to_do_with_the_images_are_refused(meta, cub):
    edit_lines(meta / "localization.txt", lambda lines: ["c/x.jpg,20,0,40,12", *lines[1:]])
    edit_lines(cub / "bounding_boxes.txt", lambda lines: [*lines[:4], "5 5 28 3 3"])
    for root in ({"metadata_root": meta}, {"cub_root": cub}):
        with pytest.raises(BoxError, match=r"1 of 3 boxes lie wholly outside .*`allow_beyond`"):
            load_boxes(**root)
        assert len(load_boxes(**root, allow_beyond=True).image_ids) > 1


def test_photos_turned_by_exif_are_named(tmp_path, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write_image(tmp_path / "CUB/images/003.Wren/Wren_0001.jpg", (36, 28), exif=exif)
    data = path.read_bytes()
    cub = cub_folder(tmp_path / "CUB")
    path.write_bytes(data)
    load_boxes(cub_root=cub)
    assert "1 photo turned by EXIF or against the recorded size" in caplog.text
    image = write_image(tmp_path / "x.jpg", (30, 20))
    found = load_boxes(metadata_root=metadata_folder(tmp_path / "m", BOXES, SIZES, LABELS))
    assert "against the recorded size" in turned_notes(found, {"c/x.jpg": image})[0]
    assert turned_notes(found, {"d/y,1.jpg": image}) == []


def test_cub_boxes_are_truncated_after_the_sum(cub):
    found = load_boxes(cub_root=cub)
    # int(0.6), int(10.7), int(0.6 + 20.7), int(10.7 + 30.6); int(10.5 + 10.5)
    assert found.boxes["001.Red_Finch/Finch_0001.jpg"].tolist() == [[0, 10, 21, 41]]
    assert found.boxes["002.Grey_Jay/Jay_0010.jpg"].tolist() == [[10, 10, 21, 21]]
    assert found.sizes["001.Red_Finch/Finch_0001.jpg"] == (32, 48)
    assert found.labels["003.Wren/Wren_0001.jpg"] == 2
    assert found.image_ids == tuple(r.image_id for r in open_image_set(cub).records)
    assert len(load_boxes(cub_root=cub.parent, split="all").image_ids) == 5


def test_cub_reads_only_the_headers_it_is_asked_for(cub):
    (cub / "images/002.Grey_Jay/Jay_0010.jpg").unlink()
    found = load_boxes(cub_root=cub)
    assert found.sizes["003.Wren/Wren_0001.jpg"] == (36, 28)
    with pytest.raises(ImageError, match=r"Jay_0010\.jpg: No such file"):
        found.scaled("002.Grey_Jay/Jay_0010.jpg", (10, 10))
    wanted = ["003.Wren/Wren_0001.jpg"]
    assert load_boxes(cub_root=cub, image_ids=wanted).image_ids == tuple(wanted)
    with pytest.raises(BoxError, match="no box in the split 'test'"):
        load_boxes(cub_root=cub, image_ids=["002.Grey_Jay/Jay_0007.jpg"])


@pytest.mark.parametrize("box", ["-1 2 3 4", "1 2 -3 4", "1 2 3 nan", "1 2 inf 4", "1 2 1e300 4"])
def test_bad_cub_boxes_are_refused(cub, box):
    edit_lines(cub / "bounding_boxes.txt", lambda lines: [f"1 {box}", *lines[1:]])
    with pytest.raises(BoxError, match=r"bounding_boxes\.txt, line 1: box of image 1 is not"):
        load_boxes(cub_root=cub)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("bounding_boxes.txt", lambda x: ["1 2 3 4", *x[1:]], "line 1: expected <image id> <x>"),
        ("bounding_boxes.txt", lambda x: x[1:], r"bounding_boxes.txt lacks 1 id\(s\) of images"),
        ("bounding_boxes.txt", lambda x: [*x, x[0]], "line 6: duplicate id 1"),
        ("images.txt", lambda x: [*x, x[0]], "line 6: duplicate id 1"),
        ("images.txt", lambda x: [*x, "9 " + x[0][2:]], "lacks 1 id"),
        ("images.txt", lambda x: ["one.jpg", *x[1:]], "line 1: expected <image id> <path"),
        ("images.txt", lambda x: [], "lists no images"),
        ("image_class_labels.txt", lambda x: [*x[1:], "1 4"], "image 1 has class 4"),
        ("train_test_split.txt", lambda x: ["1 2", *x[1:]], "line 1: expected <image id> <0 or"),
        ("train_test_split.txt", lambda x: [*x, "7 0"], r"images.txt lacks 1 id\(s\) of train"),
        ("classes.txt", lambda x: x[1:], "class ids are not 1..2"),
    ],
)
def test_broken_cub_lists_are_refused(cub, name, edit, message):
    edit_lines(cub / name, edit)
    with pytest.raises(InputError, match=message):
        load_boxes(cub_root=cub)


def test_two_cub_ids_of_one_image_are_refused(cub):
    edit_lines(cub / "images.txt", lambda x: [x[0], "2" + x[0][1:], *x[2:]])
    with pytest.raises(InputError, match=r"Finch_0002\.jpg has the ids 1 and 2"):
        load_boxes(cub_root=cub)


def test_not_a_cub_folder(tmp_path):
    with pytest.raises(InputError, match=r"is not a CUB_200_2011 folder: no images\.txt in it"):
        load_boxes(cub_root=tmp_path)


def test_exactly_one_source(meta, cub):
    for roots in ({}, {"cub_root": cub, "metadata_root": meta}):
        with pytest.raises(InputError, match="`cub_root` or from `metadata_root`: give one"):
            load_boxes(**roots)


def test_unknown_split(cub):
    with pytest.raises(InputError, match="train, test, all, not 'val'"):
        load_boxes(cub_root=cub, split="val")


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 4000), st.integers(0, 4000))
def test_scaling_is_the_official_expression(size, new, x0, x1):
    found = Boxes(("i",), {"i": np.array([[x0, 3, x1, 7]])}, {"i": (size, 9)}, None)
    scaled = found.scaled("i", (new, 224))
    assert scaled.dtype == np.int64
    # From wsolevaluation's definition: floats, product first, then truncation.
    want = [
        int(float(v) * float(n) / float(s))
        for v, n, s in ((x0, new, size), (3, 224, 9), (x1, new, size), (7, 224, 9))
    ]
    assert scaled.tolist() == [want]
    found.boxes["i"] = [[x0, 3, x1, 7]]  # lists of users do as well
    assert found.scaled("i", (new, 224)).tolist() == [want]


def test_reading_boxes_imports_no_torch(meta):
    code = (
        "import sys; from cba_fast.data import load_boxes; "
        f"load_boxes(metadata_root={str(meta)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
