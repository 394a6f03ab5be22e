"""Convolutions with constant weights that keep no input for the backward pass."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..nn import MapLinear, conv1x1_is_faster

# From this number of summed channels on, a 1x1 convolution is computed as a matrix product, except
# on CPUs whose 1x1 convolutions are much faster in general. On two threads with AVX2, the
# convolution of oneDNN and the product of MKL reach 48 and 99 GFLOP/s over 4096 channels at 12x12
# positions, 130 and 145 over 2048 at 24x24; with fewer channels the convolution is faster (135 and
# 101 over 512 at 96x96).
WIDE = 2048


@contextlib.contextmanager
def lean_convolutions(model: nn.Module) -> Iterator[None]:
    """Let the frozen convolutions of `model` keep only their weights for the backward pass.

    The input gradient of a convolution does not depend on its input. PyTorch's convolution keeps
    the input nevertheless if any gradient is asked for: with frozen weights, half of the memory of
    a network of 1x1 convolutions, ReLU and GELU. (Linear layers and `cba_fast.nn.DepthwiseConv2d`
    do not keep it.)

    Modules are changed that are exactly `torch.nn.Conv2d` or `cba_fast.nn.MapLinear`, with
    parameters that require no gradients, with zeros as numeric padding, and without a ``forward``
    or parametrization of their own. Inside the context they can be differentiated once only; values
    are equal up to rounding.
    """
    changed = [m for m in model.modules() if type(m) in _FORWARDS and _is_plain(m)]
    with contextlib.ExitStack() as stack:
        for module in changed:
            replace_forward(stack, module, functools.partial(_FORWARDS[type(module)], module))
        yield


def replace_forward(stack: contextlib.ExitStack, module: nn.Module, forward: Callable) -> None:
    """Set ``module.forward`` on the instance until `stack` is left."""
    module.forward = forward
    stack.callback(vars(module).pop, "forward", None)


def _is_plain(module: nn.Module) -> bool:
    if any(p.requires_grad for p in module.parameters()) or "forward" in vars(module):
        return False
    if isinstance(module, nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return True


class _FrozenConv(torch.autograd.Function):
    """``torch.nn.functional.conv2d`` whose weight and bias are constants."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation, groups):
        ctx.save_for_backward(weight)
        ctx.geometry = stride, padding, dilation, groups
        ctx.shape, ctx.memory_format = x.shape, _format_of(x)
        if _is_product(x, weight, ctx.geometry) and weight.shape[1] >= WIDE:
            return _product(x, weight[:, :, 0, 0].t(), bias)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        if _is_product(grad, weight, ctx.geometry) and weight.shape[0] >= WIDE:
            return _product(grad, weight[:, :, 0, 0]), None, None, None, None, None, None
        # Only shape and strides of the input are read, so an uninitialized tensor takes its place.
        like = torch.empty(
            ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.memory_format
        )
        grad_x, _, _ = torch.ops.aten.convolution_backward(
            grad,
            like,
            weight,
            None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [True, False, False],
        )
        return grad_x, None, None, None, None, None, None


def _is_product(x: Tensor, weight: Tensor, geometry: tuple) -> bool:
    """Say whether a convolution can be computed as one matrix product over all positions of x."""
    return (
        tuple(weight.shape[2:]) == (1, 1)
        and geometry == ((1, 1), (0, 0), (1, 1), 1)
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and not conv1x1_is_faster()
    )


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x (N,C,H,W), in channels_last, times `matrix` (C,O), plus `bias`: (N,O,H,W).

    The result is no view of another tensor, because activations that follow may work in place.
    """
    n, c, h, w = x.shape
    shape = (n, matrix.shape[1], h, w)
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    rows = x.permute(0, 2, 3, 1).reshape(-1, c)
    out = y.permute(0, 2, 3, 1).view(-1, matrix.shape[1])
    if bias is None:
        torch.mm(rows, matrix, out=out)
    else:
        torch.addmm(bias, rows, matrix, out=out)
    return y


def _conv2d(module: nn.Conv2d, x: Tensor) -> Tensor:
    if x.dim() != 4:
        return module._conv_forward(x, module.weight, module.bias)
    how = (module.stride, module.padding, module.dilation, module.groups)
    return _apply(x, module.weight, module.bias, *how)


def _map_linear(module: MapLinear, x: Tensor) -> Tensor:
    if x.dim() != 4:
        return F.linear(x, module.weight, module.bias)
    y = _apply(
        x.permute(0, 3, 1, 2),
        module.weight[:, :, None, None],
        module.bias,
        (1, 1),
        (0, 0),
        (1, 1),
        1,
    )
    return y.permute(0, 2, 3, 1)


_FORWARDS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv2d: _conv2d,
    MapLinear: _map_linear,
}


def _apply(x: Tensor, weight: Tensor, bias: Tensor | None, *how) -> Tensor:
    # Autocast casts the arguments of conv2d but not those of this function, so it is done here. The
    # weight that is kept must have the dtype of the result.
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return _FrozenConv.apply(x, weight, bias, *how)


def _format_of(x: Tensor) -> torch.memory_format:
    """Return the memory format; contiguous where both fit, as ``suggest_memory_format`` does."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
