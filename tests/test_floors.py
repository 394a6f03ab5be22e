"""The architecture: imports go to lower floors only, and no file outgrows its room."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import cba_fast

ROOT = Path(cba_fast.__file__).parent
# From the ground up.
FLOORS = [
    (
        *("choices", "errors", "files", "lazy", "locks", "npy", "resume", "shapes", "short"),
        *("process", "stages", "threads"),
    ),
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
    ("bench",),
    ("training",),
    ("analysis",),
    ("report",),
    ("experiments",),
    ("cli",),
]
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
FILES = sorted(
    p.relative_to(ROOT) for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem in LEVEL
)


def imported_names(package: tuple[str, ...], source: str) -> set[str]:
    """Return the full names of all that a file in the package `package` imports."""
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
        found |= set(names)
    return found


def imported(path: Path, source: str) -> set[str]:
    """Return the floors that a file of the package imports from."""
    names = imported_names(("cba_fast", *path.parts[:-1]), source)
    return {n.split(".")[1] for n in names if n.startswith("cba_fast.")} & LEVEL.keys()


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


def test_no_two_files_of_tests_have_the_same_name():
    """Pytest cannot collect both in one run, because it imports them by their bare names."""
    names = Counter(p.name for p in Path(__file__).parent.rglob("test_*.py"))
    assert {name for name, count in names.items() if count > 1} == set()


ROOMS = sorted({(ROOT / path).parent for path in FILES} - {ROOT})


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_no_room_is_crowded(room):
    files = list(room.glob("*.py"))
    assert len(files) <= 14
    assert sum(len(file.read_text().splitlines()) for file in files) <= 3000


def neighbours(path: Path, source: str) -> set[str]:
    """Return the rooms of its own floor, beside its own room, that a file in a room imports."""
    package = ("cba_fast", *path.parts[:-1])
    names = imported_names(package, source)
    floor = f"cba_fast.{path.parts[0]}."
    rooms = {name.removeprefix(floor).split(".")[0] for name in names if name.startswith(floor)}
    return {room for room in rooms if (ROOT / path.parts[0] / room).is_dir()} - {path.parts[1]}


def test_rooms_of_a_floor_do_not_import_in_a_circle():
    graph = {}
    for path in (p for p in FILES if len(p.parts) > 2):
        own = graph.setdefault((path.parts[0], path.parts[1]), set())
        own |= {(path.parts[0], room) for room in neighbours(path, (ROOT / path).read_text())}
    assert ("models", "families") in graph["models", "inference"]
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


def test_a_neighbouring_room_is_seen():
    source = "def f():\n    from ..families.slak import SLaK\n    from .form import fold"
    assert neighbours(Path("models/inference/merging.py"), source) == {"families"}
