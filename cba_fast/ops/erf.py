"""Effective receptive fields (ERF) from input gradients: their size, and the accumulated map."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Real

import torch
from torch import Tensor

from ..choices import ERF_SHARE
from ..kernels import cuda_core, erf_cpp, native
from ..kernels.gpu import erf_cuda, erf_torch, erf_triton, triton_core
from ..reference import erf as reference
from .backends import Backend, BackendTable, expect
from .library import backend_argument, check_tensors, register, requested

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def erf_size(
    grad: Tensor, p: float | Sequence[float] = ERF_SHARE, *, backend: str | None = None
) -> Tensor:
    """Count the pixels that together hold a share p of each image's input gradient.

    With g = mean over c of |grad[n, c]| and S the cumulative sum of its H*W values in descending
    order, the size is 1 + searchsorted(S, p * S[-1], side left): the smallest k whose k largest
    values add up to at least p * S[-1]. It is 1 for p = 0, and 0 where S[-1] is 0.

    Args:
        grad: (N, C, H, W), the gradient of a score with respect to the input; float32, float64,
            float16 or bfloat16, CPU or CUDA, any strides, C >= 1, finite.
        p: the share, 0 <= p <= 1, or a sequence of shares.
        backend: "cuda", "torch" (PyTorch's sort), "cpp" (CPU), "reference", or None for the fastest
            that can run (GPU kernels after they have passed a self-check on that GPU).

    Returns:
        (N,) int64, 0 to H*W, on grad's device; (N, P) for a sequence of P shares.

    Raises:
        TypeError: `grad` is no tensor or not floating, or p is no number.
        ValueError: `grad` is not (N, C, H, W) with channels, holds NaN or infinite values or values
            whose sum is infinite (the message names the image), p is outside [0, 1], or the backend
            cannot run.

    Notes:
        The channel mean is taken in grad's dtype (float32 for half types), channel after channel;
        for fewer than 8 channels it equals NumPy's ``np.abs(grad).mean(axis=0)``. The cumulative
        sum is sequential and in float64. So the result does not depend on the device, batch,
        strides, threads or backend. The C++ backend sorts only the values whose rounding could
        change the result and reads strided tensors in place; it keeps 12 to 32 bytes per pixel and
        thread between calls. The CUDA backend does not sort; it waits once for the sizes, and
        computes on the CPU the few images whose size depends on rounding. It takes 48 KiB per image
        and 4 or 8 bytes per pixel, up to 256 MiB in all. "torch" sorts on the tensor's device; its
        bound on rounding is wider, so that p = 1 and float64 images with many equal values are
        left to the CPU more often. Not differentiable.

    Source:
        The ERF measure of the reproduction of S. Yasuki and M. Taki (2024), "CAM Back Again".

    Example:
        >>> import torch
        >>> from cba_fast.ops import erf_size
        >>> grad = torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(1, 1, 2, 2)
        >>> erf_size(grad, [0.4, 0.5, 0.9, 1.0])  # 4, 4 + 3, 4 + 3 + 2 and all of 10
        tensor([[1, 2, 3, 4]])
    """
    check_tensors(grad=grad)
    shares = list(p) if isinstance(p, Iterable) else [p]
    for share in shares:
        if not isinstance(share, Real):
            raise TypeError(f"p must be a number or a sequence of numbers, got {share!r}")
    sizes = torch.ops.cba_fast.erf_size.default(
        grad.detach(), [float(share) for share in shares], backend_argument(backend)
    )
    return sizes if isinstance(p, Iterable) else sizes[:, 0]


def erf_accumulate(
    grad: Tensor, out: Tensor, *, mode: str = "relu", backend: str | None = None
) -> Tensor:
    """Add input gradients to an ERF map, in place.

    out[h, w] += sum over n, c of f(grad[n, c, h, w]), in float64.

    Args:
        grad: (N, C, H, W), float32, float64, float16 or bfloat16, CPU or CUDA, any strides.
        out: (H, W) float64 on grad's device, any strides; changed in place.
        mode: f, "relu" for max(x, 0) (the published map), "abs" or "square".
        backend: "cuda", "triton", "cpp" (CPU), "reference", or None for the fastest that can run
            (GPU kernels after they have passed a self-check on that GPU).

    Returns:
        `out`, as PyTorch's in-place methods return their tensor.

    Raises:
        TypeError: an argument is no tensor, `grad` is not floating, `out` is not float64, or `mode`
            is no string.
        ValueError: a shape or device does not fit, `mode` is unknown, `out` requires grad, or the
            backend cannot run.

    Notes:
        The channels of 8 images at a time are added up in order, then these sums with
        compensation, then `out`. All terms are >= 0, so nothing cancels. With u = 2**-53, what is
        added to `out` has a relative error of at most about (8 * C + 1) * u for any number of
        images (a plain sum has N * C * u), and the addition to `out` another u. That is 3e-15 for
        RGB, far below the 6e-8 of float32 gradients; compensating each addition would take twice
        the time on CPUs. The bits do not depend on strides, threads and backend. A NaN or an
        infinite f makes its pixel NaN: leave such images out. Not differentiable.

    Source:
        X. Ding et al. (2022), "Scaling Up Your Kernels to 31x31"; differs from its script, which
        sums in the gradient's own dtype.

    Example:
        >>> import torch
        >>> from cba_fast.ops import erf_accumulate
        >>> total = torch.zeros(2, 2, dtype=torch.float64)
        >>> grad = torch.tensor([1.0, -2.0, 3.0, -4.0]).reshape(1, 1, 2, 2)
        >>> erf_accumulate(grad, total)
        tensor([[1., 0.],
                [3., 0.]], dtype=torch.float64)
        >>> erf_accumulate(grad, total, mode="square")
        tensor([[ 2.,  4.],
                [12., 16.]], dtype=torch.float64)
    """
    check_tensors(grad=grad, out=out)
    if out.requires_grad:
        raise ValueError("out must not require grad: the sum is not differentiable")
    if not isinstance(mode, str):
        raise TypeError(f"mode must be a string, got {type(mode).__name__}")
    torch.ops.cba_fast.erf_accumulate.default(grad.detach(), out, mode, backend_argument(backend))
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
        if not 0 <= share <= 1:
            raise ValueError(f"p must be at least 0 and at most 1, got {share}")


def _check_accumulate(grad: Tensor, out: Tensor, mode: str) -> None:
    _check_grad(grad)
    if mode not in reference.MODES:
        raise ValueError(f"mode must be one of {', '.join(reference.MODES)}, got {mode!r}")
    if out.dtype != torch.float64:
        raise TypeError(f"out must be float64, got {out.dtype}")
    if out.dim() != 2 or out.shape != grad.shape[2:]:
        raise ValueError(
            f"out must have shape (H, W) = {tuple(grad.shape[2:])}, got {tuple(out.shape)}"
        )
    if out.device != grad.device:
        raise ValueError(f"grad is on {grad.device}, out on {out.device}")


def _too_many_pixels(grad: Tensor) -> str | None:
    if grad.shape[2] * grad.shape[3] > erf_cpp.MOST_PIXELS:
        return f"{grad.shape[2]} x {grad.shape[3]} are more than {erf_cpp.MOST_PIXELS} pixels"
    return None


def _cpp_refuses(grad: Tensor, *out: Tensor) -> str | None:
    if grad.device.type != "cpu":
        return f"the tensor is on {grad.device}"
    return _too_many_pixels(grad)


def _cuda_refuses(grad: Tensor, *out: Tensor) -> str | None:
    if grad.device.type != "cuda":
        return f"the tensor is on {grad.device}"
    return _too_many_pixels(grad) or cuda_core.refuses(grad.device)


def _runs_always(*args) -> None:
    return None


def _triton_refuses(grad: Tensor, *out: Tensor) -> str | None:
    return triton_core.refuses(grad) or _too_many_pixels(grad)


def _self_check_size(backend: str, device: torch.device) -> None:
    grad = _checked_gradients()
    shares = [0.0, 0.2, 0.9, 1.0]
    expect(_SIZE_KERNELS[backend](grad.to(device), shares), reference.erf_size(grad, shares))


def _self_check_accumulate(backend: str, device: torch.device) -> None:
    grad = _checked_gradients()
    for mode in reference.MODES:
        expected = torch.ones(grad.shape[2:], dtype=torch.float64, device="cpu")
        out = expected.to(device, copy=True)
        reference.erf_accumulate(grad, expected, mode)
        _ACCUMULATE_KERNELS[backend](grad.to(device), out, mode)
        expect(out, expected)


def _checked_gradients() -> Tensor:
    """Return 9 images of numbers that look random, more than one group of `erf_accumulate`."""
    steps = torch.arange(1, 9 * 3 * 33 * 40 + 1, dtype=torch.float64, device="cpu")
    return torch.tan(steps).float().reshape(9, 3, 33, 40)


def _table(op: str, self_check: Callable, without_compiler: Backend) -> BackendTable:
    cuda = Backend("cuda", _cuda_refuses, native.cuda_unavailable, partial(self_check, "cuda"))
    cpp = Backend("cpp", _cpp_refuses, native.unavailable)
    return BackendTable(op, [cuda, cpp, without_compiler, Backend("reference", _runs_always)])


SIZE = _table(
    "erf_size",
    _self_check_size,
    Backend("torch", _too_many_pixels, self_check=partial(_self_check_size, "torch")),
)
ACCUMULATE = _table(
    "erf_accumulate",
    _self_check_accumulate,
    Backend(
        "triton",
        _triton_refuses,
        triton_core.unavailable,
        partial(_self_check_accumulate, "triton"),
    ),
)

_SIZE_KERNELS = {
    "cuda": erf_cuda.erf_size,
    "cpp": erf_cpp.erf_size,
    "torch": erf_torch.erf_size,
    "reference": lambda grad, p: reference.erf_size(grad, p).to(grad.device),
}
_ACCUMULATE_KERNELS = {
    "cuda": erf_cuda.erf_accumulate,
    "cpp": erf_cpp.erf_accumulate,
    "triton": erf_triton.erf_accumulate,
    "reference": reference.erf_accumulate,
}


def _size(grad, p, backend):
    _check_size(grad, p)
    return _SIZE_KERNELS[SIZE.resolve(requested(backend), grad)](grad, p)


def _size_fake(grad, p, backend):
    _check_size(grad, p)
    return grad.new_empty((grad.shape[0], len(p)), dtype=torch.int64)


def _accumulate(grad, out, mode, backend):
    _check_accumulate(grad, out, mode)
    _ACCUMULATE_KERNELS[ACCUMULATE.resolve(requested(backend), grad, out)](grad, out, mode)


def _accumulate_fake(grad, out, mode, backend):
    _check_accumulate(grad, out, mode)


register("erf_size(Tensor grad, float[] p, str backend) -> Tensor", _size, _size_fake)
# The argument is called `kind` because `torch.library.opcheck` gives `mode` another meaning.
register(
    "erf_accumulate(Tensor grad, Tensor(a!) out, str kind, str backend) -> ()",
    _accumulate,
    _accumulate_fake,
)
