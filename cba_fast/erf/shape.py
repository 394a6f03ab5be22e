"""Describe the shape of an ERF map in numbers: extent, elongation, cross-like or round."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import wasserstein_distance

from .maps import checked_map

# Half the width of the central cross, in standard deviations of the map; see `ErfShape`.
CROSS_HALF_WIDTH = 0.25
# Number of bins of the distributions that `shape_distance` compares.
BINS = 256


@dataclass(frozen=True)
class ErfShape:
    """Descriptors of the shape of an ERF map m (H,W); none depends on the map's scale.

    w = m / sum of m is the share of each pixel; pixel (i, j) has its centre at y = i, x = j.

    Attributes:
        center_y, center_x: the weighted medians of the row sums and of the column sums of w, where
            each pixel is spread evenly over its unit interval. Unlike the centroid they stay on a
            cross whose arms end at the border, and unlike H // 2 they find the field's middle where
            the central feature covers a patch of pixels.
        sigma_major, sigma_minor: standard deviations in pixels along the principal axes, the roots
            of the eigenvalues of the covariance sum of w * (r - mean) (r - mean)^T.
        axis_ratio: sigma_minor / sigma_major in [0, 1]; 1 where both are 0. A round field and a
            cross of equal arms both have 1, a bar has 0.
        angle: direction of the major axis in degrees, -90 to 90, 0 for horizontal, positive when it
            rises to the right; without meaning where axis_ratio is near 1.
        cross_share: share of w on the central cross, |y - center_y| <= b or |x - center_x| <= b,
            with b = 0.25 * sqrt((sigma_major^2 + sigma_minor^2) / 2); pixels on the edge count by
            the part that lies inside. 1 for a thin cross, 0.356 for a round Gaussian
            (1 - (1 - erf(0.25 / sqrt 2))^2), 0.298 for a uniform disk.
        twofold, fourfold: means of cos(2 t) and of cos(4 t), weighted by w, where t is the
            direction of a pixel as seen from the centre. The means are over pixels that are more
            than half a pixel away and inside the largest disk about the centre that does not leave
            the map; otherwise a field that fills the map would have the shape of the map. twofold
            is 1 for a horizontal bar, -1 for a vertical one; fourfold is 1 for an upright cross, 0
            for anything round, -1 for a diagonal cross, 3 - pi = -0.14 for a square inside the
            disk.
        roundness: (1 - |mean of exp(2it)|) * (1 - |mean of exp(4it)|) in [0, 1], with the means of
            `twofold`: 1 for anything round, 0 for a bar or a cross in any direction.
        participation: (sum of m)^2 / (H * W * sum of m^2) in (0, 1], the share of the area that a
            constant field of the same concentration would cover.
    """

    center_y: float
    center_x: float
    sigma_major: float
    sigma_minor: float
    axis_ratio: float
    angle: float
    cross_share: float
    twofold: float
    fourfold: float
    roundness: float
    participation: float

    def as_dict(self) -> dict[str, float]:
        """Return the descriptors as JSON values."""
        return asdict(self)


def erf_shape(erf: np.ndarray) -> ErfShape:
    """Return the shape descriptors of an ERF map; see :class:`ErfShape` for the definitions.

    Args:
        erf: (H,W), real, finite, >= 0, not zero everywhere.

    Raises:
        ValueError: `erf` breaks one of the conditions above.

    Notes:
        All computations are in float64. There are two harmonics because the second one cannot tell
        a cross from a disk, and the fourth can.

    Example:
        >>> import numpy as np
        >>> from cba_fast.erf import erf_shape
        >>> y, x = np.mgrid[-32:33, -32:33]
        >>> gaussian = erf_shape(np.exp(-(x**2 + y**2) / (2 * 6.0**2)))
        >>> cross = erf_shape(1.0 * ((x == 0) | (y == 0)))
        >>> print(f"{gaussian.sigma_major:.2f} {gaussian.roundness:.2f} {gaussian.cross_share:.2f}")
        6.00 0.99 0.36
        >>> print(f"{cross.roundness:.2f} {cross.cross_share:.2f}")
        0.00 1.00
    """
    w = checked_map(erf)
    # The map is scaled by its maximum first, because the squares of values below 1e-160 are zero.
    w = w / w.max()
    participation = float(w.sum() ** 2 / (w.size * (w * w).sum()))
    w = w / w.sum()
    rows, columns = w.sum(1), w.sum(0)
    center = _median(rows), _median(columns)
    major, minor, angle = _principal_axes(w, rows, columns)
    half_width = CROSS_HALF_WIDTH * np.sqrt((major**2 + minor**2) / 2)
    two, four = _harmonics(w, center)
    return ErfShape(
        center_y=center[0],
        center_x=center[1],
        sigma_major=major,
        sigma_minor=minor,
        axis_ratio=minor / major if major > 0 else 1.0,
        angle=angle,
        cross_share=_cross_share(w, center, half_width),
        twofold=float(two.real),
        fourfold=float(four.real),
        roundness=float((1 - min(1.0, abs(two))) * (1 - min(1.0, abs(four)))),
        participation=participation,
    )


def shape_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return how differently two ERF maps are spread: 0 for equal ones, whatever their scales.

    A pixel lies at the offsets dy, dx from the map's centre (see :class:`ErfShape`), in units of
    half the map's shorter side. Three numbers of each pixel are considered: the radius
    sqrt(dy^2 + dx^2), the distance min(|dy|, |dx|) from the central cross, and the direction folded
    to [0, 45] degrees, in units of 45 degrees. Each map, as weights of the pixels, gives a
    distribution of each number. The result is the sum of the three 1-Wasserstein distances between
    the two maps' distributions, which are the areas between their cumulative curves. The first
    distance reflects size, the other two shape. The maps may have different sizes.

    Args:
        a, b: (H,W) ERF maps, see :func:`erf_shape`.

    Raises:
        ValueError: one of them is no ERF map.

    Notes:
        Each number is counted in 256 bins, which limits the accuracy to about 0.01.

    Example:
        >>> import numpy as np
        >>> from cba_fast.erf import shape_distance
        >>> y, x = np.mgrid[-32:33, -32:33]
        >>> small, large = (np.exp(-(x**2 + y**2) / (2 * s**2)) for s in (4.0, 8.0))
        >>> round(shape_distance(small, 5 * small), 2), round(shape_distance(small, large), 2)
        (0.0, 0.24)
    """
    pairs = zip(_profiles(a), _profiles(b), strict=True)
    return float(sum(wasserstein_distance(x[0], y[0], x[1], y[1]) for x, y in pairs))


def radial_profile(erf: np.ndarray) -> np.ndarray:
    """Return the mean of an ERF map over rings of one pixel around its central pixel.

    Ring r holds the pixels whose distance from (H // 2, W // 2), rounded, is r.

    Args:
        erf: (H,W), non-negative and not zero everywhere.

    Returns:
        (R,) float64, r from 0 to min(H, W) // 2.

    Raises:
        ValueError: `erf` is no ERF map.

    Example:
        >>> import numpy as np
        >>> from cba_fast.erf import radial_profile
        >>> erf = np.zeros((5, 5))
        >>> erf[2, 2], erf[2, 3] = 4.0, 8.0
        >>> radial_profile(erf).tolist()
        [4.0, 1.0, 0.0]
    """
    erf = checked_map(erf)
    dy, dx = _offsets(erf.shape, tuple(n // 2 for n in erf.shape))
    ring = np.rint(np.hypot(dy, dx)).astype(int).ravel()
    last = min(erf.shape) // 2
    total, count = (np.bincount(ring, w)[: last + 1] for w in (erf.ravel(), None))
    return total / count


def _median(marginal: np.ndarray) -> float:
    """Return where the cumulative sum of a marginal, taken as piecewise linear, is half its total.

    If that holds on a whole stretch, as between two equal halves, the middle is returned.
    """

    def crossing(values: np.ndarray) -> float:
        total = np.concatenate([[0.0], np.cumsum(values)])
        return np.interp(total[-1] / 2, total, np.arange(len(total)))

    # From either side, the crossing is found at one end of such a stretch.
    edge = (crossing(marginal) + len(marginal) - crossing(marginal[::-1])) / 2
    return float(edge - 0.5)


def _principal_axes(
    w: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> tuple[float, float, float]:
    """Return the standard deviations along the principal axes and the major one's angle."""
    y, x = (np.arange(n, dtype=np.float64) for n in w.shape)
    y, x = y - rows @ y, x - columns @ x
    covariance = np.array([[columns @ x**2, y @ w @ x], [y @ w @ x, rows @ y**2]])
    values, vectors = np.linalg.eigh(covariance)
    minor, major = np.sqrt(np.maximum(values, 0))
    vx, vy = vectors[:, 1]
    angle = np.degrees(np.arctan2(-vy, vx))  # rows count downward
    return float(major), float(minor), float((angle + 90) % 180 - 90)


def _cross_share(w: np.ndarray, center: tuple[float, float], half_width: float) -> float:
    inside = [
        np.clip(
            np.minimum(np.arange(n) + 0.5, c + half_width)
            - np.maximum(np.arange(n) - 0.5, c - half_width),
            0,
            1,
        )
        for n, c in zip(w.shape, center)
    ]
    return float(1 - (1 - inside[0]) @ w @ (1 - inside[1]))


def _harmonics(w: np.ndarray, center: tuple[float, float]) -> tuple[complex, complex]:
    dy, dx = _offsets(w.shape, center)
    z = dx - 1j * dy
    radius = np.abs(z)
    (cy, cx), (height, width) = center, w.shape
    inner = min(cy, cx, height - 1 - cy, width - 1 - cx) + 0.5
    around = (radius > 0.5) & (radius <= inner)
    share = w[around].sum()
    if share == 0:
        return 0j, 0j
    unit = z[around] / radius[around]
    twofold, fourfold = (complex((w[around] * unit**n).sum() / share) for n in (2, 4))
    return twofold, fourfold


def _offsets(shape: tuple[int, ...], center: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(*(np.arange(n) - c for n, c in zip(shape, center)), indexing="ij")


def _profiles(erf: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (bin middles, weights) for each of the three numbers of `shape_distance`."""
    w = checked_map(erf)
    w = w / w.max()
    w = w / w.sum()
    dy, dx = _offsets(w.shape, (_median(w.sum(1)), _median(w.sum(0))))
    half = min(w.shape) / 2
    dy, dx = np.abs(dy) / half, np.abs(dx) / half
    folded = np.arctan2(np.minimum(dy, dx), np.maximum(dy, dx)) / (np.pi / 4)
    farthest = 2 * np.hypot(*w.shape) / min(w.shape)  # bound on a pixel's radius
    found = []
    for values, upper in ((np.hypot(dy, dx), farthest), (np.minimum(dy, dx), 2.0), (folded, 1.0)):
        edges = np.linspace(0, upper, BINS + 1)
        weights, _ = np.histogram(values, edges, weights=w)
        found.append(((edges[:-1] + edges[1:]) / 2, weights))
    return found
