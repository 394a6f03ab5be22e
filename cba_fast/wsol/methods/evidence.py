"""Runs a network once and gathers what a localization method explains its answer by."""

import contextlib
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...data.reading import to_device
from ...errors import ModelError
from ...models.anatomy.features import FeatureLayout, check_is_map, layout_of, pooling_head
from ...models.anatomy.parts import (
    Call,
    Layer,
    fitting,
    known_last_map,
    last_map,
    logits_of,
    named_layer,
    type_name,
    uncompiled,
    unwrapped,
    watched,
    with_tokens,
)
from ...nn import frozen
from ...short import Short
from .attention import Attentions
from .linear_head import (
    LacksError,
    as_pooled,
    classifier_call,
    pooling_of,
    pools_the_map,
    where_maps_end,
)

# What a method may ask for, by the names of its parameters.
KINDS = ("features", "gradients", "weights", "attentions", "attention_gradients")


@dataclass(frozen=True, repr=False)
class Evidence(Short):
    """What one pass over a batch gave; None stands for what was not asked for.

    Attributes:
        logits: (N, K).
        targets: (N,) int64, the class that each map explains, within 0..K-1.
        top5: (N, min(5, K)) int64, the predicted classes, best first.
        layout: how features or attention hold their map.
        features: (N, C, h, w), the explained maps.
        gradients: (N, C, h, w), of each image's target logit with respect to them.
        classifier: (K, C), the weight of the linear head.
        attentions: for each layer (N, heads, L, L), the attention of each token to each token.
        attention_gradients: for each layer the same for the target logit's gradient.
        by_class_token: whether the class token, and not the mean of the others, is classified.
    """

    logits: Tensor
    targets: Tensor
    top5: Tensor
    layout: FeatureLayout
    features: Tensor | None = None
    gradients: Tensor | None = None
    classifier: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None
    attention_gradients: tuple[Tensor, ...] | None = None
    by_class_token: bool = False

    @property
    def weights(self) -> Tensor | None:
        """(N, C), the classifier's row of each image's target."""
        return None if self.classifier is None else self.classifier[self.targets]

    def over_the_map(self, relevance: Tensor) -> Tensor:
        """Return the relevance of the map's positions for what is classified, (N, h, w).

        Args:
            relevance: (N, L, L), of each token (column) for each token (row).
        """
        prefix = self.layout.prefix
        rows = relevance[:, :1] if self.by_class_token else relevance[:, prefix:]
        return rows.mean(1)[:, prefix:].unflatten(1, self.layout.grid)


def classify(
    model: nn.Module,
    x: Tensor,
    layer: Layer = None,
    layout: str | FeatureLayout | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what class activation maps are made of: features, logits and classifier (K, C).

    Arguments and errors are those of :func:`gather`.

    Example:
        >>> import timm, torch
        >>> from cba_fast.wsol.methods import classify
        >>> model = timm.create_model("test_resnet", num_classes=10)
        >>> features, logits, classifier = classify(model, torch.randn(2, 3, 64, 64))
        >>> logits.shape, classifier.shape[1] == features.shape[1]
        (torch.Size([2, 10]), True)
    """
    found = gather(model, x, {"weights"}, layer=layer, layout=layout)
    features, classifier = found.features, found.classifier
    assert features is not None  # it and the classifier are what "weights" asks for
    assert classifier is not None
    return features, found.logits, classifier


def gather(
    model: nn.Module,
    x: Tensor,
    needs: Set[str],
    *,
    target: Tensor | None = None,
    layer: Layer = None,
    layout: str | FeatureLayout | None = None,
) -> Evidence:
    """Run `model` on images and return what `needs` names, of `KINDS`.

    There is one forward pass for the batch and, if gradients are asked for, one backward pass of
    the sum of the target logits, from the logits down to the features: neither weights nor layers
    before the features get gradients. The model may be in any mode; the mode of every module is
    restored, and running statistics stay as they are. Wrappers (`DataParallel`, `torch.compile`)
    are looked through, and dicts and tuples searched for the logits (`logits_of`).

    For "weights", pooling and one linear layer (`nn.Linear` or a 1x1 convolution) must follow the
    features; norms, activations and the like may run between. Behind a hidden layer, features
    weighted by the classifier's rows explain nothing.

    Args:
        model: a classifier.
        x: (N, 3, H, W), N >= 1.
        needs: what is asked for.
        target: int64, () or (N,); None for each image's top-1.
        layer: whose output the features are, see `named_layer`. None for those of the model's
            ``forward_features``, as timm's and our models have it, or else of `last_map`.
        layout: how the features hold their map: ``"NCHW"``, ``"NHWC"`` (Swin) or ``"NLC"``
            (tokens); None to let `layout_of` find out.

    Raises:
        ModelError: the model lacks what is asked for: a linear head over the map, a map, attention
            over all positions, or logits that depend on the features.
        ValueError: `layer` does not exist, its output is not a feature map, the layout of the map
            cannot be known, or device, dtype or shape of `x` do not fit the model.

    Example:
        >>> import timm, torch
        >>> from cba_fast.wsol.methods import gather
        >>> model = timm.create_model("test_resnet", num_classes=10)
        >>> found = gather(model, torch.randn(2, 3, 64, 64), {"features", "gradients"})
        >>> found.features.shape == found.gradients.shape, found.targets.shape
        (True, torch.Size([2]))
    """
    model = unwrapped(model)
    with fitting(model, x), frozen(model), torch.inference_mode(False), torch.no_grad():
        x = x.clone() if x.is_inference() else x
        if needs & {"attentions", "attention_gradients"}:
            return _attend(model, x, needs, target, layout)
        return _Look(model, x, needs, layer, layout).evidence(target)


class _Look:
    """One pass over a batch, up to the features without and from there with gradients."""

    def __init__(self, model: nn.Module, x: Tensor, needs: Set[str], layer: Layer, layout):
        self.model, self.x, self.layer, self.layout = model, x, layer, layout
        self.head, self.grad = "weights" in needs, "gradients" in needs
        self.calls: list[Call] = []

    def evidence(self, target: Tensor | None) -> Evidence:
        """Return what was asked for; `target` as for :func:`gather`."""
        ran, layer, module = None, self.layer, None
        if layer is None and (self.head or known_last_map(self.model, self.x) is None):
            ran = self._run_head()
        last, where = ran is not None, "forward_features"
        if ran is None:
            if getattr(self.model, "hides_layers", False):
                raise ModelError(
                    "`compile` shows only what forward_features returns, and this `method` explains"
                    f" a layer inside of it for {type_name(self.model)}: leave `compile` out"
                )
            layer = last_map(self.model, self.x, where_maps_end) if layer is None else layer
            name, module = named_layer(self.model, layer)
            where = f"module {name!r}"
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                self.layout = "NCHW"
            ran = self._run(name, module)
        features, logits = ran
        check_is_map(features, where)
        targets, top5 = _targets(logits, target)
        found: dict[str, Any] = {"logits": logits.detach(), "targets": targets, "top5": top5}
        size, map_ = self.x.shape[2:], features.detach()
        if self.head:
            found |= self._over_head(map_, logits, where, module)
        else:
            told: dict[str, Any] = {
                "model": self.model if last else with_tokens(self.model),
                "last": last,
            }
            layout = layout_of(map_, size, layout=self.layout, where=where, **told)
            found |= {"layout": layout, "features": layout.to_nchw(map_)}
        if self.grad:
            grad = _gradient(self.model, logits, targets, [features], where)[0]
            found["gradients"] = found["layout"].to_nchw(grad)
        return Evidence(**found)

    def _run_head(self) -> tuple[Tensor, Tensor] | None:
        """Return features and logits of timm's interface; None if its features are no map.

        Tokens of which the head reads the class token alone are no map here: the gradients of the
        others are zero.
        """
        model = self.model
        if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
            return None
        features = model.forward_features(self.x)
        if not torch.is_tensor(features) or features.ndim not in (3, 4):
            return None
        if features.ndim == 3:
            try:
                layout = layout_of(features, self.x.shape[2:], model=model, layout=self.layout)
            except ValueError:
                if self.layout is None:
                    return None
                raise
            pools = self.head or not layout.prefix
            if not (pools or pools_the_map(pooling_head(model), features, layout)):
                return None
        given = self._leaf(features)
        hooks = watched(model, self.calls.append) if self.head else contextlib.nullcontext()
        with hooks, torch.set_grad_enabled(self.grad):
            # The features are copied because layers that work in place must not change them.
            logits = model.forward_head(given.clone() if self.grad else given)
        return given, logits_of(model, logits)

    def _run(self, name: str, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return a layer's output and the logits; keep the calls that end after the layer's."""
        seen: list[Any] = []

        def record(call: Call) -> Tensor | None:
            if call.module is module:
                out = call.result
                seen.append(self._leaf(out.clone()) if torch.is_tensor(out) else out)
                if self.grad and torch.is_tensor(out):
                    torch.set_grad_enabled(True)  # from here on; `gather` switches it off again
                    return seen[-1].clone()
            elif seen and call.name and not name.startswith(f"{call.name}."):
                self.calls.append(call)
            return None

        with watched(self.model, record, only=None if self.head else module):
            output = self.model(self.x)
        if len(seen) != 1:
            raise ModelError(f"module {name!r} ran {len(seen)} times in one forward pass, not once")
        return seen[0], logits_of(self.model, output)

    def _leaf(self, features: Tensor) -> Tensor:
        return features.detach().requires_grad_() if self.grad else features

    def _over_head(self, features: Tensor, logits: Tensor, where: str, behind) -> dict:
        """Return features, layout and the weight of the linear head over them."""
        model, x, calls = self.model, self.x, self.calls
        call = calls[classifier_call(model, calls, logits, where)]
        weight = call.module.weight.detach().flatten(1)
        if weight.shape[1] not in features.shape[1:]:
            raise LacksError(
                f"{where} gives {tuple(features.shape)}, but the classifier {call.name} takes "
                f"{weight.shape[1]} channels"
            )
        head = pooling_of(_behind(model, x[:1], behind), call.module)
        told: dict[str, Any] = {
            "model": with_tokens(model) if behind else model,
            "last": behind is None,
        }
        told |= {"channels": weight.shape[1], "head": head, "where": where}
        layout = layout_of(features, x.shape[2:], layout=self.layout, **told)
        if layout.kind == "NLC" and not pools_the_map(head, features, layout):
            raise LacksError(
                f"{type_name(model)} has no linear head over the mean of the tokens of {where} "
                "but, for example, one over the class token: weighted by it, they would explain "
                "nothing"
            )
        maps = layout.to_nchw(features)
        if behind is not None and self.layer is None:
            maps = as_pooled(maps, call.given)
        return {"layout": layout, "features": maps, "classifier": weight}


def _behind(model: nn.Module, x: Tensor, layer: nn.Module | None) -> Callable[[Tensor], object]:
    """Return the function that runs the model behind its features, or behind those of `layer`."""
    if layer is None:
        return model.forward_head

    def run(features: Tensor) -> object:
        hook = layer.register_forward_hook(lambda *call: features)
        try:
            with uncompiled(model):
                return model(x)
        finally:
            hook.remove()

    return run


def _targets(logits: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the explained and the best classes.

    Targets outside of the classes are clamped here and refused later by the host, because an index
    outside of a tensor ends a CUDA process.
    """
    top5 = logits.detach().float().topk(min(5, logits.shape[1]), dim=1).indices
    if target is None:
        return top5[:, 0], top5
    target = to_device(target, top5.device).expand(len(logits))
    return target.clamp(0, logits.shape[1] - 1), top5


def _gradient(
    model: nn.Module, logits: Tensor, targets: Tensor, of: list[Tensor], where: str
) -> tuple[Tensor, ...]:
    """Return the gradients of the sum of the target logits; images do not interact in eval mode."""
    found: tuple[Tensor | None, ...] = (None,)
    if logits.requires_grad:
        with torch.enable_grad():
            score = logits.gather(1, targets[:, None]).float().sum()
        found = torch.autograd.grad(score, of, allow_unused=True)
    grads = tuple(grad for grad in found if grad is not None)
    if len(grads) < len(found):
        raise ModelError(f"the logits of {type_name(model)} do not depend on {where}")
    return grads


def _attend(
    model: nn.Module, x: Tensor, needs: Set[str], target: Tensor | None, layout
) -> Evidence:
    """Return the attention of each layer and, if asked for, its gradients."""
    seen, grad = Attentions(), "attention_gradients" in needs
    with uncompiled(model), torch.set_grad_enabled(grad), seen:
        logits = logits_of(model, model(x.detach().requires_grad_() if grad else x))
    lacking = LacksError(f"{type_name(model)} has no layers of attention over the whole image")
    if len(set(seen.shapes)) != 1 or seen.shapes[0][0] != len(x):
        raise lacking
    told = with_tokens(model)
    tokens = x.new_empty(1, seen.shapes[0][-1], 1)
    try:
        layout = layout_of(tokens, x.shape[2:], model=told, layout=layout)
    except ValueError:  # attention between channels, for example
        raise lacking from None
    pooled = getattr(told, "global_pool", "token")
    targets, top5 = _targets(logits, target)
    gradients = None
    if grad:
        of_each = _gradient(model, logits, targets, seen.found, "its attention")
        gradients = _shaped(of_each, seen.shapes)
    return Evidence(
        *(logits.detach(), targets, top5, layout),
        attentions=_shaped([m.detach() for m in seen.found], seen.shapes),
        attention_gradients=gradients,
        by_class_token=bool(layout.prefix) and pooled in ("token", ""),
    )


def _shaped(tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    return tuple(t.view(shape) for t, shape in zip(tensors, shapes, strict=True))
