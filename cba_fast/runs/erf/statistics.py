"""Statistics of ERF sizes; a file of its own, because the analysis needs them without torch."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SizeStats:
    """Statistics of a model's ERF sizes, in pixels; the standard deviation has ddof 0."""

    mean: float
    std: float
    min: float
    max: float
    count: int


def size_stats(sizes: np.ndarray) -> SizeStats:
    """Return mean, standard deviation (ddof 0), minimum and maximum of (N,) sizes, in float64."""
    sizes = np.asarray(sizes, dtype=np.float64)
    if sizes.ndim != 1 or sizes.size == 0:
        raise ValueError(f"sizes must be a non-empty vector, got shape {sizes.shape}")
    return SizeStats(
        float(sizes.mean()), float(sizes.std()), float(sizes.min()), float(sizes.max()), sizes.size
    )
