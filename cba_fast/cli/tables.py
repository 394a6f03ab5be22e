"""Tables that the commands print, and write for papers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

BORDER = 3  # columns of the terminal that a cell's padding and its border take
NAME = 24  # so wide a column of text stays, before the table is cut into parts


def new_table(*columns: str, right: Sequence[str] = (), **style) -> Table:
    """Return an empty table; cells that are too long are folded, never cut.

    Args:
        columns: the headings.
        right: headings of further columns, whose cells stand at the right.
        style: of rich's table, such as its title.
    """
    table = Table(**{"title_justify": "left", **style})
    for column in columns:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right", overflow="fold")
    return table


def print_tables(*tables: Table, width: int) -> None:
    """Print tables as wide as the terminal; piped, `width` characters wide.

    A table that is too wide is printed in parts, each with the first column, so that no figure is
    broken over two lines. Names are printed as they are: rich would take "[x]" for a style and
    ":x:" for a picture.
    """
    plain = {"markup": False, "emoji": False}
    console = Console(**plain)
    if not console.is_terminal:  # rich would assume 80 columns, and break names and figures
        console = Console(width=width, **plain)
    for table in tables:
        for part in _parts(table, console.width):
            console.print(part)


def _parts(table: Table, width: int) -> Iterator[Table]:
    """Yield the table, or parts of its columns that are as wide as the terminal."""
    texts = [[_plain(column.header), *map(_plain, column.cells)] for column in table.columns]
    natural = [max(map(cell_len, column)) for column in texts]
    if sum(natural) + BORDER * len(natural) + 1 <= width:
        yield table
        return
    least = [_least(column, n) for column, n in zip(texts, natural)]
    room = width - 1 - least[0] - BORDER
    groups, left = [[0]], room
    for n in range(1, len(least)):
        if least[n] + BORDER > left and len(groups[-1]) > 1:
            groups.append([0])
            left = room
        groups[-1].append(n)
        left -= least[n] + BORDER
    for number, group in enumerate(groups):
        slack = width - 1 - sum(least[n] + BORDER for n in group)
        title = table.title if number == 0 else None
        part = new_table(title=title, title_justify=table.title_justify, box=table.box)
        part.show_header = table.show_header
        for n in group:
            more = max(0, min(slack, natural[n] - least[n]))
            slack -= more
            column = table.columns[n]
            part.add_column(
                column.header, justify=column.justify, overflow="fold", width=least[n] + more
            )
        for row, cells in enumerate(zip(*(texts[n][1:] for n in group), strict=True)):
            part.add_row(*cells, end_section=table.rows[row].end_section)
        yield part


def _plain(cell) -> str:
    return cell if isinstance(cell, str) else "" if cell is None else str(cell)


def _least(texts: list[str], natural: int) -> int:
    """Return how narrow a column may be: figures whole, words whole, long names folded."""
    head, *cells = texts
    figures = [cell for cell in cells if not any(c.isalpha() for c in cell)]
    words = [word for text in (head, *cells) for word in text.split()]
    whole = max(map(cell_len, figures), default=0)
    return min(natural, max(whole, min(NAME, max(map(cell_len, words), default=0))))


def save_tables(folder: Path | None, tables: Mapping[str, Table]) -> None:
    """Write tables as CSV, Markdown and LaTeX, see `cba_fast.analysis.tables`, and say where.

    Args:
        folder: where they go; None for nowhere.
        tables: by the names of their files.
    """
    from ..analysis.tables import PaperTable, write_tables

    if folder is None:
        return
    told = []
    for name, table in tables.items():
        heads = tuple(_plain(column.header) for column in table.columns)
        rows = list(zip(*(map(_plain, column.cells) for column in table.columns), strict=True))
        told.append(PaperTable(name, str(table.title or name), heads, rows))
    write_tables(folder, told)
    tell_tables(folder)


def tell_tables(folder: Path) -> None:
    """Print where tables were written."""
    click.echo(f"Tables       : {folder} (.csv, .md, .tex)")
