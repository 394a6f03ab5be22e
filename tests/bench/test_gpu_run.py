"""The run on a GPU machine, without one: limits, lost devices, records, what is compared."""

import importlib
import json
import math
import os
import sys
import tarfile
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cba_fast.bench.device_timing import timed

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("gpu_commands", "gpu_measure", "gpu_process", "gpu_records", "gpu_run")


@pytest.fixture(scope="module")
def gpu():
    """Return the modules of the run by name."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(BENCHMARKS))


def python(code, *arguments):
    return [sys.executable, "-c", code, *arguments]


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_process_ends_with_all_that_it_started(gpu, tmp_path):
    code = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(float(sys.argv[1]))
"""
    log, run = tmp_path / "log", gpu["gpu_process"].run_limited
    for sleep, limit, expected in ((60, 1.5, None), (0, 20, 0)):
        assert run(python(code, sleep), log, limit, env=os.environ, cwd=tmp_path) == expected
        child = int(log.read_text())
        for _ in range(50):
            if not is_running(child):
                break
            time.sleep(0.1)
        assert not is_running(child)
    assert run(python("import sys; sys.exit(7)"), log, 20, env=os.environ, cwd=tmp_path) == 7


def new_run(gpu, tmp_path, seconds=100):
    out = tmp_path / "out"
    archive = tmp_path / "all.tar.gz"
    return gpu["gpu_run"].Run(out, seconds, dry=True, limits=True, archive=archive)


def test_steps_end_apart_and_are_packed(gpu, tmp_path):
    step, run = gpu["gpu_run"].Step, new_run(gpu, tmp_path)
    given = []

    def works(run, limit):
        given.append(limit)
        (run.out / "build").mkdir(exist_ok=True)
        return run.command("says", python("print('a\\nb\\nc\\nd')"), limit)

    def breaks(run, limit):
        raise OSError("no disk")

    run.step("one", step(0, breaks, 20))
    run.step("two", step(1, works, 20))
    run.step("three", step(2, works, 20, least=200))
    run.step("four", step(3, works, 1000))
    summary = json.loads((run.out / "summary.json").read_text())
    assert summary["one"]["reason"] == "OSError: no disk"
    assert summary["two"]["tail"] == ["b", "c", "d"]
    assert [summary[n]["status"] for n in ("one", "two", "three")] == ["failed", "done", "skipped"]
    assert given[0] == 20
    assert 60 < given[1] < 80  # what is left, less what the table and the archive need
    with tarfile.open(run.archive) as tar:
        assert tar.getnames() == ["gpu_results/says.log", "gpu_results/summary.json"]


@pytest.mark.parametrize("faults", [["cuda"], ["cuda", "triton"], []])
def test_a_lost_device_costs_one_backend(gpu, tmp_path, monkeypatch, faults):
    run, calls = new_run(gpu, tmp_path), []

    def command(name, arguments, limit):
        without = [b for a, b in pairwise(arguments) if a == "--without"]
        calls.append(without)
        fault = next((f for f in faults if f not in without), None)
        record = {"lost": fault} if fault else {"case": "1x1x1x1_k3x3"}
        with (run.out / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        code = gpu["gpu_records"].LOST if fault else 0
        return {"status": "failed" if fault else "done", "code": code}

    monkeypatch.setattr(run, "command", command)
    result = gpu["gpu_run"].measured("convolutions")(run, 60)
    assert calls == [faults[:i] for i in range(len(faults) + 1)]
    assert result["status"] == ("failed" if faults else "done")
    assert len(gpu["gpu_records"].read(run.out / "convolutions.jsonl")) == 1 + len(faults)


def test_a_measurement_goes_on_behind_its_records(gpu, tmp_path, monkeypatch):
    case = gpu["gpu_measure"].TINY[1]
    monkeypatch.setattr(gpu["gpu_measure"], "TINY", [case])
    path = tmp_path / "convolutions.jsonl"
    path.write_text('{"lost": "cuda"}\n' * 3)  # instead of the three directions in bfloat16
    assert gpu["gpu_records"].measure("convolutions", tmp_path, True, 60, ["cuda"]) == 0
    found = gpu["gpu_records"].read(path)[3:]
    assert [(r["dtype"], r["direction"]) for r in found] == [
        ("float32", "forward"),
        ("float32", "grad_x"),
    ]
    (tmp_path / "tests.log").write_text("..F\nFAILED tests/test_x.py::test_y - no\n1 failed\n")
    lines = gpu["gpu_records"].report(tmp_path)
    assert lines[:4] == ["FAILED tests/test_x.py::test_y - no", *["lost: cuda"] * 3]
    assert "1x2x6x5_k3x3 forward float32: ours none, torch " in lines[4]


def test_every_case_is_compiled_anew(gpu):
    measure = gpu["gpu_measure"]
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for channels in range(2, 13):  # more than Dynamo compiles of one function
        case = measure.Case(channels, 4, 4, 3, 3, 1)
        inputs = measure.inputs_on("cpu", case, "forward", torch.float32)
        measure.candidates(case, "forward", inputs, counting)["compile"]()
    torch.compiler.reset()
    assert len(graphs) == 11


def test_wrong_and_failing_ways_have_no_time(gpu, monkeypatch):
    measure = gpu["gpu_measure"]

    def off(case, direction, inputs, compiler, without):
        y = torch.nn.functional.conv2d(*inputs, padding=1, groups=2)
        nan, tf32 = torch.full_like(y, math.nan), y * (1 + 3e-4)
        return {"triton": lambda: tf32, "cuda": lambda: nan, "nchw": lambda: tf32, "failing": fails}

    def fails():
        raise ZeroDivisionError("no")

    monkeypatch.setattr(measure, "candidates", off)
    case = measure.Case(2, 4, 4, 3, 3, 1)
    found = measure.compared(case, torch.float32, "forward", "cpu", 0.001, None)
    assert list(found["timings"]) == ["nchw"]  # 1e-5 is asked of ours
    assert found["errors"]["cuda"] is None
    assert found["failed"] == {"failing": "ZeroDivisionError: no"}
    json.dumps(found, allow_nan=False)


def test_slow_functions_are_called_once_more_and_quick_ones_often():
    calls = {"slow": 0, "quick": 0}

    def run(name, seconds):
        calls[name] += 1
        time.sleep(seconds)

    functions = {"slow": lambda: run("slow", 0.32), "quick": lambda: run("quick", 0)}
    found = timed(functions, "cpu", 0.05)
    assert calls["slow"] == 2
    assert found["slow"]["calls"] == 1
    assert found["slow"]["p20_ms"] == found["slow"]["p80_ms"] >= 320
    assert found["quick"]["calls"] == calls["quick"] - 1 > 5


def test_the_gpu_tests_can_be_collected_one_by_one(gpu):
    root = BENCHMARKS.parent
    files = [str(f) for f in gpu["gpu_commands"].gpu_test_files(root)]
    assert "tests/ops/test_dwconv_gpu.py" in files
    assert (
        "tests/experiments/test_experiments.py" not in files
    )  # needs pydantic, which may not be there
    assert all((root / f).is_file() for f in files)
