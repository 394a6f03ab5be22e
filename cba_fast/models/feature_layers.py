"""The layers of a network that give feature maps, in the order in which they run."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..nn import eval_mode
from .features import layout_of

OUTPUT = "output"  # what the network's own output is called where a layer is named

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


@contextlib.contextmanager
def watching(layers: Mapping[str, nn.Module], see: Callable[[str, object], None]) -> Iterator[None]:
    """Call ``see(name, tensor)`` with the `main_tensor` of a layer's output after each run of it.

    What `see` returns is ignored. A later layer that works in place may change the tensor.
    """

    def hook_of(name: str) -> Callable:
        def hook(module, args, output):
            see(name, main_tensor(output))

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    candidates, runs, order = dict(_parts("", model)), [], []

    def see(name: str, features: object) -> None:
        runs.append(name)
        with contextlib.suppress(ValueError):
            layout = layout_of(features, x.shape[2:], model=model, last=False)
            if layout.to_nchw(features)[0, 0].numel() > 1:
                order.append(name)

    with torch.no_grad(), eval_mode(model), watching(candidates, see):
        model(x[:1])
    order = [name for name in order if runs.count(name) == 1]
    if not order:
        raise InputError(
            f"no layer of {type(model).__name__} gives a feature map for images of"
            f" {x.shape[2]}x{x.shape[3]}: name one as `layer`"
        )
    return order


def last_layer(model: nn.Module, x: Tensor) -> str:
    """Return the name of the layer whose map is the last one of a network.

    It is "output" if the network's own output is a map, else the last of `layers_of`.
    """
    with torch.no_grad(), eval_mode(model):
        output = main_tensor(model(x[:1]))
    is_map = torch.is_tensor(output) and output.ndim == 4 and output[0, 0].numel() > 1
    return OUTPUT if is_map else layers_of(model, x)[-1]


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
