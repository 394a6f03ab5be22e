"""The layers of a network that give feature maps, in the order in which they run."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...nn import eval_mode
from .features import FeatureLayout, layout_of
from .parts import Call, fitting, unwrapped, watched, with_tokens

OUTPUT = "output"  # what the network's own output is called where a layer is named

# Kinds of layers and the layout of a map that they work on.
_WORK_ON = {
    (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d): "NCHW",
    (nn.Linear, nn.LayerNorm): "NHWC",
}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def main_tensor(output: object) -> object:
    """Return the tensor in what a module returned: the first one of a tuple, a list or a dict.

    Segmentation networks return ``{"out": ..., "aux": ...}``, some blocks a pair. What holds no
    tensor is returned as it is.
    """
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return next((found for each in output if torch.is_tensor(found := main_tensor(each))), None)
    return output


def map_of(
    model: nn.Module,
    output: object,
    image_size: Sequence[int],
    *,
    module: nn.Module | None = None,
    last: bool = False,
    layout: str | FeatureLayout | None = None,
    where: str = "a layer",
) -> Tensor:
    """Return the feature map (N, C, h, w) in what a layer of `model` returned.

    Args:
        output: a tensor, or a tuple, list or dict with one; see `main_tensor`.
        module: the layer, whose own layers tell the layout where nothing else does.
        model, image_size, last, layout, where: see `cba_fast.models.anatomy.features.layout_of`.

    Raises:
        ValueError: there is none, or its layout cannot be known.
    """
    features = main_tensor(output)
    if getattr(features, "ndim", 0) == 3:
        model = with_tokens(model)
    known: dict[str, Any] = {"model": model, "last": last, "layout": layout, "where": where}
    try:
        found = layout_of(features, image_size, **known)
    except ValueError:
        kind = _layout_inside(module)
        if kind is None or layout is not None or getattr(features, "ndim", 0) != 4:
            raise
        found = FeatureLayout(kind)
    assert isinstance(features, Tensor)  # all else is no map
    return found.to_nchw(features)


def _layout_inside(module: nn.Module | None) -> str | None:
    """Return the layout that the layers inside a module work on, if it is the same for all."""
    layers = () if module is None else module.modules()
    kinds = {kind for m in layers for types, kind in _WORK_ON.items() if isinstance(m, types)}
    return kinds.pop() if len(kinds) == 1 else None


def layers_of(model: nn.Module, x: Tensor) -> list[str]:
    """Return the names of the layers that give feature maps of more than one position, in order.

    They are residual blocks, stages that are no chain of blocks, and layers with weights that lie
    outside of these, such as the stem. Each runs once in a forward pass.

    Args:
        model: any network.
        x: (N,3,H,W) images, of which one is run to see the order and the outputs.

    Raises:
        ValueError: no layer gives a feature map.
    """
    model = unwrapped(model)
    candidates, runs, order = dict(_parts("", model)), [], []

    def see(call: Call) -> None:
        if call.name in candidates:
            runs.append(call.name)
            with contextlib.suppress(ValueError):
                maps = map_of(model, call.result, x.shape[2:], module=call.module)
                if maps[0, 0].numel() > 1:
                    order.append(call.name)

    with fitting(model, x), torch.no_grad(), eval_mode(model), watched(model, see):
        model(x[:1])
    order = [name for name in order if runs.count(name) == 1]
    if not order:
        raise InputError(
            f"no layer of {type(model).__name__} gives a feature map for images of"
            f" {x.shape[2]}x{x.shape[3]}: name one as `layer`"
        )
    return order


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a module that are not taken apart: blocks, and layers between them."""
    if name and not _is_taken_apart(module):
        if _weights_in(module):
            yield name, module
        return
    for child_name, child in module.named_children():
        yield from _parts(f"{name}.{child_name}" if name else child_name, child)


def _is_taken_apart(module: nn.Module) -> bool:
    """Say whether a module is a container of several layers, or has a chain of blocks inside.

    A block is a member of a container all of whose members have two layers with weights or more.
    """
    if isinstance(module, _CONTAINERS):
        return _weights_in(module) > 1
    return any(
        isinstance(m, _CONTAINERS) and len(m) and all(_weights_in(c) > 1 for c in m.children())
        for m in module.modules()
    )


def _weights_in(module: nn.Module) -> int:
    """Return the number of layers in a module with weights that combine channels or positions."""
    return sum(any(p.ndim > 1 for p in m.parameters(recurse=False)) for m in module.modules())
