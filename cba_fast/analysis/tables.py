"""Tables for papers: the same rows as CSV, Markdown and LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..short import Short

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "−": "$-$",  # noqa: RUF001
    "±": r"$\pm$",
    **{c: f"\\{c}" for c in "&%$#_"},
}


@dataclass(frozen=True, repr=False)
class PaperTable(Short):
    """A table of texts: the stem of its files, a caption, headings and rows of as many cells."""

    name: str
    caption: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def to_csv(self) -> str:
        """Return the table as CSV with a line of headings."""
        return files.csv_text([self.heads, *self.rows])

    def to_markdown(self) -> str:
        """Return the table in GitHub's Markdown; names are text, whatever they hold."""
        lines = [_markdown_row(self.heads)]
        lines.append(_markdown_row(["---:" if right else "---" for right in self._right()], str))
        lines += [_markdown_row(row) for row in self.rows]
        return "\n".join([*lines, "", _markdown(self.caption), ""])

    def to_latex(self) -> str:
        r"""Return the table in LaTeX for ``\usepackage{booktabs}``; names are escaped."""
        columns = "".join("r" if right else "l" for right in self._right())
        rows = [" & ".join(map(latex, row)) + r" \\" for row in (self.heads, *self.rows)]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{latex(self.caption)}}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                rows[0],
                r"\midrule",
                *rows[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def _right(self) -> list[bool]:
        """Say of each column whether it holds figures, which stand at the right."""
        columns = list(zip(*self.rows)) or [()] * len(self.heads)
        return [
            any(c.isdigit() for cell in column for c in cell)
            and not any(c.isalpha() and c not in "eto" for cell in column for c in cell)
            for column in columns
        ]


def write_tables(folder: Path, tables: Sequence[PaperTable]) -> list[Path]:
    """Write each table as ``<name>.csv``, ``<name>.md`` and ``<name>.tex``; return the paths."""
    paths = []
    for table in tables:
        texts = {"csv": table.to_csv(), "md": table.to_markdown(), "tex": table.to_latex()}
        for suffix, text in texts.items():
            paths.append(folder / f"{table.name}.{suffix}")
            files.write_text(paths[-1], text)
    return paths


def latex(text: str) -> str:
    """Return a text as LaTeX prints it unchanged; the sign of a number is a minus, no hyphen."""
    text = re.sub(r"(?<![\w.])-(?=\.?\d)", "−", " ".join(text.split()))  # noqa: RUF001
    return "".join(_LATEX.get(c, c) for c in text)


def _markdown(text: str) -> str:
    text = "".join(f"\\{c}" if c in "\\`*_<>|&~$" else c for c in " ".join(text.split()))
    return text.replace("](", "]\\(")  # else a link


def _markdown_row(cells: Sequence[str], told=_markdown) -> str:
    return f"| {' | '.join(told(cell) for cell in cells)} |"
