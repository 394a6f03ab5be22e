"""The CSV of (model, ERF, MaxBoxAcc) points that collecting runs append to and plots read."""

import csv
import io
import math
import os
import re
from collections.abc import Container, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from .. import locks
from ..data.textlines import parse_float, read_text, shown, unprintable
from ..errors import InputError
from ..files import csv_text, from_cell, write_text


@dataclass(frozen=True)
class Point:
    """One row of the CSV; the fields are its columns.

    Attributes:
        model_name: the model or training setting.
        family: replknet, convnext, slak, slak_flex or a name of the user's.
        erf_path: the ``.npy`` file of ERF sizes, relative to the working directory.
        wsol: MaxBoxAcc as a fraction, 0 to 1.
    """

    model_name: str
    family: str
    erf_path: str
    wsol: float


COLUMNS = tuple(f.name for f in fields(Point))


def read_points(path: str | os.PathLike) -> list[Point]:
    """Read the points of a CSV whose header names the columns of :class:`Point`, in any order.

    As in the study, a wsol above 1 is taken as percent; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, its header lacks a column, names one twice or another
            one, or a line breaks the format; the message names file and line.
    """
    header, points = _parse(path, read_text(path))
    if header is None:
        raise InputError(f"{path}: empty; the first line must be {','.join(COLUMNS)}")
    return points


def append_points(path: str | os.PathLike, points: Sequence[Point]) -> None:
    """Append points to the CSV, which is made with its header if it does not exist.

    The file is replaced in one step while its lock is held (`cba_fast.locks`), so that several
    processes can append to one file and a reader never sees half a line. Lines that are there stay
    as they are.

    Raises:
        InputError: a point is not valid, or the present file is not (see :func:`read_points`).
    """
    for point in points:
        _check(point, f"point {point.model_name!r}")
    with locks.waiting(path):
        text = read_text(path) if Path(path).exists() else ""
        header, _ = _parse(path, text)
        out = io.StringIO()
        out.write(text)
        if text and not text.endswith("\n"):
            out.write("\n")
        added = [dict(zip(COLUMNS, astuple(point), strict=True)) for point in points]
        if header is None:
            out.write(csv_text([COLUMNS]))
        out.write(csv_text([row[name] for name in header or COLUMNS] for row in added))
        write_text(path, out.getvalue())


def put_points(
    path: str | os.PathLike,
    points: Sequence[Point],
    order: Sequence[str],
    remove: Container[str] = (),
) -> None:
    """Set the rows of `points`, one per model name, in a CSV that may hold others.

    A row whose name is in `order` is the caller's: there is one of each name afterwards, those of
    `points` with new values, and among themselves they are sorted as in `order`. All other rows
    stay as they are, at their place. Locking and writing are those of :func:`append_points`.

    Args:
        path: the CSV; made if it does not exist.
        points: the points to add or replace.
        order: the caller's model names, those of `points` among them.
        remove: names of `order` whose rows go.

    Raises:
        InputError: a point is not valid, or the present file is not (see :func:`read_points`).
    """
    for point in points:
        _check(point, f"point {point.model_name!r}")
    with locks.waiting(path):
        text = read_text(path) if Path(path).exists() else ""
        _parse(path, text)
        cells = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [[from_cell(cell) for cell in row] for row in cells if any(map(str.strip, row))]
        header = [cell.strip() for cell in rows[0]] if rows else list(COLUMNS)
        names = [row[header.index("model_name")].strip() for row in rows[1:]]
        own = {name: row for name, row in zip(names, rows[1:]) if name in order}
        for point in points:
            values = dict(zip(COLUMNS, astuple(point), strict=True))
            own[point.model_name] = [values[name] for name in header]
        ordered = iter([own[name] for name in order if name in own and name not in remove])
        # The caller's rows fill the places that they had, then follow at the end; a place too many
        # (the same name twice) goes.
        placed = [next(ordered, None) if name in own else row for name, row in zip(names, rows[1:])]
        kept = [row for row in [*placed, *ordered] if row is not None]
        write_text(path, csv_text([header, *kept]))


def is_points_text(content: object) -> bool:
    """Say whether text begins with the header of a CSV of points."""
    first = content.lstrip().splitlines()[0] if isinstance(content, str) and content.strip() else ""
    # YAML folds the lines of a CSV into one, so what follows the header may stand behind it.
    words = {word.strip() for word in re.split(r"[,\s]+", first)}
    return set(COLUMNS) <= words


def _parse(path: str | os.PathLike, text: str) -> tuple[list[str] | None, list[Point]]:
    """Return the header (None: there is not one) and the points of a CSV's text."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, points = None, []
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            row = [from_cell(cell.strip()) for cell in row]
            where = f"{path}, line {reader.line_num}"
            if header is None:
                if sorted(row) != sorted(COLUMNS):
                    raise InputError(
                        f"{where}: the header must be {','.join(COLUMNS)}, got {','.join(row)}"
                    )
                header = row
            else:
                points.append(_point(dict(zip(header, row)), len(row), where))
    except csv.Error as e:
        raise InputError(f"{path}, line {reader.line_num}: {e}") from e
    return header, points


def _point(row: dict[str, str], width: int, where: str) -> Point:
    if width != len(COLUMNS):
        raise InputError(f"{where}: {width} values, expected {len(COLUMNS)}")
    try:
        wsol = parse_float(row["wsol"])
    except ValueError:
        raise InputError(f"{where}: wsol is not a number: {shown(row['wsol'])}") from None
    if 1 < wsol <= 100:
        wsol /= 100
    point = Point(row["model_name"], row["family"], row["erf_path"], wsol)
    _check(point, where)
    return point


def _check(point: Point, where: str) -> None:
    for name in ("model_name", "family", "erf_path"):
        if not getattr(point, name).strip():
            raise InputError(f"{where}: {name} is empty")
        if what := unprintable(getattr(point, name)):
            raise InputError(f"{where}: {name} {getattr(point, name)!r} holds {what}")
    if not math.isfinite(point.wsol) or not 0 <= point.wsol <= 1:
        raise InputError(f"{where}: wsol must lie in 0 to 1 (or be percent), got {point.wsol}")
