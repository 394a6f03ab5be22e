"""Get feature maps, logits and classifier weights from one forward pass of any model."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models.features import (
    FeatureLayout,
    check_is_map,
    head_change,
    layout_of,
    random_like,
)
from ..nn import eval_mode


def classify(
    model: nn.Module,
    x: Tensor,
    layer: str | None = None,
    layout: str | FeatureLayout | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `model` on images and return what class activation maps are made of.

    The classifier is what ``get_classifier`` returns, or else the last linear layer whose output
    is the logits. Between the features and the classifier only pooling, norms, activations and the
    like may run: behind a hidden layer, features weighted by the classifier's rows explain nothing.

    Args:
        model: a classifier whose last steps are pooling and one linear layer (`nn.Linear` or a 1x1
            convolution). Models with timm's ``forward_features`` and ``forward_head`` work without
            `layer`, all of `cba_fast.models` among them; any other needs it. It may be in any mode:
            the mode of every module is restored, and running statistics stay as they are.
        x: (N, 3, H, W), N >= 1.
        layer: dotted name of the module whose output is taken as the features.
        layout: how the features hold their map: ``"NCHW"``, ``"NHWC"`` (Swin) or ``"NLC"``
            (tokens); None to let `cba_fast.models.features.layout_of` find out.

    Returns:
        Features as (N, C, h, w), logits (N, K) and the classifier's weight (K, C).

    Raises:
        TypeError: there is no linear classifier, it does not take the features' channels or pools
            over other tokens, a layer that mixes channels runs before it, or the model gives no
            features unless `layer` is named.
        ValueError: `layer` does not exist, its output is not a feature map, or the layout of the
            map cannot be known.
    """
    where = "forward_features" if layer is None else f"module {layer!r}"
    with eval_mode(model):
        features, logits, calls = _run_head(model, x) if layer is None else _run(model, x, layer)
        check_is_map(features, where)
        if not torch.is_tensor(logits) or logits.ndim != 2:
            raise TypeError(f"{_name(model)} must return (N, K) logits, got {_describe(logits)}")
        at = _classifier_call(model, calls, logits, where)
        _refuse_hidden_layers(model, calls, at, where)
        weight = calls[at].module.weight.detach().flatten(1)
        if weight.shape[1] not in features.shape[1:]:
            raise TypeError(
                f"{where} gives {tuple(features.shape)}, but the classifier {calls[at].name} takes "
                f"{weight.shape[1]} channels"
            )
        head = _pooling_of(model, x[:1], layer, calls[at].module)
        what = {"model": model, "last": layer is None, "channels": weight.shape[1], "head": head}
        found = layout_of(features, x.shape[2:], layout=layout, where=where, **what)
        if found.kind == "NLC" and not _pools_the_map(head, features, found):
            raise TypeError(
                f"{_name(model)} has no linear head over the mean of {where}'s tokens but, for "
                "example, one over the class token: weighted by it, they would explain nothing"
            )
    return found.to_nchw(features), logits, weight


@dataclass
class _Call:
    """One run of a module: its name in the model, its first argument and its result."""

    name: str
    module: nn.Module
    given: object
    result: object


def _run_head(model: nn.Module, x: Tensor) -> tuple[object, object, list[_Call]]:
    """Return the features, the logits and the modules' calls in ``forward_head``."""
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        raise TypeError(
            f"{_name(model)} has no forward_features/forward_head; name the layer that gives the "
            "last feature maps"
        )
    features = model.forward_features(x)
    calls: list[_Call] = []
    with _hooks(dict(model.named_modules()), calls.append):
        logits = model.forward_head(features)
    return features, logits, calls


def _run(model: nn.Module, x: Tensor, layer: str) -> tuple[object, object, list[_Call]]:
    """Return the output of `layer`, the logits and the calls that end after that of `layer`."""
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"{_name(model)} has no module named {layer!r}")
    seen: list[object] = []
    calls: list[_Call] = []

    def record(call: _Call) -> None:
        if call.module is modules[layer]:
            # It is copied because an activation that works in place would change the features.
            out = call.result
            seen.append(out.clone() if torch.is_tensor(out) else out)
        elif seen and call.name and not layer.startswith(f"{call.name}."):
            calls.append(call)

    with _hooks(modules, record):
        logits = model(x)
    if len(seen) != 1:
        raise ValueError(f"module {layer!r} ran {len(seen)} times in one forward pass, not once")
    return seen[0], logits, calls


@contextlib.contextmanager
def _hooks(modules: dict[str, nn.Module], record: Callable[[_Call], None]) -> Iterator[None]:
    """Call `record` after each run of one of `modules`."""

    def hook_of(name: str):
        def hook(module, args, result):
            record(_Call(name, module, args[0] if args else None, result))

        return hook

    handles = [m.register_forward_hook(hook_of(name)) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _classifier_call(model: nn.Module, calls: list[_Call], logits: Tensor, where: str) -> int:
    """Return the index of the classifier's call."""
    if hasattr(model, "get_classifier"):
        head = model.get_classifier()
        if not _is_linear(head):
            raise TypeError(
                f"the classifier of {_name(model)} must be one nn.Linear or 1x1 convolution after "
                f"pooling, got {_name(head)}"
            )
        found = [i for i, call in enumerate(calls) if call.module is head]
    else:
        linear = [i for i, call in enumerate(calls) if _is_linear(call.module)]
        found = [i for i in linear if _is_same(calls[i].result, logits)]
    if not found:
        ran = ", ".join(f"{c.name} ({_name(c.module)})" for c in calls if _mixes(c.module))
        raise TypeError(
            f"no linear layer of {_name(model)} gives its logits {tuple(logits.shape)}; after "
            f"{where} ran: {ran or 'no layer with weights'}"
        )
    return found[-1]


def _refuse_hidden_layers(model: nn.Module, calls: list[_Call], at: int, where: str) -> None:
    """Raise TypeError if a layer that mixes channels or positions runs before the classifier."""
    head = calls[at]
    for call in calls[:at]:
        # Parametrizations run inside the classifier; a second head reads the same input.
        inside = call.name.startswith(f"{head.name}.")
        beside = call.given is not None and call.given is head.given
        if _mixes(call.module) and not inside and not beside:
            raise TypeError(
                f"{_name(model)} has no linear head after {where}: {call.name} "
                f"({_name(call.module)}) runs before the classifier {head.name}"
            )


def _is_linear(module: object) -> bool:
    """Whether the module maps channels linearly: nn.Linear or a plain 1x1 convolution."""
    if isinstance(module, nn.Conv2d):
        return module.weight.shape[2:] == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def _mixes(module: nn.Module) -> bool:
    """Whether the module's own weights can combine channels or positions.

    Norms, scales and learned activations have one number per channel; weights that combine have
    two dimensions or more.
    """
    if isinstance(module, nn.LayerNorm):
        return False
    if _is_linear(module):
        return True
    return any(p.squeeze().ndim > 1 for p in module.parameters(recurse=False))


def _is_same(result: object, logits: Tensor) -> bool:
    """Whether a module's result equals the logits, reshaping (K, 1, 1) -> (K,) and casts aside."""
    if not torch.is_tensor(result) or result.ndim < 2:
        return False
    result = result.flatten(1)
    if result.shape != logits.shape:
        return False
    same = result.to(logits.dtype) == logits
    return bool((same | (result.isnan() & logits.isnan())).all())


def _pooling_of(
    model: nn.Module, x: Tensor, layer: str | None, classifier: nn.Module
) -> Callable[[Tensor], Tensor]:
    """Return the function from features of one image to the classifier's input."""

    def pooling(features: Tensor) -> Tensor:
        given: list[Tensor] = []
        handles = [classifier.register_forward_pre_hook(lambda module, args: given.append(args[0]))]
        if layer is not None:
            replace = model.get_submodule(layer).register_forward_hook(lambda *call: features)
            handles.append(replace)
        try:
            model.forward_head(features) if layer is None else model(x)
        finally:
            for handle in handles:
                handle.remove()
        return given[-1]

    return pooling


def _pools_the_map(
    head: Callable[[Tensor], Tensor], features: Tensor, layout: FeatureLayout
) -> bool:
    """Whether the classifier's input depends on the map's tokens, but not on their order."""
    probe = random_like(features)
    maps = layout.to_nchw(probe)
    moved, other = (layout.from_nchw(m, probe) for m in (maps.roll(1, 3), maps.roll(1, 1)))
    return head_change(head, probe, moved) < 0.05 * head_change(head, probe, other)


def _name(module: object) -> str:
    return type(module).__name__


def _describe(value: object) -> str:
    return str(tuple(value.shape)) if torch.is_tensor(value) else type(value).__name__
