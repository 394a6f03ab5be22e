"""Which position of a feature map an effective receptive field belongs to."""

from collections.abc import Sequence
from numbers import Integral, Real

from ..errors import InputError

Point = tuple[int, int] | tuple[float, float] | None


def position(point: Point, grid: Sequence[int]) -> tuple[int, int]:
    """Return the row and the column of a map of `grid` (h, w) that a point means.

    Args:
        point: two whole numbers, row and column from 0; or two shares of the height and the width,
            0 to 1, such as (0.25, 0.5); or None for the centre (h // 2, w // 2), which is the
            position below and to the right of the middle where a side is even.
        grid: (h, w).

    Raises:
        ValueError: the point is something else or not on the map.
    """
    h, w = grid
    if point is None:
        return h // 2, w // 2
    kinds = [k for k in (Integral, Real) if all(isinstance(v, k) for v in point)]
    if len(point) != 2 or not kinds:
        raise InputError(f"`point` must be two whole numbers or two shares, got {point!r}")
    if kinds[0] is Integral:
        found = int(point[0]), int(point[1])
    elif all(0 <= v <= 1 for v in point):
        found = min(int(point[0] * h), h - 1), min(int(point[1] * w), w - 1)
    else:
        raise InputError(f"`point` must be shares of 0 to 1 or whole numbers, got {point!r}")
    if not (0 <= found[0] < h and 0 <= found[1] < w):
        raise InputError(f"`point` {point!r} is not on the feature map, which is {h}x{w}")
    return found
