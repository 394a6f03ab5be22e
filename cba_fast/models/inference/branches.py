"""Parallel convolutions of one input: which of them can be summed into fewer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...nn import DepthwiseConv2d, pad_kernel
from ...nn.depthwise import true_padding, with_parameters
from ...nn.fuse import affine_of
from ...ops.dwconv_checks import MAX_KERNEL
from ...shapes import pair
from ..families.large_kernel import conv_of

# Narrowest strips that become one square kernel where transforms compute it: see
# `cba_fast.models.inference.form.one_kernel_is_faster`.
STRIP = 5


class Branches(nn.ModuleList):
    """The sum of convolutions of one input, in place of the first one's result."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum over the convolutions."""
        first, *others = self
        y = first(x)
        for conv in others:
            y += conv(x)  # no convolution needs its own result for its derivative
        return y


@dataclass
class _Branch:
    """A convolution, or several in one.

    Attributes:
        conv: the convolution with the largest kernel.
        kernel: (O, I, KH, KW) in float64, with zeros between the taps of a dilated kernel.
        bias: (O,) in float64, or None.
        count: the number of convolutions.
    """

    conv: nn.Conv2d
    kernel: Tensor
    bias: Tensor | None
    count: int = 1

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "_Branch":
        bias = None if conv.bias is None else conv.bias.detach().double()
        return cls(conv, _without_dilation(conv), bias)

    @property
    def size(self) -> tuple[int, int]:
        return pair(self.kernel.shape[-2:])

    def fits_into(self, other: "_Branch") -> bool:
        """Say whether `other` can take this kernel in without getting larger."""
        inside = all(a <= b for a, b in zip(self.size, other.size, strict=True))
        dense = tuple(other.conv.dilation) == (1, 1)
        return inside and dense and _alignment(self) == _alignment(other) is not None

    def add(self, other: "_Branch", size: tuple[int, int]) -> None:
        self.kernel = pad_kernel(self.kernel, size) + pad_kernel(other.kernel, size)
        if other.bias is not None:
            self.bias = other.bias if self.bias is None else self.bias + other.bias
        self.count += other.count

    def module(self) -> nn.Conv2d:
        """Return a convolution that computes this branch."""
        if self.count == 1:
            return self.conv
        if self.size != tuple(self.conv.kernel_size):
            return conv_of(self.kernel, self.bias, self.conv)
        cls = DepthwiseConv2d if isinstance(self.conv, DepthwiseConv2d) else nn.Conv2d
        like = self.conv.weight

        def parameter(value: Tensor) -> nn.Parameter:
            return nn.Parameter(value.to(like), requires_grad=like.requires_grad)

        bias = None if self.bias is None else parameter(self.bias)
        return with_parameters(cls, self.conv, parameter(self.kernel), bias)


def merged(convs: Sequence[nn.Conv2d], strips: bool) -> list[nn.Conv2d]:
    """Return fewer convolutions with the same sum, or as many if none can be merged.

    A kernel is added to a larger one that it fits into: of the same stride and groups, with zero
    padding such that both are centred alike. Dilated kernels fit in with zeros between their taps.

    Args:
        convs: convolutions of one input; they are left as they are.
        strips: leave crossed depthwise strips; False makes one square kernel of those that are
            not narrower than `STRIP`.
    """
    kept: list[_Branch] = []
    for branch in sorted(map(_Branch.of, convs), key=lambda b: -b.kernel[0, 0].numel()):
        larger = next((k for k in kept if branch.fits_into(k)), None)
        if larger is None:
            kept.append(branch)
        else:
            larger.add(branch, larger.size)
    if not strips:
        kept = _in_one_square(kept)
    return [branch.module() for branch in kept]


def _in_one_square(branches: list[_Branch]) -> list[_Branch]:
    wide = [b for b in branches if _is_plain_depthwise(b) and min(b.size) >= STRIP]
    if len(wide) < 2 or len({_alignment(b) for b in wide}) > 1:
        return branches
    first, *others = wide
    for branch in others:
        first.add(branch, pair([max(s) for s in zip(first.size, branch.size, strict=True)]))
    return [first, *(b for b in branches if not any(b is w for w in wide))]


def _is_plain_depthwise(branch: _Branch) -> bool:
    conv = branch.conv
    same = all(a == 1 for a in (*conv.stride, *conv.dilation, *(_alignment(branch) or (0, 0))[:2]))
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return same and depthwise and max(branch.size) <= MAX_KERNEL


def _alignment(branch: _Branch) -> tuple | None:
    """Return what two convolutions must share to be centred alike; None if the padding has values.

    The first two numbers are how much smaller the result is than the input, plus 1.
    """
    conv = branch.conv
    padding = true_padding(conv)
    if padding == "same":
        if any(k % 2 == 0 for k in branch.size):
            return None
        padding = tuple(k // 2 for k in branch.size)
    padding = (0, 0) if isinstance(padding, str) else padding  # "valid"
    if conv.padding_mode != "zeros" and any(padding):
        return None
    shrinkage = (k - 2 * p for k, p in zip(branch.size, padding, strict=True))
    return (*shrinkage, tuple(conv.stride), conv.groups, conv.in_channels, conv.out_channels)


def _without_dilation(conv: nn.Conv2d) -> Tensor:
    """Return the float64 kernel with the zeros that its dilation means."""
    weight, (dh, dw) = conv.weight.detach().double(), conv.dilation
    kh, kw = ((k - 1) * d + 1 for k, d in zip(weight.shape[-2:], (dh, dw), strict=True))
    kernel = weight.new_zeros(*weight.shape[:2], kh, kw)
    kernel[..., ::dh, ::dw] = weight
    return kernel


def unit_conv(norm: nn.Module | None, like: nn.Conv2d) -> nn.Conv2d | None:
    """Return a 1x1 convolution in the groups of `like` that computes a batch norm, or the identity.

    None where the norm has no running statistics or the channels differ.
    """
    width = like.in_channels
    if norm is None:
        scale = torch.ones(width, dtype=torch.float64, device=like.weight.device)
        shift = None
    elif norm.running_var is None or norm.num_features != width:
        return None
    else:
        scale, shift = affine_of(norm, width, "the convolution's input")
    if like.out_channels != width:
        return None
    conv = nn.Conv2d(width, width, 1, groups=like.groups, bias=shift is not None, device="meta")
    weight = scale.new_zeros(conv.weight.shape)
    channel = torch.arange(width, device=scale.device)
    weight[channel, channel % conv.weight.shape[1], 0, 0] = scale
    conv.weight = nn.Parameter(weight.to(like.weight), requires_grad=False)
    if shift is not None:
        conv.bias = nn.Parameter(shift.to(like.weight), requires_grad=False)
    return conv.eval()
