"""prepare-cub: the study's layout from an archive or a folder, safely and repeatably."""

import gzip
import os
import stat
import tarfile
import time
import zipfile

import pytest
from click.testing import CliRunner
from data_factory import add_member, cub_archive, cub_folder, edit_lines, write_file
from torchvision.datasets import ImageFolder

from cba_fast.cli.main import cli
from cba_fast.data import load_boxes, open_image_set
from cba_fast.datasets import archives, prepare
from cba_fast.datasets.prepare import prepare_cub
from cba_fast.errors import InputError

TRAIN = ["001.Red_Finch/Finch_0002.jpg", "002.Grey_Jay/Jay_0007.jpg"]
TEST = [
    "001.Red_Finch/Finch_0001.jpg",
    "002.Grey_Jay/Jay_0010.jpg",
    "003.Wren/Wren_0001.jpg",
]


@pytest.fixture
def cub(tmp_path):
    return cub_folder(tmp_path / "original" / "CUB_200_2011")


@pytest.fixture
def archive(tmp_path, cub):
    return cub_archive(tmp_path / "CUB_200_2011.tgz", cub)


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def check_layout(output, cub):
    root = output / "CUB_200_2011"
    split = root / "images_splitted"
    assert files_below(split) == sorted([f"train/{n}" for n in TRAIN] + [f"test/{n}" for n in TEST])
    for name in TRAIN:
        assert (split / "train" / name).read_bytes() == (cub / "images" / name).read_bytes()
    assert {p.name for p in output.iterdir()} == {"CUB_200_2011"}
    assert len(ImageFolder(split / "test")) == 3
    assert [r.image_id for r in open_image_set(output).records] == TEST
    assert load_boxes(cub_root=output).image_ids == tuple(TEST)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_layout(tmp_path, cub, archive, kind, copy):
    output = tmp_path / "datasets" / "cub-200-2011"
    source = archive if kind == "archive" else cub
    seen = []
    result = prepare_cub(source, output, copy=copy, progress=lambda *a: seen.append(a))
    check_layout(output, cub)
    assert result.cub_root == output / "CUB_200_2011"
    assert result.split_root == output / "CUB_200_2011" / "images_splitted"
    assert result.counts == {"train": 2, "test": 3}
    assert result.classes == 3
    assert seen[-1] == ("test images", 3, 3)
    first = result.split_root / "test" / TEST[0]
    assert first.samefile(result.cub_root / "images" / TEST[0]) is not copy


@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_running_again_changes_nothing(tmp_path, cub, archive, kind):
    source = archive if kind == "archive" else cub
    prepare_cub(source, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "out").rglob("*"))}
    assert prepare_cub(source, tmp_path / "out").counts == {"train": 2, "test": 3}
    assert {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "out").rglob("*"))} == before


def test_folder_in_place_gets_only_the_split(tmp_path, cub):
    assert prepare_cub(cub, cub.parent).cub_root == cub.parent / "CUB_200_2011"
    check_layout(cub.parent, cub)


def test_source_folder_is_left_alone(tmp_path, cub):
    before = files_below(cub)
    prepare_cub(cub.parent, tmp_path / "out")
    assert files_below(cub) == before
    edit_lines(tmp_path / "out/CUB_200_2011/classes.txt", lambda lines: ["1 changed", *lines[1:]])
    assert "changed" not in (cub / "classes.txt").read_text()


def test_copies_where_hard_links_are_refused(tmp_path, cub, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    prepare_cub(cub, tmp_path / "out")
    image = tmp_path / "out/CUB_200_2011/images_splitted/test" / TEST[0]
    assert not image.is_symlink()
    assert image.stat().st_nlink == 1
    check_layout(tmp_path / "out", cub)
    prepare_cub(cub, tmp_path / "out")  # and again


@pytest.mark.parametrize("where", ["_write", "_place"])
@pytest.mark.parametrize("after", [1, 3, 6])
def test_interrupted_run_is_taken_up(tmp_path, cub, archive, monkeypatch, where, after):
    module = archives if where == "_write" else prepare
    real, calls = getattr(module, where), []

    def interrupt(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    source = archive if where == "_write" else cub
    monkeypatch.setattr(module, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_cub(source, tmp_path / "out")
    monkeypatch.setattr(module, where, real)
    prepare_cub(source, tmp_path / "out")
    check_layout(tmp_path / "out", cub)


def test_leftovers_of_a_killed_extraction_are_replaced(tmp_path, cub, archive):
    write_file(tmp_path / "out/.tmp-extracting/CUB_200_2011/images.txt", "half")
    prepare_cub(archive, tmp_path / "out")
    check_layout(tmp_path / "out", cub)


def test_leftovers_of_killed_copies_go(tmp_path, cub):
    root = tmp_path / "out/CUB_200_2011"
    begun = [
        root / "classes.txt",
        root / "images" / TEST[0],
        root / "images_splitted/test" / TEST[0],
    ]
    left = [p.with_name(f".tmp-{'0' * 32}-{p.name}") for p in begun]
    for path in left:
        write_file(path, "half")
    mine = left[0].with_name(f".tmp-{'0' * 32}-mine.txt")
    write_file(mine, "of somebody who is writing")
    prepare_cub(cub, tmp_path / "out", copy=True)
    assert not any(p.exists() for p in left)
    assert mine.exists()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("/etc/evil", {}, "'/etc/evil' is not a plain rel"),
        ("CUB_200_2011/../../evil", {}, "evil' is not a plain relative path"),
        ("..\\evil", {}, "evil' is not a plain relative path"),
        ("CUB_200_2011/l", {"type": tarfile.SYMTYPE, "linkname": "/etc"}, "is a symbolic link"),
        ("CUB_200_2011/l", {"type": tarfile.SYMTYPE, "linkname": "x"}, "is a symbolic link"),
        (
            "CUB_200_2011/l",
            {"type": tarfile.LNKTYPE, "linkname": "../../x"},
            "is not a plain relative path",
        ),
        (
            "CUB_200_2011/l",
            {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"},
            "is not a plain relative path",
        ),
        (
            "CUB_200_2011/images/l.jpg",
            {"type": tarfile.LNKTYPE, "linkname": "no"},
            "unpack the archive and give its folder",
        ),
        ("CUB_200_2011/d", {"type": tarfile.CHRTYPE}, "is a special file"),
        ("CUB_200_2011/d", {"type": tarfile.BLKTYPE}, "is a special file"),
        ("CUB_200_2011/p", {"type": tarfile.FIFOTYPE}, "is a special file"),
    ],
)
def test_unsafe_members_are_refused(tmp_path, cub, name, fields, message):
    path = tmp_path / "evil.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(cub, "CUB_200_2011")
        add_member(tar, name, **fields)
    with pytest.raises(InputError, match=message) as caught:
        prepare_cub(path, tmp_path / "deep" / "out")
    assert str(path) in str(caught.value)
    assert files_below(tmp_path / "deep") == []


def test_inner_hard_links_become_files(tmp_path, cub):
    path = tmp_path / "repacked.tar"
    prepare_cub(cub, tmp_path / "first")
    with tarfile.open(path, "w") as tar:  # the second name of an image is stored as a link
        tar.add(tmp_path / "first" / "CUB_200_2011", "./CUB_200_2011")
    with tarfile.open(path) as tar:
        assert any(m.islnk() for m in tar)
    prepare_cub(path, tmp_path / "out")
    check_layout(tmp_path / "out", cub)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_damaged_archive(tmp_path, archive, share):
    data = archive.read_bytes()
    archive.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"CUB_200_2011\.tgz is not a whole archive"):
        prepare_cub(archive, tmp_path / "out")
    assert files_below(tmp_path / "out") == []


def test_other_archives(tmp_path, cub):
    archive = cub_archive(tmp_path / "other.tgz", cub, prefix="BIRDS")
    with pytest.raises(InputError, match=r"does not hold CUB_200_2011/images\.txt"):
        prepare_cub(archive, tmp_path / "out")
    with pytest.raises(InputError, match="no file or folder"):
        prepare_cub(tmp_path / "none.tgz", tmp_path / "out")
    with pytest.raises(InputError, match="is not a CUB_200_2011 folder"):
        prepare_cub(tmp_path, tmp_path / "out")


def test_things_in_the_way_are_named_and_kept(tmp_path, cub, archive):
    output = tmp_path / "out"
    write_file(output / "CUB_200_2011/notes.txt", "mine")
    with pytest.raises(InputError, match="in the way"):
        prepare_cub(archive, output)
    write_file(output / "CUB_200_2011/images" / TEST[0], "mine")
    with pytest.raises(InputError, match=r"Finch_0001\.jpg is in the way: it differs"):
        prepare_cub(cub, output)
    assert (output / "CUB_200_2011/images" / TEST[0]).read_text() == "mine"
    assert (output / "CUB_200_2011/notes.txt").read_text() == "mine"


def test_strangers_in_the_split_are_refused(tmp_path, cub):
    result = prepare_cub(cub, tmp_path / "out")
    write_file(result.split_root / "train" / TEST[0], "a test image among the training images")
    with pytest.raises(InputError, match=r"train holds 1 file\(s\) .*Finch_0001\.jpg"):
        prepare_cub(cub, tmp_path / "out")


def test_missing_images_are_listed(tmp_path, cub, archive):
    prepare_cub(archive, tmp_path / "out")
    (tmp_path / "out/CUB_200_2011/images" / TEST[1]).unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 5 images \(002\.Grey_Jay/Jay_0010\.jpg\)"):
        prepare_cub(archive, tmp_path / "out")
    (cub / "images" / TEST[1]).unlink()
    with pytest.raises(InputError, match=r"lacks the image images/002\.Grey_Jay/Jay_0010\.jpg"):
        prepare_cub(cub, tmp_path / "other")


def test_command_line(tmp_path, cub, archive):
    output = tmp_path / "out"
    done = CliRunner().invoke(
        cli, ["prepare-cub", "--source", str(archive), "--output", str(output), "--copy"]
    )
    assert done.exit_code == 0, done.output
    assert f"{output}/CUB_200_2011/images_splitted (2 train + 3 test images)" in done.output
    check_layout(output, cub)
    done = CliRunner().invoke(cli, ["prepare-cub", "--source", "none", "--output", str(output)])
    assert isinstance(done.exception, InputError)
    assert CliRunner().invoke(cli, ["prepare-cub"]).exit_code == 2


def cub_zip(path, cub, prefix="CUB_200_2011", extra=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("__MACOSX/._images.txt", "of a Mac")
        for file in sorted(cub.rglob("*")):
            out.write(file, f"{prefix}/{file.relative_to(cub).as_posix()}")
        for info, data in extra:
            out.writestr(info, data)
    return path


def test_zip(tmp_path, cub):
    prepare_cub(cub_zip(tmp_path / "CUB.zip", cub), tmp_path / "out")
    check_layout(tmp_path / "out", cub)


def link_info(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("/etc/evil", "'/etc/evil' is not a plain relative path"),
        ("CUB_200_2011/../../evil", "not a plain relative path"),
        ("..\\evil", "not a plain relative path"),
        (link_info("CUB_200_2011/images/l.jpg"), "is a symbolic link"),
        ("CUB_200_2011/classes.txt", "holds 'CUB_200_2011/classes.txt' twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_unsafe_members_of_a_zip_are_refused(tmp_path, cub, info, message):
    path = cub_zip(tmp_path / "evil.zip", cub, extra=[(info, "/etc/passwd")])
    with pytest.raises(InputError, match=message):
        prepare_cub(path, tmp_path / "out")
    assert files_below(tmp_path / "out") == []


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_damage_is_refused_before_anything_is_in_place(tmp_path, cub):
    tgz = cub_archive(tmp_path / "a.tgz", cub)
    flip(tgz, -6)  # gzip's checksum
    tar = tmp_path / "b.tar"
    with tarfile.open(tar, "w") as out:
        out.add(cub, "CUB_200_2011")
        at = out.getmembers()[-3].offset
    flip(tar, at + 1)  # the name in a header: tarfile takes it for the end of the archive
    packed = cub_zip(tmp_path / "c.zip", cub)
    with zipfile.ZipFile(packed) as file:
        info = next(i for i in file.infolist() if i.filename.endswith(".jpg"))
    flip(packed, info.header_offset + 30 + len(info.filename) + 300)
    for path in (tgz, tar, packed):
        with pytest.raises(InputError, match=rf"{path.name} is not a whole archive"):
            prepare_cub(path, tmp_path / "out")
        assert files_below(tmp_path / "out") == []


def test_incomplete_archives_are_refused(tmp_path, cub):
    (cub / "images" / TEST[0]).unlink()
    path = cub_archive(tmp_path / "a.tgz", cub)
    with pytest.raises(InputError, match=r"a\.tgz: CUB_200_2011/images lacks 1 of 5 images"):
        prepare_cub(path, tmp_path / "out")
    assert files_below(tmp_path / "out") == []


class Zeros:
    """A file of `size` zeros."""

    def __init__(self, size):
        self.left = size

    def read(self, count):
        count = min(count, self.left)
        self.left -= count
        return bytes(count)


@pytest.mark.parametrize("name", ["zeros.bin", "CUB_200_2011/images/001.Red_Finch/big.jpg"])
def test_what_unpacks_to_far_more_than_cub_is_refused(tmp_path, cub, name, monkeypatch):
    monkeypatch.setattr(archives, "SLACK", 1 << 20)
    monkeypatch.setattr(archives, "MOST_OF_ONE", 1 << 20)
    path = tmp_path / "bomb.tgz"
    with gzip.open(path, "wb", 1) as raw, tarfile.open(fileobj=raw, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 32 << 20
        tar.addfile(member, Zeros(member.size))
        tar.add(cub, "CUB_200_2011")
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"'{name}' unpacks to more bytes than CUB_200_2011"):
        prepare_cub(path, tmp_path / "out")
    assert time.monotonic() - start < 5
    assert files_below(tmp_path / "out") == []


def test_links_that_multiply_a_file_are_refused(tmp_path, cub, monkeypatch):
    monkeypatch.setattr(archives, "SLACK", 0)
    path = tmp_path / "bomb.tar"
    with tarfile.open(path, "w") as tar:
        name = "CUB_200_2011/images/001.Red_Finch/big.jpg"
        add_member(tar, name, bytes(1 << 20))
        for i in range(8):
            add_member(tar, f"{name[:-7]}{i}.jpg", type=tarfile.LNKTYPE, linkname=name)
        tar.add(cub, "CUB_200_2011")
    with pytest.raises(InputError, match=r"\d\.jpg' unpacks to more bytes than CUB_200_2011"):
        prepare_cub(path, tmp_path / "out")


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("name", ["../../../evil.jpg", "/etc/passwd", "a/../../../evil.jpg"])
def test_lists_that_lead_outside_are_refused(tmp_path, cub, name, copy):
    write_file(cub.parent.parent / "evil.jpg", "secret")
    edit_lines(cub / "images.txt", lambda lines: [f"1 {name}", *lines[1:]])
    with pytest.raises(InputError, match=r"images\.txt: image '.*' is not a plain relative path"):
        prepare_cub(cub, tmp_path / "out", copy=copy)
    assert not (tmp_path / "out").exists()


def test_links_out_of_the_source_are_named(tmp_path, cub, caplog):
    image = cub / "images" / TEST[0]
    os.rename(image, tmp_path / "elsewhere.jpg")
    image.symlink_to(tmp_path / "elsewhere.jpg")
    prepare_cub(cub, tmp_path / "out")
    assert f"links lead 1 image out of {cub / 'images'}: {TEST[0]}" in caplog.text


def test_boxes_beyond_the_images_are_told(tmp_path, cub, caplog):
    edit_lines(cub / "bounding_boxes.txt", lambda lines: ["1 100 100 9 9", *lines[1:]])
    prepare_cub(cub, tmp_path / "out")
    assert f"1 image(s) have a box that reaches beyond the image; kept as it is: {TRAIN[0]}" in (
        caplog.text
    )
