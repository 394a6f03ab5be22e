"""Gradients of one position of a feature map, for one layer of a network or for many at once."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelError
from ..models.anatomy.features import FeatureLayout
from ..models.anatomy.layers import OUTPUT, main_tensor, map_of
from ..models.anatomy.parts import (
    Call,
    fitting,
    last_map,
    logits_of,
    named_layer,
    unwrapped,
    watched,
)
from ..nn import eval_mode
from ..wsol.methods.linear_head import where_maps_end
from .gradients import gradients_of
from .point import Point, position

Layer = str | int | nn.Module | None


def center_gradient(
    model: nn.Module,
    x: Tensor,
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    layer: Layer = None,
    point: Point = None,
    layout: str | FeatureLayout | None = None,
    checkpoint: str = "none",
) -> Tensor:
    """Return the gradient of the features at one position with respect to each image's pixels.

    grad[n] = d (sum over c of relu(F[n, c, i, j])) / d x[n], where F is the feature map, brought to
    (N,C,h,w), and (i, j) the point. The features may also be (N,h,w,C), as Swin's, or tokens, as
    ViT's, whose prefix tokens such as the class token are left out: then it is the gradient of one
    patch token.

    Args:
        model: any network.
        x: images (N,3,H,W), floating, preprocessed.
        features: function from images to the feature map, if no layer gives it.
        layer: whose output the features are: a dotted name, a module, "output" for the network's
            own output (of a network whose output is a map), or a number for timm's
            ``forward_intermediates``. None for ``model.forward_features``, the unpooled map
            before the final norm, or, without it, the output if that is a map, else the last map on
            which the logits depend, which `cba_fast.wsol.cam` explains, too.
        point: see :func:`position`; None for the centre.
        layout: ``NCHW``, ``NHWC`` or ``NLC`` (tokens), how the features hold the map; None to let
            :func:`cba_fast.models.anatomy.features.layout_of` find out.
        checkpoint: ``none``, ``block`` or ``stage``; see :func:`~cba_fast.erf.input_gradient`.

    Returns:
        (N,3,H,W), dtype of `x`.

    Raises:
        ValueError: `x` is not a floating (N,C,H,W) tensor, there is no such layer, it does not run
            exactly once, the features are no map, their layout cannot be known, the point is not
            on it, `checkpoint` is unknown, or the model has no blocks to recompute.

    Source: X. Ding et al., "Scaling Up Your Kernels to 31x31" (2022), the ERF script of its code.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cba_fast.erf import center_gradient
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
        >>> grad = center_gradient(model, torch.rand(1, 3, 9, 9), layer="0")
        >>> rows, columns = grad[0].abs().sum(0).nonzero(as_tuple=True)
        >>> rows.unique(), columns.unique()  # the centre and its neighbours
        (tensor([3, 4, 5]), tensor([3, 4, 5]))
    """
    (grad,) = layer_gradients(
        model,
        x,
        [layer if features is None else partial(features)],
        lambda index, grad: grad,
        point=point,
        layout=layout,
        checkpoint=checkpoint,
    )
    return grad


def layer_gradients(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[Layer | Callable[[Tensor], Tensor]],
    use: Callable[[int, Tensor], Any],
    *,
    point: Point = None,
    layout: str | FeatureLayout | None = None,
    checkpoint: str = "none",
) -> list:
    """Call ``use(index, gradient)`` for each layer, the last one first; return what it returned.

    One forward pass keeps its graph, and each layer's backward pass goes through it. What belongs
    to the layers behind a layer is freed before its turn. So the memory is that of the last
    layer's gradient alone.

    Args:
        model, x, point, layout, checkpoint: see :func:`center_gradient`.
        layers: names or modules, in the order in which they run; alone in the list also None, a
            number or a function, see `layer` and `features` there.
        use: gets a layer's index and its gradient, and returns what is kept.
    """
    model, size = unwrapped(model), x.shape[2:]

    def value(output: object, where: str, known: str | None = None, **about) -> Tensor:
        maps = map_of(model, output, size, layout=layout or known, where=where, **about)
        row, column = position(point, maps.shape[2:])
        return maps[:, :, row, column].relu().sum()

    if len(layers) == 1 and (run := _function(model, layers[0], value)) is not None:
        return gradients_of(model, x, lambda images: [run(images)], use, checkpoint=checkpoint)
    modules = dict(_named(model, layer) for layer in with_last(model, x, layers))
    if len(modules) < len(layers):
        raise InputError(f"`layers` names a layer twice: {', '.join(map(str, layers))}")
    watch = _Watch(model, modules, value, stops=checkpoint == "none")
    with watched(model, watch.see):  # also while parts are computed again
        return gradients_of(model, x, watch.values_of, use, checkpoint=checkpoint)


def with_last(model: nn.Module, x: Tensor, layers: Sequence) -> list:
    """Return the layers, with the name of the last one where None stands for it.

    None stays for models with ``forward_features``. To find the last layer of others takes runs of
    the model, which later calls with its name do not need.
    """
    model = unwrapped(model)
    found = hasattr(model, "forward_features")
    return [_last_layer(model, x) if each is None and not found else each for each in layers]


def _last_layer(model: nn.Module, x: Tensor) -> str:
    """Return the layer whose map `cba_fast.wsol.cam` explains, or "output" without logits."""
    with fitting(model, x), torch.no_grad(), eval_mode(model):
        output = model(x[:1])
    try:
        logits_of(model, output)
    except ModelError:
        return OUTPUT
    return last_map(model, x, where_maps_end)


def _named(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    if layer == OUTPUT and not hasattr(model, OUTPUT):
        return OUTPUT, model
    return named_layer(model, layer)


def _function(model: nn.Module, layer, value: Callable) -> Callable[[Tensor], Tensor] | None:
    """Return the function from images to the value of a layer that no hook has to watch."""
    if isinstance(layer, int):
        return lambda images: value(
            _intermediate(model, images, layer), f"map {layer}", known="NCHW"
        )
    if layer is None and hasattr(model, "forward_features"):
        return lambda images: value(model.forward_features(images), "forward_features", last=True)
    if callable(layer) and not isinstance(layer, nn.Module):
        return lambda images: value(layer(images), "the network")
    return None


def _intermediate(model: nn.Module, images: Tensor, index: int) -> Tensor:
    if not hasattr(model, "forward_intermediates"):
        raise InputError(
            f"{type(model).__name__} has no forward_intermediates, which counts its maps: name a"
            f" layer instead of {index}"
        )
    try:
        (found,) = model.forward_intermediates(images, indices=[index], intermediates_only=True)
    except AssertionError as e:
        raise InputError(f"{type(model).__name__} has no map {index}: {e}") from e
    return found


class _Watch:
    """Takes the value of each layer while it runs, because later layers may work in place.

    Args:
        model, modules: the network and the layers by name.
        value: function from a layer's output and its name for messages to a scalar.
        stops: what runs behind the last of the layers keeps no graph. (Parts that are computed
            again in the backward pass must not end without one.)
    """

    def __init__(self, model: nn.Module, modules: dict[str, nn.Module], value, stops: bool):
        self.model, self.modules, self.value, self.stops = model, modules, value, stops
        self.values: dict[nn.Module, Tensor] | None = None  # None while nothing is to be kept
        self.runs: dict[nn.Module, int] = {}

    def values_of(self, images: Tensor) -> list[Tensor]:
        """Run the model and return the value of each layer."""
        self.values, self.runs = {}, dict.fromkeys(self.modules.values(), 0)
        self.model(images)
        values, self.values = self.values, None
        for name, module in self.modules.items():
            if (count := self.runs[module]) != 1:
                raise InputError(f"layer {name!r} ran {count} times in one forward pass, not once")
        return [values[module] for module in self.modules.values()]

    def see(self, call: Call) -> None:
        if call.module not in self.modules.values():
            return
        own = call.module is self.model
        # Networks for segmentation and restoration return (N,C,H,W).
        known = "NCHW" if own and getattr(main_tensor(call.result), "ndim", 0) == 4 else None
        where = "the output" if own else f"layer {call.name!r}"
        found = self.value(call.result, where, known, module=call.module)
        if self.values is None:  # a part that is computed again must repeat the steps above
            return
        self.runs[call.module] += 1
        self.values[call.module] = found
        if self.stops and all(self.runs.values()):
            torch.set_grad_enabled(False)  # until the context around the run ends
