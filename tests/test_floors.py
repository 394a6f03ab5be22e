"""The architecture: imports go to lower floors only, and no file outgrows its room."""

import ast
from pathlib import Path

import pytest

import cba_fast
from cba_fast.cli.main import TITLES

ROOT = Path(cba_fast.__file__).parent
# From the ground up.
FLOORS = [
    ("choices", "errors", "files", "npy", "resume", "shapes", "short"),
    ("reference",),
    ("kernels",),
    ("ops",),
    ("nn",),
    ("models",),
    ("data",),
    ("datasets",),
    ("wsol",),
    ("erf",),
    ("runs",),
    ("report",),
    ("bench",),
    ("training",),
    ("analysis",),
    ("experiments",),
    ("cli",),
]
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
FILES = sorted(
    p.relative_to(ROOT) for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem in LEVEL
)


def imported(path: Path, source: str) -> set[str]:
    """Return the floors that a file of the package imports from."""
    package = ("cba_fast", *path.parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            names = [f"{module}.{a.name}" for a in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("cba_fast.")}
    return found & LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_from_lower_floors_only(path):
    own = path.parts[0].removesuffix(".py")
    found = imported(path, (ROOT / path).read_text())
    assert {f for f in found if f != own and LEVEL[f] >= LEVEL[own] and LEVEL[own] > 0} == set()


def test_an_import_upward_is_seen():
    source = "def f():\n    from ..runs.score import versions\n"
    assert imported(Path("data/boxes.py"), source) == {"runs"}
    assert imported(Path("data/boxes.py"), "from .. import cli, files") == {"cli", "files"}
    assert imported(Path("data/boxes.py"), "import cba_fast.wsol.cam") == {"wsol"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_file_outgrows_its_room(path):
    assert len((ROOT / path).read_text().splitlines()) <= 500


def test_the_rooms_that_were_thinned_out_stay_so():
    for room in (
        "data",
        "datasets",
        "kernels",
        "kernels/dwconv_gpu",
        "cli",
        *(f"cli/{name}" for name in TITLES),
    ):
        assert len(list((ROOT / room).glob("*.py"))) <= 14, room
