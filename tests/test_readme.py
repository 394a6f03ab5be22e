"""The README says what is so: commands, links and records; it is short."""

import re
import runpy
from pathlib import Path

import click
import pytest

from cba_fast.bench.records import read_records
from cba_fast.bench.summary import summary
from cba_fast.cli.main import COMMANDS, cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 180


def test_the_readme_has_the_commands_of_a_new_user():
    lines = README.splitlines()
    assert "pip install -e . && cba-fast demo" in lines
    assert 'pip install -e ".[test]" && pytest -n auto' in lines


def test_the_table_of_the_readme_is_that_of_the_records():
    """After new records: python benchmarks/table.py --write README.md."""
    paths = sorted(TABLE["RESULTS"].glob("*.jsonl"))
    expected = summary(record for path in paths for record in read_records(path))
    assert TABLE["between_markers"](README, expected) == README
    assert "(loss)" in expected  # losses are shown


def test_another_table_and_missing_markers_are_seen():
    assert TABLE["between_markers"](README, "| none |\n") != README
    with pytest.raises(ValueError, match="must have the markers"):
        TABLE["between_markers"]("# No markers\n", "")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        # Pages of notebooks are made of their sources, and those of packages of their docstrings.
        made = link.startswith("api/") or (path.parent / link).with_suffix(".py").exists()
        assert made or (path.parent / link).exists(), link


def test_every_command_has_its_row():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^\| `([\w-]+)` \|", text)) == set(COMMANDS)


def test_a_summary_counts_losses():
    machine = {"cpu": "C", "isa": "avx2", "threads": 2, "versions": {"torch": "2"}}
    record = {"bench": "dwconv", "direction": "forward", "dtype": "float32", "machine": machine}
    times = [{"ours": 1.0, "nchw": 4.0}, {"ours": 2.0, "nchw": 1.0}]
    records = [
        record | {"timings": {name: {"median_ms": ms} for name, ms in each.items()}}
        for each in times
    ]
    assert "| 2 | 1.41 (0.50 to 4.00) | 1 |" in summary(records)


def commands_of(text: str) -> list[str]:
    """Return the commands of a page's code blocks, those over several lines as one."""
    blocks = re.findall(r"(?ms)^```\w*\n(.*?)^```", text)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("cba-fast ")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_of_the_pages_have_the_options_that_they_name(path):
    for line in commands_of(path.read_text(encoding="utf-8")):
        name, *words = line.partition("#")[0].split()[1:]
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, line
        known = {o.lstrip("-").replace("-", "_") for p in command.params for o in p.opts}
        asked = {word[2:].replace("-", "_").partition("=")[0] for word in words if word[:2] == "--"}
        assert asked <= known | {"help"}, line


def test_commands_are_found():
    text = "```\ncba-fast info --json\ncba-fast evaluate \\\n    --weights w.pth\n```\n"
    assert commands_of(text) == ["cba-fast info --json", "cba-fast evaluate      --weights w.pth"]
    assert len(commands_of((ROOT / "docs" / "reproduction.md").read_text())) == 8


def test_a_summary_has_commands_but_no_heading_for_what_has_no_rival():
    machine = {"cpu": "C", "isa": "avx2", "threads": 2, "versions": {"torch": "2"}}
    scale = {"bench": "scale", "case": "9 maps", "machine": machine}
    assert summary([scale]) == ""
    run = {"bench": "throughput", "case": "maps", "model": "m", "precision": "fp32"}
    made = summary([scale, run | {"times_as_fast": 0.9, "machine": machine}])
    assert "| `cba-fast generate-heatmap`, m, fp32, 2 threads | the study's scripts | 1 |" in made
    assert made.rstrip().endswith("| 0.90 | 1 |")
