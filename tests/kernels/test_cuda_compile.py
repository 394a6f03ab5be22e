"""The CUDA kernels compiled: no spilled registers, in the records and in the built core."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_emulator
import pytest

from cba_fast.kernels import cuda_core, native
from cba_fast.kernels.cuda_archs import capabilities

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECORDS = sorted((BENCHMARKS / "results" / "gpu_compile").glob("nvcc-*.jsonl"))


@pytest.fixture(scope="module")
def table():
    """Return benchmarks/cuda_compile_table.py as a module."""
    path = BENCHMARKS / "cuda_compile_table.py"
    spec = importlib.util.spec_from_file_location("cuda_compile_table", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
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


# Instructions of a row of the row-Hankel kernel on sm_90, which is bound by their number.
MOST_INSTRUCTIONS = {
    "2, 12, 1, 2": 330,  # 31x31 at 96x96
    "2, 6, 2, 2": 385,  # 29x29 at 48x48
    "2, 3, 4, 2": 400,  # 27x27 at 24x24
    "1, 2, 8, 1": 260,  # 13x13 at 12x12
}


@pytest.mark.parametrize("tile", MOST_INSTRUCTIONS)
def test_a_row_takes_few_instructions(tile):
    records = [json.loads(line) for path in RECORDS for line in path.read_text().splitlines()]
    kernels = {f"hankel_kernel<{half}, {tile}>" for half in ("__nv_bfloat16", "__half")}
    rows = [r for r in records if r["kernel"] in kernels and r["arch"] == "sm_90"]
    assert len(rows) == 2
    for record in rows:
        assert record["products"] < record["instructions"] <= MOST_INSTRUCTIONS[tile], record


LISTING = """
.text._Z3rowv:
.L_x_1:
        /*0000*/                   MOV R1, R2 ;
        /*0010*/                   LDS R4, [R5] ;
.L_x_2:
        /*0020*/                   LDS R4, [R5] ;
        /*0030*/                   STS [R5], R4 ;
        /*0040*/                   STS [R6], R4 ;
        /*0050*/              @!P1 BRA `(.L_x_2) ;
        /*0060*/                   HMMA.16816.F32.BF16 R0, R4, R8, R0 ;
        /*0070*/               @P0 BRA `(.L_x_5) ;
        /*0080*/               @P2 BRA `(.L_x_3) ;
        /*0090*/                   F2FP.BF16.F32.PACK_AB R62, R85, R84 ;
        /*00a0*/                   MOV R1, R2 ;
.L_x_3:
        /*00b0*/               @P3 BRA P1, `(.L_x_4) ;
        /*00c0*/                   F2FP.BF16.F32.PACK_AB R62, R85, R84 ;
        /*00d0*/                   MOV R1, R2 ;
.L_x_4:
        /*00e0*/                   STG.E.128 desc[UR8][R62.64], R60 ;
        /*00f0*/              @!P2 BRA `(.L_x_5) ;
        /*0100*/                   STG.E.U16 desc[UR8][R62.64], R61 ;
.L_x_5:
        /*0110*/              @!P2 BRA `(.L_x_1) ;
        /*0120*/                   EXIT ;
.text._Z5nonev:
        /*0000*/                   EXIT ;
"""


def test_instructions_of_a_loop_are_counted(table):
    code = table.machine_code.functions(LISTING)
    assert code.keys() == {"_Z3rowv", "_Z5nonev"}
    assert table.machine_code.main_loop(code["_Z5nonev"]) is None
    # Two before the loop that lays out, 3 times 4 in it, 3 more; for two rows at a time two
    # branches, one of two roundings, a wide store and a branch.
    turn = table.machine_code.main_loop(code["_Z3rowv"], 3)
    assert turn == (2 + 3 * 4 + 3 + (2 + 2 + 2) / 2, 1)


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
    first, second = table._records(output, {})
    assert (first["registers"], first["spills"], first["stack"]) == (255, 28, 24)
    assert (second["registers"], second["spills"], second["shared"]) == (12, 0, 2048)
    assert second["arch"] == "sm_90"


DRIVER = """#include <stdlib.h>
int cuDriverGetVersion(int* version) { *version = 12345; return 0; }
int cuInit(unsigned flags) { abort(); }
"""
ASK = """import importlib.util, sys
spec = importlib.util.spec_from_file_location(*sys.argv[1:])
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
print(core.cuda_versions()[0])
"""


@pytest.mark.parametrize("which", ["emulated", "built"])
def test_the_driver_is_asked_and_not_started(which, tmp_path):
    if cuda_emulator.compiler() is None:
        pytest.skip("no C++ compiler to build a driver with")
    if which == "built" and native.build_info()["cuda_archs"] is None:
        pytest.skip(f"no CUDA kernels in this build: {native.build_info()['cuda_reason']}")
    core = cuda_emulator.load() if which == "emulated" else native.load()
    (tmp_path / "driver.c").write_text(DRIVER)
    build = [*cuda_emulator.compiler(), "-shared", "-fPIC", "-x", "c", tmp_path / "driver.c"]
    subprocess.run([*build, "-o", tmp_path / "libcuda.so.1"], check=True)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")])
    shown = subprocess.run(
        [sys.executable, "-c", ASK, core.__name__, core.__file__],
        env=os.environ | {"LD_LIBRARY_PATH": paths.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "12345\n"


@pytest.mark.parametrize(
    ("archs", "runs_on", "not_on"),
    [
        ("80-real;90-real;90-virtual", (80, 86, 89, 90, 100, 103, 120), (70, 75)),
        ("90-real", (90,), (89, 100)),
        ("86-virtual", (86, 87, 90, 121), (80,)),
        ("75", (75, 80, 120), (70,)),
        ("90a", (90,), (80, 100)),
        ("100f-real", (100, 103), (90, 110)),
        ("native", (75, 90), ()),
    ],
)
def test_which_gpus_a_build_runs_on(archs, runs_on, not_on, monkeypatch):
    monkeypatch.setattr(native, "_cuda_built_for", (archs, capabilities(archs)))
    for capability in (*runs_on, *not_on):
        found = divmod(capability, 10)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, found=found: found)
        expected = f"the CUDA kernels were built for {archs}, the GPU has {found[0]}.{found[1]}"
        reason = cuda_core.refuses("cuda:0")
        assert reason == (None if capability in runs_on else expected)
