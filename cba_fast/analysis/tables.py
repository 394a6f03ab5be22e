"""Tables for papers: the same rows as CSV, Markdown and LaTeX."""

import os
import re
import unicodedata
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
    "`": r"\textasciigrave{}",
    "−": "$-$",  # noqa: RUF001
    "±": r"$\pm$",
    **{c: f"\\{c}" for c in "&%$#_"},
}
_KNOWN = re.compile("[ -~¡-ſ–—‘’“”…†‡•€™→←](?<![ĦħĸĿŀŉŦŧſ])")  # noqa: RUF001
MOST_ROWS = 36  # of a table in LaTeX, which has to fit on a page


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
        r"""Return the table in LaTeX for ``\usepackage{booktabs,graphicx}``; names are escaped.

        What is wider than the text is scaled to its width, and more than `MOST_ROWS` rows are parts
        of as many each, so that nothing leaves the page.
        """
        columns = "".join("r" if right else "l" for right in self._right())
        head, *rows = map(_latex_row, (self.heads, *self.rows))
        parts = [rows[n : n + MOST_ROWS] for n in range(0, max(len(rows), 1), MOST_ROWS)]
        lines = [r"% \usepackage[T1]{fontenc} \usepackage{booktabs,graphicx}"]
        for number, part in enumerate(parts, 1):
            told = f" Part {number} of {len(parts)}." if len(parts) > 1 else ""
            lines += [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{latex(self.caption + told)}}}",
                *([rf"\label{{tab:{self.name}}}"] if number == 1 else []),
                r"\smallskip",  # captions of LaTeX's own classes touch what is below them
                r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                rf"\begin{{tabular}}{{{columns}}}",
                *(r"\toprule", head, r"\midrule", *part, r"\bottomrule"),
                r"\end{tabular}}",
                r"\end{table}",
            ]
        return "\n".join([*lines, ""])

    def _right(self) -> list[bool]:
        """Say of each column whether it holds figures, which stand at the right."""
        columns = list(zip(*self.rows)) or [()] * len(self.heads)
        return [n > 0 and _are_figures(column) for n, column in enumerate(columns)]


def _are_figures(cells: Sequence[str]) -> bool:
    """Say whether cells with digits are figures; others, such as "not measured", may be words."""
    plain = [re.sub(r"\[.*?\]", "", cell) for cell in cells]  # such as "[no interval]"
    figures = [cell for cell in plain if any(c.isdigit() for c in cell)]
    return bool(figures) and not any(c.isalpha() and c not in "etox" for c in "".join(figures))


def write_tables(folder: str | os.PathLike, tables: Sequence[PaperTable]) -> list[Path]:
    """Write each table as ``<name>.csv``, ``<name>.md`` and ``<name>.tex``; return the paths."""
    paths = []
    for table in tables:
        texts = {"csv": table.to_csv(), "md": table.to_markdown(), "tex": table.to_latex()}
        for suffix, text in texts.items():
            paths.append(Path(folder) / f"{table.name}.{suffix}")
            files.write_text(paths[-1], text)
    return paths


def latex(text: str) -> str:
    """Return a text as LaTeX prints it unchanged; the sign of a number is a minus, no hyphen.

    What the fonts of pdflatex lack is printed by lualatex and xelatex, and as ``[U+4E2D]`` by
    pdflatex, which would end there.
    """
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    text = re.sub(r"(?<![\w.])-(?=\.?\d)", "−", text)  # noqa: RUF001
    text = "".join(_LATEX.get(c) or _either(c) for c in text)
    return re.sub(r"(?<=([-',]))(?=\1)", "{}", text)  # no ligature: "--" would be one dash


def _either(c: str) -> str:
    """Return a character for pdflatex, too; only the two newer engines have ``Umathchar``."""
    if _KNOWN.fullmatch(c):
        return c
    return rf"\ifdefined\Umathchar {c}\else[U+{ord(c):04X}]\fi{{}}"


def _latex_row(cells: Sequence[str]) -> str:
    row = " & ".join(map(latex, cells))
    # After the end of a row LaTeX takes a star or a bracket for an option of that end.
    return ("{}" if row[:1] in ("*", "[") else "") + row + r" \\"


def _markdown(text: str) -> str:
    text = "".join(f"\\{c}" if c in "\\`*_<>|&~$" else c for c in " ".join(text.split()))
    return text.replace("](", "]\\(")  # else a link


def _markdown_row(cells: Sequence[str], told=_markdown) -> str:
    return f"| {' | '.join(told(cell) for cell in cells)} |"
