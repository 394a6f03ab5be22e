"""Writes files so that a killed run leaves the old one or the new one, and reads JSON strictly."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import InputError

# Longer numbers overflow floating-point numbers, and Python refuses to print them.
_MOST_DIGITS = 300
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}-(.+)", re.DOTALL)
_MOST_BYTES = 255 - len(".tmp--") - 32  # what a file name leaves for the target's name


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading in binary; anything else is refused without opening it.

    Opening a pipe waits for a writer, perhaps forever, and reading a device may never end.

    Raises:
        OSError: the file does not exist, cannot be read, or is a folder, pipe, socket or device.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file but a pipe, socket or device", str(path))
    return open(path, "rb")


def is_plain_relative(path: str) -> bool:
    """Say whether a relative path with "/" stays below the folder that it is relative to.

    Every path that is read from a list, an annotation, a record or an archive is checked here. It
    must not be empty or absolute, have no part "." or "..", and contain no NUL and no backslash,
    which is a separator on Windows.
    """
    parts = path.split("/")
    return not ("" in parts or "." in parts or ".." in parts or "\0" in path or "\\" in path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, else remove it.

    The temporary name starts with ``.tmp-``, so that readers that list a folder can skip it. It
    ends with the name of `path`, because writers such as OpenCV choose the format by the suffix and
    because :func:`remove_leftovers` finds by it what a killed process could not remove.

    Raises:
        OSError: the folder cannot be created or written, or another process took the temporary file
            for a leftover; the message names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.parent / f".tmp-{uuid.uuid4().hex}-{_ending(path)}"
    try:
        yield tmp
        if not os.path.lexists(tmp):
            raise OSError(errno.ENOENT, "another run writes the same file; start one alone")
        os.replace(tmp, path)
    except OSError as e:
        if e.filename is None or str(e.filename) == str(tmp):
            raise OSError(e.errno, e.strerror or str(e), str(path)) from e
        raise
    finally:
        tmp.unlink(missing_ok=True)


def remove_leftovers(paths: Iterable[str | os.PathLike]) -> None:
    """Remove the temporary files that killed writers of `paths` left, and no other files."""
    endings: dict[Path, set[str]] = {}
    for path in map(Path, paths):
        endings.setdefault(path.parent, set()).add(_ending(path))
    for folder in filter(Path.is_dir, endings):
        for name in os.listdir(folder):
            found = _TEMPORARY.fullmatch(name)
            if found and found[1] in endings[folder]:
                (folder / name).unlink(missing_ok=True)


def _ending(path: Path) -> str:
    """Return the end of a temporary name of `path`: its name, or a digest if that is too long."""
    name = os.fsencode(path.name)
    if len(name) <= _MOST_BYTES:
        return path.name
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= 64 else ""
    return hashlib.sha256(name).hexdigest() + suffix


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path` in one step."""
    with atomic_path(path) as tmp, open(tmp, "wb") as f:
        f.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` as UTF-8 in one step."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` to `path` as indented JSON in one step (NaN is refused)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_npy(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write `array` to `path` in NumPy's format in one step; object arrays are refused."""
    # The array is written to memory first. Given a real file, NumPy writes through C's stdio and
    # does not see an error in flushing the last block: a full disk cuts the file by up to 4 KiB.
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    write_bytes(path, data.getvalue())


# Texts that a spreadsheet runs as formulas, except numbers; apostrophes are those of `csv_text`.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows of cells as CSV that is safe to open in a spreadsheet.

    A text that it would run as a formula, such as ``=1+1``, gets an apostrophe in front, which
    :func:`from_cell` removes. Numbers stay numbers, also those that are given as texts.
    """
    out = io.StringIO()
    plain = csv.writer(out, lineterminator="\n")
    # Before Python 3.13 the writer leaves "\r" unquoted, at which readers end the row.
    quoted = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = [_cell(value) for value in row]
        broken = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (quoted if broken else plain).writerow(cells)
    return out.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str) or not _FORMULA.match(value) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"


def from_cell(text: str) -> str:
    """Return the text of a CSV cell that :func:`csv_text` may have written."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def read_json(path: str | os.PathLike) -> object:
    """Return what a JSON file holds.

    Raises:
        InputError: the file is not UTF-8 text or not JSON, is nested too deeply, gives a key twice
            or holds an integer of more than 300 digits; the message names the file.
        OSError: the file cannot be read.
    """
    with open_regular(path) as f:
        data = f.read()
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object, parse_int=_integer)
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: not UTF-8 text: {e}") from e
    except RecursionError as e:
        raise InputError(f"{path}: not valid JSON: it is nested too deeply") from e
    except ValueError as e:
        raise InputError(f"{path}: not valid JSON: {e}") from e


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        key = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"the key {key!r} is given twice")
    return found


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"it holds an integer of {len(text)} digits")
    return int(text)
