"""Progress bars and closing lines of the commands."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from ..errors import with_flags


def bar(description: str):
    """Return ``progress(iterable, total)`` with a bar on stderr (none where it is no terminal)."""
    console = Console(stderr=True)

    def progress(iterable: Iterable, total: int) -> Iterator:
        return iter(
            track(
                iterable,
                description=escape(description),
                total=total,
                console=console,
                disable=not console.is_terminal,
            )
        )

    return progress


def warn(lines: Iterable[str]) -> None:
    """Print what a run met and went on from, on stderr."""
    for line in map(with_flags, lines):
        click.echo(f"Warning: {line}" if not line.startswith(" ") else line, err=True)


@contextmanager
def continuable() -> Iterator[None]:
    """Say, when the block is interrupted, that the same command goes on from what is finished."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("Interrupted: the same command goes on from the finished part.", err=True)
        raise
