"""Merge a model's parallel branches and fold its batch norms and layer scales, for inference."""

import copy

import torch
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from ...nn.fuse import fold_bn_before_conv1x1, fuse_conv_bn
from ..families.classifier import Classifier
from ..families.layers import LayerScaleBlock, Mergeable
from ..families.replknet import ConvFFN, RepLKBlock


def merge(model: nn.Module, *, strips: bool = True) -> nn.Module:
    """Return a copy of a model of `cba_fast`, or of timm's ConvNeXt, with fewer layers.

    - The parallel branches of a large kernel become one kernel, and slak_flex's mixture one K x K
      kernel. Two strips (SLaK's, and slak_flex's with beta = 0) stay two if `strips`.
    - A batch norm after a convolution is folded into it, and one before a 1x1 convolution into that
      one. RepLKNet's last norm stays, because CAM needs the features before it.
    - A layer scale is folded into the linear layer before it.

    Every step is exact; sums are made in float64 and rounded once, so outputs differ by rounding.

    Args:
        model: the model, in any mode; it is left as it is. Running statistics are used.
        strips: keep two strips as they are. False sums them into one K x K kernel as well, which
            takes one pass over the input and more products: for convolutions by Fourier transforms.

    Returns:
        A new module with the same interface, in evaluation mode. Its parameters require no
        gradients, so that input gradients, as for the ERF, cost no weight gradients. Merging it
        again changes nothing.

    Raises:
        TypeError: another kind of model.

    Example:
        >>> import torch
        >>> from cba_fast.models import build_model, merge
        >>> model = build_model("replknet", model="replknet_nano", num_classes=10)
        >>> merged = merge(model)
        >>> len(list(merged.parameters())) < len(list(model.parameters()))
        True
        >>> x = torch.randn(1, 3, 64, 64)
        >>> torch.allclose(merged(x), model(x), atol=1e-4)
        True
    """
    if not isinstance(model, Classifier | ConvNeXt):
        raise TypeError(
            f"merge knows the models of cba_fast and timm's ConvNeXt, got {type(model)}"
        )
    merged = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(merged.modules()):
        if isinstance(module, Mergeable):
            module.merge_branches(strips)
        elif isinstance(module, RepLKBlock):
            _fold_norms(module.pw1, before=module.prelkb_bn)
            module.prelkb_bn = nn.Identity()
        elif isinstance(module, ConvFFN):
            _fold_norms(module.pw1, before=module.preffn_bn)
            module.preffn_bn = nn.Identity()
        elif isinstance(module, LayerScaleBlock):
            _fold_scale(module, module.pwconv2)
        elif isinstance(module, ConvNeXtBlock):
            _fold_scale(module, module.mlp.fc2)
    for module in merged.modules():
        if isinstance(module, nn.Sequential) and hasattr(module, "bn"):
            _fold_norms(module)
    return merged


def _fold_norms(layers: nn.Sequential, before: nn.Module | None = None) -> None:
    """Fold ``layers.bn``, and a batch norm before the 1x1 ``layers.conv``, in place."""
    dtype = layers.conv.weight.dtype
    conv = layers.conv.double()
    if hasattr(layers, "bn"):
        conv = fuse_conv_bn(conv, layers.bn)
        del layers.bn
    if isinstance(before, nn.modules.batchnorm._BatchNorm):
        conv = fold_bn_before_conv1x1(before, conv)
    layers.conv = conv.to(dtype)


@torch.no_grad()
def _fold_scale(block: nn.Module, last: nn.Module) -> None:
    """Fold ``block.gamma`` into the linear layer or 1x1 convolution before it, in place."""
    if block.gamma is None:
        return
    gamma = block.gamma.double()

    def scaled(p: Tensor) -> nn.Parameter:
        rows = gamma.view(-1, *[1] * (p.ndim - 1))
        return nn.Parameter((p.double() * rows).to(p), requires_grad=False)

    last.weight = scaled(last.weight)
    if last.bias is not None:
        last.bias = scaled(last.bias)
    block.gamma = None
