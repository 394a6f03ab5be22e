"""RepLKNet in its variants 31B, 31L and XL, and a small one for tests and the demo."""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .classifier import Classifier
from .large_kernel import ReparamLargeKernelConv
from .layers import (
    Stage,
    conv_bn,
    drop_path,
    drop_path_rates,
    stage_info,
    transition_strides,
)
from .timm_cfg import create, study_cfg

__all__ = ["ConvFFN", "RepLKBlock", "RepLKNet"]


class RepLKBlock(nn.Module):
    """Residual block: norm -> 1x1 + ReLU -> large depthwise kernel -> ReLU -> 1x1.

    Args:
        dim: channels of the residual stream.
        dw_dim: channels of the large kernel.
        kernel_size, small_kernel: see :class:`ReparamLargeKernelConv`.
        drop_path_rate: stochastic depth of the branch.
        merged: build the large kernel in its merged form.
    """

    def __init__(
        self,
        dim: int,
        dw_dim: int,
        kernel_size: int,
        small_kernel: int | None,
        drop_path_rate: float = 0.0,
        merged: bool = False,
    ):
        super().__init__()
        self.prelkb_bn: nn.Module = nn.BatchNorm2d(dim)
        self.pw1 = conv_bn(dim, dw_dim, 1, relu=True)
        self.large_kernel = ReparamLargeKernelConv(dw_dim, kernel_size, small_kernel, merged=merged)
        self.lk_nonlinear = nn.ReLU(inplace=True)
        self.pw2 = conv_bn(dw_dim, dim, 1)
        self.drop_path = drop_path(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pw1(self.prelkb_bn(x))
        y = self.pw2(self.lk_nonlinear(self.large_kernel(y)))
        return x + self.drop_path(y)


class ConvFFN(nn.Module):
    """Residual block: norm -> 1x1 to `hidden_dim` channels -> GELU -> 1x1 back."""

    def __init__(self, dim: int, hidden_dim: int, drop_path_rate: float = 0.0):
        super().__init__()
        self.preffn_bn: nn.Module = nn.BatchNorm2d(dim)
        self.pw1 = conv_bn(dim, hidden_dim, 1)
        self.nonlinear = nn.GELU()
        self.pw2 = conv_bn(hidden_dim, dim, 1)
        self.drop_path = drop_path(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pw2(self.nonlinear(self.pw1(self.preffn_bn(x))))
        return x + self.drop_path(y)


class RepLKNetStage(nn.Module):
    """A stage: :class:`RepLKBlock` and :class:`ConvFFN` in turn, a pair per drop path rate."""

    def __init__(
        self,
        dim: int,
        rates: Sequence[float],
        kernel_size: int,
        small_kernel: int | None,
        dw_ratio: float,
        ffn_ratio: float,
        merged: bool,
    ):
        super().__init__()
        blocks: list[nn.Module] = []
        for rate in rates:
            dw_dim = int(dim * dw_ratio)
            blocks.append(RepLKBlock(dim, dw_dim, kernel_size, small_kernel, rate, merged))
            blocks.append(ConvFFN(dim, int(dim * ffn_ratio), rate))
        self.blocks = Stage(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class RepLKNet(Classifier):
    """RepLKNet for classification, with the official state dict.

    x (N,in_chans,H,W) -> features (N,channels[-1],H/32,W/32) -> batch norm, average pooling, linear
    -> logits (N,num_classes). The features are those before that batch norm, as CAM uses them.
    Weights start as PyTorch initializes them, as in the official code.

    Args:
        kernel_sizes: edge K of the large kernel of each stage, odd.
        layers: number of pairs of RepLKBlock and ConvFFN in each stage.
        channels: number of channels of each stage.
        small_kernel: edge of the small parallel kernel, or None.
        dw_ratio: channels of the large kernels divided by those of the stage.
        ffn_ratio: hidden channels of the ConvFFNs divided by those of the stage.
        num_classes: 0 leaves the classifier out.
        in_chans: input channels.
        drop_path_rate: stochastic depth of the last block (the study trains with 0.3).
        output_stride: 32, or 16: the last stage then keeps the resolution, for small inputs.
        merged: build the large kernels in their merged form (the official ``lkb_reparam``).
        global_pool, drop_rate: see `Classifier.make_head`.

    Source: Ding et al., Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs
    (CVPR 2022). The official option to normalize intermediate features serves detection backbones
    without a classifier and is left out.

    Example:
        >>> import torch
        >>> from cba_fast.models import RepLKNet
        >>> small = {"kernel_sizes": (9, 7), "layers": (1, 1), "channels": (16, 32)}
        >>> model = RepLKNet(**small, num_classes=10)
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 10])
        >>> model.forward_features(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 32, 8, 8])
    """

    family = "replknet"

    def __init__(
        self,
        kernel_sizes: tuple[int, ...] = (31, 29, 27, 13),
        layers: tuple[int, ...] = (2, 2, 18, 2),
        channels: tuple[int, ...] = (128, 256, 512, 1024),
        small_kernel: int | None = 5,
        dw_ratio: float = 1.0,
        ffn_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        merged: bool = False,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        if not len(kernel_sizes) == len(layers) == len(channels):
            raise ValueError(
                "kernel_sizes, layers and channels must have one entry per stage, got "
                f"{kernel_sizes}, {layers}, {channels}"
            )
        self.feature_info = stage_info(channels, output_stride)
        first = channels[0]
        self.stem = nn.Sequential(
            conv_bn(in_chans, first, 3, stride=2, relu=True),
            conv_bn(first, first, 3, groups=first, relu=True),
            conv_bn(first, first, 1, relu=True),
            conv_bn(first, first, 3, stride=2, groups=first, relu=True),
        )
        rates = drop_path_rates(drop_path_rate, layers)
        self.stages = nn.ModuleList(
            RepLKNetStage(dim, r, k, small_kernel, dw_ratio, ffn_ratio, merged)
            for dim, r, k in zip(channels, rates, kernel_sizes)
        )
        strides = transition_strides(len(channels), output_stride)
        self.transitions = nn.ModuleList(
            nn.Sequential(
                conv_bn(a, b, 1, relu=True), conv_bn(b, b, 3, stride=s, groups=b, relu=True)
            )
            for a, b, s in zip(channels[:-1], channels[1:], strides, strict=True)
        )
        self.norm = nn.BatchNorm2d(channels[-1])
        self.make_head(channels[-1], num_classes, global_pool, drop_rate)

    def stage_modules(self) -> list[Sequence[nn.Module]]:
        return list(zip((self.stem, *self.transitions), self.stages, strict=True))

    def keep_stages(self, count: int) -> None:
        self.transitions, self.stages = self.transitions[: count - 1], self.stages[:count]

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return timm's groups of layers, for learning rates that fall with depth."""
        blocks = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^transitions\.(\d+)", (99999,)),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": r"^(?:stages|transitions)\.(\d+)" if coarse else blocks}

    def forward_norm(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.global_pool(self.norm(x)))
        return x if pre_logits else self.head(x)


default_cfgs = generate_default_cfgs(
    {
        name: study_cfg(first_conv="stem.0.conv", classifier="head")
        for name in ("replknet_31b", "replknet_31l", "replknet_xl", "replknet_nano")
    }
)


def _create(variant: str, pretrained: bool, arch: dict, kwargs: dict) -> RepLKNet:
    return create(RepLKNet, variant, pretrained, {**arch, **kwargs})


@register_model
def replknet_31b(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-31B, the study's model: channels (128, 256, 512, 1024)."""
    return _create("replknet_31b", pretrained, {}, kwargs)


@register_model
def replknet_31l(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-31L: channels (192, 384, 768, 1536)."""
    return _create("replknet_31l", pretrained, {"channels": (192, 384, 768, 1536)}, kwargs)


@register_model
def replknet_xl(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-XL: kernels (27, 27, 27, 13) 1.5 times as wide as their stage, no small kernel."""
    arch = {
        "kernel_sizes": (27, 27, 27, 13),
        "channels": (256, 512, 1024, 2048),
        "small_kernel": None,
        "dw_ratio": 1.5,
    }
    return _create("replknet_xl", pretrained, arch, kwargs)


@register_model
def replknet_nano(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """A RepLKNet of one block pair per stage, for tests and the demo; not a published model."""
    arch = {
        "kernel_sizes": (13, 11, 9, 7),
        "layers": (1, 1, 1, 1),
        "channels": (16, 32, 64, 128),
    }
    return _create("replknet_nano", pretrained, arch, kwargs)
