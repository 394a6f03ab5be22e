"""The specification of quantizing score maps to bytes, and the error for unusable values."""

import torch
from torch import Tensor

from ..errors import ScoreMapError


def quantize(scoremaps: Tensor) -> Tensor:
    """Quantize score maps to bytes: u = uint8(255 * m), truncated.

    The product is in the precision of m, but at least in float32.

    Args:
        scoremaps: m, floating in [0, 1], (N, H, W), on any device.

    Returns:
        (N, H, W) uint8, contiguous, on the same device.

    Raises:
        ScoreMapError: a value is NaN or outside [0, 1].
    """
    values = scoremaps.contiguous()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    inside = (values >= 0) & (values <= 1)  # False for NaN
    if not inside.all():
        refuse_value(scoremaps, int(inside.flatten().to(torch.uint8).argmin()))
    return (255 * values).to(torch.uint8)


def refuse_value(scoremaps: Tensor, index: int) -> None:
    """Raise the error for the value at the flat `index` of `scoremaps` (N, H, W).

    Raises:
        ScoreMapError: always; it names the map, the row, the column and the value.
    """
    _, height, width = scoremaps.shape
    n, pixel = divmod(index, height * width)
    row, column = divmod(pixel, width)
    raise ScoreMapError(
        f"score map {n} has the value {float(scoremaps[n, row, column])} at (row {row}, "
        f"column {column}); values must lie in [0, 1]"
    )
