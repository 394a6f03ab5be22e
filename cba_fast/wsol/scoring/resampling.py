"""What the bootstraps of scores and of correlations share: their checks, parts and intervals."""

from collections.abc import Iterator

import numpy as np

from ...errors import InputError

MOST = 0.95  # an interval is given if the statistic is defined in this share of the resamples


def check_resampling(num_resamples: int, confidence: float) -> None:
    """Refuse fewer than two resamples, and confidence levels outside (0, 1).

    Raises:
        InputError: one of them cannot be used.
    """
    if num_resamples < 2:
        raise InputError(f"num_resamples must be at least 2, got {num_resamples}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie in (0, 1), got {confidence}")


def draw(rng: np.random.Generator, num_images: int) -> np.ndarray:
    """Draw as many images as there are, with replacement; return how often each one came, (N,)."""
    return np.bincount(rng.integers(0, num_images, num_images), minlength=num_images)


def parts(num_resamples: int, at_once: int) -> Iterator[int]:
    """Yield the sizes of parts of `num_resamples`: `at_once` each, or 1 where not even one fits."""
    step = max(1, at_once)
    for start in range(0, num_resamples, step):
        yield min(step, num_resamples - start)


def percentile_interval(drawn: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """Return the percentiles (1 - confidence) / 2 and (1 + confidence) / 2 of resamples.

    Args:
        drawn: (R,), the statistic of each resample; not finite where it is undefined.
        confidence: in (0, 1).

    Returns:
        The interval of the defined ones; None if these are less than `MOST` of all.

    Source:
        Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".
    """
    known = drawn[np.isfinite(drawn)]
    if len(known) < MOST * len(drawn):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)
