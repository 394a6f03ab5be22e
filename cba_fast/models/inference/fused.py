"""The blocks of the four families with no elementwise pass of their own (CPUs, inference)."""

from typing import TYPE_CHECKING, Any

import torch
from timm.layers import Mlp
from timm.layers.activations import GELU, GELUTanh
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from ...nn.depthwise import DepthwiseConv2d, why_not_covered
from ...nn.fused import can_fuse, fused_conv, fused_dtype, fused_mlp
from ...ops.dwconv import depthwise_conv2d
from ..families.layers import LayerScaleBlock
from ..families.replknet import ConvFFN, RepLKBlock
from ..families.slak import SLaKBlock
from ..families.slak_flex import MixedLargeKernel, SLaKFlexBlock


def fuse_blocks(model: nn.Module) -> list[str]:
    """Let the blocks, stems and transitions of a merged model run fused where they can.

    Modules change their class only: parameters, state dict, hooks and names stay. Each decides per
    call (see `cba_fast.nn.fused.fused_dtype`) and runs as its old class where gradients are asked
    for, where a hook wants to see one of its layers, and on other devices.

    Args:
        model: the result of `merge`, in evaluation mode; changed in place.

    Returns:
        The names of the changed modules.
    """
    changed = []
    for name, module in model.named_modules():
        fused: Any = _FUSED.get(type(module))
        if fused is not None and fused.fits(module):
            module.__class__ = fused
            changed.append(name)
    return changed


_ACTIVATIONS = {nn.ReLU: "relu", GELU: "gelu", GELUTanh: "gelu_tanh"}


def activation_name(module: nn.Module) -> str | None:
    """Return the name under which `fused_conv` knows an activation, or None."""
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return _ACTIVATIONS.get(type(module))


if TYPE_CHECKING:
    _Module = nn.Module  # whose attributes the fused classes use
else:
    _Module = object


class _Fused(_Module):
    """A module that computes ``run`` where its layers can be fused, else what its base class does.

    A subclass gives ``fits(module)``, whether a module of the base class can be changed to it,
    ``bypassed()``, the layers that ``run`` does not call, and ``run(x)``.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training or torch.compiler.is_compiling():  # a compiler fuses by itself
            return super().forward(x)
        dtype = fused_dtype(x, *self.bypassed())
        return super().forward(x) if dtype is None else self.run(x.to(dtype))


class FusedSequential(_Fused, nn.Sequential):
    """Convolutions with the activations that follow them, and other layers as they are."""

    @staticmethod
    def fits(module: nn.Sequential) -> bool:
        return any(can_fuse(m) and isinstance(m, nn.Conv2d) for m in module)

    def bypassed(self) -> list[nn.Module]:
        return [layer for layer in self if can_fuse(layer) or activation_name(layer)]

    def run(self, x: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if not can_fuse(layer):
                x = layer(x)
                continue
            activation = activation_name(layers[0]) if layers else None
            if activation:
                layers.pop(0)
            x = fused_conv(layer, x, activation or "none")
        return x


class FusedRepLKBlock(_Fused, RepLKBlock):
    """1x1 + ReLU, large kernel + ReLU, 1x1 + residual."""

    @staticmethod
    def fits(block: RepLKBlock) -> bool:
        large = getattr(block.large_kernel, "lkb_reparam", None)
        return (
            isinstance(block.prelkb_bn, nn.Identity)
            and _is_merged(block.pw1, block.pw2)
            and type(large) is DepthwiseConv2d
            and why_not_covered(large) is None
        )

    def bypassed(self) -> tuple[nn.Module, ...]:
        pw1, pw2, large = self.pw1, self.pw2, self.large_kernel
        inner = large, large.lkb_reparam, self.lk_nonlinear
        return self.prelkb_bn, pw1, *pw1, *inner, pw2, *pw2, self.drop_path

    def run(self, x: Tensor) -> Tensor:
        y, large = fused_conv(self.pw1.conv, x, "relu"), self.large_kernel.lkb_reparam
        how = {"algorithm": large.algorithm, "activation": "relu"}
        y = depthwise_conv2d(y, large.weight, large.bias, **how)
        return fused_conv(self.pw2.conv, y, add=x)


class FusedConvFFN(_Fused, ConvFFN):
    """1x1 + GELU, 1x1 + residual."""

    @staticmethod
    def fits(block: ConvFFN) -> bool:
        return isinstance(block.preffn_bn, nn.Identity) and _is_merged(block.pw1, block.pw2)

    def bypassed(self) -> tuple[nn.Module, ...]:
        pw1, pw2 = self.pw1, self.pw2
        return self.preffn_bn, pw1, *pw1, self.nonlinear, pw2, *pw2, self.drop_path

    def run(self, x: Tensor) -> Tensor:
        return fused_mlp(self.pw1.conv, "gelu", self.pw2.conv, x, add=x)


def _is_merged(*layers: nn.Sequential) -> bool:
    return not any(hasattr(m, "bn") for m in layers)


class _FusedLayerScale(_Fused):
    """Depthwise module, norm, linear + GELU, linear + residual, layer scale inside the weights."""

    @staticmethod
    def fits(block: LayerScaleBlock) -> bool:
        return block.gamma is None

    def bypassed(self) -> tuple[nn.Module, ...]:
        return self.pwconv1, self.act, self.pwconv2, self.drop_path

    def run(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return fused_mlp(self.pwconv1, "gelu", self.pwconv2, y, add=x)


class FusedCross(_Fused, MixedLargeKernel):
    """Two strips, of which the tall one adds the other's result while it stores."""

    @staticmethod
    def fits(cross: MixedLargeKernel) -> bool:
        return hasattr(cross, "conv_merged_h")

    def bypassed(self) -> tuple[nn.Module]:
        return (self.conv_merged_h,)

    def run(self, x: Tensor) -> Tensor:
        return fused_conv(self.conv_merged_h, x, add=self.conv_merged_w(x))


class FusedSLaKBlock(_FusedLayerScale, SLaKBlock):
    """SLaK's block, fused."""


class FusedSLaKFlexBlock(_FusedLayerScale, SLaKFlexBlock):
    """slak_flex's block, fused."""


class FusedConvNeXtBlock(_Fused, ConvNeXtBlock):
    """timm's block with a plain MLP, in either of its layouts, fused."""

    @staticmethod
    def fits(block: ConvNeXtBlock) -> bool:
        mlp = block.mlp
        return (
            block.gamma is None
            and type(mlp) is Mlp
            and isinstance(mlp.norm, nn.Identity)
            and activation_name(mlp.act) is not None
            and isinstance(block.shortcut, nn.Identity)
        )

    def bypassed(self) -> tuple[nn.Module, ...]:
        mlp = self.mlp
        return self.conv_dw, mlp, *mlp.children(), self.shortcut, self.drop_path

    def run(self, x: Tensor) -> Tensor:
        y = fused_conv(self.conv_dw, x) if can_fuse(self.conv_dw) else self.conv_dw(x)
        if self.use_conv_mlp:
            y = self.norm(y)
        else:
            y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        activation = activation_name(self.mlp.act)
        assert activation is not None  # `fits` has looked
        return fused_mlp(self.mlp.fc1, activation, self.mlp.fc2, y, add=x)


_FUSED = {
    nn.Sequential: FusedSequential,
    MixedLargeKernel: FusedCross,
    RepLKBlock: FusedRepLKBlock,
    ConvFFN: FusedConvFFN,
    SLaKBlock: FusedSLaKBlock,
    SLaKFlexBlock: FusedSLaKFlexBlock,
    ConvNeXtBlock: FusedConvNeXtBlock,
}
FUSED_BLOCKS = tuple(cls for base, cls in _FUSED.items() if base is not nn.Sequential)
