"""Locks against two writers: who is named, what dead processes leave; how commands end; memory."""

import errno
import multiprocessing
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runner import run_cli

from cba_fast import locks, process, resume
from cba_fast.errors import BusyError, CbaWarning

FORK = multiprocessing.get_context("fork")


def refused(path):
    with locks.released(), pytest.raises(BusyError) as caught:
        locks.hold(path)
    return str(caught.value)


def test_a_second_writer_is_told_who_writes(tmp_path):
    path = tmp_path / "new" / "deep" / "sizes.npy"
    with locks.released():
        locks.hold(path)
        locks.hold(path)  # the same call may ask again
        told = refused(path)
        assert told.startswith(f"{path} is being written by process {os.getpid()} on ")
        assert socket.gethostname() in told
        assert str(locks.lock_path(path)) in told
        assert list(path.parent.iterdir()) == [locks.lock_path(path)]
    assert list(tmp_path.iterdir()) == []
    with locks.released():
        locks.hold(path)
        path.touch()
    assert list(path.parent.iterdir()) == [path]


def test_without_a_call_that_ends_and_in_other_ranks_nothing_is_locked(tmp_path, monkeypatch):
    locks.hold(tmp_path / "x")
    for name, value in zip(("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"), "21ab"):
        monkeypatch.setenv(name, value)
    with locks.released():
        locks.hold(tmp_path / "x")
        assert list(tmp_path.iterdir()) == []


def hold_and_say(path, pipe):
    with locks.released():
        locks.hold(path)
        worker = FORK.Process(target=time.sleep, args=(60,))  # as one that reads images
        worker.start()
        pipe.send(worker.pid)
        worker.join()


def test_a_killed_process_leaves_no_lock_though_its_worker_lives(tmp_path):
    path, (here, there) = tmp_path / "x", FORK.Pipe()
    holder = FORK.Process(target=hold_and_say, args=(path, there))
    holder.start()
    worker = here.recv()
    try:
        assert f"process {holder.pid} on" in refused(path)
        holder.kill()
        holder.join()
        os.kill(worker, 0)
        with locks.released():
            locks.hold(path)
    finally:
        os.kill(worker, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_vanishes_while_it_is_looked_at_is_made_anew(tmp_path, monkeypatch):
    path = tmp_path / "count"
    flock, takes = locks.fcntl.flock, []

    def removed_at_first(descriptor, how):
        flock(descriptor, how)
        takes.append(descriptor)
        if len(takes) == 1:  # by the run that had it
            locks.lock_path(path).unlink()

    monkeypatch.setattr(locks.fcntl, "flock", removed_at_first)
    monkeypatch.setattr(type(path), "exists", lambda self: True)  # as it was a moment ago
    with locks.waiting(path):
        assert os.path.isfile(locks.lock_path(path))
    assert len(takes) == 2


def test_waiting_lets_one_in_after_the_other(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")

    def count():
        for _ in range(30):
            with locks.waiting(path):
                path.write_text(str(int(path.read_text()) + 1))

    processes = [FORK.Process(target=count) for _ in range(3)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(60)
    assert path.read_text() == "90"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_another_run_removes_is_made_anew(tmp_path, monkeypatch):
    path, mkdir = tmp_path / "new" / "count", Path.mkdir

    def removed_at_once(folder, **how):
        monkeypatch.setattr(Path, "mkdir", mkdir)
        mkdir(folder, **how)
        folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", removed_at_once)
    with locks.waiting(path):
        assert locks.lock_path(path).is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch):
    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with (
        pytest.warns(CbaWarning, match=r"\.x\.lock: no locks on this file system"),
        locks.released(),
    ):
        locks.hold(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_is_told_by_the_outputs_name(tmp_path):
    locks.lock_path(tmp_path / "x").mkdir()
    with locks.released(), pytest.raises(OSError, match="'.*/x'$"):
        locks.hold(tmp_path / "x")


def test_a_full_disk_is_told_by_the_outputs_name_and_leaves_no_lock(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, locks.released():
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*sizes\.npy'"):
            locks.hold(tmp_path / "sizes.npy")
    assert list(tmp_path.iterdir()) == []


def test_no_lock_but_the_longest_name_fits(tmp_path):
    with locks.released():
        locks.hold(tmp_path / ("x" * 255))
        assert len(list(tmp_path.iterdir())) == 1


def test_outputs_are_locked_when_they_are_prepared(tmp_path):
    def outputs():
        return resume.Outputs(tmp_path / "out" / "manifest.json", ["a"], resume.describe({}))

    with locks.released():
        outputs().check()
        assert not (tmp_path / "out").exists()
        outputs().prepare()
        with locks.released(), pytest.raises(BusyError, match=f"^{tmp_path}/out is being written"):
            outputs().prepare()
        outputs().check()  # the lock is no stranger's file
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["manifest.json"]


# Signals


CODE = """
import signal, sys, time
from cba_fast import process
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
with process.ending():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("saved", flush=True)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_block_as_an_interrupt_does(name):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CODE], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        number = getattr(signal, name)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "saved\n")
    assert err.splitlines()[-1].startswith(f"Ended by {name}: every file is whole")


def test_errors_pass_and_the_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), process.ending():
        1 / 0  # noqa: B018
    with pytest.raises(SystemExit, match="3"), process.ending():
        sys.exit(3)
    assert signal.getsignal(signal.SIGTERM) is before


def fail_to_save():
    with process.ending():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise OSError(errno.ENOSPC, "No space left on device", "x.npz")


def test_what_fails_while_a_run_ends_is_told(capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    of_workers = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(SystemExit, match="130"):
        fail_to_save()
    signal.signal(signal.SIGCHLD, of_workers)
    signal.signal(signal.SIGINT, before)
    assert "No space left on device: 'x.npz'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "rank", "told"),
    [("4", None, "RANK is not set"), ("x", "0", "WORLD_SIZE 'x'"), ("2", "2", "RANK is '2'")],
)
def test_half_an_environment_of_several_processes_is_told(count, rank, told, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", count)
    for name in ("MASTER_ADDR", "MASTER_PORT", *(["RANK"] if rank else [])):
        monkeypatch.setenv(name, rank or "x")
    done = run_cli(capsys, "erf-compute", "--weights", "w.pth")
    assert (done.status, len(done.err.splitlines())) == (1, 1)
    assert done.err.startswith("Error: the environment has WORLD_SIZE")
    assert told in done.err
    monkeypatch.setenv("WORLD_SIZE", "")
    assert process.started() == (0, 1)


def orphan(pipe):
    worker = FORK.Process(target=watched, args=(pipe,))
    worker.start()
    pipe.send(worker.pid)
    time.sleep(60)


def watched(pipe):
    process.end_with_parent()
    time.sleep(60)


def test_a_process_ends_soon_after_its_parent():
    here, there = FORK.Pipe()
    parent = FORK.Process(target=orphan, args=(there,))
    parent.start()
    worker = here.recv()
    time.sleep(0.2)
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{worker}/stat") as f:
                if f.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("it lives on")


# Memory


ALLOCATES = """
import ctypes, resource, sys
from cba_fast import process
if sys.argv[1] == "kept":
    process.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(64 << 20)
    libc.memset(block, 1, 64 << 20)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what glibc does with memory")
def test_freed_memory_is_kept_unless_the_user_has_said_what_malloc_does():
    def faults(how, **more):
        env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | more
        line = [sys.executable, "-c", ALLOCATES, how]
        return int(subprocess.run(line, env=env, capture_output=True, check=True).stdout)

    assert faults("kept") < 100
    assert faults("given back") > 1000
    assert faults("kept", MALLOC_TOP_PAD_="0") > 1000
