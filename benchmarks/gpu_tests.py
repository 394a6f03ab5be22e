"""Runs tests for `gpu_run` in processes that are killed and replaced when a test hangs.

It is also pytest's plugin in these processes, which notes when a test begins and how it ends.
"""

import json
import os
import re
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_process import run_limited

_RECORDS = "CBA_GPU_TEST_RECORDS"  # environment variable with the file of the tests' records
_FINE = ("passed", "skipped")


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(Path(os.environ[_RECORDS]), test=nodeid, outcome="began")


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or report.outcome != "passed":
        found = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
        found |= {"error": report.longreprtext[-2000:]} if report.failed else {}
        _write(Path(os.environ[_RECORDS]), test=report.nodeid, **found)


def _write(path: Path, **record) -> None:
    with path.open("a", encoding="utf-8") as file:  # several processes append lines
        file.write(json.dumps(record) + "\n")


def pytest(*arguments) -> list:
    """Return the command that runs pytest."""
    how = ("-p", "no:cacheprovider", "-o", "addopts=--strict-markers", "--tb=short")
    return [sys.executable, "-m", "pytest", *how, "--continue-on-collection-errors", *arguments]


def run_tests(
    run,
    name: str,
    files: list,
    chosen: str,
    limit: float,
    *,
    prefix: tuple = (),
    env: dict[str, str] | None = None,
) -> dict:
    """Run the tests marked gpu that a ``-k`` expression chooses; return how many ended how.

    The records of the tests are in ``<name>_<i>.jsonl``, the output is in ``<name>_<i>.log``.

    Args:
        run: the `gpu_run.Run`; a test that takes ``run.alarm`` seconds (3 times as many with a
            prefix, which slows tests down) is killed.
        name: the name of the step.
        files: the files of the tests; those in ``run.more_tests`` are run as well.
        chosen: the expression; "" for all.
        limit: the seconds for everything.
        prefix: a command that runs pytest's, such as compute-sanitizer, in one process. Without it
            up to 8 processes share the tests, because most of their time is compilation.
        env: further environment variables.
    """
    end = time.monotonic() + limit
    processes = 1 if prefix else min(8, os.cpu_count() or 1)
    alarm = 3 * run.alarm if prefix else run.alarm
    env = run.env | (env or {})
    collected = run.out / f"{name}_collected.log"
    collected.write_text("")
    for which in (files and ["-m", "gpu", "-k", chosen, *files], run.more_tests):
        if which:
            command = pytest("-q", "--collect-only", *which)
            run_limited(command, collected, limit, env=env, cwd=run.root)
    ids = re.findall(r"^\S+\.py::.*$", collected.read_text(errors="replace"), re.MULTILINE)

    def work(i: int) -> tuple[dict[str, str], set]:
        mine, codes, found = ids[i::processes], set(), {}
        log, records = (run.out / f"{name}_{i}.{kind}" for kind in ("log", "jsonl"))
        log.write_text("")
        records.write_text("")
        how = {"env": env | {_RECORDS: str(records)}, "cwd": run.root, "watched": records}
        while (left := [t for t in mine if t not in found]) and (
            rest := end - time.monotonic()
        ) > 1:
            command = [*prefix, *pytest("-v", "-p", "gpu_tests", *left)]
            code = run_limited(command, log, rest, alarm=alarm, **how)
            late = time.monotonic() > end
            for test in (t for t, outcome in _outcomes(records).items() if outcome == "began"):
                cause = "late" if late else "hung" if code is None else f"died with {code}"
                _write(records, test=test, outcome=cause)
            codes.add(code)
            if (now := _outcomes(records)) == found:
                break  # pytest itself does not start
            found = now
        return found, codes

    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(work, range(processes)))
    found = {test: outcome for part, _ in parts for test, outcome in part.items()}
    counts = Counter(found.get(test, "not run") for test in ids)
    bad = [f"{outcome}: {test}" for test, outcome in found.items() if outcome not in _FINE]
    well = ids and counts.keys() <= set(_FINE) and set().union(*(c for _, c in parts)) <= {0}
    return {"status": "done" if well else "failed", **counts, "tail": bad}


def _outcomes(records: Path) -> dict[str, str]:
    """Return the last outcome of each test in a file of records."""
    lines = records.read_text(encoding="utf-8").splitlines()
    return {record["test"]: record["outcome"] for record in map(json.loads, lines)}
