"""The re-parameterized large depthwise convolution of RepLKNet and SLaK."""

import copy
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...nn import DepthwiseConv2d
from ...nn.fuse import fuse_conv_bn, pad_kernel
from ...shapes import pair
from .layers import Mergeable


def depthwise(dim: int, kernel_size: int | tuple[int, int], bias: bool) -> DepthwiseConv2d:
    """Return a depthwise convolution of stride 1 with zero "same" padding."""
    kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    padding = (kh // 2, kw // 2)
    return DepthwiseConv2d(dim, dim, (kh, kw), padding=padding, groups=dim, bias=bias)


def _branch(dim: int, kernel_size: int | tuple[int, int], norm: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=depthwise(dim, kernel_size, bias=False))
    if norm:
        layers["bn"] = nn.BatchNorm2d(dim)
    return nn.Sequential(layers)


class ReparamLargeKernelConv(Mergeable):
    """Sum of parallel depthwise branches over one input, mergeable for inference.

    Training form: ``lkb_origin`` (K x K), or with `strip_width` e the pair ``LoRA1`` (K x e) and
    ``LoRA2`` (e x K), plus ``small_conv`` (s x s) if `small_kernel` is given; each branch a
    convolution without bias and a batch norm (none with ``norm=False``). Stride 1, zero "same"
    padding, so every branch can be centred in a larger kernel exactly.

    Merged form: one K x K convolution ``lkb_reparam`` with bias; or, where the strips are kept,
    ``LoRA1`` with all of the bias and the small kernel, and ``LoRA2`` without bias, both without
    norm. One K x K kernel needs a single pass over the input but K / (2 e) times the products. That
    slows down a direct convolution, but not one by Fourier transforms.

    Args:
        dim: channels.
        kernel_size: K, odd.
        small_kernel: s, odd, or None.
        strip_width: e, odd, or None for a square kernel.
        norm: whether each branch has a batch norm.
        merged: build the merged form.

    Source: Ding et al., Scaling Up Your Kernels to 31x31 (CVPR 2022); Liu et al., More ConvNets in
    the 2020s (ICLR 2023).
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        small_kernel: int | None = None,
        *,
        strip_width: int | None = None,
        norm: bool = True,
        merged: bool = False,
    ):
        super().__init__()
        if strip_width is None:
            if merged:
                self.lkb_reparam = depthwise(dim, kernel_size, bias=True)
                return
            self.lkb_origin = _branch(dim, kernel_size, norm)
        else:
            strips = ((kernel_size, strip_width), (strip_width, kernel_size))
            if merged:
                self.LoRA1 = nn.Sequential(OrderedDict(conv=depthwise(dim, strips[0], bias=True)))
                self.LoRA2 = nn.Sequential(OrderedDict(conv=depthwise(dim, strips[1], bias=False)))
                return
            self.LoRA1 = _branch(dim, strips[0], norm)
            self.LoRA2 = _branch(dim, strips[1], norm)
        if small_kernel is not None:
            self.small_conv = _branch(dim, small_kernel, norm)

    @property
    def is_merged(self) -> bool:
        if hasattr(self, "lkb_reparam"):
            return True
        return hasattr(self, "LoRA1") and self.LoRA1.conv.bias is not None

    def forward(self, x: Tensor) -> Tensor:
        branches = iter(self.children())
        y = next(branches)(x)
        for branch in branches:
            y = y + branch(x)
        return y

    @torch.no_grad()
    def merge_branches(self, strips: bool = True) -> None:
        """Change to the merged form in place, with the norms' running statistics.

        Kernels and biases are summed in float64 and rounded once, so the outputs differ from those
        of the training form in evaluation mode by the rounding of the convolutions alone.

        Args:
            strips: keep two strips; False sums them into one K x K kernel as well.
        """
        if self.is_merged and (strips or hasattr(self, "lkb_reparam")):
            return
        fused = {name: _kernel_and_bias(branch) for name, branch in self.named_children()}
        like = next(self.children()).conv
        one, *others = (b for _, b in fused.values())
        bias = sum(others, one)
        kernels = {name: kernel for name, (kernel, _) in fused.items()}
        for name in fused:
            delattr(self, name)
        if strips and "LoRA1" in kernels:
            second = kernels.pop("LoRA2")
            first = _sum_of(kernels.values(), pair(kernels["LoRA1"].shape[-2:]))
            self.LoRA1 = nn.Sequential(OrderedDict(conv=conv_of(first, bias, like)))
            self.LoRA2 = nn.Sequential(OrderedDict(conv=conv_of(second, None, like)))
        else:
            edge = max(kernel.shape[-2] for kernel in kernels.values())
            self.lkb_reparam = conv_of(_sum_of(kernels.values(), (edge, edge)), bias, like)


def _sum_of(kernels: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
    """Return the sum of kernels (C,1,kh,kw), each centred in `size`."""
    first, *others = (pad_kernel(kernel, size) for kernel in kernels)
    return sum(others, first)


def _kernel_and_bias(branch: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the float64 kernel (C,1,kh,kw) and bias (C,) of a branch with its norm folded."""
    # The norm is folded in float64, so that the sum of the branches is rounded only once.
    conv = copy.deepcopy(branch.conv).double()
    if hasattr(branch, "bn"):
        conv = fuse_conv_bn(conv, branch.bn)
    bias = torch.zeros_like(conv.weight[:, 0, 0, 0]) if conv.bias is None else conv.bias
    return conv.weight, bias


def conv_of(weight: Tensor, bias: Tensor | None, like: nn.Conv2d) -> DepthwiseConv2d:
    """Return a "same" depthwise convolution with these parameters.

    Args:
        weight: (C,1,kh,kw), any floating dtype.
        bias: (C,) or None.
        like: gives dtype, device, mode and whether the parameters require gradients.
    """
    with torch.device("meta"):  # skips a random initialization that would be thrown away
        conv = depthwise(len(weight), pair(weight.shape[-2:]), bias=bias is not None)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            value = value.detach().to(like.weight)
            setattr(conv, name, nn.Parameter(value, requires_grad=like.weight.requires_grad))
    return conv.train(like.training)
