"""Reading images and listing data sets: every kind of bad file and folder gets its sentence."""

import contextlib
import io
import os
import threading

import numpy as np
import pytest
import torch
from data_factory import (
    cub_folder,
    edit_lines,
    image_bytes,
    image_folder,
    metadata_folder,
    write_file,
    write_image,
)
from PIL import Image, ImageFile
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from cba_fast.data import (
    ImageDataset,
    erf_map_transform,
    map_names,
    open_image_set,
    read_image,
    resolve_test_dataset,
    study_transform,
)
from cba_fast.data.images import read_size
from cba_fast.data.reading import Report
from cba_fast.data.textlines import parse_float, parse_int, read_text
from cba_fast.errors import ImageError, InputError


def pixels(image):
    return np.asarray(image)


# ---- reading


@pytest.mark.parametrize(
    ("fmt", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "RGBA"),
     ("PNG", "1"), ("TIFF", "CMYK"), ("WEBP", "RGB"), ("BMP", "RGB")],
)  # fmt: skip
def test_every_mode_becomes_rgb_as_pillow_converts_it(tmp_path, fmt, mode):
    data = image_bytes((20, 10), fmt=fmt, mode=mode)
    image, truncated = read_image(write_file(tmp_path / "x.img", data))
    assert image.mode == "RGB"
    assert image.size == (20, 10)
    assert not truncated
    with Image.open(io.BytesIO(data)) as want:
        np.testing.assert_array_equal(pixels(image), pixels(want.convert("RGB")))


def test_palette_transparency_is_dropped_without_a_warning(tmp_path, recwarn):
    data = image_bytes(fmt="PNG", mode="P", transparency=bytes(range(200)))
    image, _ = read_image(write_file(tmp_path / "x.png", data))
    assert not recwarn.list
    np.testing.assert_array_equal(
        pixels(image), pixels(Image.open(io.BytesIO(data)).convert("RGB"))
    )


def test_16_bit_grey_keeps_its_high_byte(tmp_path):
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "x.png")
    image, _ = read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(pixels(image), np.repeat((values >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("values", "want"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), lambda v: v * 255),
        (np.linspace(0, 200, 64, dtype=np.float32), lambda v: v),
        (np.arange(64, dtype=np.int32), lambda v: v),
        (np.arange(64, dtype=np.int32) * 1000, lambda v: v // 256),
    ],
)
def test_32_bit_grey_is_read_by_its_range(tmp_path, values, want):
    Image.fromarray(values.reshape(8, 8)).save(tmp_path / "x.tif")
    image, _ = read_image(tmp_path / "x.tif")
    expected = want(values.reshape(8, 8)).astype(np.uint8)
    np.testing.assert_array_equal(pixels(image), np.repeat(expected[..., None], 3, axis=2))


def test_images_that_would_become_constant_are_refused(tmp_path):
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for values in (ramp * 1e4, -ramp, np.full((8, 8), np.nan, np.float32)):
        Image.fromarray(values).save(tmp_path / "x.tif")
        with pytest.raises(ImageError, match=r"x\.tif: ValueError: 32-bit grey values from"):
            read_image(tmp_path / "x.tif")
    Image.fromarray((ramp * 255).astype(np.uint16)).save(tmp_path / "x.png")  # high bytes: all 0
    with pytest.raises(ImageError, match=r"pixels differ, but as RGB they are all \(0, 0, 0\)"):
        read_image(tmp_path / "x.png")
    Image.new("L", (8, 8), 7).save(tmp_path / "flat.png")  # constant in the file, too
    assert pixels(read_image(tmp_path / "flat.png")[0]).max() == 7


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing(tmp_path):
    path = write_image(tmp_path / "x.jpg", (30, 20), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12")
    assert read_size(path) == (30, 20)


def test_numbers_in_files_are_plain_ascii():
    assert (parse_int("-12"), parse_float("1.5e-3"), parse_float(".5")) == (-12, 0.0015, 0.5)
    for text in ("1_000", " 1", "1\0", "\u0663", "", "0x10", "9" * 5000):
        for parse in (parse_int, parse_float):
            with pytest.raises(ValueError, match="not a"):
                parse(text)


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    path = write_image(tmp_path / "x.jpg", (30, 20), exif=exif)
    assert read_image(path)[0].size == (30, 20)


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg_is_decoded_as_far_as_it_goes(tmp_path, progressive):
    gradient = np.linspace(0, 255, 96 * 128 * 3).reshape(96, 128, 3).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(gradient).save(out, "JPEG", quality=95, progressive=progressive)
    data = out.getvalue()
    whole = pixels(read_image(write_file(tmp_path / "whole.jpg", data))[0])
    image, truncated = read_image(write_file(tmp_path / "cut.jpg", data[: int(0.7 * len(data))]))
    assert truncated
    assert image.size == (128, 96)
    part = pixels(image)
    # A baseline file lacks its lower rows; a progressive one has them all, less exact.
    if progressive:
        assert np.abs(part.astype(int) - whole).max() < 64
    else:
        np.testing.assert_array_equal(part[:40], whole[:40])
        assert (part[-8:] != whole[-8:]).any()


def test_every_cut_of_a_jpeg_is_an_image_or_an_image_error(tmp_path):
    for progressive in (False, True):
        data = image_bytes((24, 24), fmt="JPEG", progressive=progressive)
        first_scan = data.index(b"\xff\xda")
        for cut in range(0, len(data), 7):
            path = write_file(tmp_path / "cut.jpg", data[:cut])
            if cut < first_scan:
                with pytest.raises(ImageError, match=r"cut\.jpg"):
                    read_image(path)
            elif cut > first_scan + 14:  # behind the scan's own header
                assert read_image(path)[1], cut


def test_truncation_leaves_pillows_global_switch_alone(tmp_path):
    data = image_bytes((64, 64))
    path = write_file(tmp_path / "cut.jpg", data[: len(data) // 2])
    seen = []

    def read():
        for _ in range(20):
            seen.append((read_image(path)[1], ImageFile.LOAD_TRUNCATED_IMAGES))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert seen == [(True, False)] * 80
    with pytest.raises(OSError, match="truncated"):
        Image.open(path).load()


def test_truncation_is_seen_with_pillows_switch_on(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = image_bytes((64, 64))
    assert read_image(write_file(tmp_path / "cut.jpg", data[: len(data) // 2]))[1]


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "BMP", "WEBP"])
def test_other_truncated_formats_are_unreadable(tmp_path, fmt):
    data = image_bytes((64, 64), fmt=fmt)
    with pytest.raises(ImageError, match=r"cut\.img"):
        read_image(write_file(tmp_path / "cut.img", data[: len(data) // 2]))


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_not_an_image(tmp_path, data):
    with pytest.raises(ImageError, match=r"cannot read image .*x\.jpg"):
        read_image(write_file(tmp_path / "x.jpg", data))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match=r"no\.jpg: No such file"):
        read_image(tmp_path / "no.jpg")
    with pytest.raises(ImageError, match="Is a directory"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    rng = np.random.default_rng(0)
    for fmt in ("JPEG", "PNG", "TIFF", "GIF", "WEBP"):
        data = image_bytes((24, 24), fmt=fmt)
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), 4):
                broken[at] = rng.integers(256)
            path = write_file(tmp_path / "x.img", bytes(broken))
            with contextlib.suppress(ImageError):  # anything else would end a run
                assert read_image(path)[0].mode == "RGB"


def test_decompression_bomb_is_an_image_error(tmp_path, monkeypatch):
    path = write_image(tmp_path / "x.png", (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    with pytest.raises(ImageError, match=r"x\.png: DecompressionBombError"):
        read_image(path)


# ---- preprocessing


def test_study_transform_is_the_studys_chain(tmp_path):
    image, _ = read_image(write_image(tmp_path / "x.png", (70, 50)))
    want = transforms.Compose(
        [transforms.Resize((48, 48)), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    )(image)
    got = study_transform(48)(image)
    assert torch.equal(got, want)
    assert got.dtype == torch.float32
    assert got.shape == (3, 48, 48)


def test_erf_map_transform_is_bicubic_with_imagenet_statistics():
    image = Image.fromarray(np.full((40, 30, 3), (124, 116, 104), np.uint8))
    got = erf_map_transform(64)(image)
    assert got.shape == (3, 64, 64)
    want = (torch.tensor([124, 116, 104]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / (
        torch.tensor([0.229, 0.224, 0.225])
    )
    torch.testing.assert_close(got, want[:, None, None].expand(3, 64, 64))


@pytest.mark.parametrize("workers", [0, 2])
def test_data_set_reports_bad_images_and_goes_on(tmp_path, workers):
    root = image_folder(tmp_path, ["a/0.jpg", "a/1.jpg", "a/2.jpg", "a/3.jpg"])
    write_file(root / "a/1.jpg", b"broken")
    whole = image_bytes((64, 64))
    write_file(root / "a/2.jpg", whole[: len(whole) // 2])
    records = open_image_set(root).records
    (root / "a/3.jpg").unlink()
    loader = DataLoader(ImageDataset(records, 32), batch_size=4, num_workers=workers)
    (batch,) = list(loader)
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert batch["image"].shape == (4, 3, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert batch["truncated"].tolist() == [False, False, True, False]
    assert [bool(e) for e in batch["error"]] == [False, True, False, True]
    assert str(root / "a/1.jpg") in batch["error"][1]
    assert torch.equal(batch["image"][1], torch.zeros(3, 32, 32))
    assert torch.equal(batch["image"][0], study_transform(32)(read_image(records[0].path)[0]))


# ---- class folders

NESTED = ("b/2.JPG", "b/10.png", "a/deep/er/x.y.jpeg", "a/z.jpg", "a/deep/A.tiff", "C/1.webp")


def test_image_folder_lists_like_torchvision(tmp_path):
    root = image_folder(tmp_path, NESTED)
    write_file(root / "a/notes.txt", "no image")
    found = open_image_set(root)
    want = ImageFolder(root)
    assert found.kind == "imagefolder"
    assert list(found.class_names) == want.classes
    assert [(str(r.path), r.label) for r in found.records] == want.samples
    by_id = {r.image_id: r for r in found.records}
    record = by_id["a/deep/er/x.y.jpeg"]
    assert (record.folder, record.stem, record.map_name) == ("er", "x", "er/x.npy")


def test_hidden_files_and_folders_are_left_out(tmp_path):
    root = image_folder(tmp_path, ["a/1.jpg", "a/._1.jpg", "a/.cache/2.jpg", ".ipynb/3.jpg"])
    found = open_image_set(root)
    assert [r.image_id for r in found.records] == ["a/1.jpg"]
    assert found.class_names == ("a",)


def test_linked_class_folders_are_followed(tmp_path):
    image_folder(tmp_path / "elsewhere", ["a/1.jpg"])
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "elsewhere" / "a", tmp_path / "root" / "a")
    found = open_image_set(tmp_path / "root", follow_links=True)
    assert [r.image_id for r in found.records] == ["a/1.jpg"]


def test_links_to_folders_are_named_and_never_followed_for_ever(tmp_path, caplog):
    root = image_folder(tmp_path / "root", ["a/1.jpg", "b/2.jpg", "c/sub/3.jpg"])
    os.symlink(root / "b", root / "a" / "to_b")
    os.symlink(root / "a", root / "b" / "to_a")
    os.symlink(root / "c" / "sub", root / "c" / "alias")  # read once, by its own name
    found = [r.image_id for r in open_image_set(root).records]
    assert found == ["a/1.jpg", "a/to_b/2.jpg", "b/2.jpg", "b/to_a/1.jpg", "c/sub/3.jpg"]
    assert f"2 links to folders followed; images come from there: {root}/a/to_b -> {root}/b" in (
        caplog.text
    )


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_pipes_and_devices_are_not_opened(tmp_path, make):
    make(tmp_path / "x.jpg")
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match=r"x\.jpg: not a regular file but a pipe"):
            read(tmp_path / "x.jpg")
    make(tmp_path / "x.txt")
    with pytest.raises(InputError, match=r"x\.txt cannot be read: not a regular file"):
        read_text(tmp_path / "x.txt")


def test_empty_class_folders_are_named(tmp_path):
    root = image_folder(tmp_path)
    (root / "empty").mkdir()
    write_file(root / "words/readme.txt", "no image")
    with pytest.raises(InputError, match=r"no images in the class folder\(s\) empty, words"):
        open_image_set(root)


def test_root_without_class_folders(tmp_path):
    write_image(tmp_path / "1.jpg")
    with pytest.raises(InputError, match="has no class folders"):
        open_image_set(tmp_path)
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        open_image_set(tmp_path / "nowhere")


def test_a_folder_of_splits_is_no_folder_of_classes(tmp_path):
    root = image_folder(tmp_path / "set", ["train/a/1.jpg", "test/a/2.jpg"])
    with pytest.raises(InputError, match=r"set holds test, train: splits.*such as .*set/test$"):
        open_image_set(root)
    assert open_image_set(root / "test").class_names == ("a",)
    named = image_folder(tmp_path / "named", ["train/1.jpg", "test/2.jpg"])  # odd, but classes
    assert open_image_set(named).class_names == ("test", "train")


def test_resolve_test_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets/birds").mkdir(parents=True)
    (tmp_path / "birds").mkdir()
    (tmp_path / "other").mkdir()
    assert str(resolve_test_dataset("birds")) == "datasets/birds"
    assert str(resolve_test_dataset("other")) == "other"
    assert resolve_test_dataset(str(tmp_path / "other")) == tmp_path / "other"
    with pytest.raises(InputError, match="neither of datasets/none, none is a folder"):
        resolve_test_dataset("none")
    for name, command in [("synth/x", "synth-cub"), ("cba_fast_demo", "demo")]:
        with pytest.raises(InputError, match=f"is a folder; `cba-fast {command}` makes it$"):
            resolve_test_dataset(name)


# ---- map names


def test_colliding_stems_name_both_images(tmp_path):
    root = image_folder(tmp_path, ["a/x.1.jpg", "a/y.jpg", "a/x.2.png"])
    records = open_image_set(root).records
    with pytest.raises(InputError, match=r"a/x\.1\.jpg and a/x\.2\.png .* score map a/x\.npy"):
        map_names(records, "study")
    assert map_names(records[1:]) == map_names(records[1:], "study") == ["a/x.npy", "a/y.npy"]
    # the official names are taken where the study's would be the same, or where asked for
    official = ["a/x.1.jpg.npy", "a/x.2.png.npy", "a/y.jpg.npy"]
    assert map_names(records) == map_names(records, "official") == official
    with pytest.raises(InputError, match="`map_names` is 'mine', not one of study, official"):
        map_names(records, "mine")


def test_colliding_parents_name_both_images(tmp_path):
    root = image_folder(tmp_path, ["a/same/x.jpg", "b/same/x.jpg"])
    with pytest.raises(InputError, match=r"a/same/x\.jpg and b/same/x\.jpg .* same/x\.npy"):
        map_names(open_image_set(root).records, "study")


# ---- CUB and metadata


def test_cub_splits(tmp_path):
    root = cub_folder(tmp_path / "CUB_200_2011")
    found = open_image_set(root)
    assert found.kind == "cub"
    assert [r.image_id for r in found.records] == [
        "001.Red_Finch/Finch_0001.jpg",
        "002.Grey_Jay/Jay_0010.jpg",
        "003.Wren/Wren_0001.jpg",
    ]
    assert [r.label for r in found.records] == [0, 1, 2]
    assert found.class_names == ("001.Red_Finch", "002.Grey_Jay", "003.Wren")
    assert all(r.path.is_file() for r in found.records)
    assert len(open_image_set(tmp_path, split="train")) == 2  # the folder above serves too
    assert len(open_image_set(root, split="all")) == 5
    edit_lines(root / "train_test_split.txt", lambda lines: [f"{x.split()[0]} 1" for x in lines])
    with pytest.raises(InputError, match="has no images in the split 'test'"):
        open_image_set(root)


def metadata(tmp_path, ids, labels=None):
    labels = labels or range(len(ids))
    return metadata_folder(
        tmp_path / "meta",
        {i: [(0, 0, 5, 5)] for i in ids},
        dict.fromkeys(ids, (32, 24)),
        dict(zip(ids, labels)),
    )


def test_metadata_with_a_flat_root(tmp_path):
    meta = metadata(tmp_path, ["val_1.JPEG", "val_2.JPEG"], [4, 0])
    write_image(tmp_path / "images/val_2.JPEG", fmt="JPEG")
    found = open_image_set(tmp_path / "images", metadata_root=meta)
    assert found.kind == "metadata"
    assert [(r.image_id, r.label, r.map_name) for r in found.records] == [
        ("val_1.JPEG", 4, "val_1.npy"),
        ("val_2.JPEG", 0, "val_2.npy"),
    ]
    assert found.class_names == ("0", "1", "2", "3", "4")
    assert [bool(ImageDataset(found.records, 8)[i]["error"]) for i in (0, 1)] == [True, False]


def test_metadata_names_classes_by_their_folders(tmp_path):
    meta = metadata(tmp_path, ["b/1.jpg", "a/1.jpg"])
    write_image(tmp_path / "images/a/1.jpg")
    found = open_image_set(tmp_path / "images", metadata_root=meta)
    assert found.class_names == ("b", "a")


def test_metadata_without_any_image(tmp_path):
    meta = metadata(tmp_path, ["a/1.jpg", "b/1.jpg"])
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"none of the 2 images .* there is no .*a/1\.jpg"):
        open_image_set(tmp_path / "images", metadata_root=meta)


@pytest.mark.parametrize("image_id", ["/etc/x.jpg", "../x.jpg", "a/../x.jpg", "a//x.jpg", "a/.jpg"])
def test_ids_that_would_write_elsewhere_are_refused(tmp_path, image_id):
    meta = metadata(tmp_path, [image_id])
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"image_ids\.txt: image id"):
        open_image_set(tmp_path / "images", metadata_root=meta)


def test_a_report_stays_short():
    report = Report(name=lambda i: f"{i}.jpg")
    assert report.lines() == []
    report.fail(3, "no file")
    report.truncated.append(4)
    assert report.lines() == [
        "decoded 1 truncated image to where the data ends: 4.jpg",
        "1 image could not be used, without a result:",
        "  3.jpg: no file",
    ]
    for i in range(100, 1099):
        report.fail(i, "no file")
    lines = report.lines()
    assert lines[1] == "1000 images could not be used, without a result:"
    assert lines[-2:] == ["  118.jpg: no file", "  and 980 more"]
