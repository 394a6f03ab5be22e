"""Output folders: what is replaced, what is kept, what is refused."""

import json

import pytest

from cba_fast.errors import InputError
from cba_fast.runs.outputs import MANIFEST, OutputFolder


def write(root, name, text="x"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_fresh_folder_gets_a_manifest_first(tmp_path):
    folder = OutputFolder(tmp_path / "out", ["a/1.npy", "b/2.npy"], {"k": 1})
    assert folder.prepare(resume=False) == set()
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["files"] == ["a/1.npy", "b/2.npy"]
    assert manifest["settings"] == {"k": 1}


def test_an_earlier_run_is_replaced_and_nothing_else(tmp_path):
    OutputFolder(tmp_path, ["a/1.npy", "a/2.npy"], {}).prepare(resume=False)
    write(tmp_path, "a/1.npy")
    write(tmp_path, "a/.tmp-123.npy")  # of a killed run
    assert OutputFolder(tmp_path, ["b/3.npy"], {}).prepare(resume=False) == set()
    assert sorted(p.name for p in tmp_path.rglob("*")) == [MANIFEST]


@pytest.mark.parametrize("resume", [False, True])
def test_foreign_files_are_refused_and_stay(tmp_path, resume):
    write(tmp_path, "thesis.txt", "years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        OutputFolder(tmp_path, ["a.npy"], {}).prepare(resume=resume)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / MANIFEST).exists()


def test_a_foreign_file_beside_earlier_results_is_refused(tmp_path):
    OutputFolder(tmp_path, ["a.npy"], {}).prepare(resume=False)
    write(tmp_path, "a.npy")
    write(tmp_path, "notes/b.txt")
    with pytest.raises(InputError, match=r"notes/b\.txt"):
        OutputFolder(tmp_path, ["a.npy"], {}).prepare(resume=False)
    assert (tmp_path / "a.npy").exists()


def test_resume_keeps_files_of_the_same_settings(tmp_path):
    names = ["a.npy", "b.npy"]
    OutputFolder(tmp_path, names, {"p": 0.2}).prepare(resume=False)
    write(tmp_path, "a.npy")
    assert OutputFolder(tmp_path, names, {"p": 0.2}).prepare(resume=True) == {"a.npy"}
    with pytest.raises(InputError, match=r"p=0\.2 \(now 0\.3\)"):
        OutputFolder(tmp_path, names, {"p": 0.3}).prepare(resume=True)
    with pytest.raises(InputError, match="list of images has changed"):
        OutputFolder(tmp_path, ["a.npy"], {"p": 0.2}).prepare(resume=True)
    assert (tmp_path / "a.npy").exists()


def test_resume_without_an_earlier_run_starts(tmp_path):
    assert OutputFolder(tmp_path / "new", ["a.npy"], {}).prepare(resume=True) == set()
    assert (tmp_path / "new" / MANIFEST).exists()


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/passwd"])
def test_a_manifest_cannot_reach_outside(tmp_path, name):
    write(tmp_path, "outside.txt")
    manifest = {"written_by": "cba_fast", "settings": {}, "files": [name]}
    write(tmp_path, f"out/{MANIFEST}", json.dumps(manifest))
    with pytest.raises(InputError, match="not a manifest"):
        OutputFolder(tmp_path / "out", ["a.npy"], {}).prepare(resume=False)
    assert (tmp_path / "outside.txt").exists()


OURS = '{"written_by": "cba_fast", '


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '{"files": []}', '{"written_by": "other"}', "\udcff"),
        *(OURS + '"settings": {}, "files": [1]}', OURS + '"settings": {}, "files": {"a": 1}}'),
        *(OURS + '"settings": 3, "files": []}', OURS + '"settings": {}, "files": null}'),
    ],
)
def test_another_programs_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    folder = OutputFolder(tmp_path, ["a.npy"], {})
    for resume in (False, True):
        with pytest.raises(InputError, match="not a manifest"):
            folder.prepare(resume=resume)
    folder.discard()
    assert (tmp_path / MANIFEST).exists()


def test_check_changes_nothing_and_says_what_is_there(tmp_path):
    folder = OutputFolder(tmp_path, ["a.npy", "b.npy"], {})
    folder.prepare(resume=False)
    write(tmp_path, "a.npy")
    assert folder.check(resume=True) == {"a.npy"}
    assert folder.check(resume=False) == set()
    assert (tmp_path / "a.npy").exists()


def test_discard_removes_an_earlier_run_and_nothing_else(tmp_path):
    folder = OutputFolder(tmp_path / "out", ["a/1.npy", "a/2.npy"], {})
    folder.discard()  # nothing there
    folder.prepare(resume=False)
    write(tmp_path, "out/a/1.npy")
    folder.discard()
    assert list(tmp_path.iterdir()) == []
    folder.prepare(resume=False)
    write(tmp_path, "out/a/1.npy")
    write(tmp_path, "out/a/mine.txt")
    folder.discard()
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["mine.txt"]


def test_a_file_in_the_way_is_refused(tmp_path):
    write(tmp_path, "out")
    with pytest.raises(InputError, match="is not a folder"):
        OutputFolder(tmp_path / "out", [], {}).prepare(resume=False)
