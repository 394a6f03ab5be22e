"""Atomic writes: a failing or killed write leaves the old file, whole, and no litter."""

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cba_fast import files, locks


@contextlib.contextmanager
def file_size_limit():
    """Limit the size of written files to 4 KiB; a longer write gives EFBIG.

    Not a fixture: the limit would still hold when pytest writes the result into its own log file.
    """
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old_limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_writers_round_trip(tmp_path):
    files.write_bytes(tmp_path / "new/deep/b.bin", b"\0\1")
    files.write_text(tmp_path / "t.txt", "häh caf\udce9\n")  # as paths hold what is not UTF-8
    files.write_json(tmp_path / "j.json", {"a": [1, None]})
    files.write_npy(tmp_path / "n.npy", np.arange(6.0).reshape(2, 3))
    assert (tmp_path / "new/deep/b.bin").read_bytes() == b"\0\1"
    assert (tmp_path / "t.txt").read_bytes() == "häh caf?\n".encode()
    assert json.loads((tmp_path / "j.json").read_text()) == {"a": [1, None]}
    np.testing.assert_array_equal(np.load(tmp_path / "n.npy"), np.arange(6.0).reshape(2, 3))
    assert names(tmp_path) == ["j.json", "n.npy", "new", "t.txt"]


@pytest.mark.parametrize(
    "write",
    [
        lambda p: files.write_bytes(p, b"x" * 100_000),
        lambda p: files.write_text(p, "x" * 100_000),
        lambda p: files.write_json(p, list(range(50_000))),
        lambda p: files.write_npy(p, np.zeros(100_000)),
        lambda p: files.write_npy(p, np.zeros(504)),  # fits into one block of stdio
    ],
)
def test_write_error_keeps_the_old_file_and_names_it(tmp_path, write):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(OSError, match=r"File too large: .*result\.json"), file_size_limit():
        write(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["result.json"]


def test_a_durable_file_is_on_the_disk_before_its_name_is_and_a_full_disk_shows(
    tmp_path, monkeypatch
):
    synced = []

    def fsync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((path.endswith("-x.txt"), names(tmp_path) == ["x.txt"]))

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_text(tmp_path / "x.txt", "text")
    assert synced == [(True, False), (False, True)]
    files.write_bytes(tmp_path / "x.txt", b"more", durable=False)
    assert len(synced) == 2

    def full(descriptor):  # some file systems say it then
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*x\.txt"):
        files.write_text(tmp_path / "x.txt", "new")
    assert (tmp_path / "x.txt").read_bytes() == b"more"
    assert names(tmp_path) == ["x.txt"]


def test_small_files_pass_under_the_limit(tmp_path):
    with file_size_limit():
        files.write_bytes(tmp_path / "x", b"x" * 4096)
    assert (tmp_path / "x").stat().st_size == 4096


def test_devices_pipes_and_open_files_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/null", tmp_path / "null")
    with open(tmp_path / "out.txt", "wb") as out:
        open_file = f"/proc/{os.getpid()}/fd/{out.fileno()}"
        os.symlink(open_file, tmp_path / "stdout")
        before = names(tmp_path)
        for path in (*(tmp_path / name for name in ("pipe", "null", "stdout")), open_file):
            for write in (files.write_json, lambda path, value: locks.hold(path)):
                with locks.released(), pytest.raises(OSError, match="a pipe, socket or device"):
                    write(path, {})
    assert names(tmp_path) == before
    files.write_json(tmp_path / "out.txt", {})
    os.symlink("nowhere", tmp_path / "dangling")
    files.write_json(tmp_path / "dangling", {})


def test_failing_body_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("old")

    def fail():
        with files.atomic_path(path) as tmp:
            assert tmp.suffix == ".png"
            assert tmp.parent == tmp_path
            assert tmp.name.startswith(".tmp-")
            tmp.write_text("half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.png"]


def test_refused_values_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "j.json", float("nan"))
    with pytest.raises(ValueError, match=r"[Oo]bject arrays"):
        files.write_npy(tmp_path / "n.npy", np.array([object()]))
    assert names(tmp_path) == []


def test_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        files.write_text(tmp_path / "file" / "x", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        files.write_text(tmp_path / "folder", "text")
    assert names(tmp_path) == ["file", "folder"]


def test_killed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    code = (
        "import os, sys; from cba_fast.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as tmp:\n"
        "    tmp.write_text('half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (left,) = [n for n in names(tmp_path) if n != "x.txt"]
    assert left.startswith(".tmp-")
    assert left.endswith("-x.txt")
    other = tmp_path / left.replace("x.txt", "y.txt")  # of a run that is still writing
    other.touch()
    files.write_bytes(path, b"newer", durable=False)
    assert names(tmp_path) == sorted([left, other.name, "x.txt"])
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == [other.name, "x.txt"]
    files.remove_leftovers([other.with_name("y.txt"), tmp_path / "none" / "z.txt"])
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("suffix", [".png", "." + "s" * 200])
def test_the_longest_names_can_be_written_and_their_leftovers_found(tmp_path, suffix):
    path = tmp_path / ("ä" * ((255 - len(suffix)) // 2) + suffix)
    files.write_text(path, "new")
    with files.atomic_path(path) as tmp:
        kept = tmp_path / tmp.name.replace(tmp.name[5:37], "0" * 32)
        kept.touch()
        tmp.touch()
        assert tmp.suffix in (suffix if len(suffix) < 9 else "", suffix[: len(tmp.suffix)])
    files.remove_leftovers([path])
    assert names(tmp_path) == [path.name]


def write_while_another_run_starts(path):
    with files.atomic_path(path) as tmp:
        tmp.write_bytes(b"half")
        files.remove_leftovers([path])


def test_a_disk_that_takes_no_writes_is_told_by_the_files_own_name(tmp_path, monkeypatch):
    def refuse(path, *args, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)  # so it is, also for a file that is not there
    told = pytest.raises(OSError, match=r"Read-only file system: '.*/x\.txt'$")
    with told, files.atomic_path(tmp_path / "x.txt") as tmp:
        refuse(tmp)


def test_a_temporary_file_that_another_run_removed_is_told(tmp_path):
    path = tmp_path / "x.bin"
    with pytest.raises(OSError, match="another run writes the same file") as caught:
        write_while_another_run_starts(path)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
