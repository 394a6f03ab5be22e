"""SLaK in its variants tiny to large, and a small one for tests and the demo."""

from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .classifier import Classifier
from .convnext_like import ConvNeXtLikeBackbone, check_stages, group_matcher
from .large_kernel import ReparamLargeKernelConv
from .layers import LayerScaleBlock, stage_info
from .timm_cfg import create, study_cfg

__all__ = ["SLaK", "SLaKBlock"]


class SLaKBlock(LayerScaleBlock):
    """SLaK's residual block: :class:`ReparamLargeKernelConv` in a :class:`LayerScaleBlock`.

    Args:
        dim: channels.
        kernel_size: long edge K.
        small_kernel: short edge of the strips and edge of the small kernel, which exists only if
            it is smaller than K.
        drop_path_rate, layer_scale: see :class:`LayerScaleBlock`.
        Decom: strips instead of a square kernel.
        bn: a batch norm in each branch.
        merged: build the large kernel in its merged form.
    """

    def __init__(
        self, dim, kernel_size, small_kernel, drop_path_rate, layer_scale, Decom, bn, merged
    ):
        super().__init__(dim, drop_path_rate, layer_scale)
        self.large_kernel = ReparamLargeKernelConv(
            dim,
            kernel_size,
            small_kernel if small_kernel is not None and small_kernel < kernel_size else None,
            strip_width=small_kernel if Decom else None,
            norm=bn,
            merged=merged,
        )

    def depthwise(self, x: Tensor) -> Tensor:
        return self.large_kernel(x)


class SLaK(Classifier, ConvNeXtLikeBackbone):
    """SLaK for classification, with the official state dict.

    x (N,in_chans,H,W) -> features (N,C,H/32,W/32) -> average pooling, layer norm, linear -> logits
    (N,num_classes). CAM weights the features by the linear layer, without pooling and norm.

    Args:
        depths: number of blocks of each stage.
        dims: channels of each stage before `width_factor`.
        kernel_size: the four stages' long edges, then the short edge.
        width_factor: stage i has int(dims[i] * width_factor) channels.
        Decom: 51x5 + 5x51 + 5x5 (True, as released) or 51x51 + 5x5.
        bn: a batch norm in each branch.
        num_classes: 0 leaves the classifier out.
        in_chans, drop_path_rate, output_stride: see :class:`ConvNeXtLikeBackbone`.
        layer_scale_init_value: initial gamma; None leaves it out.
        merged: build the large kernels in their merged form.
        global_pool, drop_rate: see `Classifier.make_head`.

    Source: Liu et al., More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity
    (ICLR 2023). `kernel_size`, `width_factor`, `Decom` and `bn` are the official names.

    Example:
        >>> import torch
        >>> from cba_fast.models import SLaK
        >>> model = SLaK((1, 1, 1, 1), (8, 16, 24, 32), (13, 11, 9, 7, 3), num_classes=10)
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    family = "slak"

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 3, 27, 3),
        dims: tuple[int, ...] = (128, 256, 512, 1024),
        kernel_size: tuple[int, ...] = (51, 49, 47, 13, 5),
        width_factor: float = 1.3,
        Decom: bool = True,
        bn: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        layer_scale_init_value: float | None = 1e-6,
        merged: bool = False,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        *long_edges, short_edge = kernel_size
        check_stages(long_edges, depths, dims)
        if Decom and short_edge is None:
            raise ValueError(f"strips need a short edge after the long ones, got {kernel_size}")
        dims = tuple(int(d * width_factor) for d in dims)

        def block(stage: int, rate: float) -> SLaKBlock:
            k = long_edges[stage]
            scale = layer_scale_init_value
            return SLaKBlock(dims[stage], k, short_edge, rate, scale, Decom, bn, merged)

        super().__init__(dims, depths, block, in_chans, drop_path_rate, output_stride)
        self.feature_info = stage_info(dims, output_stride)
        self.make_head(dims[-1], num_classes, global_pool, drop_rate)
        for module in self.modules():
            # Models with a checkpoint are built on the meta device, where this initialization
            # would do nothing and take 85 % of the time.
            if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    stage_modules = ConvNeXtLikeBackbone.stage_modules
    keep_stages = ConvNeXtLikeBackbone.keep_stages

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return timm's groups of layers, for learning rates that fall with depth."""
        return group_matcher("", coarse)

    def forward_norm(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.forward_norm(self.global_pool(x)))
        return x if pre_logits else self.head(x)


default_cfgs = generate_default_cfgs(
    {
        name: study_cfg(first_conv="downsample_layers.0.0", classifier="head")
        for name in ("slak_tiny", "slak_small", "slak_base", "slak_large", "slak_nano")
    }
)


def _create(variant: str, pretrained: bool, arch: dict, kwargs: dict) -> SLaK:
    return create(SLaK, variant, pretrained, {**arch, **kwargs})


@register_model
def slak_tiny(pretrained: bool = False, **kwargs) -> SLaK:
    """SLaK-T: depths (3, 3, 9, 3), dims (96, 192, 384, 768) * 1.3."""
    arch = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}
    return _create("slak_tiny", pretrained, arch, kwargs)


@register_model
def slak_small(pretrained: bool = False, **kwargs) -> SLaK:
    """SLaK-S: depths (3, 3, 27, 3), dims (96, 192, 384, 768) * 1.3."""
    return _create("slak_small", pretrained, {"dims": (96, 192, 384, 768)}, kwargs)


@register_model
def slak_base(pretrained: bool = False, **kwargs) -> SLaK:
    """SLaK-B: depths (3, 3, 27, 3), dims (128, 256, 512, 1024) * 1.3."""
    return _create("slak_base", pretrained, {}, kwargs)


@register_model
def slak_large(pretrained: bool = False, **kwargs) -> SLaK:
    """SLaK-L: depths (3, 3, 27, 3), dims (192, 384, 768, 1536) * 1.3."""
    return _create("slak_large", pretrained, {"dims": (192, 384, 768, 1536)}, kwargs)


@register_model
def slak_nano(pretrained: bool = False, **kwargs) -> SLaK:
    """A SLaK of one block per stage, for tests and the demo; not a published model."""
    arch = {
        "depths": (1, 1, 1, 1),
        "dims": (16, 32, 64, 128),
        "kernel_size": (13, 11, 9, 7, 5),
        "width_factor": 1.0,
    }
    return _create("slak_nano", pretrained, arch, kwargs)
