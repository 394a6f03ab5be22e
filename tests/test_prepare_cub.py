"""prepare-cub: the study's layout from an archive or a folder, safely and repeatably."""

import os
import tarfile

import pytest
from click.testing import CliRunner
from data_factory import add_member, cub_archive, cub_folder, edit_lines, write_file
from torchvision.datasets import ImageFolder

from cba_fast.cli.main import cli
from cba_fast.data import load_boxes, open_image_set, prepare, prepare_cub
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


def test_symbolic_links_where_hard_links_are_refused(tmp_path, cub, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    prepare_cub(cub, tmp_path / "out")
    link = tmp_path / "out/CUB_200_2011/images_splitted/test" / TEST[0]
    assert link.is_symlink()
    assert not os.path.isabs(os.readlink(link))
    check_layout(tmp_path / "out", cub)
    prepare_cub(cub, tmp_path / "out")  # and again


@pytest.mark.parametrize("where", ["_extract_one", "_place"])
@pytest.mark.parametrize("after", [1, 3, 6])
def test_interrupted_run_is_taken_up(tmp_path, cub, archive, monkeypatch, where, after):
    real, calls = getattr(prepare, where), []

    def interrupt(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    source = archive if where == "_extract_one" else cub
    monkeypatch.setattr(prepare, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_cub(source, tmp_path / "out")
    monkeypatch.setattr(prepare, where, real)
    prepare_cub(source, tmp_path / "out")
    check_layout(tmp_path / "out", cub)


def test_leftovers_of_a_killed_extraction_are_replaced(tmp_path, cub, archive):
    write_file(tmp_path / "out/.tmp-extracting/CUB_200_2011/images.txt", "half")
    prepare_cub(archive, tmp_path / "out")
    check_layout(tmp_path / "out", cub)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("/etc/evil", {}, "'/etc/evil' leads outside"),
        ("CUB_200_2011/../../evil", {}, "evil' leads outside"),
        ("..\\evil", {}, "evil' leads outside"),
        ("CUB_200_2011/l", {"type": tarfile.SYMTYPE, "linkname": "/etc"}, "is a symbolic link"),
        ("CUB_200_2011/l", {"type": tarfile.SYMTYPE, "linkname": "x"}, "is a symbolic link"),
        ("CUB_200_2011/l", {"type": tarfile.LNKTYPE, "linkname": "../../x"}, "leads outside"),
        ("CUB_200_2011/l", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, "leads outside"),
        ("CUB_200_2011/l", {"type": tarfile.LNKTYPE, "linkname": "nothing"}, "no file to point to"),
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
    with pytest.raises(InputError, match=r"CUB_200_2011\.tgz is not a complete tar archive"):
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
