"""Linear layers over the channels of a map, computed as 1x1 convolutions."""

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MapLinear(nn.Linear):
    """Be `torch.nn.Linear`, computed as a 1x1 convolution on inputs (N, H, W, C).

    y[n, h, w, o] = bias[o] + sum over c of weight[o, c] * x[n, h, w, c]. A contiguous x is, seen as
    (N, C, H, W), a channels_last tensor, so no value is copied and y is contiguous again. Inputs of
    other dimensions run as `torch.nn.Linear`. Same constructor, state dict and results, up to the
    order of summation.

    Shape: (N, H, W, C) -> (N, H, W, O), or (..., C) -> (..., O).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of the last dimension of x."""
        if x.dim() != 4:
            return super().forward(x)
        return _conv(x, self.weight, self.bias)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def linears_as_convs(model: nn.Module) -> list[str]:
    """Turn every `torch.nn.Linear` of a model into a `MapLinear`, in place, by a change of class.

    Modules of another type, or with a ``forward`` of their own or parametrizations, are left alone.

    Returns:
        The names of the changed modules.
    """
    changed = []
    for name, module in model.named_modules():
        if type(module) is nn.Linear and "forward" not in vars(module):
            module.__class__ = MapLinear
            changed.append(name)
    return changed


def conv1x1_is_faster() -> bool:
    """Say whether this CPU computes float32 1x1 convolutions much faster than `torch.nn.Linear`.

    On CPUs PyTorch hands a float32 linear layer to MKL and a convolution to oneDNN. On an AMD
    processor with AVX-512 MKL got 134 GFLOP/s where oneDNN got 400; on one with AVX2 both get the
    same. Measured once per process and number of threads, in tens of milliseconds, on the first
    linear layer of ConvNeXt-B's third stage at 384 pixels; differences below a quarter count as
    none, so that two runs on one machine choose alike.
    """
    return _conv1x1_is_faster(torch.get_num_threads())


@functools.lru_cache
def _conv1x1_is_faster(threads: int) -> bool:
    like = {"device": "cpu", "dtype": torch.float32}
    x, weight = torch.ones(1, 24, 24, 512, **like), torch.ones(2048, 512, **like)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        times = [(_seconds(F.linear, x, weight), _seconds(_conv, x, weight)) for _ in range(5)]
    linear, conv = map(min, zip(*times[1:], strict=True))  # the first ones warm up
    return linear > 1.25 * conv


def _seconds(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> float:
    start = time.perf_counter()
    function(x, weight)
    return time.perf_counter() - start
