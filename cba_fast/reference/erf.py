"""The specification of ERF sizes and of the ERF accumulator, image by image."""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

MODES = {
    "relu": lambda x: x.clamp(min=0),
    "abs": torch.abs,
    "square": torch.square,
}
GROUP = 8


def erf_size(grad: Tensor, p: Sequence[float]) -> Tensor:
    """Return the number of pixels that hold a share p of the gradient's magnitude, (N, P) int64.

    grad (N, C, H, W). The channel mean is in the gradient's own dtype (float32 for half types), as
    in the study; from there on all is float64, the cumulative sum in sequential order.
    """
    sizes = [_sizes_of_image(_mean_magnitude(g), p, n) for n, g in enumerate(grad)]
    return torch.tensor(sizes, dtype=torch.int64).reshape(len(sizes), len(p))


def _mean_magnitude(grad: Tensor) -> np.ndarray:
    # np.abs(grad).mean(axis=0), except that NumPy's order of eight or more channels depends on the
    # strides.
    grad = grad.detach().cpu()
    if grad.dtype not in (torch.float32, torch.float64):
        grad = grad.float()
    total = np.zeros_like(grad[0].numpy())
    with np.errstate(over="ignore"):
        for channel in grad.numpy():
            total += np.abs(channel)
    return total / total.dtype.type(len(grad))


def _sizes_of_image(g: np.ndarray, p: Sequence[float], index: int) -> list[int]:
    if not np.isfinite(g).all():
        raise ValueError(f"the gradient of image {index} holds NaN or infinite values")
    # Widening keeps the order, so it can wait: float32 sorts in 3.9 ms, float64 in 5.4 (384x384).
    with np.errstate(over="ignore"):
        cumulative = np.cumsum(np.sort(g, axis=None)[::-1], dtype=np.float64)
    if cumulative.size == 0 or cumulative[-1] == 0:
        return [0] * len(p)
    if not np.isfinite(cumulative[-1]):
        raise ValueError(f"the sum of image {index}'s gradient exceeds float64")
    # With p <= 1 the rounded product does not exceed the total, so no size exceeds H * W.
    thresholds = np.asarray(p, dtype=np.float64) * cumulative[-1]
    return (1 + np.searchsorted(cumulative, thresholds, side="left")).tolist()


def refuse_image(grad: Tensor, index: int) -> NoReturn:
    """Raise what `erf_size` raises for image `index` of grad, known to have no size."""
    _sizes_of_image(_mean_magnitude(grad[index]), [], index)
    raise AssertionError(f"image {index} has a size")


def erf_accumulate(grad: Tensor, out: Tensor, mode: str = "relu") -> None:
    """Add the sum over N and C of f(grad) to out (H, W), in float64; f is one of `MODES`.

    grad (N, C, H, W). Images and their channels are added up in order, `GROUP` images at a time.
    Those sums are added up in order too, and the errors of these additions, which are known exactly
    (Knuth's two-sum), in the end.
    """
    sums, errors = torch.zeros_like(out), torch.zeros_like(out)
    for start in range(0, len(grad), GROUP):
        of_group = torch.zeros_like(out)
        for channel in grad[start : start + GROUP].flatten(0, 1):
            of_group += MODES[mode](channel.double())
        total = sums + of_group
        added = total - sums
        errors += (sums - (total - added)) + (of_group - added)
        sums = total
    out += sums + errors
