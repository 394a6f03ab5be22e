"""Building blocks that several model families share."""

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from operator import mul

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def conv_bn(
    in_chs: int, out_chs: int, kernel_size: int, *, stride: int = 1, groups: int = 1, relu=False
) -> nn.Sequential:
    """Return a convolution without bias, a batch norm and, with `relu`, a ReLU.

    The padding is "same". The children are called ``conv``, ``bn`` and ``nonlinear``, as in
    RepLKNet.
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
    """Return each stage's drop path rates, which rise linearly from 0 to `rate` over all blocks."""
    last = max(sum(depths) - 1, 1)
    flat = [rate * i / last for i in range(sum(depths))]
    starts = [sum(depths[:s]) for s in range(len(depths))]
    return [flat[a : a + d] for a, d in zip(starts, depths)]


class Stage(nn.Sequential):
    """Blocks that run one after the other.

    Attributes:
        grad_checkpointing: keep only each block's input for the backward pass, which then computes
            the block once more.
    """

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return super().forward(x)
        for block in self:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def run_in_order(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Return what `modules` make of `x`, each one given the output of the one before."""
    for module in modules:
        x = module(x)
    return x


def stage_info(widths: Sequence[int], output_stride: int, prefix: str = "") -> list[dict]:
    """Return timm's ``feature_info`` of stages ``<prefix>stages.<i>`` after a stem of stride 4."""
    reductions = itertools.accumulate([4, *transition_strides(len(widths), output_stride)], mul)
    return [
        {"num_chs": width, "reduction": reduction, "module": f"{prefix}stages.{i}"}
        for i, (width, reduction) in enumerate(zip(widths, reductions, strict=True))
    ]


class LayerScaleBlock(nn.Module):
    """ConvNeXt's residual block around a depthwise module that the subclass supplies.

    y = x + drop_path(gamma * W2 gelu(W1 norm(depthwise(x)))). The norm and both linear layers work
    on the channels of each position. A subclass defines the depthwise module and ``depthwise(x)``.

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


class Mergeable(nn.Module):
    """A module of parallel linear branches that can be summed into fewer."""

    @property
    def is_merged(self) -> bool:
        """Whether nothing is left to merge."""
        raise NotImplementedError

    def merge_branches(self, strips: bool = True) -> None:
        """Change to the merged form in place, which computes what evaluation mode does.

        Args:
            strips: keep two crossed strips as they are; False makes one square kernel of them, also
                in a module that is merged already.
        """
        raise NotImplementedError


def mergeable(model: nn.Module) -> list[Mergeable]:
    """Return the modules of `model` that are still in their training form.

    Example:
        >>> from cba_fast.models import build_model, mergeable
        >>> model = build_model("replknet", model="replknet_nano", num_classes=10)
        >>> len(mergeable(model)), type(mergeable(model)[0]).__name__
        (4, 'ReparamLargeKernelConv')
    """
    return [m for m in model.modules() if isinstance(m, Mergeable) and not m.is_merged]
