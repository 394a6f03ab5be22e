"""Progress bars and closing lines of the commands."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ..errors import with_flags


class _Rate(ProgressColumn):
    """Items per second, of the last seconds."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s", style="progress.data.speed")


def bar(description: str) -> Callable[[Iterable, int], Iterator]:
    """Return ``progress(iterable, total)`` with a bar on stderr (none where it is no terminal)."""
    return lambda iterable, total: track(iterable, total=total, description=description)


def track(iterable: Iterable, *, total: int, description: str) -> Iterator:
    """Yield the items, and show those that are done, items per second and the time left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from iterable
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate()
    with Progress(*columns, TimeRemainingColumn(), console=console) as shown:
        yield from shown.track(iterable, total=total, description=escape(description))


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
