"""Read text files of annotations, and word the messages about them."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from ..files import is_plain_relative, open_regular

MAX_DIGITS = 40  # most characters of a number, with sign, point and leading zeros
_INT = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(
    r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,6})?|nan|inf(inity)?)", re.IGNORECASE
)


def read_text(path: str | os.PathLike) -> str:
    """Return the text of a UTF-8 file without a byte order mark; line ends stay as they are.

    Raises:
        InputError: no such file, not a regular file, not readable, not UTF-8, or a NUL byte.
    """
    try:
        with open_regular(path) as f:
            text = f.read().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as e:
        raise InputError(f"no file {path}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not UTF-8 text (byte {e.start})") from e
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror or e}") from e
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path}, line {line}: a NUL byte")
    return text


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (1-based line number, text) of the lines of `path` that are not blank.

    White space around a line is removed. Line ends may be LF or CRLF, and a byte order mark may
    come first, because some of these files are edited on Windows.

    Raises:
        InputError: as :func:`read_text`.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.strip()
        if line:
            yield number, line


def parse_int(text: str) -> int:
    """Return an integer written in ASCII digits, with or without a sign.

    Python's ``int`` would also take ``1_000``, spaces around it and the digits of other scripts.

    Raises:
        ValueError: `text` is no such number, or has more than `MAX_DIGITS` characters.
    """
    if len(text) > MAX_DIGITS or not _INT.fullmatch(text):
        raise ValueError(f"not an integer: {shown(text)}")
    return int(text)


def parse_float(text: str) -> float:
    """Return a decimal number, "nan" or "inf"; as strict as :func:`parse_int`.

    Raises:
        ValueError: `text` is no such number, or has more than `MAX_DIGITS` characters.
    """
    if len(text) > MAX_DIGITS or not _FLOAT.fullmatch(text):
        raise ValueError(f"not a number: {shown(text)}")
    return float(text)


def check_relative(path: str, where: str, what: str = "path") -> None:
    """Refuse a path that is no plain relative one; see :func:`cba_fast.files.is_plain_relative`.

    Args:
        path: the path, as an annotation file gives it.
        where: that file and the line, for the message.
        what: what the message calls the path.

    Raises:
        InputError: it could lead out of the folder that it belongs to.
    """
    if not is_plain_relative(path):
        raise InputError(f"{where}: {what} {shown(path)} is not a plain relative path")


def shown(value: object, most: int = 100) -> str:
    """Return `value` as messages quote it: its repr, cut after `most` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, lists nested as deep
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= most else f"{text[:most]}..."


def bad_line(path: Path, number: int, text: str, want: str) -> InputError:
    """Return the error for a line that breaks the format of `path`."""
    return InputError(f"{path}, line {number}: expected {want}, got {shown(text)}")


def duplicate(path: Path, number: int, what: str) -> InputError:
    """Return the error for an id that `path` has given before."""
    return InputError(f"{path}, line {number}: duplicate id {what}")


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(items: Iterable[object], limit: int = 3) -> str:
    """Return the first `limit` items and how many more there are, for a message."""
    items = list(items)
    text = ", ".join(_plain(str(i)) for i in items[:limit])
    return text + (f" and {len(items) - limit} more" if len(items) > limit else "")


def _plain(text: str) -> str:
    """Return an id or a path for a message of one line, quoted or cut where it has to be."""
    if len(text) > 400:  # paths are of 4,096 characters at most, but ids come from text files
        return f"{text[:100]!r}... ({len(text)} characters)"
    return text if text.isprintable() else repr(text)


def unprintable(text: str) -> str:
    """Describe the first character of a name that would break tables, pictures or files, or ""."""
    for c in text:
        if unicodedata.category(c) == "Cs":
            return f"half a surrogate pair (U+{ord(c):04X})"
        if unicodedata.category(c) == "Cc":
            return f"a control character (U+{ord(c):04X})"
    return ""
