"""Effective receptive fields: their size from input gradients, and the accumulated map."""

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from ..reference import erf as reference
from .backends import Backend, BackendTable
from .library import backend_argument, check_tensors, register, requested

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def erf_size(
    grad: Tensor, p: float | Sequence[float] = 0.2, *, backend: str | None = None
) -> Tensor:
    """Count the pixels that together hold a share p of each image's input gradient.

    With g = mean over c of |grad[n, c]|, its H*W values sorted descending, and S their cumulative
    sum: size = 1 + searchsorted(S, p * S[-1], side left), the smallest k with S of the k largest
    values >= p * S[-1]; 0 where S[-1] is 0.

    Args:
        grad: (N, C, H, W), d score / d input, float32, float64, float16 or bfloat16, CPU or CUDA,
            any strides, C >= 1, finite.
        p: the share, 0 < p <= 1, or a sequence of shares.
        backend: "reference", or None for the fastest that can run.

    Returns:
        (N,) int64, 0 to H*W, on grad's device; (N, P) for a sequence of P shares.

    Raises:
        TypeError: `grad` is no tensor or not floating, or p is no number.
        ValueError: `grad` is not (N, C, H, W) with channels, holds NaN or infinite values (the
            message names the image), p is outside (0, 1], or the backend cannot run.

    Notes:
        The channel mean is taken in grad's dtype (float32 for half types), equal to NumPy's
        ``np.abs(grad).mean(axis=0)``; the cumulative sum is sequential and in float64, so the
        result does not depend on device, batch or threads. Not differentiable.

    Source:
        The ERF measure of the reproduction of S. Yasuki and M. Taki (2024), "CAM Back Again".
    """
    check_tensors(grad=grad)
    several = not isinstance(p, Real)
    shares = list(p) if several else [p]
    for share in shares:
        if not isinstance(share, Real):
            raise TypeError(f"p must be a number or a sequence of numbers, got {share!r}")
    sizes = torch.ops.cba_fast.erf_size.default(
        grad.detach(), [float(share) for share in shares], backend_argument(backend)
    )
    return sizes if several else sizes[:, 0]


def erf_accumulate(grad: Tensor, out: Tensor, *, backend: str | None = None) -> Tensor:
    """Add the positive part of input gradients to an ERF map, in place.

    out[h, w] += sum over n, c of max(grad[n, c, h, w], 0), in float64.

    Args:
        grad: (N, C, H, W), float32, float64, float16 or bfloat16, CPU or CUDA, any strides.
        out: (H, W) float64 on grad's device; changed in place.
        backend: "reference", or None for the fastest that can run.

    Returns:
        `out`, as PyTorch's in-place methods return their tensor.

    Raises:
        TypeError: an argument is no tensor, `grad` is not floating, or `out` is not float64.
        ValueError: a shape or device does not fit, `out` requires grad, or the backend cannot run.

    Notes:
        NaN passes through to `out`: leave such images out before. Not differentiable.

    Source:
        X. Ding et al. (2022), "Scaling Up Your Kernels to 31x31"; its script sums in the
        gradient's own dtype.
    """
    check_tensors(grad=grad, out=out)
    if out.requires_grad:
        raise ValueError("out must not require grad: the sum is not differentiable")
    torch.ops.cba_fast.erf_accumulate.default(grad.detach(), out, backend_argument(backend))
    return out


def _check_grad(grad: Tensor) -> None:
    if grad.dim() != 4:
        raise ValueError(f"grad must have shape (N, C, H, W), got {tuple(grad.shape)}")
    if grad.dtype not in DTYPES:
        raise TypeError(f"grad must be float32, float64, float16 or bfloat16, got {grad.dtype}")


def _check_size(grad: Tensor, p: list[float]) -> None:
    _check_grad(grad)
    if grad.shape[1] == 0:
        raise ValueError(f"grad must have at least one channel, got {tuple(grad.shape)}")
    for share in p:
        if not 0 < share <= 1:
            raise ValueError(f"p must be above 0 and at most 1, got {share}")


def _check_accumulate(grad: Tensor, out: Tensor) -> None:
    _check_grad(grad)
    if out.dtype != torch.float64:
        raise TypeError(f"out must be float64, got {out.dtype}")
    if out.dim() != 2 or out.shape != grad.shape[2:]:
        raise ValueError(
            f"out must have shape (H, W) = {tuple(grad.shape[2:])}, got {tuple(out.shape)}"
        )
    if out.device != grad.device:
        raise ValueError(f"grad is on {grad.device}, out on {out.device}")


def _runs_always(*args) -> None:
    return None


# A batched torch.sort is no second backend worth having: 250 ms for eight 384x384 maps, 19 ms here.
SIZE = BackendTable("erf_size", [Backend("reference", _runs_always)])
ACCUMULATE = BackendTable("erf_accumulate", [Backend("reference", _runs_always)])


def _size(grad, p, backend):
    _check_size(grad, p)
    SIZE.resolve(requested(backend), grad)
    return reference.erf_size(grad, p).to(grad.device)


def _size_fake(grad, p, backend):
    _check_size(grad, p)
    return grad.new_empty((grad.shape[0], len(p)), dtype=torch.int64)


def _accumulate(grad, out, backend):
    _check_accumulate(grad, out)
    ACCUMULATE.resolve(requested(backend), grad, out)
    reference.erf_accumulate(grad, out)


def _accumulate_fake(grad, out, backend):
    _check_accumulate(grad, out)


register("erf_size(Tensor grad, float[] p, str backend) -> Tensor", _size, _size_fake)
register(
    "erf_accumulate(Tensor grad, Tensor(a!) out, str backend) -> ()", _accumulate, _accumulate_fake
)
