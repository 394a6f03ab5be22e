"""Tables for papers: names are text in Markdown and LaTeX, figures stand at the right."""

import csv
import io
import shutil
import subprocess

import pytest

from cba_fast.analysis.models import ModelScore, SizeStats, fit_models, models_table
from cba_fast.analysis.tables import MOST_ROWS, PaperTable, latex, write_tables

NAMES = ["a_b & c", "100 % #1", r"\input{x}", "$x^2$ ~", "<b>|</b>", "[x](http:y)", 'q"d']
TABLE = PaperTable(
    "scores", "50 % of a_b.", ("Run", "MaxBoxAcc"), [(n, "81.2 [80.0, 82.5]") for n in NAMES]
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a_b & c", r"a\_b \& c"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("$x^2$ ~", r"\$x\textasciicircum{}2\$ \textasciitilde{}"),
        ("5 % #1", r"5 \% \#1"),
        ("a\nb", "a b"),
        ("3 ± 1", r"3 $\pm$ 1"),
        ("-6.50 [-14.00, +1.50]", "$-$6.50 [$-$14.00, +1.50]"),
        ("lr1e-4-wd0", "lr1e-4-wd0"),
        (r"^{}<>|&_", r"\textasciicircum{}\{\}\textless{}\textgreater{}\textbar{}\&\_"),
        ("a--b ''c `d", r"a-{}-b '{}'c \textasciigrave{}d"),
        ("Grünspecht, e\u0301", "Grünspecht, é"),
        ("ł鳥", r"ł\ifdefined\Umathchar 鳥\else[U+9CE5]\fi{}"),
        ("ħ", r"\ifdefined\Umathchar ħ\else[U+0127]\fi{}"),
    ],
)
def test_latex_prints_names_as_they_are(text, told):
    assert latex(text) == told


def test_latex_uses_booktabs_and_has_a_cell_for_each():
    lines = TABLE.to_latex().splitlines()
    assert [w for w in lines if w.startswith("\\") and w.endswith("rule")] == [
        "\\toprule",
        "\\midrule",
        "\\bottomrule",
    ]
    assert "\\begin{tabular}{lr}" in lines
    rows = lines[lines.index("\\midrule") + 1 : lines.index("\\bottomrule")]
    assert len(rows) == len(NAMES)
    # What separates cells is a bare ampersand; those of names are escaped.
    assert all(row.replace("\\&", "").count("&") == 1 for row in rows)
    assert all(row.endswith(r"\\") for row in rows)
    assert "\\caption{50 \\% of a\\_b.}" in lines


def test_no_row_begins_with_what_latex_takes_for_an_option():
    rows = PaperTable("t", "", ("[a]",), [("*",), ("[2em]",)]).to_latex().splitlines()
    assert [row for row in rows if row.startswith("{}")] == [
        r"{}[a] \\",
        r"{}* \\",
        r"{}[2em] \\",
    ]


def test_a_long_table_is_in_parts_with_one_label():
    table = PaperTable("t", "All.", ("n",), [(str(n),) for n in range(MOST_ROWS + 1)])
    lines = table.to_latex().splitlines()
    assert [line for line in lines if line.startswith("\\caption")] == [
        r"\caption{All. Part 1 of 2.}",
        r"\caption{All. Part 2 of 2.}",
    ]
    assert lines.count(r"n \\") == 2
    assert lines.count(r"\label{tab:t}") == 1
    assert [line for line in lines if line[0].isdigit()] == [
        rf"{n} \\" for n in range(MOST_ROWS + 1)
    ]


def test_figures_stand_at_the_right_beside_words_without_any():
    rows = [
        ("7", "+0.5 [no interval]", "3 x 3", "12 s", "none"),
        ("8", "not measured", "", "none", "none"),
    ]
    assert "{lrrll}" in PaperTable("t", "", tuple("abcde"), rows).to_latex()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("encoding", ["T1", "OT1"])
def test_pdflatex_prints_every_table_within_the_text(encoding, tmp_path):
    ascii_names = [f"{c}a{c}{c}" for c in map(chr, range(33, 127)) if not c.isalnum()]
    names = [*NAMES, *ascii_names, "Grünspecht é “q”", "鳥 → e\u0323"]
    rows = [(n, *["81.25 [80.04, 82.51]"] * 2) for n in names]
    tables = [TABLE, PaperTable("long", " ".join(NAMES), ("Run", *NAMES[:2]), rows)]
    tables.append(PaperTable("wide", "Wide.", ("Run", *NAMES, *NAMES), [("a", *NAMES, *NAMES)]))
    write_tables(tmp_path, tables)
    document = [
        r"\documentclass{article}",
        rf"\usepackage[{encoding}]{{fontenc}}\usepackage{{booktabs,graphicx}}",
        r"\begin{document}\listoftables",
        *(rf"\input{{{table.name}.tex}}" for table in tables),
        r"\end{document}",
    ]
    (tmp_path / "all.tex").write_text("\n".join(document))
    run = ["pdflatex", "-interaction=batchmode", "-halt-on-error", "all.tex"]
    for _ in range(2):  # the second run reads the captions for the list of tables
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, timeout=60)
        log = (tmp_path / "all.log").read_text(errors="replace")
        assert done.returncode == 0, log[-2000:]
    told = ("Overfull \\hbox", "Missing character", "too large")
    assert [line for line in log.splitlines() if line.startswith(told)] == []


def test_markdown_has_a_cell_for_each_and_no_link():
    lines = TABLE.to_markdown().splitlines()
    assert lines[1] == "| --- | ---: |"
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines[: 2 + len(NAMES)])
    assert "](" not in TABLE.to_markdown()
    assert "<b>" not in TABLE.to_markdown().replace("\\<", "")


def test_files_of_each_kind_are_written(tmp_path):
    paths = write_tables(tmp_path / "new", [TABLE])
    assert [p.name for p in paths] == ["scores.csv", "scores.md", "scores.tex"]
    rows = list(csv.reader(io.StringIO(paths[0].read_text())))
    assert rows == [list(TABLE.heads), *map(list, TABLE.rows)]


def test_the_models_of_the_study_are_a_table():
    models = [
        ModelScore(f"m{i}", SizeStats(100.0 * i, 5, 0, 300, 20), 50.0 + i, "") for i in range(3)
    ]
    table = models_table(models, fit_models(models))
    assert table.rows[2] == ("m2", "200.00", "5.00", "20", "52.00")
    assert "R2: 1.0000" in table.caption


def test_a_spreadsheet_runs_no_name():
    table = PaperTable("scores", "", ("Run", "Difference"), [("=1+1", "-1.5")])
    assert table.to_csv() == "Run,Difference\n'=1+1,-1.5\n"
