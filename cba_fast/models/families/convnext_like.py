"""The stem and stages that SLaK and slak_flex share with ConvNeXt."""

from collections.abc import Callable, Sequence

from timm.layers import Conv2dSame, LayerNorm2d
from torch import Tensor, nn

from .layers import LayerScaleBlock, Stage, drop_path_rates, run_in_order, transition_strides


class ConvNeXtLikeBackbone(nn.Module):
    """A patch stem, stages of blocks with 2x2 downsampling between them, and a final norm.

    The children are ``downsample_layers``, ``stages`` and ``norm`` as in ConvNeXt's official code.
    ``forward`` returns the last stage's output (N,dims[-1],h,w) and leaves ``norm`` to the caller.

    Args:
        dims: number of channels of each stage.
        depths: number of blocks of each stage.
        block: called with (stage index, drop path rate); returns one block.
        in_chans: input channels.
        drop_path_rate: stochastic depth rate of the last block; it rises linearly from 0.
        output_stride: 32, or 16: the last stage then keeps the resolution, for small inputs.
    """

    def __init__(
        self,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        block: Callable[[int, float], LayerScaleBlock],
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
    ):
        super().__init__()
        stem = nn.Conv2d(in_chans, dims[0], 4, stride=4)
        self.downsample_layers = nn.ModuleList([nn.Sequential(stem, LayerNorm2d(dims[0]))])
        strides = transition_strides(len(dims), output_stride)
        for a, b, stride in zip(dims[:-1], dims[1:], strides, strict=True):
            # At stride 1 a kernel of edge 2 must pad one side to keep the size.
            conv = (Conv2dSame if stride == 1 else nn.Conv2d)(a, b, 2, stride=stride)
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(a), conv))
        self.stages = nn.ModuleList(
            Stage(*(block(i, rate) for rate in rates))
            for i, rates in enumerate(drop_path_rates(drop_path_rate, depths))
        )
        self.norm: nn.Module = nn.LayerNorm(dims[-1], eps=1e-6)

    def stage_modules(self) -> list[Sequence[nn.Module]]:
        """Return each stage's downsampling layers and its blocks."""
        return list(zip(self.downsample_layers, self.stages, strict=True))

    def keep_stages(self, count: int) -> None:
        """Drop all stages but the first `count`."""
        self.downsample_layers, self.stages = self.downsample_layers[:count], self.stages[:count]

    def forward(self, x: Tensor) -> Tensor:
        for modules in self.stage_modules():
            x = run_in_order(modules, x)
        return x


def group_matcher(prefix: str, coarse: bool) -> dict:
    """Return timm's groups of layers, for learning rates that fall with depth.

    Args:
        prefix: regular expression of what stands before the names of the children.
        coarse: make one group per stage instead of one per block.
    """
    blocks = [
        (rf"^{prefix}downsample_layers\.(\d+)", (0,)),
        (rf"^{prefix}stages\.(\d+)\.(\d+)", None),
        (rf"^{prefix}norm", (99999,)),
    ]
    stages = rf"^{prefix}(?:downsample_layers|stages)\.(\d+)"
    return {"stem": rf"^{prefix}downsample_layers\.0", "blocks": stages if coarse else blocks}


def check_stages(kernel_sizes: Sequence[int], depths: Sequence[int], dims: Sequence[int]) -> None:
    """Raise ValueError unless there is one kernel size, depth and width per stage."""
    if not len(kernel_sizes) == len(depths) == len(dims):
        raise ValueError(
            "kernel_sizes, depths and dims must have one entry per stage, got "
            f"{tuple(kernel_sizes)}, {tuple(depths)}, {tuple(dims)}"
        )
