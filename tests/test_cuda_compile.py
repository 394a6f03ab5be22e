"""The CUDA kernels compiled: no spilled registers, in the records and in the built core."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cba_fast.kernels import native

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RECORDS = sorted((BENCHMARKS / "results" / "gpu_compile").glob("nvcc-*.jsonl"))


@pytest.fixture(scope="module")
def table():
    """Return benchmarks/cuda_compile_table.py as a module."""
    path = BENCHMARKS / "cuda_compile_table.py"
    spec = importlib.util.spec_from_file_location("cuda_compile_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_records_are_of_these_sources_and_without_spills(table):
    records = [json.loads(line) for path in RECORDS for line in path.read_text().splitlines()]
    found = {(r["source"], r["digest"], r["arch"]) for r in records}
    # If this fails: python benchmarks/cuda_compile_table.py --json <the file>
    assert found == {
        (p.name, table.digest(p), arch) for p in table.sources() for arch in table.ARCHS
    }
    for record in records:
        assert record["spills"] == 0, record
        assert record["stack"] == 0, record
        assert 0 < record["registers"] <= 255, record


def cuobjdump() -> str | None:
    """Return NVIDIA's tool: the one on the path, or Triton's own."""
    if shutil.which("cuobjdump"):
        return "cuobjdump"
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if path.exists() else None


def test_the_built_core_holds_every_kernel_without_spills(table):
    if native.build_info()["cuda_archs"] is None:
        pytest.skip(f"no CUDA kernels in this build: {native.build_info()['cuda_reason']}")
    tool = cuobjdump()
    if tool is None:
        pytest.skip("cuobjdump is not installed")
    command = [tool, "-res-usage", native.load().__file__]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    output = shown.stdout + shown.stderr
    usages = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", output)
    built = set()
    for name, registers, stack, local in usages:
        assert int(registers) <= 255, name
        assert int(stack) == int(local) == 0, name
        built.add(name)
    names = {re.sub(r"[<(].*", "", name) for name in table._demangled(sorted(built))}
    recorded = {json.loads(line)["kernel"] for p in RECORDS for line in p.read_text().splitlines()}
    assert names == {re.sub(r"<.*", "", name) for name in recorded}


def test_what_ptxas_prints_is_read(table):
    output = """ptxas info    : Compiling entry function '_Z5firstv' for 'sm_90'
ptxas info    : Function properties for _Z5firstv
    24 bytes stack frame, 20 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size
ptxas info    : Compiling entry function '_Z6secondv' for 'sm_90'
ptxas info    : Function properties for _Z6secondv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 2048 bytes smem
"""
    first, second = table._records(output)
    assert (first["registers"], first["spills"], first["stack"]) == (255, 28, 24)
    assert (second["registers"], second["spills"], second["shared"]) == (12, 0, 2048)
    assert second["arch"] == "sm_90"
