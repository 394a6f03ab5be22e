"""ERF sizes by PyTorch's sort, on any device: the way for GPUs without compiled kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...reference import erf as reference

GROUP_BYTES = 2**28
_BYTES_PER_PIXEL = 40  # means, what the sort needs, and sums


def erf_size(grad: Tensor, p: Sequence[float]) -> Tensor:
    """Return the sizes, (N, P) int64, on grad's device; see `cba_fast.ops.erf_size`.

    PyTorch adds in an order of its own. Images whose sizes could depend on that are computed on the
    CPU.

    Args:
        grad: (N, C, H, W).
        p: P shares in [0, 1].
    """
    pixels = grad.shape[2] * grad.shape[3]
    if 0 in (len(grad), pixels):
        return torch.zeros(len(grad), len(p), dtype=torch.int64, device=grad.device)
    group = max(1, GROUP_BYTES // (_BYTES_PER_PIXEL * pixels))
    shares = list(p) or [0.0]  # images are checked even without shares
    found = [_sizes(images, shares) for images in grad.split(group)]
    sizes, certain = (torch.cat(parts) for parts in zip(*found))
    for n in (~certain).nonzero().flatten().tolist():
        sizes[n] = _size_on_cpu(grad, n, shares).to(grad.device)
    return sizes[:, : len(p)]


def _sizes(grad: Tensor, p: list[float]) -> tuple[Tensor, Tensor]:
    """Return sizes (N, P) of one group, and which images (N,) they are certain for.

    Sums of n values >= 0 in any two orders differ by at most 2 * n * u of the largest sum, and so
    do the thresholds; 8 * (n + 8) * u covers both, and the roundings here. Sums are exact if all
    values are multiples of one unit, and the sum is less than 2**53 of it.
    """
    means = _means(grad)
    values = means.sort(dim=1, descending=True).values
    sums = values.cumsum(1, dtype=torch.float64)
    total = sums[:, -1:]
    smallest = means.masked_fill(means == 0, torch.inf).amin(1, keepdim=True).double()
    digits = 24 if means.dtype == torch.float32 else 53
    exact = total < smallest * 2.0 ** (52 - digits)
    margin = torch.where(exact, 0.0, total * (8 * (means.shape[1] + 8) * 2.0**-53))
    thresholds = torch.tensor(p, dtype=torch.float64, device=grad.device) * total

    def below(bounds: Tensor) -> Tensor:
        return torch.stack([(sums < bound).sum(1) for bound in bounds.split(1, dim=1)], 1)

    low, high = below(thresholds - margin), below(thresholds + margin)
    sizes = torch.where(total > 0, 1 + low, 0)
    usual = total.isfinite() & ((total > 1e-280) | (total == 0))  # products are normal numbers
    return sizes, ((low == high).all(1) | (total == 0)[:, 0]) & usual[:, 0]


def _means(grad: Tensor) -> Tensor:
    """Return the means of magnitudes (N, H * W), with the bits of `reference.erf_size`."""
    if grad.dtype not in (torch.float32, torch.float64):
        grad = grad.float()
    total = torch.zeros_like(grad[:, 0], memory_format=torch.contiguous_format)
    for channel in grad.unbind(1):
        total += channel.abs()
    # By a tensor on the device, because PyTorch multiplies by the reciprocal of a number.
    return (total / total.new_full((1,), grad.shape[1])).flatten(1)


def _size_on_cpu(grad: Tensor, n: int, p: list[float]) -> Tensor:
    try:
        return reference.erf_size(grad[n : n + 1], p)[0]
    except ValueError:
        reference.refuse_image(grad, n)
