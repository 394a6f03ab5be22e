"""Reads the size of a map and a position on it, as commands and files of experiments write them."""

import re
from collections.abc import Sequence
from numbers import Integral

from .errors import InputError

MOST = 8192  # pixels of a side; a square map of that size takes 512 MB in float64

Size = int | str | Sequence[int] | None


def map_shape(
    size: Size, of_input: int | Sequence[int] | None = None, name: str = "map_size"
) -> tuple[int, int]:
    """Return the height and width that `size` means.

    Args:
        size: a side, (H, W), text such as "96x128" (height x width), or None or "input" for the
            size of the input.
        of_input: the side of the input or its (H, W); None where there is no input.
        name: the name of `size` in error messages.

    Raises:
        InputError: `size` is something else, or a side is not from 1 to 8192.
    """
    if (size is None or size == "input") and of_input is not None:
        return map_shape(of_input)
    found = size
    if isinstance(size, str) and (text := re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", size)):
        found = (int(text[1]), int(text[2] or text[1]))
    if isinstance(found, Integral) and not isinstance(found, bool):
        found = (found, found)
    sides = tuple(found) if isinstance(found, Sequence) and not isinstance(found, str) else ()
    if len(sides) != 2 or not all(isinstance(s, Integral) and 1 <= s <= MOST for s in sides):
        known = "" if of_input is None else ', or "input"'
        raise InputError(f"`{name}` must be a side of 1 to {MOST} or (H, W){known}, got {size!r}")
    return int(sides[0]), int(sides[1])


def pair(sides: Sequence[int]) -> tuple[int, int]:
    """Return two numbers, such as the end of a `torch.Size`, as a pair."""
    first, second = sides
    return first, second


def point_of(text: str | None) -> tuple[int, int] | tuple[float, float] | None:
    """Return the position of a map that text means: "3,5" row and column, "0.25,0.5" shares.

    Raises:
        InputError: the text is something else.
    """
    if text is None:
        return None
    if found := re.fullmatch(r"(\d{1,5}),(\d{1,5})", text):
        return int(found[1]), int(found[2])
    if found := re.fullmatch(r"([01]?\.\d+|[01]\.?),([01]?\.\d+|[01]\.?)", text):
        point = float(found[1]), float(found[2])
        if max(point) <= 1:
            return point
    raise InputError(
        f"`point` must be a row and a column, such as 3,5, or two shares of 0 to 1, such as"
        f" 0.25,0.5, got {text!r}"
    )


def size_word(size: Size, name: str = "map_size") -> int | str:
    """Return a size as records and files hold it: the side of a square, or text such as "96x128".

    Args:
        size, name: as for :func:`map_shape`.
    """
    height, width = map_shape(size, name=name)
    return height if height == width else shape_text((height, width))


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as text: "96x128" for (96, 128)."""
    return "x".join(map(str, shape))
