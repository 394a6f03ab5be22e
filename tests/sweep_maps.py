"""Maps for the tests of the box sweep."""

import numpy as np


def level_thresholds(u: np.ndarray) -> np.ndarray:
    """One threshold inside each level 0 .. max u - 1."""
    maximum = int(u.max())
    return (np.arange(maximum) + 0.5) / maximum if maximum else np.array([0.0, 0.9])


def spiral(n: int) -> np.ndarray:
    """A path of ones, one pixel wide, that winds inwards with a gap of one pixel."""
    u = np.zeros((n, n), np.uint8)
    y = x = 0
    dy, dx = 0, 1
    u[0, 0] = 1
    while True:
        turns = 0
        while True:
            ahead = (y + dy, x + dx)
            beyond = (y + 2 * dy, x + 2 * dx)
            inside = all(0 <= v < n for v in ahead)
            if inside and not (all(0 <= v < n for v in beyond) and u[beyond]):
                break
            dy, dx = dx, -dy
            turns += 1
            if turns == 2:
                return u
        y, x = ahead
        if u[y, x]:
            return u
        u[y, x] = 1


def shaded(u: np.ndarray, seed: int = 0, levels: int = 9) -> np.ndarray:
    """Give the foreground random levels, so that shapes come apart level by level."""
    return u * np.random.default_rng(seed).integers(1, levels, u.shape).astype(np.uint8)


def rings(n: int) -> np.ndarray:
    y, x = np.mgrid[:n, :n]
    return np.maximum(abs(y - n // 2), abs(x - n // 2)).astype(np.uint8)


def shapes_of_interest() -> dict[str, np.ndarray]:
    y, x = np.mgrid[:17, :17]
    board = ((y + x) % 2).astype(np.uint8)
    dots = ((y % 3 == 1) & (x % 3 == 1)).astype(np.uint8)
    frame_holes = np.ones((9, 9), np.uint8)
    frame_holes[0, 3] = frame_holes[4, 0] = frame_holes[8, 8] = 0  # open: no holes
    frame_holes[1, 1] = frame_holes[4:6, 4:6] = 0  # closed
    diagonal_leak = np.ones((7, 7), np.uint8)
    diagonal_leak[np.arange(4), np.arange(4)] = 0  # holes touch at corners only
    return {
        "one pixel": np.array([[7]], np.uint8),
        "row": np.array([[0, 3, 3, 1, 0, 3, 2]], np.uint8),
        "column": np.array([[2], [0], [2], [2], [1]], np.uint8),
        "constant": np.full((5, 8), 255, np.uint8),
        "zeros": np.zeros((4, 6), np.uint8),
        "board": board,
        "board of two levels": board + 1,
        "dots": dots,
        "spiral": spiral(21),
        "rings": rings(19) % 2,
        "nested rings": rings(21),
        "nested rings inverted": 20 - rings(21),
        "diagonal": np.eye(11, dtype=np.uint8),
        "two diagonals": np.eye(11, dtype=np.uint8) | np.eye(11, dtype=np.uint8)[::-1],
        "holes at the frame": frame_holes,
        "diagonal leak": diagonal_leak,
    }
