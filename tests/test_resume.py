"""What a run left behind: fingerprints, differences in words, what is kept, removed and refused."""

import json
import os
from pathlib import Path

import pytest

from cba_fast import resume
from cba_fast.errors import InputError
from cba_fast.files import atomic_path
from cba_fast.resume import MANIFEST, OtherRunError, Outputs, beside, describe, differences

NAMES = ["a/1.npy", "b/2.npy"]


def write(root, name, text="x"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def folder(root, names=NAMES, settings=None, **options):
    return Outputs(root / MANIFEST, names, describe(settings or {}), **options)


def files_of(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def kill_while_writing(path):
    """Leave the temporary file of a process that was killed while it wrote `path`."""
    with atomic_path(path) as tmp:
        tmp.write_text("half")
        os.link(tmp, tmp.with_name("kept"))
    path.unlink()
    tmp.with_name("kept").rename(tmp)
    return tmp


# Fingerprints


def test_a_file_is_known_by_its_bytes(tmp_path):
    path = write(tmp_path, "w.pth", "weights")
    first = resume.file_fingerprint(path)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    os.utime(path)
    assert resume.file_fingerprint(path) == first
    path.write_text("w_ights")  # the same size, and the same time
    os.utime(path, ns=times)
    assert resume.file_fingerprint(path)["sha256"] != first["sha256"]
    path.unlink()
    assert resume.file_fingerprint(path) == {"path": str(path), "sha256": None}
    assert resume.file_fingerprint(None) is None


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    path = write(tmp_path, "w.pth", "weights, read once")
    first = resume.file_fingerprint(path)
    monkeypatch.setattr(resume.hashlib, "sha256", lambda: pytest.fail("hashed again"))
    assert resume.file_fingerprint(path) == first


def test_a_list_is_known_by_names_sizes_and_times(tmp_path):
    path = write(tmp_path, "1.jpg", "abc")
    first = resume.list_fingerprint([("1", path)])
    assert first["count"] == 1
    assert resume.list_fingerprint([("2", path)]) != first
    os.utime(path, ns=(0, 5))
    second = resume.list_fingerprint([("1", path)])
    assert second != first
    write(tmp_path, "1.jpg", "abcd")
    os.utime(path, ns=(0, 5))
    assert resume.list_fingerprint([("1", path)]) not in (first, second)
    path.unlink()
    assert resume.list_fingerprint([("1", path), ("\udcff", path)])["count"] == 2


# Differences


def changed(key, value):
    """Return the differences of a record with one entry changed, as the older one."""
    new = describe(
        {"input_size": 96, "map": {"size": 64}, "weights": "w.pth"},
        {"weights": {"path": "w.pth", "sha256": "1"}, "images": {"count": 2, "sha256": "2"}}
        | {"boxes": {"sha256": "3"}},
        torch="2.6",
    )
    old = json.loads(json.dumps(new))
    assert differences(old, new) == []
    where = old
    *parents, last = key.split(".")
    for name in parents:
        where = where[name]
    where[last] = value
    return differences(old, new)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("settings.input_size", 384, "input_size was 384, is 96"),
        ("settings.map.size", None, "map.size was None, is 64"),
        ("settings.seed", 3, "seed was 3, is None"),
        ("versions.cba_fast", "0.0.9", f"written by cba_fast 0.0.9, this is {resume.__version__}"),
        ("versions.torch", "2.5", "written by torch 2.5, this is 2.6"),
        ("format", 1, "written by an earlier version of cba_fast"),
        ("format", 99, "written by a later version of cba_fast"),
        (
            *("inputs.weights.sha256", "3"),
            "the weights w.pth are other bytes than those that were used",
        ),
        ("inputs.weights", None, "weights was None, is w.pth"),
        (
            *("inputs.images", {"count": 3, "sha256": "3"}),
            "the images are not those that were used, by names, sizes or times (3, now 2)",
        ),
        ("inputs.boxes.sha256", "4", "the boxes are not those that were used"),
    ],
)
def test_differences_are_told_in_words(key, value, text):
    assert changed(key, value) == [text]


def test_where_a_file_lies_is_no_difference_and_a_lost_one_is_none():
    assert changed("settings.weights", "elsewhere/w.pth") == []
    old = describe({}, {"weights": {"path": "w.pth", "sha256": "1"}})
    assert differences(old, describe({}, {"weights": {"path": "w.pth", "sha256": None}})) == []


def test_several_differences_are_all_told(tmp_path):
    folder(tmp_path, settings={"a": 1, "b": 2}).prepare()
    with pytest.raises(OtherRunError, match=r"a was 1, is 3; b was 2, is 4 \(`overwrite`"):
        folder(tmp_path, settings={"a": 3, "b": 4}).check()


# Folders that a run owns


def test_a_fresh_folder_gets_its_record_first(tmp_path):
    assert folder(tmp_path / "out", settings={"k": 1}).prepare() == set()
    record = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert record["files"] == NAMES
    assert record["settings"] == {"k": 1}
    assert record["versions"] == {"cba_fast": resume.__version__}


def test_the_same_run_goes_on(tmp_path):
    assert folder(tmp_path).prepare() == set()
    write(tmp_path, NAMES[0])
    assert folder(tmp_path).check() == {NAMES[0]}
    assert folder(tmp_path).prepare() == {NAMES[0]}
    assert files_of(tmp_path) == [NAMES[0], MANIFEST]


def test_another_run_is_refused_or_replaced(tmp_path):
    folder(tmp_path, settings={"p": 0.2}).prepare()
    write(tmp_path, NAMES[0])
    other = folder(tmp_path, ["c/3.npy"], {"p": 0.3})
    for call in (other.check, other.prepare):
        with pytest.raises(OtherRunError, match=r"p was 0\.2, is 0\.3"):
            call()
    assert other.check(overwrite=True) == set()
    assert files_of(tmp_path) == [NAMES[0], MANIFEST]
    assert other.prepare(overwrite=True) == set()
    assert sorted(p.name for p in tmp_path.rglob("*")) == [MANIFEST]
    with pytest.raises(OtherRunError, match="it wrote 1 files, not these 2"):
        folder(tmp_path, settings={"p": 0.3}).check()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("owns", [True, "new"])
def test_foreign_files_are_refused_and_stay(tmp_path, overwrite, owns):
    write(tmp_path, "thesis.txt", "years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        folder(tmp_path, owns_folder=owns).prepare(overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert files_of(tmp_path) == ["thesis.txt"]


def test_what_nfs_keeps_of_open_files_is_nobodys(tmp_path):
    folder(tmp_path).prepare()
    write(tmp_path, "a/.nfs00000000000a1b2c00000001")
    assert folder(tmp_path).prepare() == set()
    assert folder(tmp_path).prepare(overwrite=True) == set()


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_beside_earlier_results(tmp_path, overwrite):
    folder(tmp_path).prepare()
    write(tmp_path, NAMES[0])
    write(tmp_path, "notes/b.txt")
    with pytest.raises(InputError, match=r"notes/b\.txt"):
        folder(tmp_path).prepare(overwrite)
    assert folder(tmp_path, owns_folder="new").prepare(overwrite) <= {NAMES[0]}
    assert (tmp_path / NAMES[0]).exists() != overwrite
    write(tmp_path, "c/3.npy", "mine")
    with pytest.raises(InputError, match=r"c/3\.npy"):
        folder(tmp_path, ["c/3.npy"], owns_folder="new").prepare(overwrite=True)
    assert (tmp_path / "c/3.npy").read_text() == "mine"
    assert (tmp_path / "notes/b.txt").exists()


def test_a_folder_of_an_earlier_version_is_refused_or_replaced(tmp_path):
    old = {"written_by": "cba_fast", "settings": {}, "files": [NAMES[0]]}
    write(tmp_path, MANIFEST, json.dumps(old))
    write(tmp_path, NAMES[0])
    with pytest.raises(OtherRunError, match=r"written by an earlier version.*overwrite"):
        folder(tmp_path).prepare()
    folder(tmp_path).prepare(overwrite=True)
    assert files_of(tmp_path) == [MANIFEST]


@pytest.mark.parametrize("overwrite", [False, True])
def test_leftovers_of_its_own_writes_go_and_those_of_others_stay(tmp_path, overwrite):
    folder(tmp_path).prepare()
    kill_while_writing(tmp_path / NAMES[1])
    kill_while_writing(tmp_path / MANIFEST)
    folder(tmp_path).prepare()  # the record was lost with its writer
    own = kill_while_writing(tmp_path / NAMES[1])
    other = kill_while_writing(tmp_path / "b/other.npy")
    folder(tmp_path).prepare(overwrite)
    assert not own.exists()
    assert files_of(tmp_path) == [other.relative_to(tmp_path).as_posix(), MANIFEST]


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/passwd"])
def test_a_record_cannot_reach_outside(tmp_path, name):
    write(tmp_path, "outside.txt")
    record = {"written_by": "cba_fast", "settings": {}, "files": [name]}
    write(tmp_path, f"out/{MANIFEST}", json.dumps(record))
    with pytest.raises(InputError, match="not a record"):
        folder(tmp_path / "out").prepare(overwrite=True)
    assert (tmp_path / "outside.txt").exists()


OURS = '{"written_by": "cba_fast", '


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '{"files": []}', '{"written_by": "other"}', "\udcff", "[" * 10**5),
        *(OURS + '"settings": {}, "files": [1]}', OURS + '"settings": {}, "files": {"a": 1}}'),
        *(OURS + '"settings": 3, "files": []}', OURS + '"settings": {}, "files": null}'),
        OURS + '"format": 2, "settings": {}, "files": []}',
        OURS + '"format": 2, "settings": {}, "versions": {}, "inputs": {"w": 1}, "files": []}',
    ],
)
def test_another_programs_record_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not a record|not valid JSON|not UTF-8"):
            folder(tmp_path).prepare(overwrite)
    folder(tmp_path).discard()
    assert (tmp_path / MANIFEST).exists()


def test_discard_removes_an_earlier_run_and_nothing_else(tmp_path):
    out = folder(tmp_path / "out")
    out.discard()  # nothing there
    out.prepare()
    write(tmp_path, "out/a/1.npy")
    out.discard()
    assert list(tmp_path.iterdir()) == []
    out.prepare()
    write(tmp_path, "out/a/1.npy")
    write(tmp_path, "out/a/mine.txt")
    out.discard()
    assert files_of(tmp_path) == ["out/a/mine.txt"]


def test_a_file_in_the_way_is_refused(tmp_path):
    write(tmp_path, "out")
    with pytest.raises(InputError, match="is not a folder"):
        folder(tmp_path / "out").prepare()


# Files with their record beside them


def test_files_are_refused_unless_a_record_lists_them(tmp_path):
    write(tmp_path, "m.json", "mine")
    out = beside(tmp_path / "m.npy", describe({}), "m.json")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"m\.json exists, and no record"):
            out.prepare(overwrite)
    assert (tmp_path / "m.json").read_text() == "mine"
    (tmp_path / "m.json").unlink()
    write(tmp_path, "other.npy")
    out.prepare()
    write(tmp_path, "m.npy")
    write(tmp_path, "m.json")
    with pytest.raises(OtherRunError, match=r"m\.npy belongs to another run: seed was None, is 1"):
        beside(tmp_path / "m.npy", describe({"seed": 1}), "m.json").check()
    beside(tmp_path / "m.npy", describe({"seed": 1})).prepare(overwrite=True)
    assert files_of(tmp_path) == [".m.npy.run.json", "other.npy"]


def test_a_run_is_finished_with_all_of_its_files(tmp_path):
    out = beside(tmp_path / "m.npy", describe({}), "m.json")
    out.prepare()
    assert out.result is None
    write(tmp_path, "m.npy")
    write(tmp_path, "m.json")
    assert out.result is None
    out.finish(notes=["a note"])
    again = beside(tmp_path / "m.npy", describe({}), "m.json")
    again.prepare()
    assert again.result == {"notes": ["a note"]}
    (tmp_path / "m.json").unlink()
    assert again.result is None
    again.prepare(overwrite=True)
    assert again.result is None


def test_partial_results_of_an_earlier_version_are_refused_or_removed(tmp_path):
    partial = write(tmp_path, ".m.npy.partial.npz")
    out = beside(tmp_path / "m.npy", describe({}))
    with pytest.raises(OtherRunError, match="earlier version"):
        out.prepare()
    assert partial.exists()
    out.prepare(overwrite=True)
    assert not partial.exists()
    assert resume.partial_path("a/m.npy") == Path("a/.m.npy.partial.npz")
