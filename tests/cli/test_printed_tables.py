"""Tables on the terminal never break a figure, and are the same in files for papers."""

import re

import pytest
from rich.console import Console

from cba_fast.cli import tables

INTERVAL = "+0.12 [-0.30, +0.50]"


def printed(capsys, *shown, width):
    tables.print_tables(*shown, width=width)
    return capsys.readouterr().out


def test_names_are_printed_as_they_are(capsys):
    table = tables.new_table("[/red]", ":smile:", title="[b]t")
    table.add_row("[bold]a", "<b>")
    out = printed(capsys, table, width=80)
    assert all(text in out for text in ("[/red]", ":smile:", "[b]t", "[bold]a", "<b>"))


def wide():
    heads = [
        f"{name} ({level})" for level in ("within", "pooled", "between") for name in ("r", "rho")
    ]
    table = tables.new_table("", *heads, title="The IoU and ...")
    for name in ("ERF size", "feature maps (no box) | ERF size", "object_channels"):
        table.add_row(name, *[INTERVAL] * len(heads))
    return table, heads


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_figure_is_broken(capsys, width):
    table, heads = wide()
    out = printed(capsys, table, width=width)
    assert max(map(len, out.splitlines())) <= width
    assert out.count(INTERVAL) == 3 * len(heads)
    assert all(head in out for head in heads)
    assert out.count("object_channels") == {80: 3, 100: 2, 200: 1}[width]
    assert out.count("The IoU and ...") == 1


def test_a_long_name_is_folded_and_figures_are_not(capsys):
    table = tables.new_table("model", right=["MaxBoxAcc", "ERF size"])
    table.add_row("y" * 120, "81.25", "4100 +- 300")
    out = printed(capsys, table, width=60)
    assert "81.25" in out
    assert "4100 +- 300" in out
    assert out.count("y") == 120
    assert max(map(len, out.splitlines())) <= 60


def test_sections_stay(capsys):
    table = tables.new_table("model", right=[f"column {n}" for n in range(9)])
    table.add_row("a", *["1234567"] * 9)
    table.add_section()
    table.add_row("b", *["1234567"] * 9)
    lines = printed(capsys, table, width=50).splitlines()
    for part in range(2):
        rows = [n for n, line in enumerate(lines) if re.match(r"│ [ab]", line)]
        assert rows[2 * part + 1] - rows[2 * part] == 2  # a line lies between


def test_the_terminal_is_asked_for_its_width(capsys, monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "80")
    table, _ = wide()
    out = printed(capsys, table, width=300)
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in out.splitlines()) <= 80


def test_files_hold_what_is_printed(capsys, tmp_path):
    table, heads = wide()
    tables.save_tables(tmp_path / "t", {"relations": table})
    assert f"Tables       : {tmp_path / 't'}" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "t").iterdir()} == {
        f"relations.{s}" for s in ("csv", "md", "tex")
    }
    tex = (tmp_path / "t" / "relations.tex").read_text()
    assert tex.count("+0.12 [$-$0.30, +0.50]") == 3 * len(heads)
    assert (tmp_path / "t" / "relations.md").read_text().count(INTERVAL) == 3 * len(heads)
    assert r"object\_channels" in tex
    tables.save_tables(None, {"relations": table})
    assert capsys.readouterr().out == ""
