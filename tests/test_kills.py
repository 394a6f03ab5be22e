"""Killed commands end with the files of uninterrupted ones; full disks; two writers at once."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from kill_harness import CASES, Row, make_inputs, wrong_end
from kill_runs import Case, Ended, Kill, Runner, contents, differences, left_processes

ROOT = Path(__file__).resolve().parent.parent
# The first case of each name that one process runs.
BY_NAME = {c.name: c for c in reversed(CASES) if c.ranks == 1}


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    root = tmp_path_factory.mktemp("kills")
    return Runner(root, make_inputs(root / "inputs"))


def test_killed_commands_end_with_the_files_of_an_uninterrupted_run():
    line = ("tests/kill_harness.py", "--kills", "3", "--seed", "3", "--command", "train-wsol")
    done = subprocess.run(
        [sys.executable, *line], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n3 kills; all survived\n" in done.stdout


def test_the_harness_sees_what_is_wrong(tmp_path):
    (tmp_path / "a").write_text("1")
    assert differences(contents(tmp_path), {"a": b"2", "b": b""}) == ["b is missing", "a differs"]
    assert differences(contents(tmp_path), {}) == ["a is left"]
    ours, other = uuid.uuid4().hex, uuid.uuid4().hex
    sleeper = subprocess.Popen(["sleep", "60"], env={"X": ours}, start_new_session=True)
    try:
        for session, mark in ((sleeper.pid, other), (-1, ours)):
            assert left_processes(session, mark) == [sleeper.pid]
    finally:
        sleeper.kill()
        sleeper.wait()
    row = Row(Case("x", ""), {}, 1.0, 1)
    for number, status, text, early, good in (
        (signal.SIGTERM, 143, "a\nEnded by SIGTERM: b", False, True),
        (signal.SIGTERM, 143, "Traceback", False, False),
        (signal.SIGTERM, 1, "Ended by SIGTERM", False, False),
        (signal.SIGTERM, -15, "", False, False),
        (signal.SIGTERM, -15, "", True, True),
        (signal.SIGKILL, -9, "", False, True),
        (signal.SIGKILL, 1, "", False, False),
    ):
        kill = Kill(number, 0.5 if early else 1)
        assert (wrong_end(row, kill, Ended(status, text, 1.0, 1, [])) == []) is good


@pytest.mark.parametrize("name", ["train-wsol"])  # the harness's --full_disk takes all
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(runner, name):
    case, folder = BY_NAME[name], runner.root / f"full-{name}"
    assert runner.run(case, folder).status == 0
    wanted = contents(folder)
    limit = max(p.stat().st_size for p in folder.rglob("*") if p.is_file()) // 2
    shutil.rmtree(folder)
    done = runner.run(case, folder, limit=limit)
    assert done.status == 1, done.text
    assert "Traceback" not in done.text
    last = done.text.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert last.endswith("File too large")
    named = Path(last.removeprefix("Error: ").removesuffix(": File too large")).name
    assert any(name.endswith(named) for name in wanted), last
    done = runner.run(case, folder)
    assert done.status == 0, done.text
    assert differences(contents(folder), wanted) == []


@pytest.mark.parametrize("name", ["generate-heatmap", "pack-maps", "prepare-cub"])
def test_a_second_writer_is_refused_at_once(runner, name):
    case, folder = BY_NAME[name], runner.root / f"two-{name}"
    # Its locks are among the first files that it opens.
    first, wait, _ = runner.start(case, folder, Kill(signal.SIGSTOP, 5))
    deadline = time.monotonic() + 60
    while "\nState:\tT" not in Path(f"/proc/{first}/status").read_text():
        assert wait(0) is None, runner.out.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        before = contents(folder)
        done = runner.run(case, folder)
        assert done.status == 1, done.text
        said = f"is being written by process {first} on "
        assert said in done.text
        lock = Path(done.text.split("its lock is ")[1].split(")")[0])
        assert (folder / lock).is_file()
        assert contents(folder) == before
    finally:
        os.kill(first, signal.SIGKILL)
        wait(60)
    done = runner.run(case, folder)
    assert done.status == 0, done.text
    assert not list(folder.rglob("*.lock"))
