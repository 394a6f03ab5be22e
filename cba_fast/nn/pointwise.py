"""Linear layers over the channels of a map, computed as 1x1 convolutions."""

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .counting import count_as


class MapLinear(nn.Linear):
    """A drop-in replacement for `torch.nn.Linear` that computes maps by a 1x1 convolution.

    y[n, h, w, o] = bias[o] + sum over c of weight[o, c] * x[n, h, w, c]. A contiguous x, seen as
    (N, C, H, W), is a channels_last tensor, so nothing is copied and y is contiguous again. Inputs
    that are not 4-D run as `torch.nn.Linear`. Constructor and state dict are those of
    `torch.nn.Linear`, and so are the results up to the order of summation.

    Shape: (N, H, W, C) -> (N, H, W, O), or (..., C) -> (..., O).

    Example:
        >>> import torch
        >>> from cba_fast.nn import MapLinear
        >>> MapLinear(8, 16)(torch.randn(2, 7, 7, 8)).shape
        torch.Size([2, 7, 7, 16])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the linear layer to the last dimension of x."""
        if x.dim() != 4:
            return super().forward(x)
        return _conv(x, self.weight, self.bias)

    def apply(self, fn: Callable[[nn.Module], None]) -> nn.Module:  # type: ignore[override]
        """Call `fn` on this module; counters of FLOPs come this way."""
        count_as(MapLinear, nn.Linear)
        return super().apply(fn)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def linears_as_convs(model: nn.Module) -> list[str]:
    """Turn every `torch.nn.Linear` of a model into a `MapLinear`, in place.

    The class of each module is changed. Subclasses, parametrized layers and modules with their own
    ``forward`` are left alone.

    Returns:
        The names of the changed modules.

    Example:
        >>> from torch import nn
        >>> from cba_fast.nn import linears_as_convs
        >>> linears_as_convs(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)))
        ['0', '2']
    """
    changed = []
    for name, module in model.named_modules():
        if type(module) is nn.Linear and "forward" not in vars(module):
            module.__class__ = MapLinear
            changed.append(name)
    return changed


def conv1x1_is_faster() -> bool:
    """Say whether this CPU computes float32 1x1 convolutions much faster than `torch.nn.Linear`.

    On CPUs PyTorch computes a float32 linear layer by MKL and a convolution by oneDNN. On an AMD
    processor with AVX-512 MKL reached 134 GFLOP/s and oneDNN 400; on one with AVX2 both are equal.
    The first linear layer of ConvNeXt-B's third stage at 384 pixels is measured once per process
    and number of threads, which takes tens of milliseconds. Differences below a quarter count as
    none, so that two runs on one machine choose the same.

    Example:
        >>> from cba_fast.nn import conv1x1_is_faster
        >>> conv1x1_is_faster() in (True, False)  # depends on the processor
        True
    """
    return _conv1x1_is_faster(torch.get_num_threads())


@functools.lru_cache
def _conv1x1_is_faster(threads: int) -> bool:
    ones = functools.partial(torch.ones, device="cpu", dtype=torch.float32)
    x, weight = ones(1, 24, 24, 512), ones(2048, 512)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        times = [(_seconds(F.linear, x, weight), _seconds(_conv, x, weight)) for _ in range(5)]
    linear, conv = map(min, zip(*times[1:], strict=True))  # the first pair warms up
    return linear > 1.25 * conv


def _seconds(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> float:
    start = time.perf_counter()
    function(x, weight)
    return time.perf_counter() - start
