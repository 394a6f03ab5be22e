"""How far a result may be from its float64 reference: bounds that are derived, not tuned.

A sum of n products in an arithmetic of unit round-off u_acc, in any order, differs from the exact
one by at most n * u_acc / (1 - n * u_acc) times the sum of the products' magnitudes (N. Higham,
"Accuracy and Stability of Numerical Algorithms", 2002, section 3.1); rounding it to the output's
dtype adds u_out * |y|. Hence

    |y - y64| <= c * n * u_acc * magnitude + u_out * |y64| + s_out

with the sum of magnitudes computed in float64 from the inputs as given. c = 2 leaves room for the
denominator and for the round-off of y being taken at y64; c = 4 also for partial sums that are kept
in parts and added in the end. s_out, half of the smallest subnormal number, is the rounding of a
result that underflows.

A transform's error is not small where the result is small, so its bound is one in the norm, plane
by plane. A Fourier transform of length n in steps of unit round-off u has a relative error in the
2-norm of at most c * log2(n) * u (Higham, section 24.1). A product by transforms makes three of
them, and the 2-norm of a convolution is at most the 1-norm of one factor times the 2-norm of the
other:

    |y - y64|_2 <= c * 3 * log2(n) * u_acc * min(|a|_1 |b|_2, |a|_2 |b|_1) + u_out * |y64|_2 + s_out
"""

import math

import torch
from torch import Tensor

from cba_fast.reference import dwconv

REORDERED = 4


def unit_roundoff(dtype: torch.dtype) -> float:
    """Return half the distance from 1 to the next larger number."""
    return torch.finfo(dtype).eps / 2


def sum_bound(
    y64: Tensor, magnitude: Tensor, terms: int, dtype: torch.dtype, c: float = REORDERED
) -> Tensor:
    """Return the bound, elementwise, for sums of `terms` products with result dtype `dtype`.

    Half types and float32 are accumulated in float32, float64 in float64.
    """
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    underflow = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2
    accumulated = c * terms * unit_roundoff(accumulator) * magnitude
    return accumulated + unit_roundoff(dtype) * y64.abs() + underflow


def assert_within(actual: Tensor, y64: Tensor, bound: Tensor) -> None:
    """Raise an `AssertionError` that names the worst element unless |actual - y64| <= bound."""
    assert actual.shape == y64.shape, f"shape {tuple(actual.shape)}, not {tuple(y64.shape)}"
    error = (actual.detach().double() - y64).abs()
    outside = ~(error <= bound)  # so that a NaN is outside
    if outside.any():
        ratio = torch.where(outside, torch.nan_to_num(error / bound, nan=torch.inf), 0)
        at = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape))
        raise AssertionError(
            f"{int(outside.sum())} of {outside.numel()} elements are out of bounds; the worst, at "
            f"{at}: {actual[at].item()} instead of {y64[at].item()}, {ratio[at].item():.3g} times "
            "the bound"
        )


def assert_transform(
    actual: Tensor, y64: Tensor, pairs: list[tuple[Tensor, Tensor]], length: int, c: float = 2
) -> None:
    """Check the planes (last two dimensions) of a sum of products that transforms computed.

    Args:
        actual, y64: (..., H, W).
        pairs: the factors of each product, planes of the same leading dimensions.
        length: of the transform, both axes together; more than the true one loosens the bound.
    """
    assert actual.shape == y64.shape, f"shape {tuple(actual.shape)}, not {tuple(y64.shape)}"

    def norm(t: Tensor, order: int) -> Tensor:
        return torch.linalg.vector_norm(t.detach().double(), order, dim=(-2, -1))

    size = sum(torch.minimum(norm(a, 1) * norm(b, 2), norm(a, 2) * norm(b, 1)) for a, b in pairs)
    dtype = actual.dtype
    underflow = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * y64[0].numel() ** 0.5
    bound = c * 3 * math.log2(length) * unit_roundoff(torch.float32) * size
    bound = bound + unit_roundoff(dtype) * norm(y64, 2) + underflow
    assert_within(norm(actual.double() - y64, 2), torch.zeros_like(bound), bound)


def assert_forward(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, c: float = REORDERED
) -> None:
    """Check y against `depthwise_conv2d` of these inputs: one product per tap, and the bias."""
    x64, w64, b64 = x.detach().double(), weight.detach().double(), None
    magnitude = dwconv.depthwise_conv2d(x64.abs(), w64.abs())
    if bias is not None:
        b64 = bias.detach().double()
        magnitude = magnitude + b64.abs()[:, None, None]
    y64 = dwconv.depthwise_conv2d(x64, w64, b64)
    terms = weight[0].numel() + (bias is not None)
    assert y.dtype == x.dtype
    assert_within(y, y64, sum_bound(y64, magnitude, terms, y.dtype, c))


def assert_grad_x(gx: Tensor, grad: Tensor, weight: Tensor, c: float = REORDERED) -> None:
    """Check gx against `depthwise_conv2d_grad_x` of these inputs: one product per tap."""
    g64, w64 = grad.detach().double(), weight.detach().double()
    magnitude = dwconv.depthwise_conv2d_grad_x(g64.abs(), w64.abs())
    y64 = dwconv.depthwise_conv2d_grad_x(g64, w64)
    assert gx.dtype == grad.dtype
    assert_within(gx, y64, sum_bound(y64, magnitude, weight[0].numel(), gx.dtype, c))


def assert_grad_weight(gw: Tensor, grad: Tensor, x: Tensor, c: float = REORDERED) -> None:
    """Check gw against `depthwise_conv2d_grad_weight`: one product per image and pixel."""
    g64, x64, size = grad.detach().double(), x.detach().double(), gw.shape[2:]
    magnitude = dwconv.depthwise_conv2d_grad_weight(g64.abs(), x64.abs(), size)
    y64 = dwconv.depthwise_conv2d_grad_weight(g64, x64, size)
    assert gw.dtype == x.dtype
    assert_within(gw, y64, sum_bound(y64, magnitude, x[:, 0].numel(), gw.dtype, c))
