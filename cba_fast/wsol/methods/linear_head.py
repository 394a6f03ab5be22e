"""Finds the linear layer that makes a network's logits of its pooled feature maps."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...models.anatomy.features import FeatureLayout, head_change, random_like
from ...models.anatomy.parts import Call, type_name


class LacksError(ModelError):
    """The network lacks what a method needs; methods that need less may work."""


def classifier_call(model: nn.Module, calls: Sequence[Call], logits: Tensor, where: str) -> int:
    """Return the index of the call of the classifier, behind which no other layer has weights.

    The classifier is what ``get_classifier`` returns, if that is one linear layer, or else the last
    linear layer whose output, averaged over positions where it has any, is the logits.

    Args:
        model: the network.
        calls: the runs of modules that ended after the features were made.
        logits: (N, K).
        where: what gave the features, for messages.

    Raises:
        LacksError: there is no such layer, or one that mixes channels runs before it.
    """
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    if is_linear(head):
        found = [i for i, call in enumerate(calls) if call.module is head]
    else:
        found = [i for i, call in enumerate(calls) if makes_logits(call, logits)]
    if not found and head is not None and not is_linear(head):
        raise LacksError(
            f"the classifier of {type_name(model)} must be one nn.Linear or 1x1 convolution "
            f"after pooling, got {_full_name(head)}"
        )
    if not found:
        ran = [f"{c.name} ({type_name(c.module)})" for c in calls if _mixes(c.module)]
        raise LacksError(
            f"no linear layer of {type_name(model)} gives its logits {tuple(logits.shape)}; after "
            f"{where} ran: {', '.join(ran[-8:]) or 'no layer with weights'}"
        )
    _refuse_hidden_layers(model, calls, found[-1], where)
    return found[-1]


def _full_name(value: object) -> str:
    """Return the name of a class, with its package if that is another than PyTorch's or Python's.

    Layers of other packages are called Linear, too.
    """
    cls = type(value)
    known = cls.__module__ == "builtins" or cls.__module__.startswith("torch.nn.modules.")
    return cls.__qualname__ if known else f"{cls.__module__}.{cls.__qualname__}"


def where_maps_end(calls: Sequence[Call], logits: Tensor) -> int:
    """Return the index of the classifier's call, or the number of calls if none is found."""
    found = [i for i, call in enumerate(calls) if makes_logits(call, logits)]
    return found[-1] if found else len(calls)


def makes_logits(call: Call, logits: Tensor) -> bool:
    """Say whether a call is a linear layer's whose output is the logits, or becomes them.

    It becomes them by pooling, or where the network ends in a softmax or a sigmoid.
    """
    out = call.result
    if not is_linear(call.module) or not torch.is_tensor(out) or out.ndim < 2:
        return False
    if out.ndim == 4 and out.shape[2:] != (1, 1):
        # A head that classifies each position, as SqueezeNet's does, and then takes the mean.
        return any(close(m.mean((2, 3)), logits) for m in (out, out.relu()))
    out = out.flatten(1)
    if out.shape != logits.shape:
        return False
    if bool(((out.to(logits.dtype) == logits) | (out.isnan() & logits.isnan())).all()):
        return True  # a cast may come after the layer
    ends = (f(out) for f in (torch.sigmoid, partial(torch.softmax, dim=1)))
    return any(torch.equal(end.to(logits.dtype), logits) for end in (*ends, out.log_softmax(1)))


def close(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors of one shape are equal up to the rounding of their type."""
    if a.shape != b.shape:
        return False
    a, b = a.detach().float(), b.detach().float()
    tolerance = 1e-3 * float(b.abs().max()) if b.numel() else 0.0
    return bool(((a - b).abs() <= tolerance).all())


def is_linear(module: object) -> bool:
    """Whether the module maps channels linearly: nn.Linear or a plain 1x1 convolution."""
    if isinstance(module, nn.Conv2d):
        return module.weight.shape[2:] == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def pooling_of(run: Callable[[Tensor], object], classifier: nn.Module) -> Callable:
    """Return the function from features of one image to the classifier's input.

    Args:
        run: runs the network behind the features.
        classifier: the linear layer.
    """

    def pooling(features: Tensor) -> Tensor:
        given: list[Tensor] = []
        hook = classifier.register_forward_pre_hook(lambda module, args: given.append(args[0]))
        try:
            run(features)
        finally:
            hook.remove()
        return given[-1]

    return pooling


def pools_the_map(
    head: Callable[[Tensor], Tensor], features: Tensor, layout: FeatureLayout
) -> bool:
    """Whether a head's result depends on the map's tokens, but not on their order."""
    probe = random_like(features)
    maps = layout.to_nchw(probe)
    moved, other = (layout.from_nchw(m, probe) for m in (maps.roll(1, 3), maps.roll(1, 1)))
    return head_change(head, probe, moved) < 0.05 * head_change(head, probe, other)


def as_pooled(maps: Tensor, given: object) -> Tensor:
    """Return the maps whose mean the classifier got: `maps`, or these behind a ReLU (DenseNet's).

    Args:
        maps: (N, C, h, w).
        given: the classifier's input.
    """
    if not torch.is_tensor(given) or given.flatten(1).shape != maps.shape[:2]:
        return maps
    given, rectified = given.flatten(1), maps.relu()
    behind = close(rectified.mean((2, 3)), given) and not close(maps.mean((2, 3)), given)
    return rectified if behind else maps


def _refuse_hidden_layers(model: nn.Module, calls: Sequence[Call], at: int, where: str) -> None:
    """Raise LacksError if a layer that mixes channels or positions runs before the classifier."""
    head = calls[at]
    for call in calls[:at]:
        # Parametrizations run inside the classifier; a second head reads the same input.
        inside = call.name.startswith(f"{head.name}.")
        beside = call.given is not None and call.given is head.given
        if _mixes(call.module) and not inside and not beside:
            hint = "; its map has one position, so give larger images" if _is_point(call) else ""
            raise LacksError(
                f"{type_name(model)} has no linear head after {where}: {call.name} "
                f"({type_name(call.module)}) runs before the classifier {head.name}{hint}"
            )


def _is_point(call: Call) -> bool:
    """Say whether a convolution over neighbours gave a single position: the image was too small."""
    module, out = call.module, call.result
    wide = isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
    return wide and torch.is_tensor(out) and out.shape[2:] == (1, 1)


def _mixes(module: nn.Module) -> bool:
    """Whether the module's own weights can combine channels or positions.

    Norms, scales and learned activations have one number per channel; weights that combine have
    two dimensions or more.
    """
    if isinstance(module, nn.LayerNorm):
        return False
    if is_linear(module):
        return True
    return any(p.squeeze().ndim > 1 for p in module.parameters(recurse=False))
