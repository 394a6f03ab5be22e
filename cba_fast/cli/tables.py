"""Tables that the commands print."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


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

    Names are printed as they are: rich would take "[x]" for a style and ":x:" for a picture.
    """
    plain: dict[str, Any] = {"markup": False, "emoji": False}
    console = Console(**plain)
    if not console.is_terminal:  # rich would assume 80 columns, and break names and figures
        console = Console(width=width, **plain)
    for table in tables:
        console.print(table)
