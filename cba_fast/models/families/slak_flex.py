"""slak_flex: the study's model whose ERF can be varied from SLaK's cross to RepLKNet's disk."""

import math
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ...nn.fuse import pad_kernel
from .classifier import BackboneWithHead
from .convnext_like import ConvNeXtLikeBackbone, check_stages, group_matcher
from .large_kernel import conv_of, depthwise
from .layers import LayerScaleBlock, Mergeable, stage_info
from .timm_cfg import create, study_cfg

__all__ = ["MixedLargeKernel", "SLaKFlex", "SLaKFlexBlock"]


class MixedLargeKernel(Mergeable):
    """Depthwise convolution that mixes a cross of two strips with a square kernel.

    y = alpha * (conv_h(x) + conv_w(x)) + beta * conv_square(x), where conv_h has a K x 1 kernel,
    conv_w a 1 x K kernel and conv_square a K x K kernel, each with bias, stride 1 and zero "same"
    padding. A part whose coefficient is 0 does not run and gets no gradient.

    The merged form has the coefficients inside the weights: ``conv_merged`` (K x K, with bias); or,
    with beta = 0 and if the strips are kept, ``conv_merged_h`` (with all of the bias) and
    ``conv_merged_w``.

    Args:
        dim: channels.
        kernel_size: K, odd.
        merged: build the merged form: "square", "cross", or None for the training form.
    """

    def __init__(self, dim: int, kernel_size: int, merged: str | None = None):
        super().__init__()
        self.alpha, self.beta = 1.0, 0.0
        k = kernel_size
        if merged == "square":
            self.conv_merged = depthwise(dim, k, bias=True)
        elif merged == "cross":
            self.conv_merged_h = depthwise(dim, (k, 1), bias=True)
            self.conv_merged_w = depthwise(dim, (1, k), bias=False)
        elif merged is None:
            self.conv_h = depthwise(dim, (k, 1), bias=True)
            self.conv_w = depthwise(dim, (1, k), bias=True)
            self.conv_square = depthwise(dim, k, bias=True)
        else:
            raise ValueError(f"merged must be None, 'square' or 'cross', got {merged!r}")

    @property
    def is_merged(self) -> bool:
        """Whether the coefficients are inside the weights."""
        return not hasattr(self, "conv_square")

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "conv_merged"):
            return self.conv_merged(x)
        if hasattr(self, "conv_merged_h"):
            return self.conv_merged_h(x) + self.conv_merged_w(x)
        parts = []
        if self.alpha != 0:
            cross = self.conv_h(x) + self.conv_w(x)
            parts.append(cross if self.alpha == 1 else self.alpha * cross)
        if self.beta != 0:
            square = self.conv_square(x)
            parts.append(square if self.beta == 1 else self.beta * square)
        return sum(parts[1:], parts[0]) if parts else torch.zeros_like(x)

    @torch.no_grad()
    def merge_branches(self, strips: bool = True) -> None:
        """Change to the merged form in place; sums are made in float64 and rounded once.

        Args:
            strips: keep the cross as two strips where beta is 0; False makes one K x K kernel of
                it as well.
        """
        if self.is_merged:
            if not strips and hasattr(self, "conv_merged_h"):
                self._square(1.0, self.conv_merged_h, self.conv_merged_w)
            return
        if self.beta != 0 or not strips:
            self._square(self.alpha, self.conv_h, self.conv_w, self.conv_square)
            return
        # Two strips cost 2 K products per output value, a square kernel K * K.
        like = self.conv_square
        biases = [c.bias.double() for c in (self.conv_h, self.conv_w) if c.bias is not None]
        bias = self.alpha * sum(biases[1:], biases[0])
        self.conv_merged_h = conv_of(self.alpha * self.conv_h.weight.double(), bias, like)
        self.conv_merged_w = conv_of(self.alpha * self.conv_w.weight.double(), None, like)
        del self.conv_h, self.conv_w, self.conv_square

    def _square(self, alpha: float, *convs: nn.Conv2d) -> None:
        """Replace conv_h, conv_w and, with coefficient beta, conv_square by their weighted sum."""
        edge = max(conv.kernel_size[0] for conv in convs)
        parts = list(zip((alpha, alpha, self.beta), convs))
        kernels = [a * pad_kernel(conv.weight.double(), edge) for a, conv in parts]
        biases = [a * conv.bias.double() for a, conv in parts if conv.bias is not None]
        kernel, bias = (sum(each[1:], each[0]) for each in (kernels, biases))
        self.conv_merged = conv_of(kernel, bias, convs[0])
        for name in [n for n, _ in self.named_children() if n != "conv_merged"]:
            delattr(self, name)


class SLaKFlexBlock(LayerScaleBlock):
    """slak_flex's residual block: :class:`MixedLargeKernel` in a :class:`LayerScaleBlock`."""

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        drop_path_rate: float,
        layer_scale: float | None,
        merged: str | None,
    ):
        super().__init__(dim, drop_path_rate, layer_scale)
        self.dwconv = MixedLargeKernel(dim, kernel_size, merged)

    def depthwise(self, x: Tensor) -> Tensor:
        return self.dwconv(x)


class SLaKFlex(BackboneWithHead):
    """The study's slak_flex with its state dict (``0.*`` backbone, ``1.fc.*`` classifier).

    x (N,in_chans,H,W) -> features (N,dims[-1],H/32,W/32) -> average pooling, linear -> logits
    (N,num_classes). The backbone's own final norm is in the state dict but not used. In the study's
    file the backbone pools and the head pools again, which cannot run; here the head takes the
    feature map, as the comments of that file say. Weights start as PyTorch initializes them, as in
    the study.

    Args:
        alpha, beta: the mixture, see :class:`MixedLargeKernel`; (1, 0) is SLaK's cross, (0, 1) the
            round kernel of RepLKNet. `set_mixing` changes them later.
        depths, dims, kernel_sizes: number of blocks, channels and edge K of each stage.
        num_classes: 0 leaves the classifier out.
        in_chans, drop_path_rate, output_stride: see :class:`ConvNeXtLikeBackbone`.
        layer_scale_init_value: initial gamma; None leaves it out.
        merged: build the merged form "square" or "cross", whose weights hold one fixed mixture;
            None for the training form.
        global_pool, drop_rate: see `Classifier.make_head`.

    Raises:
        ValueError: alpha or beta is not finite, or lists of different lengths.

    Example:
        >>> import torch
        >>> from cba_fast.models import SLaKFlex
        >>> model = SLaKFlex(0.5, 0.5, (1, 1, 1, 1), (8, 16, 24, 32), (13, 11, 9, 7))
        >>> model.set_mixing(0, 1)  # the round kernel alone
        >>> model.forward_features(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 32, 2, 2])
    """

    family = "slak_flex"

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.0,
        depths: tuple[int, ...] = (3, 3, 27, 3),
        dims: tuple[int, ...] = (128, 256, 512, 1024),
        kernel_sizes: tuple[int, ...] = (51, 49, 47, 13),
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        layer_scale_init_value: float | None = 1e-6,
        merged: str | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        check_stages(kernel_sizes, depths, dims)

        def block(stage: int, rate: float) -> SLaKFlexBlock:
            k = kernel_sizes[stage]
            return SLaKFlexBlock(dims[stage], k, rate, layer_scale_init_value, merged)

        backbone = ConvNeXtLikeBackbone(
            dims, depths, block, in_chans, drop_path_rate, output_stride
        )
        super().__init__(backbone, dims[-1], num_classes, global_pool, drop_rate)
        self.feature_info = stage_info(dims, output_stride, "0.")
        if merged is None:
            self.set_mixing(alpha, beta)

    def set_mixing(self, alpha: float, beta: float) -> None:
        """Set the mixture of all blocks.

        Raises:
            ValueError: alpha or beta is not finite, or the mixture is merged into the weights.
        """
        if not (math.isfinite(alpha) and math.isfinite(beta)):
            raise ValueError(f"alpha and beta must be finite, got {alpha} and {beta}")
        for mix in self._mixtures():
            if mix.is_merged:
                raise ValueError("alpha and beta are merged into the weights and cannot be changed")
            mix.alpha, mix.beta = float(alpha), float(beta)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return timm's groups of layers, for learning rates that fall with depth."""
        return group_matcher(r"0\.", coarse)

    def _mixtures(self) -> list[MixedLargeKernel]:
        return [m for m in self.modules() if isinstance(m, MixedLargeKernel)]


default_cfgs = generate_default_cfgs(
    {
        name: study_cfg(first_conv="0.downsample_layers.0.0", classifier="1.fc")
        for name in ("slak_flex_base", "slak_flex_nano")
    }
)


@register_model
def slak_flex_base(pretrained: bool = False, **kwargs: Any) -> SLaKFlex:
    """The study's slak_flex: ConvNeXt-B's depths and dims, kernels (51, 49, 47, 13)."""
    return create(SLaKFlex, "slak_flex_base", pretrained, kwargs)


@register_model
def slak_flex_nano(pretrained: bool = False, **kwargs: Any) -> SLaKFlex:
    """A slak_flex of one block per stage, for tests and the demo; not a published model."""
    arch = {
        "depths": (1, 1, 1, 1),
        "dims": (16, 32, 64, 128),
        "kernel_sizes": (13, 11, 9, 7),
    }
    return create(SLaKFlex, "slak_flex_nano", pretrained, {**arch, **kwargs})
