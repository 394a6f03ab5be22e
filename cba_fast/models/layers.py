"""Pieces that several model families share: conv + norm pairs, layer-scale blocks, heads."""

from collections import OrderedDict

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def conv_bn(
    in_chs: int, out_chs: int, kernel_size: int, *, stride: int = 1, groups: int = 1, relu=False
) -> nn.Sequential:
    """Return conv (no bias, "same" padding) -> batch norm (-> ReLU), named as RepLKNet names them.

    The children are ``conv``, ``bn`` and, with `relu`, ``nonlinear``.
    """
    conv = nn.Conv2d(
        in_chs,
        out_chs,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
    )
    layers = OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_chs))
    if relu:
        layers["nonlinear"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def drop_path(rate: float) -> nn.Module:
    """Return stochastic depth at `rate`, or an identity at 0."""
    return DropPath(rate) if rate > 0 else nn.Identity()


def transition_strides(num_stages: int, output_stride: int) -> list[int]:
    """Return the strides between the stages of a network whose stem has stride 4.

    All 2 for an output stride of 32; for 16 the last is 1, as in timm's ``output_stride``.

    Raises:
        ValueError: another output stride.
    """
    if output_stride not in (16, 32):
        raise ValueError(f"output_stride must be 16 or 32, got {output_stride}")
    strides = [2] * (num_stages - 1)
    if output_stride == 16:
        strides[-1] = 1
    return strides


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Return per stage the blocks' drop path rates, rising linearly from 0 to `rate` over depth."""
    last = max(sum(depths) - 1, 1)
    flat = [rate * i / last for i in range(sum(depths))]
    starts = [sum(depths[:s]) for s in range(len(depths))]
    return [flat[a : a + d] for a, d in zip(starts, depths)]


def run_blocks(blocks: nn.Sequential, x: Tensor, recompute: bool) -> Tensor:
    """Run `blocks` in order; with `recompute` each keeps only its input for the backward pass."""
    if not (recompute and torch.is_grad_enabled()):
        return blocks(x)
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False)
    return x


class LayerScaleBlock(nn.Module):
    """Residual block of ConvNeXt around a depthwise module that the subclass supplies.

    y = x + drop_path(gamma * W2 gelu(W1 norm(depthwise(x)))), the norm and both linear layers over
    channels at each position. A subclass defines the depthwise module and ``depthwise(x)``.

    Args:
        dim: channels C of x (N,C,H,W).
        drop_path_rate: stochastic depth of the residual branch.
        layer_scale: initial value of gamma (C,); None leaves gamma out.
    """

    def __init__(self, dim: int, drop_path_rate: float = 0.0, layer_scale: float | None = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = None if layer_scale is None else nn.Parameter(layer_scale * torch.ones(dim))
        self.drop_path = drop_path(drop_path_rate)

    def depthwise(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)  # [N, H, W, C]
        y = self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        if self.gamma is not None:
            y = self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))


def linear_or_identity(in_features: int, num_classes: int) -> nn.Module:
    """Return the classifier; with 0 classes an identity, as timm does."""
    return nn.Linear(in_features, num_classes) if num_classes > 0 else nn.Identity()


class Mergeable(nn.Module):
    """A module of parallel linear branches that can be summed into fewer."""

    @property
    def is_merged(self) -> bool:
        """Whether nothing is left to merge."""
        raise NotImplementedError

    def merge_branches(self, strips: bool = True) -> None:
        """Go over to the merged form in place, in evaluation semantics.

        Args:
            strips: whether two crossed strips may stay two; else they become one square kernel,
                those of an already merged module too.
        """
        raise NotImplementedError


def mergeable(model: nn.Module) -> list[Mergeable]:
    """Return the modules of `model` that are still in their training form."""
    return [m for m in model.modules() if isinstance(m, Mergeable) and not m.is_merged]


class Classifier(nn.Module):
    """What our models have in common: features, a linear head over pooled features, logits.

    ``forward(x) == forward_head(forward_features(x))``, logits (N,num_classes). `forward_features`
    gives the map (N,num_features,h,w) that CAM weights by the rows of ``get_classifier().weight``.

    Attributes:
        family: one of `cba_fast.models.FAMILIES`.
        study_softmax: whether the study's head of this family ends in a softmax, so that its ERF
            score takes the softmax twice. The modules return logits regardless.
        num_classes, num_features, head_hidden_size: as in timm.
    """

    family = ""
    study_softmax = False
    _classifier_name = "head"

    def get_classifier(self) -> nn.Module:
        """Return the linear layer (an identity if the model has 0 classes)."""
        return self.get_submodule(self._classifier_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the linear layer by a freshly initialized one of `num_classes` (0: none)."""
        new = linear_or_identity(self.num_features, num_classes).to(next(self.parameters()))
        self.set_submodule(self._classifier_name, new)
        self.num_classes = num_classes

    def structural_reparam(self) -> None:
        """Merge parallel branches in place; norms outside of them stay (see `merge` for those)."""
        for module in mergeable(self):
            module.merge_branches()

    def forward_features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class PooledLinear(nn.Module):
    """Global average pooling and a linear layer ``fc``: the study's head less its softmax."""

    def __init__(self, in_features: int, num_classes: int):
        super().__init__()
        self.fc = linear_or_identity(in_features, num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)


class BackboneWithHead(Classifier):
    """A backbone and a :class:`PooledLinear` under the study's names ``0`` and ``1``.

    The study saves ``nn.Sequential(backbone, head)``: keys ``0.*`` and ``1.fc.*``. Its head ends in
    a softmax.
    """

    study_softmax = True
    _classifier_name = "1.fc"

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int):
        super().__init__()
        self.add_module("0", backbone)
        self.add_module("1", PooledLinear(num_features, num_classes))
        self.num_features = self.head_hidden_size = num_features
        self.num_classes = num_classes

    @property
    def backbone(self) -> nn.Module:
        return self.get_submodule("0")

    @property
    def head(self) -> PooledLinear:
        return self.get_submodule("1")

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's output (N,C,h,w)."""
        return self.backbone(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (N,num_classes); with `pre_logits` what the linear layer gets (N,C)."""
        return self.head(x, pre_logits=pre_logits)
