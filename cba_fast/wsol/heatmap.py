"""Turn a map at feature resolution into the score map that is stored and scored."""

from typing import get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from ..choices import INPUT_SIZE, Pc1Range
from ..shapes import Size, map_shape
from .upsample import resize_bilinear

RANGES = get_args(Pc1Range)


def finish_maps(maps: np.ndarray, size: Size = INPUT_SIZE, value_range: str = "clip") -> np.ndarray:
    """Upsample, quantize and normalize maps as the study does.

    Each map is resized with OpenCV's bilinear ``resize``, quantized to ``uint8(255 * map)`` and
    min-max normalized: ``(u - min(u)) / (max(u) - min(u))``. A constant map becomes zeros.

    Args:
        maps: (N, h, w) float32.
        size: side of the result in pixels, or its (H, W).
        value_range: how values outside [0, 1] are treated, which PC1 maps have and CAMs do not.
            ``"clip"`` clips them; ``"wrap"`` truncates 255 * map toward zero and keeps the low 8
            bits, as NumPy's cast on x86 does in the study; ``"minmax"`` first rescales each resized
            map to [0, 1].

    Returns:
        (N, H, W) float64 in [0, 1].

    Raises:
        ValueError: a wrong rank or dtype, NaN or infinite values, or an unknown `value_range`.

    Example:
        >>> import numpy as np
        >>> from cba_fast.wsol import finish_maps
        >>> maps = finish_maps(np.float32([[[0, 0], [0, 1]]]), size=4)
        >>> maps.round(2)
        array([[[0.  , 0.  , 0.  , 0.  ],
                [0.  , 0.06, 0.18, 0.25],
                [0.  , 0.18, 0.56, 0.75],
                [0.  , 0.25, 0.75, 1.  ]]])
    """
    if maps.ndim != 3 or maps.dtype != np.float32:
        raise ValueError(f"maps must be (N, h, w) float32, got {maps.shape} {maps.dtype}")
    if not np.isfinite(maps).all():
        n = int(np.argwhere(~np.isfinite(maps))[0, 0])
        raise ValueError(f"maps[{n}] holds NaN or infinite values")
    u = quantize_maps(torch.from_numpy(np.array(maps)), size, value_range)
    return normalize(u).numpy()


def quantize_maps(maps: Tensor, size: Size = INPUT_SIZE, value_range: str = "clip") -> Tensor:
    """Upsample maps and quantize them to bytes, on the device where they are.

    Maps on the CPU are resized one by one with OpenCV, those on another device in one batch by
    `resize_bilinear`, which says how the two compare.

    Args:
        maps: (N, h, w) float32, finite.
        size, value_range: as for :func:`finish_maps`.

    Returns:
        u, (N, H, W) uint8, on the device of `maps`. The host does not wait for the device.

    Raises:
        ValueError: an unknown `value_range`.
    """
    if value_range not in RANGES:
        raise ValueError(f"value_range must be one of {RANGES}, got {value_range!r}")
    height, width = shape = map_shape(size, name="size")
    if maps.device.type != "cpu":
        return levels_of(resize_bilinear(maps, shape), value_range)
    out = torch.empty((len(maps), *shape), dtype=torch.uint8)
    for n, small in enumerate(maps.numpy()):  # one at a time: a map stays in the cache
        if small.min() == small.max():
            # OpenCV without IPP rounds a constant to two neighbouring values, which the
            # normalization would stretch to 0 and 1.
            resized = np.full(shape, small[0, 0])
        else:
            resized = cv2.resize(small, (width, height))  # bilinear is the default
        out[n] = levels_of(torch.from_numpy(resized)[None], value_range)[0]
    return out


def levels_of(maps: Tensor, value_range: str) -> Tensor:
    """Return 255 * m of maps (N, H, W) float32 as bytes: float32 products, truncated toward zero.

    `value_range` is that of :func:`finish_maps`. Every operation is rounded by itself, so that all
    devices give the same bytes.
    """
    if value_range == "minmax":
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        maps = torch.where(high > low, (maps - low) / (high - low), 0)
    scaled = maps * 255
    if value_range != "wrap":
        return scaled.clamp(0, 255).to(torch.uint8)
    # A direct cast of a negative float to uint8 is undefined and differs between machines. Clamping
    # changes no bytes: like the bound, any float32 of 2**62 or more has zeros in its low 8 bits.
    return (scaled.clamp(-(2.0**62), 2.0**62).to(torch.int64) & 0xFF).to(torch.uint8)


def normalize(u: Tensor) -> Tensor:
    """Return (u - min) / (max - min) of each map (N, H, W) uint8 as float64; constant maps as 0."""
    low, high = u.amin((1, 2), keepdim=True).double(), u.amax((1, 2), keepdim=True).double()
    return u.double().sub_(low).div_((high - low).clamp_(min=1))


def score_levels(u: Tensor) -> Tensor:
    """Return the bytes that the evaluator makes of ``normalize(u)``: (N, H, W) uint8.

    They are computed as `cba_fast.ops.quantize` does, but on the device of `u`.
    """
    return normalize(u).mul_(255).to(torch.uint8)


def is_constant(maps: np.ndarray) -> np.ndarray:
    """Return which finished maps (N, H, W) are all zeros, as constant maps are: (N,) bool."""
    return ~np.any(maps, axis=(1, 2))
