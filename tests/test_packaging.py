"""What continuous integration runs, and what the packages say and hold."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def jobs() -> dict:
    return yaml.safe_load(WORKFLOW.read_text())["jobs"]


def steps_of_the_workflow() -> list[str]:
    found = []
    for job in jobs().values():
        matrix = job["strategy"]["matrix"]
        for command in filter(None, (step.get("run") for step in job["steps"])):
            for value in matrix.get("step", [""]):
                found.append(command.replace("${{ matrix.step }}", value))
    return found


def test_both_kinds_of_continuous_integration_run_all_scripts():
    names = {path.name for path in (ROOT / ".ci").iterdir() if not path.suffix} - {"run"}
    scripts = {f".ci/{name}" for name in names}
    here = re.findall(r"^step (\w+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert sorted(steps_of_the_workflow()) == sorted(f".ci/{name}" for name in [*here, "wheel"])
    assert scripts == set(steps_of_the_workflow())
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_the_workflow_tests_the_supported_versions_of_python():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no parser of TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested = jobs()["test"]["strategy"]["matrix"]["python"]
    listed = [c.rpartition(" ")[2] for c in project["classifiers"] if ":: 3." in c]
    assert listed == tested
    assert project["requires-python"] == f">={tested[0]}"


def public_functions(nodes: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    for node in nodes:
        name = getattr(node, "name", "_")
        if isinstance(node, ast.ClassDef) and not name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, ast.FunctionDef) and (name == "__init__" or name[0] != "_"):
            yield node


def untyped(function: ast.FunctionDef) -> list[str]:
    """Return the parameters without a type, and "->" if the result has none."""
    a = function.args
    parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    found = [p.arg for p in parameters if p and not p.annotation and p.arg not in ("self", "cls")]
    missing = function.returns is None and function.name != "__init__"
    return found + ["->"] * missing


def test_public_functions_have_types():
    # The functions of `cli` are commands: click calls them, and their users see options.
    # Kernels in Triton's language take what `triton.jit` makes of their arguments.
    root = ROOT / "cba_fast"
    files = [p for p in root.rglob("*.py") if root / "cli" not in p.parents]
    files = [p for p in files if not p.name.startswith("triton_")]
    found = [
        (str(path.relative_to(root)), function.name, missing)
        for path in files
        for function in public_functions(ast.parse(path.read_text()).body)
        if (missing := untyped(function))
    ]
    assert found == []
    assert len(files) > 100


def test_wheels_hold_all_files_of_the_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no parser of TOML")
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    root = ROOT / "cba_fast"
    named = {
        p for pattern in tool["setuptools"]["package-data"]["cba_fast"] for p in root.glob(pattern)
    }
    others = {p for p in root.rglob("*.*") if p.suffix not in (".py", ".pyc", ".so")}
    assert others == named
    assert root / "py.typed" in named
