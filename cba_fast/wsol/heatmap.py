"""From a map at feature resolution to the score map that is stored and scored."""

import cv2
import numpy as np

RANGES = ("wrap", "clip", "minmax")


def finish_maps(maps: np.ndarray, size: int = 384, value_range: str = "clip") -> np.ndarray:
    """Upsample, quantize and normalize maps as the study does.

    Each map is resized with OpenCV's bilinear ``resize``, quantized to ``uint8(255 * map)`` and
    min-max normalized: ``(u - min(u)) / (max(u) - min(u))``. A constant map becomes zeros.

    Args:
        maps: (N, h, w) float32.
        size: side S of the result in pixels.
        value_range: what happens to values outside [0, 1], which PC1 maps have and CAMs have not:
            ``"clip"`` clips them; ``"wrap"`` truncates 255 * map toward zero and keeps the low 8
            bits (what NumPy's cast does on x86, and so the study's figures); ``"minmax"`` rescales
            each resized map to [0, 1] first.

    Returns:
        (N, S, S) float64 in [0, 1].

    Raises:
        ValueError: a wrong rank or dtype, NaN or infinite values, or an unknown `value_range`.
    """
    if maps.ndim != 3 or maps.dtype != np.float32:
        raise ValueError(f"maps must be (N, h, w) float32, got {maps.shape} {maps.dtype}")
    if value_range not in RANGES:
        raise ValueError(f"value_range must be one of {RANGES}, got {value_range!r}")
    if not np.isfinite(maps).all():
        n = int(np.argwhere(~np.isfinite(maps))[0, 0])
        raise ValueError(f"maps[{n}] holds NaN or infinite values")
    out = np.zeros((len(maps), size, size))
    for n, small in enumerate(maps):
        u = _quantize(cv2.resize(small, (size, size)), value_range)  # bilinear is the default
        low, high = int(u.min()), int(u.max())
        if high > low:
            out[n] = (u - low) / float(high - low)
    return out


def _quantize(m: np.ndarray, value_range: str) -> np.ndarray:
    """Return 255 * m as integers 0..255 in int32; float32 arithmetic, truncation toward zero."""
    if value_range == "minmax":
        low, high = m.min(), m.max()
        m = (m - low) / (high - low) if high > low else np.zeros_like(m)
    scaled = np.float32(255) * m
    if value_range == "wrap":
        # float32 -> int64 is defined for all values here, and its low 8 bits are those of int32;
        # a direct cast of a negative float to uint8 is not defined and differs between machines.
        return (scaled.astype(np.int64) & 0xFF).astype(np.int32)
    return np.clip(scaled, 0, 255).astype(np.int32)


def is_constant(maps: np.ndarray) -> np.ndarray:
    """Return (N,) bool: which finished maps (N, S, S) hold no localization (all zeros)."""
    return ~maps.any(axis=(1, 2))
