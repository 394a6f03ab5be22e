"""Batches of score maps as the evaluators take them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def as_batch(scoremaps: Tensor | np.ndarray | Sequence) -> Tensor | np.ndarray:
    """Return the score maps as one tensor or array (N, H, W).

    Args:
        scoremaps: (N, H, W), or a list or tuple of N maps (H, W) of one shape and dtype.

    Raises:
        ValueError: another shape, or maps of several shapes or dtypes.
        TypeError: neither tensors nor arrays.
    """
    if isinstance(scoremaps, list | tuple):
        if not scoremaps:
            return np.zeros((0, 1, 1))
        kinds = {(tuple(np.shape(m)), str(getattr(m, "dtype", type(m)))) for m in scoremaps}
        # one dtype, because the rounding of the quantization depends on it
        if len(kinds) > 1:
            found = " and ".join(f"{shape} {dtype}" for shape, dtype in sorted(kinds)[:2])
            raise ValueError(f"score maps in a list must have one shape and dtype, got {found}")
        scoremaps = (torch if torch.is_tensor(scoremaps[0]) else np).stack(scoremaps)
    if not isinstance(scoremaps, Tensor | np.ndarray):
        raise TypeError(f"score maps must be a tensor or an array, got {type(scoremaps).__name__}")
    shape = tuple(scoremaps.shape)
    if len(shape) != 3 or 0 in shape[1:]:
        squeeze = "; take the channel out with squeeze(1)" if shape[1:2] == (1,) else ""
        raise ValueError(f"score maps must be (N, H, W) with H, W >= 1, got {shape}{squeeze}")
    return scoremaps
