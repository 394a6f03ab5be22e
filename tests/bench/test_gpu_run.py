"""The run on a GPU machine, without one: limits, lost devices, records, what is compared."""

import importlib
import json
import math
import os
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

import pytest
import torch

from cba_fast.bench.device_timing import timed

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = (*("gpu_commands", "gpu_measure", "gpu_process", "gpu_records", "gpu_run", "gpu_tests"),)


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
        child = int(log.read_text().splitlines()[-1])
        for _ in range(50):
            if not is_running(child):
                break
            time.sleep(0.1)
        assert not is_running(child)
    assert run(python("import sys; sys.exit(7)"), log, 20, env=os.environ, cwd=tmp_path) == 7


def test_a_silent_process_is_killed_and_its_output_kept(gpu, tmp_path):
    code = "import time; print('said'); time.sleep(60)"
    log, run = tmp_path / "log", gpu["gpu_process"].run_limited
    log.write_text("before\n")
    how = {"env": os.environ | {"PYTHONUNBUFFERED": "1"}, "cwd": tmp_path}
    start = time.monotonic()
    assert run(python(code), log, 50, alarm=0.3, **how) is None
    assert time.monotonic() - start < 30
    assert log.read_text() == "before\nsaid\n"


def new_run(gpu, tmp_path, seconds=100, **how):
    out = tmp_path / "out"
    archive = tmp_path / "all.tar.gz"
    return gpu["gpu_run"].Run(out, seconds, dry=True, archive=archive, **how)


def test_a_hang_and_a_failure_cost_no_other_test(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu["gpu_commands"], "gpu_test_files", lambda root: [])
    monkeypatch.setattr(gpu["gpu_tests"].os, "cpu_count", lambda: 1)
    run = new_run(gpu, tmp_path, faults=True, alarm=1)
    run.env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # starts faster
    run.step("tests", gpu["gpu_run"].STEPS["tests"])
    assert run.summary["tests"].items() >= {"status": "failed", "passed": 1}.items()
    assert run.summary["tests"]["tail"] == [
        "hung: benchmarks/gpu_faults.py::test_hangs",
        "failed: benchmarks/gpu_faults.py::test_fails",
    ]
    with tarfile.open(run.archive) as tar:
        names = {Path(n).name for n in tar.getnames()}
    assert names == {"tests_0.jsonl", "tests_0.log", "tests_collected.log", "summary.json"}


MEASURING = """
import sys, types
from pathlib import Path
import gpu_faults, gpu_records

def convolutions(device, seconds, *, done, without, trying):
    for index in range(done, 3):
        ways = {"nchw": lambda: 1}
        ways = gpu_faults.put_in(ways) if index == 1 else ways
        found = []
        for way in [w for w in ways if w not in without(index)]:
            trying(index, way)
            found.append(ways[way]() and way)
        yield {"case": index, "ways": found}

stub = types.SimpleNamespace(convolutions=convolutions, DeviceLost=KeyError)
sys.modules |= {"gpu_measure": stub, "gpu_networks": stub}
out = Path(sys.argv[sys.argv.index("--out") + 1])
sys.exit(gpu_records.measure("convolutions", out, True, 60))
"""


def test_a_way_that_hangs_costs_no_other_one(gpu, tmp_path, monkeypatch):
    script = tmp_path / "measuring.py"
    script.write_text(MEASURING)
    monkeypatch.setattr(gpu["gpu_run"], "__file__", str(script))
    run = new_run(gpu, tmp_path, alarm=1)
    result = gpu["gpu_run"].measured("convolutions")(run, 60)
    assert (result["status"], result["lost"]) == ("failed", ["cuda_faulty"])
    assert gpu["gpu_records"].read(run.out / "convolutions.jsonl") == [
        {"bench": "gpu_convolutions", "case": 0, "ways": ["nchw"]},
        {"lost": "cuda_faulty", "index": 1, "how": "hung"},
        {"bench": "gpu_convolutions", "case": 1, "ways": ["nchw"]},
        {"bench": "gpu_convolutions", "case": 2, "ways": ["nchw"]},
    ]


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
    assert 80 < given[1] < 96  # what is left, less what the archive needs
    with tarfile.open(run.archive) as tar:
        assert tar.getnames() == ["gpu_results/says.log", "gpu_results/summary.json"]


def test_ways_that_were_lost_are_left_out(gpu):
    records = [{"lost": "cuda", "index": 1}, {"case": "a"}, {"lost": "triton", "index": 2}]
    records += [{"lost": "triton", "index": i} for i in (4, 5)]
    left_out = gpu["gpu_records"].left_out
    assert left_out(records, 1) == {"cuda", "triton"}  # triton was lost three times
    assert left_out(records[:3], 2) == {"triton"}
    assert left_out(records[:3], 3) == set()


@pytest.mark.parametrize("attempt", [True, False])
def test_what_was_tried_when_a_process_ended_is_noted_once(gpu, tmp_path, attempt):
    path, note = tmp_path / "convolutions.jsonl", gpu["gpu_records"].note_lost
    if attempt:
        path.with_suffix(".trying").write_text('{"lost": "cuda", "index": 3}')
    assert note(path, -11) is attempt
    assert not note(path, -11)
    if attempt:
        assert json.loads(path.read_text()) == {
            "lost": "cuda",
            "index": 3,
            "how": "the process ended with -11",
        }


def test_a_carried_core_must_belong_to_the_sources(gpu, tmp_path):
    commands = gpu["gpu_commands"]
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.cu").write_text("1")
    (tmp_path / "CMakeLists.txt").write_text("")
    folder = tmp_path / "build" / "gpu"
    folder.mkdir(parents=True)
    library = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert commands.carried(tmp_path) is None
    (folder / "sources.txt").write_text(commands.digest(tmp_path))
    assert commands.carried(tmp_path) is None  # built for another Python
    library.touch()
    assert commands.carried(tmp_path) == library
    (tmp_path / "csrc" / "a.cu").write_text("2")
    assert commands.carried(tmp_path) is None


def test_each_call_has_steps_in_order(gpu):
    steps, calls = gpu["gpu_run"].STEPS, gpu["gpu_run"].CALLS
    for names in calls.values():
        turns = [steps[name].turn for name in names]
        assert turns == sorted(turns)
    assert gpu["gpu_measure"].LAUNCHES.keys() == gpu["gpu_commands"].PROFILED.keys()


def test_a_measurement_goes_on_behind_its_records(gpu, tmp_path, monkeypatch):
    measure = gpu["gpu_measure"]
    job = (measure.Case(2, 6, 5, 3, 3, 1), torch.float32)
    monkeypatch.setattr(measure, "TINY", [(*job, "grad_weight"), (*job, "forward")])
    path = tmp_path / "convolutions.jsonl"
    path.write_text('{"lost": "cuda", "index": 0, "how": "hung"}\n{"timings": {}}\n')
    assert gpu["gpu_records"].measure("convolutions", tmp_path, True, 60) == 0
    found = gpu["gpu_records"].read(path)[2:]
    assert [(r["dtype"], r["direction"]) for r in found] == [("float32", "forward")]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::2]))
    (tmp_path / "memcheck_0.log").write_text("..\n========= Invalid __global__ read\n1 failed\n")
    lines = gpu["gpu_records"].report(tmp_path)
    assert lines[:2] == ["========= Invalid __global__ read", "lost: cuda of case 0: hung"]
    assert "1x2x6x5_k3x3 forward float32: ours none, torch " in lines[2]


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

    def off(case, direction, inputs, compiler):
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
