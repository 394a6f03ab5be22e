"""Writes files so that a killed run leaves the old one or the new one, and reads JSON strictly.

A file is written under a temporary name and renamed. That is enough for a killed process, because
the kernel keeps what was written. After a power failure or a crash of the kernel a renamed file may
be empty, so files that vouch for others or hold hours of work are *durable*: they are on the disk
(``fsync`` of the file, then of its folder) before the call returns. On a virtual disk with ext4
that takes 16 to 20 ms for a file of 4 KiB, which is written in 0.1 to 4 ms else, and 24 ms for a
map of 1 MiB: a quarter of an hour for 50,000 maps. So maps and overlays are not durable. A run that
goes on looks at their sizes or ends instead, and makes those anew that are not whole.
"""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
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
        raise OSError(errno.EINVAL, "not a regular file but a pipe, socket or device", path)
    return open(path, "rb")


def check_replaceable(path: str | os.PathLike) -> None:
    """Refuse an output that a rename would destroy for others: ``/dev/null`` or ``/dev/stdout``.

    Raises:
        OSError: there is a pipe, socket or device, or a link to an open file of a process.
    """
    path = os.fspath(path)
    if not os.path.lexists(path):
        return
    folder, link = os.path.dirname(path), os.readlink(path) if os.path.islink(path) else ""
    folders = [folder, os.path.join(folder, os.path.dirname(link))]
    of_process = any(f"{os.path.realpath(f)}/".startswith("/proc/") for f in folders)
    plain = os.path.isfile(path) or os.path.isdir(path) or not os.path.exists(path)
    if of_process or not plain:
        raise OSError(errno.EINVAL, "not a regular file but a pipe, socket or device", str(path))


def check_distinct(**outputs: Path | None) -> None:
    """Refuse two outputs of one run that are the same file, because the second would replace it.

    Raises:
        InputError: the message names the file and both arguments.
    """
    seen: dict[str, str] = {}
    for name, path in outputs.items():
        if path is not None and (first := seen.setdefault(os.path.realpath(path), name)) != name:
            raise InputError(f"{path}: `{first}` and `{name}` name the same file")


def is_plain_relative(path: str) -> bool:
    """Say whether a relative path with "/" stays below the folder that it is relative to.

    Every path that is read from a list, an annotation, a record or an archive is checked here. It
    must not be empty or absolute, have no part "." or "..", and contain no NUL and no backslash,
    which is a separator on Windows.
    """
    parts = path.split("/")
    return not ("" in parts or "." in parts or ".." in parts or "\0" in path or "\\" in path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, else remove it.

    A durable file is also on the disk then, and what killed writers of `path` left is removed
    first. Give False for files of which a run writes thousands.

    The temporary name starts with ``.tmp-``, so that readers that list a folder can skip it. It
    ends with the name of `path`, because writers such as OpenCV choose the format by the suffix and
    because :func:`remove_leftovers` finds by it what a killed process could not remove.

    Raises:
        OSError: the folder cannot be created or written, another process took the temporary file
            for a leftover, or `path` is no regular file; the message names `path`.
    """
    path = Path(path)
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if durable:
        remove_leftovers([path])
    tmp = temporary_path(path)
    try:
        yield tmp
        if not os.path.lexists(tmp):
            raise OSError(errno.ENOENT, "another run writes the same file; start one alone")
        if durable:
            _sync(tmp)
        os.replace(tmp, path)
        if durable:
            with contextlib.suppress(OSError):  # some file systems do not know it for folders
                _sync(path.parent)
    except OSError as e:
        if e.filename is None or str(e.filename) == str(tmp):
            raise OSError(e.errno, e.strerror or str(e), str(path)) from e
        raise
    finally:
        with contextlib.suppress(OSError):  # a read-only disk refuses it, too
            tmp.unlink()


def is_temporary(path: str | os.PathLike) -> bool:
    """Whether a path has a name as :func:`temporary_path` makes it."""
    return _TEMPORARY.fullmatch(Path(path).name) is not None


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Let an `OSError` that names no file, such as that of a full disk, name `path`."""
    try:
        yield
    except OSError as e:
        if e.filename is None:
            raise OSError(e.errno, e.strerror or str(e), str(path)) from e
        raise


def temporary_path(path: Path) -> Path:
    """Return a new temporary name beside `path`, which :func:`remove_leftovers` knows as its."""
    return path.parent / f".tmp-{uuid.uuid4().hex}-{fitting_name(path)}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(paths: Iterable[str | os.PathLike]) -> None:
    """Remove the temporary files and folders that killed writers of `paths` left, and no others."""
    endings: dict[Path, set[str]] = {}
    for path in map(Path, paths):
        endings.setdefault(path.parent, set()).add(fitting_name(path))
    for folder in filter(Path.is_dir, endings):
        for name in os.listdir(folder):
            found = _TEMPORARY.fullmatch(name)
            if found and found[1] in endings[folder]:
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name, ignore_errors=True)
                else:
                    (folder / name).unlink(missing_ok=True)


def fitting_name(path: Path) -> str:
    """Return the name of `path` as a part of a longer one, or a digest if that would not fit."""
    name = os.fsencode(path.name)
    if len(name) <= _MOST_BYTES:
        return path.name
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= 64 else ""
    return hashlib.sha256(name).hexdigest() + suffix


def write_bytes(path: str | os.PathLike, data: bytes, *, durable: bool = True) -> None:
    """Write `data` to `path` in one step; for `durable` see :func:`atomic_path`."""
    with atomic_path(path, durable=durable) as tmp, open(tmp, "wb") as f:
        f.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8 in one step; what is not UTF-8 in names of files becomes "?"."""
    write_bytes(path, text.encode(errors="replace"))


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` to `path` as indented JSON in one step (NaN is refused)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_npy(path: str | os.PathLike, array: np.ndarray, *, durable: bool = True) -> None:
    """Write `array` to `path` in NumPy's format in one step; object arrays are refused."""
    # The array is written to memory first. Given a real file, NumPy writes through C's stdio and
    # does not see an error in flushing the last block: a full disk cuts the file by up to 4 KiB.
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    write_bytes(path, data.getvalue(), durable=durable)


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
        return json_value(path, f.read())


def json_value(path: str | os.PathLike, data: bytes) -> object:
    """Return what JSON text holds; see :func:`read_json`, which reads it from a file."""
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
        key = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {key!r} is given twice")
    return found


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"it holds an integer of {len(text)} digits")
    return int(text)
