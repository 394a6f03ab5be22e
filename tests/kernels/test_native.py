"""The compiled core: what it reports, what it refuses, and the rules its sources keep."""

import ast
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import csrc_rules
import pytest
import torch
from click.testing import CliRunner

import cba_fast
from cba_fast import ops
from cba_fast.cli.tools.info import command as info
from cba_fast.kernels import native


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_core_is_built():
    # The suite tests compiled kernels; an installation without them must not look green.
    assert native.unavailable() is None
    assert native.load() is native.load()


def test_build_info():
    info = native.build_info()
    assert info["isas_compiled"][0] == info["isas_supported"][0] == "baseline"
    assert set(info["isas_supported"]) <= set(info["isas_compiled"])
    assert info["isa"] in info["isas_supported"]
    assert info["isa_reason"]
    assert info["compiler"]
    built = info["cuda_archs"] is not None
    assert built == (info["cuda_reason"] is None) == (info["cuda_compiler"] is not None)
    assert built == hasattr(native.load(), "quantize_cuda")
    if not built:
        assert native.cuda_unavailable() == f"no CUDA kernels in this build: {info['cuda_reason']}"


def test_the_stub_names_the_arguments_of_the_core():
    # pybind11 writes signatures into docstrings: name(first: type, second: type = value) -> type
    core = native.load()
    stub = ast.parse(Path(cba_fast.__file__).with_name("_C.pyi").read_text()).body
    functions = [node for node in stub if isinstance(node, ast.FunctionDef)]
    classes = [node for node in stub if isinstance(node, ast.ClassDef)]
    public = {name for name in vars(core) if not name.startswith("_")}
    assert public - {node.name for node in [*functions, *classes]} == set()
    checked = [(getattr(core, f.name), f) for f in functions if hasattr(core, f.name)]
    for node in classes:
        own = getattr(core, node.name)
        members = [f for f in node.body if isinstance(f, ast.FunctionDef) and not f.decorator_list]
        checked += [(getattr(own, f.name), f) for f in members]
    assert len(checked) >= 11
    for function, node in checked:
        names = [a.arg for a in node.args.args]
        said = re.findall(r"[(,] ?(\w+):", function.__doc__.splitlines()[0])
        if "arg0" not in said:  # its arguments have names in C++
            assert [n for n in said if n != "self"] == [n for n in names if n != "self"]


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ((0, 13000), "no NVIDIA driver is installed"),
        (
            (12080, 13000),
            "the NVIDIA driver is for CUDA 12.8, but the kernels were built with CUDA 13.0",
        ),
        ((13010, 13000), None),
        ((13000, 13020), None),
        ((13000, 12060), None),
    ],
)
def test_a_cuda_build_says_why_it_cannot_run(versions, reason):
    core = types.SimpleNamespace(cuda_versions=lambda: versions)
    assert native._cuda_reason(core) == reason


def test_a_cuda_build_without_a_driver_is_usable_on_the_cpu():
    if native.build_info()["cuda_archs"] is None or native.load().cuda_versions()[0]:
        pytest.skip("needs a build with CUDA kernels on a machine without driver")
    assert native.unavailable() is None
    assert native.cuda_unavailable() == "no NVIDIA driver is installed"
    with pytest.raises(ValueError, match="'cuda' cannot run: no NVIDIA driver is installed"):
        ops.quantize(torch.zeros(1, 1, 1), backend="cuda")


def test_a_missing_core_is_named_with_its_cause(monkeypatch):
    monkeypatch.setitem(sys.modules, "cba_fast._C", None)  # as if it were not there
    monkeypatch.setattr(native, "_module", None)
    monkeypatch.setattr(native, "_error", None)
    assert "cba_fast._C was not built" in native.unavailable()
    with pytest.raises(ImportError, match="was not built") as caught:
        native.load()
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert ops.quantize(torch.full((1, 1, 2), 0.5)).tolist() == [[[127, 127]]]
    with pytest.raises(ValueError, match="backend 'cpp' cannot run: .* was not built"):
        ops.quantize(torch.zeros(1, 1, 1), backend="cpp")
    result = CliRunner().invoke(info, [])
    assert result.exit_code == 0
    assert "was not built" in " ".join(result.output.split())


def test_a_broken_core_keeps_its_cause(monkeypatch):
    def broken(name):
        raise ImportError("libfoo.so.1: cannot open shared object file")

    monkeypatch.setattr(native.importlib, "import_module", broken)
    monkeypatch.setattr(native, "_module", None)
    monkeypatch.setattr(native, "_error", None)
    assert "libfoo.so.1" in native.unavailable()


# Without PyTorch, which takes seconds to import.
QUANTIZE = """
import ctypes
from cba_fast.kernels import native
core, source, result = native.load(), ctypes.c_float(0.5), ctypes.c_uint8()
print(core.build_info()["isa"], core.build_info()["isa_reason"])
core.quantize(ctypes.addressof(source), "float32", ctypes.addressof(result), 1, "", 1)
print(result.value)
"""


@pytest.mark.parametrize("isa", native.build_info()["isas_supported"])
def test_cba_isa_forces_a_set(isa):
    done = run_python(QUANTIZE, CBA_ISA=isa)
    assert done.stdout.splitlines() == [f"{isa} forced by CBA_ISA", "127"], done.stderr


def unusable_isas() -> list[str]:
    info = native.build_info()
    return ["sse9", *(set(info["isas_compiled"]) - set(info["isas_supported"]))]


@pytest.mark.parametrize("isa", unusable_isas())
def test_an_unusable_cba_isa_is_named(isa):
    done = run_python(QUANTIZE, CBA_ISA=isa)
    assert done.returncode == 1
    assert done.stdout.startswith(f"None CBA_ISA={isa}: ")
    assert f"ValueError: CBA_ISA={isa}: " in done.stderr


@pytest.mark.parametrize("isa", unusable_isas())
def test_an_unusable_isa_argument_is_named(isa):
    with pytest.raises(ValueError, match=f"isa={isa}: "):
        native.load().quantize(0, "float32", 0, 0, isa, 1)


def test_null_is_refused_for_data():
    core = native.load()
    with pytest.raises(ValueError, match=r"source: null pointer for 4 elements"):
        core.quantize(0, "float32", 1, 4, "", 1)
    with pytest.raises(ValueError, match=r"bytes: null pointer"):
        core.quantize(1, "float32", 0, 4, "", 1)
    with pytest.raises(ValueError, match=r"negative size -1"):
        core.quantize(1, "float32", 1, -1, "", 1)
    with pytest.raises(ValueError, match=r"maps: null pointer"):
        core.largest_boxes(0, 1, 2, 2, 0, 0, 0, 1)
    with pytest.raises(ValueError, match=r"truth_offsets: null pointer"):
        core.best_iou(0, 0, 2, 2, 0, 0, 0, 0, False, 0, 1)
    with pytest.raises(ValueError, match=r"dtype must be .* got int8"):
        core.quantize(0, "int8", 0, 0, "", 1)
    assert core.quantize(0, "float32", 0, 0, "", 1) == -1


def test_info_command():
    result = CliRunner().invoke(info, ["--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["versions"]["cba_fast"]
    assert shown["native"]["isa"] == native.build_info()["isa"]
    sweep = shown["ops"]["box_sweep"]
    assert sweep["cpu"] == "cpp"
    assert sweep["backends"]["cpp"] is None
    quantizer = shown["ops"]["quantize"]
    assert quantizer["cpu"] == "cpp"
    assert quantizer["not_used"]["cpu"]["cuda"]
    text = CliRunner().invoke(info, [])
    assert text.exit_code == 0, text.output
    for word in ("Instruction set", "CUDA kernels", "box_sweep", "quantize", "cpp", "reference"):
        assert word in text.output


def test_info_command_names_an_unusable_isa(monkeypatch):
    unusable = {"isa": None, "isa_reason": "CBA_ISA=sse9: it is not one of baseline"}
    build = {**native.build_info(), **unusable}
    monkeypatch.setattr(native, "build_info", lambda: build)
    result = CliRunner().invoke(info, [])
    assert result.exit_code == 0
    assert "none: CBA_ISA=sse9: it is not one of" in " ".join(result.output.split())


def test_the_sources_keep_the_rules():
    assert list(csrc_rules.broken_rules(csrc_rules.ROOT)) == []


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("csrc/cpu/a.cpp", "#include <torch/extension.h>", "a PyTorch header"),
        ("csrc/bindings.cpp", '#include "ATen/ATen.h"', "a PyTorch header"),
        ("csrc/cpu/a.h", "# include <Python.h>", "a Python header"),
        ("csrc/cuda/a.cu", "#include <pybind11/pybind11.h>", "a Python header"),
        ("csrc/cpu/a_avx2.cpp", "#include <algorithm>", "one instruction set"),
        ("csrc/cpu/a_body.h", '#include "common/checks.h"', "one instruction set"),
        ("CMakeLists.txt", "add_compile_options(-Ofast)", "relaxed floating point"),
        ("setup.py", 'flags = ["-ffast-math"]', "relaxed floating point"),
        ("csrc/cpu/a.cpp", '#pragma GCC optimize("fast-math")', "relaxed floating point"),
        ("CMakeLists.txt", "--use_fast_math", "relaxed floating point"),
    ],
)
def test_a_broken_rule_is_found(tmp_path, path, text, reason):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"// a file\n{text}\n")
    (found,) = csrc_rules.broken_rules(tmp_path)
    assert found.startswith(f"{path}:2: ")
    assert reason in found


def test_the_bindings_may_include_pybind11(tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc/bindings.cpp").write_text("#include <pybind11/pybind11.h>\n")
    assert list(csrc_rules.broken_rules(tmp_path)) == []
