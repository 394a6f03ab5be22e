"""The Triton kernels compiled for GPUs that are not here: no spills, shared memory that fits.

A sample is compiled here, in a process of its own; `benchmarks/gpu_compile_table.py` compiles all
that the table of blocks can lead to, and its recorded output is checked against today's plans.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cba_fast.kernels.dwconv_gpu.triton_table import ARCHS, SHARED_MEMORY, TABLE

pytest.importorskip("triton.backends.nvidia")
triton = pytest.importorskip("triton", "3.6", reason="older ones were not tried")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_compile_table.py"
RECORDS = BENCHMARKS / "results" / "gpu_compile" / "triton-3.8.jsonl"
SHARED_BY_CHIP = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


@pytest.fixture(scope="module")
def table():
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_compile_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(record, spilled=0):
    assert record["stack"] + record["local"] <= spilled, record
    assert record["shared"] <= SHARED_BY_CHIP[record["arch"]], record
    assert 0 < record["registers"] <= 255, record
    if record["kernel"] in ("dwconv_band_kernel", "dwconv_toeplitz_product_kernel"):
        assert record["mma"] is not None, record


def test_a_sample_compiles_for_every_architecture(tmp_path):
    out = tmp_path / "sample.jsonl"
    command = [sys.executable, SCRIPT, "--sample", "--json", out]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.exists(), result.stdout + result.stderr
    records = read(out)
    # The blocks were chosen with the version of the records; 3.6 spills 8 bytes somewhere.
    same = triton.__version__ == read(RECORDS)[0]["versions"]["triton"]
    assert not same or result.returncode == 0, result.stdout + result.stderr
    for record in records:
        check(record, spilled=0 if same else 64)
    products = {(r["kernel"], r["arch"]): r for r in records}
    for arch in ARCHS:
        for kernel in ("dwconv_band_kernel", "dwconv_band_weight_kernel"):
            assert (kernel, arch) in products
    # The instructions each generation is fast with.
    instructions = {arch: products["dwconv_band_kernel", arch]["mma"] for arch in ARCHS}
    assert instructions == {
        "sm_80": "mma.sync.aligned.m16n8k16",
        "sm_90": "wgmma.mma_async",
        "sm_100": "tcgen05.mma",
    }
    assert {r["kernel"] for r in records} == {r["kernel"] for r in read(RECORDS)}


def test_the_recorded_table_is_that_of_todays_plans(table):
    recorded = {}
    for record in read(RECORDS):
        check(record)
        launch = [record["kernel"], record["constants"], record["warps"], record["stages"]]
        recorded[json.dumps(launch), record["dtype"], record["arch"]] = record
    planned = set()
    for _, launch, dtype, arch in table.distinct(table.RECORDED, ARCHS):
        planned.add((table.identity(launch), dtype, arch))
    assert planned == set(recorded), "run benchmarks/gpu_compile_table.py --json and record it"


def test_the_cases_use_every_entry_of_the_table(table, monkeypatch):
    from cba_fast.kernels.dwconv_gpu import triton_plan

    class Noted(dict):
        def __getitem__(self, key):
            used.add(key)
            return super().__getitem__(key)

    used = set()
    monkeypatch.setattr(triton_plan, "TABLE", Noted(TABLE))
    for _ in table.distinct(table.RECORDED, ARCHS):
        pass
    assert used == set(TABLE)


def test_faults_are_found(table):
    record = {"arch": "sm_80", "stack": 0, "local": 0, "shared": SHARED_MEMORY["sm_80"]}
    assert table.faults(record) == []
    assert table.faults(record | {"stack": 8}) == ["8 bytes of stack"]
    assert table.faults(record | {"shared": 120 << 10}) == ["122880 bytes of shared memory"]
    assert table.faults(record | {"arch": "sm_90", "shared": 120 << 10}) == []
    fused = record | {"kernel": "quantize_kernel", "mma": "fma.rn.f32"}
    assert table.faults(fused) == ["a fused operation, fma.rn.f32"]
