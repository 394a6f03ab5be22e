"""Exact rewrites of trained convolutions: fold batch norms, centre small kernels in large ones.

New weights are computed in float64 and rounded once to the convolution's own dtype, so that the
rewritten model differs from the trained one by rounding alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .depthwise import DepthwiseConv2d, true_padding, with_parameters


def fuse_conv_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Fold a batch norm in evaluation mode into the convolution before it.

    With s = gamma / sqrt(running_var + eps) per output channel:
    weight' = s * weight, bias' = beta + s * (bias - running_mean).

    Args:
        conv: any `torch.nn.Conv2d`; it is left as it is.
        bn: the batch norm on its output, with running statistics. These are used also where the
            module is in training mode.

    Returns:
        A new convolution with bias and with the geometry, dtype, device and mode of `conv`; a
        `DepthwiseConv2d` if `conv` is one, else a `torch.nn.Conv2d`. It shares no storage with the
        arguments.

    Raises:
        ValueError: `bn` keeps no running statistics, or its width is not `conv.out_channels`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cba_fast.nn import fuse_conv_bn
        >>> conv, norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8).eval()
        >>> norm.running_mean[:], norm.running_var[:] = torch.rand(8), 0.5 + torch.rand(8)
        >>> x = torch.randn(1, 3, 16, 16)
        >>> torch.allclose(fuse_conv_bn(conv, norm)(x), norm(conv(x)), atol=1e-5)
        True
    """
    return _like(conv, *_folded(conv, bn))


def fold_norm_after(layer: nn.Module, bn: nn.Module) -> None:
    """Fold a batch norm in evaluation mode into the layer before it, in place.

    Args:
        layer: a convolution of any dimension, transposed ones without groups, or a linear layer.
        bn: the batch norm over the layer's output channels; it is left as it is.

    Raises:
        ValueError: as `fuse_conv_bn`.
    """
    for name, value in zip(("weight", "bias"), _folded(layer, bn), strict=True):
        value = value.to(layer.weight)
        setattr(layer, name, nn.Parameter(value, requires_grad=layer.weight.requires_grad))


def _folded(layer: nn.Module, bn: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the float64 weight and bias of a layer with the batch norm after it folded in."""
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    if isinstance(layer, nn.Linear):
        scale, shift = affine_of(bn, layer.out_features, "the linear layer's output")
    else:
        scale, shift = affine_of(bn, layer.out_channels, "the convolution's output")
    weight = layer.weight.detach().double()
    shape = [1] * weight.dim()
    shape[1 if transposed else 0] = -1
    if layer.bias is not None:
        shift = shift + scale * layer.bias.detach().double()
    return weight * scale.view(shape), shift


def fold_bn_before_conv1x1(bn: nn.Module, conv: nn.Conv2d) -> nn.Conv2d:
    """Fold a batch norm in evaluation mode into the 1x1 convolution after it.

    With s = gamma / sqrt(running_var + eps) and t = beta - s * running_mean per input channel:
    weight'[o, i] = weight[o, i] * s[i], bias'[o] = bias[o] + sum over i of weight[o, i] * t[i].
    This is exact because every value that a 1x1 convolution without padding reads has passed the
    batch norm. Padded zeros have not, so that no bias could replace the shift at the border.

    Args:
        bn: the batch norm, with running statistics, which are used also in training mode.
        conv: a 1x1 `torch.nn.Conv2d` without padding, of any stride and groups; left as it is.

    Returns:
        A new convolution with bias and with the geometry, dtype, device and mode of `conv`.

    Raises:
        ValueError: `conv` is not 1x1 or pads, `bn` keeps no running statistics, or its width is not
            `conv.in_channels`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cba_fast.nn import fold_bn_before_conv1x1
        >>> norm, conv = nn.BatchNorm2d(8).eval(), nn.Conv2d(8, 4, 1)
        >>> norm.running_mean[:] = torch.rand(8)
        >>> x = torch.randn(1, 8, 16, 16)
        >>> torch.allclose(fold_bn_before_conv1x1(norm, conv)(x), conv(norm(x)), atol=1e-5)
        True
    """
    padding = true_padding(conv)
    padded = padding not in ("same", "valid") and any(padding)
    if tuple(conv.kernel_size) != (1, 1) or padded:
        raise ValueError(
            "a batch norm can be folded into the convolution after it only if that is 1x1 without "
            f"padding, got kernel {tuple(conv.kernel_size)}, padding {padding}"
        )
    scale, shift = affine_of(bn, conv.in_channels, "the convolution's input")
    per_group = conv.out_channels // conv.groups
    # Row o of the weight reads the input channels of its own group only.
    s = scale.view(conv.groups, 1, -1).expand(-1, per_group, -1).reshape(conv.out_channels, -1)
    t = shift.view(conv.groups, 1, -1).expand(-1, per_group, -1).reshape(conv.out_channels, -1)
    weight = conv.weight.detach().double()
    bias = (weight[:, :, 0, 0] * t).sum(1)
    if conv.bias is not None:
        bias = bias + conv.bias.detach().double()
    return _like(conv, weight * s[:, :, None, None], bias)


def pad_kernel(weight: Tensor, kernel_size: int | tuple[int, int]) -> Tensor:
    """Centre a convolution weight in a larger kernel of zeros.

    With zero "same" padding the larger kernel computes the same convolution. So parallel branches
    are merged: weight = large + pad_kernel(small, large.shape[-2:]). Differentiable.

    Args:
        weight: (..., kh, kw), any dtype and device.
        kernel_size: (KH, KW), or one number for both, with KH - kh and KW - kw even and >= 0.

    Returns:
        (..., KH, KW).

    Raises:
        ValueError: the target is smaller, or differs by an odd number so that there is no centre.

    Example:
        >>> import torch
        >>> from cba_fast.nn import pad_kernel
        >>> pad_kernel(torch.ones(1, 1, 1, 3), (3, 5))[0, 0]
        tensor([[0., 0., 0., 0., 0.],
                [0., 1., 1., 1., 0.],
                [0., 0., 0., 0., 0.]])
    """
    target = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    kh, kw = weight.shape[-2:]
    dh, dw = target[0] - kh, target[1] - kw
    if dh < 0 or dw < 0 or dh % 2 or dw % 2:
        raise ValueError(
            f"a {kh}x{kw} kernel cannot be centred in {target[0]}x{target[1]}: each side must grow "
            "by an even number >= 0"
        )
    return F.pad(weight, (dw // 2, dw // 2, dh // 2, dh // 2))


def affine_of(bn: nn.Module, width: int, place: str) -> tuple[Tensor, Tensor]:
    """Return the scale and shift, float64 (C,), of a batch norm in evaluation mode."""
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    if bn.num_features != width:
        raise ValueError(f"the batch norm has {bn.num_features} channels, {place} has {width}")
    scale = torch.rsqrt(bn.running_var.double() + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    shift = -scale * bn.running_mean.double()
    if bn.bias is not None:
        shift = shift + bn.bias.detach().double()
    return scale, shift


def _like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a convolution like `conv` with these float64 parameters, rounded to its dtype."""
    cls = DepthwiseConv2d if isinstance(conv, DepthwiseConv2d) else nn.Conv2d
    old = conv.weight
    parameters = [
        nn.Parameter(value.to(old.device, old.dtype), requires_grad=old.requires_grad)
        for value in (weight, bias)
    ]
    return with_parameters(cls, conv, *parameters)
