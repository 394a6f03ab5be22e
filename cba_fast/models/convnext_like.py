"""The stem and stages that SLaK and slak_flex share with ConvNeXt."""

import itertools
from collections.abc import Callable

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from .layers import LayerScaleBlock, drop_path_rates, run_blocks


class ConvNeXtLikeBackbone(nn.Module):
    """Patch stem, four stages of blocks with 2x2 downsampling between them, and a final norm.

    The children are ``downsample_layers``, ``stages`` and ``norm`` as in ConvNeXt's official code.
    ``forward`` returns the last stage's output (N,dims[-1],h,w) and leaves ``norm`` to the caller.

    Args:
        dims: width of each stage.
        depths: blocks of each stage.
        block: called with (stage index, drop path rate); returns one block.
        in_chans: input channels.
        drop_path_rate: stochastic depth of the last block.
        stem_stride: edge and stride of the stem's patches; 4, or 2 for small inputs.
    """

    def __init__(
        self,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        block: Callable[[int, float], LayerScaleBlock],
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        stem_stride: int = 4,
    ):
        super().__init__()
        self.grad_checkpointing = False
        stem = nn.Conv2d(in_chans, dims[0], stem_stride, stride=stem_stride)
        self.downsample_layers = nn.ModuleList([nn.Sequential(stem, LayerNorm2d(dims[0]))])
        for a, b in itertools.pairwise(dims):
            self.downsample_layers.append(
                nn.Sequential(LayerNorm2d(a), nn.Conv2d(a, b, 2, stride=2))
            )
        self.stages = nn.ModuleList(
            nn.Sequential(*(block(i, rate) for rate in rates))
            for i, rates in enumerate(drop_path_rates(drop_path_rate, depths))
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages):
            x = run_blocks(stage, downsample(x), self.grad_checkpointing)
        return x


def check_stages(kernel_sizes, depths, dims) -> None:
    """Raise ValueError unless there is one kernel size, depth and width per stage."""
    if not len(kernel_sizes) == len(depths) == len(dims):
        raise ValueError(
            "kernel_sizes, depths and dims must have one entry per stage, got "
            f"{tuple(kernel_sizes)}, {tuple(depths)}, {tuple(dims)}"
        )
