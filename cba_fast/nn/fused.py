"""Convolutions that add the bias, activate and add a residual while they store (CPUs, inference).

oneDNN's convolutions do this at no cost of their own, on weights that were brought into its own
order once. PyTorch reaches them by ops that it ships for `torch.compile` (``torch.ops.mkldnn``);
they work without compiling, too, and have no derivative.
"""

import functools
from collections.abc import Callable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .depthwise import DepthwiseConv2d, _differentiated_otherwise
from .pointwise import MapLinear

# What may follow a convolution: the name, what PyTorch computes, and oneDNN's name and variant.
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}
# oneDNN's own ReLU makes 0 of NaN, and images whose features overflow would be scored in silence. A
# leaky one with a slope far below rounding keeps NaN.
_POST_OPS: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("leaky_relu", [1e-30], ""),
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
}
ADD, INTO = "add", "add into"  # a tensor of the result's shape: to a new result, in place


def fused_dtype(x: Tensor, *layers: nn.Module) -> torch.dtype | None:
    """Return the dtype in which `fused_conv` can stand for the calls of `layers` on x, or None.

    None means that the layers must be called themselves: a gradient is asked for, someone watches
    one of them (a hook, or a ``forward`` set on the instance), PyTorch records or transforms the
    calls (tracing, export, `torch.func`), oneDNN is absent or switched off, or x is not a
    channels_last batch (N, C, H, W) on a CPU in float32 or bfloat16.

    Args:
        x: the input of the first layer.
        layers: every module whose call is left out.
    """
    if type(x) is not Tensor or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return None
    if x.device.type != "cpu" or x.dim() != 4 or x.numel() == 0:
        return None
    if not x.is_contiguous(memory_format=torch.channels_last):
        return None
    if torch.is_grad_enabled() and (x.requires_grad or any(map(_is_trained, layers))):
        return None
    if any(map(is_watched, layers)) or _differentiated_otherwise():
        return None
    dtype = x.dtype
    if torch.is_autocast_enabled("cpu") and dtype in (torch.float32, torch.bfloat16):
        dtype = torch.get_autocast_dtype("cpu")
    elif any(p.dtype != dtype for layer in layers for p in _parameters(layer)):
        return None  # PyTorch says what is wrong with it
    return dtype if torch.backends.mkldnn.enabled and works("none", dtype) else None


def _parameters(layer: nn.Module) -> list[Tensor]:
    # A tenth of the time of `nn.Module.parameters`: this runs between products, in cold caches.
    return [p for p in layer._parameters.values() if p is not None]


def _is_trained(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in _parameters(layer))


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_watched(layer: nn.Module) -> bool:
    """Say whether someone has a hook on a module, or replaced its ``forward``."""
    state = vars(layer)
    return "forward" in state or any(state[hooks] for hooks in _HOOKS)


# Largest side of a depthwise kernel that oneDNN computes faster on weights in its own order. On one
# thread with AVX-512, in milliseconds, oneDNN and ours: 7x7 on 128x96x96 2.4 and 2.5 in float32,
# 1.2 and 7.3 in bfloat16; on 512x24x24 0.39 and 0.47, 0.29 and 0.37. With 9x9: 3.9 and 2.9, 2.4 and
# 2.7; 0.67 and 0.37, 0.50 and 0.35.
SMALL = 7


def can_fuse(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Say whether `fused_conv` knows this layer: a plain convolution, or a linear map of channels.

    Depthwise convolutions that `cba_fast.ops` computes faster are left to it.
    """
    if type(layer) in (nn.Linear, MapLinear):
        return True
    if type(layer) is DepthwiseConv2d and (
        max(layer.kernel_size) > SMALL or layer.algorithm == "fft"
    ):
        return False
    known = type(layer) in (nn.Conv2d, DepthwiseConv2d)
    return known and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def fused_conv(
    layer: nn.Conv2d | nn.Linear, x: Tensor, activation: str = "none", add: Tensor | None = None
) -> Tensor:
    """Return activation(layer(x)), or layer(x) + add, in one pass over the result.

    A linear layer maps the channels of each position. The first call brings the weights into
    oneDNN's order and keeps them, beside the layer's own, until these change (not seen: changes
    through ``.data``) or x has another shape: oneDNN's order is one shape's, and with another it
    would take a hundred times as long.

    Args:
        layer: see `can_fuse`.
        x: (N, C, H, W) in channels_last, of a dtype that `fused_dtype` returned.
        activation: "none", "relu", "gelu" (the exact one) or "gelu_tanh".
        add: of the result's shape and dtype; with activation "none".

    Returns:
        (N, O, H', W') of x's dtype, in channels_last. Sums are in float32 and rounded once, after
        the activation or addition.
    """
    how, (weight, bias) = _geometry(layer), _packed(layer, x)
    kind = ADD if add is not None else activation
    if kind == ADD and works(ADD, x.dtype) and x.shape[2:].numel() > 1:  # PyTorch 2.6 needs two
        pointwise = torch.ops.mkldnn._convolution_pointwise.binary
        return pointwise(x, add, weight, bias, *how, "add", 1.0, None, [], None)
    kind = kind if kind != ADD and works(kind, x.dtype) else "none"
    pointwise = torch.ops.mkldnn._convolution_pointwise.default
    y = pointwise(x, weight, bias, *how, *_POST_OPS[kind])
    if add is not None:
        return y + add
    return y if kind == activation else _PLAIN[activation](y)


# Bytes of a hidden map that are computed at once. glibc's malloc gives larger blocks back to the
# system, and every use then begins with page faults: 1 to 2 ms per 16 MiB, a tenth of the products.
AT_ONCE = 16 << 20


def fused_mlp(
    first: nn.Conv2d | nn.Linear,
    activation: str,
    second: nn.Conv2d | nn.Linear,
    x: Tensor,
    add: Tensor,
) -> Tensor:
    """Return second(activation(first(x))) + add, by `fused_conv`.

    Both layers treat each position alone: where the map between them would be large, they take
    turns over equal parts of the rows of all images.

    Args:
        first, second: 1x1 convolutions or linear layers.
        activation, x, add: of `fused_conv`.
    """
    n, _, h, w = x.shape
    size = n * h * w * len(first.weight) * x.element_size()
    few = -(-size // AT_ONCE)
    parts = next((p for p in range(few, n * h) if n * h % p == 0), n * h)
    if parts == 1 or not works(INTO, x.dtype):
        return fused_conv(second, fused_conv(first, x, activation), add=add)
    y = add.clone(memory_format=torch.channels_last)
    for part, into in zip(_rows(x).chunk(parts, 2), _rows(y).chunk(parts, 2), strict=True):
        hidden = fused_conv(first, part, activation)
        weight, bias = _packed(second, hidden)
        _add_into(into, hidden, weight, bias, *_geometry(second))
    return y


def _add_into(y: Tensor, *conv) -> None:
    torch.ops.mkldnn._convolution_pointwise_.binary(y, *conv, "add", 1.0, None, [], None)


def _rows(x: Tensor) -> Tensor:
    """Return x (N, C, H, W) in channels_last as (1, C, N * H, W), a view."""
    return x.permute(0, 2, 3, 1).flatten(0, 1)[None].permute(0, 3, 1, 2)


def _geometry(layer: nn.Module) -> tuple:
    if isinstance(layer, nn.Linear):
        return [0, 0], [1, 1], [1, 1], 1
    return layer.padding, layer.stride, layer.dilation, layer.groups


_PACKED = WeakTensorKeyDictionary()  # weight -> (its state, weight and bias for oneDNN)


def _packed(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the weight in oneDNN's order and the bias, both in x's dtype."""
    state = (x.dtype, x.shape, *_version(layer.weight), *_version(layer.bias))
    found = _PACKED.get(layer.weight)
    if found is None or found[0] != state:
        weight = layer.weight.detach().to(x.dtype)
        weight = weight[:, :, None, None] if weight.dim() == 2 else weight
        weight = weight.contiguous(memory_format=torch.channels_last)
        bias = None if layer.bias is None else layer.bias.detach().to(x.dtype)
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        found = (state, (reorder(weight, *_geometry(layer), list(x.shape)), bias))
        _PACKED[layer.weight] = found
    return found[1]


def _version(p: Tensor | None) -> tuple[int, int]:
    if p is None:
        return 0, 0
    return p.data_ptr(), 0 if p.is_inference() else p._version


@functools.lru_cache
def works(kind: str, dtype: torch.dtype) -> bool:
    """Say whether this PyTorch and processor do what a kind of `fused_conv` needs, by a trial.

    Args:
        kind: an activation of `fused_conv`, or `ADD` or `INTO`.
        dtype: of input and weights.
    """
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    ops, how = torch.ops.mkldnn, ([0, 0], [1, 1], [1, 1], 1)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        x = torch.linspace(-2, 2, 4 * 16).view(1, 16, 2, 2).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        x[0, 0, 1, 1] = torch.nan  # must reach every channel of its pixel
        weight, bias = torch.eye(16).view(16, 16, 1, 1).to(dtype), torch.ones(16, dtype=dtype)
        try:
            if dtype == torch.bfloat16 and not ops._is_mkldnn_bf16_supported():
                return False
            packed = ops._reorder_convolution_weight(weight, *how, list(x.shape))
            if kind == ADD:
                y = ops._convolution_pointwise.binary(
                    x, x, packed, bias, *how, "add", 1.0, None, [], None
                )
            elif kind == INTO:
                y = x.clone()
                _add_into(y, x, packed, bias, *how)
            else:
                y = ops._convolution_pointwise.default(x, packed, bias, *how, *_POST_OPS[kind])
        except (AttributeError, RuntimeError, TypeError):  # another version, or built without it
            return False
    exact = x.double() + 1
    exact = exact + x.double() if kind in (ADD, INTO) else _PLAIN[kind](exact)
    known = ~x[0, 0].isnan()
    error = (y.double() - exact)[0, :, known].abs().max()
    return bool(y[0, :, ~known].isnan().all() and error <= 8 * torch.finfo(dtype).eps)
