"""Read the line-based annotation files; every complaint names the file, the line and its text."""

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InputError


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (1-based line number, text) of the lines of `path` that are not blank.

    Line ends may be LF or CRLF and a byte order mark may come first: people edit these files on
    Windows. White space around a line is removed.

    Raises:
        InputError: `path` does not exist or is not UTF-8 text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as e:
        raise InputError(f"no file {path}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not UTF-8 text (byte {e.start})") from e
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line:
            yield number, line


def bad_line(path: Path, number: int, text: str, want: str) -> InputError:
    """Return the error for a line that breaks the format of `path`."""
    return InputError(f"{path}, line {number}: expected {want}, got {text!r}")


def duplicate(path: Path, number: int, what: str) -> InputError:
    """Return the error for an id that `path` has given before."""
    return InputError(f"{path}, line {number}: duplicate id {what}")


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(items: Iterable[object], limit: int = 3) -> str:
    """Return the first `limit` items and how many more there are, for a message."""
    items = list(items)
    text = ", ".join(str(i) for i in items[:limit])
    return text + (f" and {len(items) - limit} more" if len(items) > limit else "")


def shown(value: object, most: int = 100) -> str:
    """Return `value` as a message quotes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def unprintable(text: str) -> str:
    """Return which character of a name would break tables, pictures or files; "" if none."""
    for c in text:
        if unicodedata.category(c) == "Cs":
            return f"half a surrogate pair (U+{ord(c):04X})"
        if unicodedata.category(c) == "Cc":
            return f"a control character (U+{ord(c):04X})"
    return ""
