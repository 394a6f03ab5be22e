"""Tables that the commands print."""

from rich.console import Console
from rich.table import Table


def new_table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table; cells that are too long are folded, never cut."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_tables(*tables: Table, width: int) -> None:
    """Print tables as wide as the terminal; piped, `width` characters wide.

    Names are printed as they are: rich would take "[x]" for a style and ":x:" for a picture.
    """
    plain = {"markup": False, "emoji": False}
    console = Console(**plain)
    if not console.is_terminal:  # rich would assume 80 columns, and break names and figures
        console = Console(width=width, **plain)
    for table in tables:
        console.print(table)
