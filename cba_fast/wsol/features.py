"""Feature maps, logits and classifier weights of a model in one forward pass."""

import torch
from torch import Tensor, nn


def classify(
    model: nn.Module, x: Tensor, layer: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `model` once and return what class activation maps are made of.

    Args:
        model: a classifier whose last steps are pooling and one linear layer. Models with
            timm's interface (``forward_features``, ``forward_head``, ``get_classifier``) work
            without `layer`, all of `cba_fast.models` among them; any other needs it.
        x: (N, 3, H, W).
        layer: dotted name of the module whose output is taken as the features.

    Returns:
        Features (N, C, h, w), logits (N, K) and the classifier's weight (K, C). Features that come
        as (N, h, w, C) are permuted.

    Raises:
        TypeError: no linear classifier, or no features without `layer`.
        ValueError: `layer` does not exist, or its channels differ from the classifier's inputs.
    """
    head = _linear_head(model)
    if layer is None:
        if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
            raise TypeError(
                f"{type(model).__name__} has no forward_features/forward_head; name the layer that "
                "gives the last feature maps"
            )
        features = model.forward_features(x)
        logits = model.forward_head(features)
    else:
        features, logits = _run_with_hook(model, x, layer)
    return _channels_first(features, head.in_features, layer), logits, head.weight.detach()


def _linear_head(model: nn.Module) -> nn.Linear:
    if hasattr(model, "get_classifier"):
        head = model.get_classifier()
    else:
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        head = linears[-1] if linears else None
    if not isinstance(head, nn.Linear):
        raise TypeError(
            f"the classifier of {type(model).__name__} must be one nn.Linear after pooling, "
            f"got {type(head).__name__}"
        )
    return head


def _run_with_hook(model: nn.Module, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"{type(model).__name__} has no module named {layer!r}")
    seen = []
    handle = modules[layer].register_forward_hook(lambda _m, _i, out: seen.append(out))
    try:
        logits = model(x)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ValueError(f"module {layer!r} ran {len(seen)} times in one forward pass, not once")
    return seen[0], logits


def _channels_first(features: Tensor, channels: int, layer: str | None) -> Tensor:
    where = "forward_features" if layer is None else f"module {layer!r}"
    if not torch.is_tensor(features) or features.ndim != 4:
        got = tuple(features.shape) if torch.is_tensor(features) else type(features).__name__
        raise ValueError(f"{where} must give (N, C, h, w) feature maps, got {got}")
    if features.shape[1] == channels:
        return features
    if features.shape[3] == channels:  # e.g. Swin: (N, h, w, C)
        return features.permute(0, 3, 1, 2)
    raise ValueError(
        f"{where} gives {tuple(features.shape)}, but the classifier takes {channels} channels"
    )
