"""One function that makes maps, for every command and for users with their own models."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cba_fast.errors import InputError

from .class_activation import cam_from_features
from .features import classify
from .heatmap import finish_maps, is_constant
from .principal_component import pc1_from_features

METHODS = {"cam": cam_from_features, "pc1": pc1_from_features}


@dataclass
class Localization:
    """The maps of a batch and what the classifier said.

    Attributes:
        maps: (N, S, S) float64 NumPy array in [0, 1], as ``generate-heatmap`` stores them.
        constant: (N,) bool, which maps came out constant and were replaced by zeros.
        targets: (N,) int64, the class each map explains.
        top5: (N, min(5, classes)) int64, the predicted classes, best first.
    """

    maps: np.ndarray
    constant: np.ndarray
    targets: np.ndarray
    top5: np.ndarray


@torch.no_grad()
def localize(
    model: nn.Module,
    x: Tensor,
    *,
    method: str = "cam",
    target: int | Tensor | None = None,
    layer: str | None = None,
    map_size: int | None = None,
    pc1_range: str = "wrap",
) -> Localization:
    """Make one score map per image.

    Args:
        model: a classifier with global pooling and a linear head, in any mode: it runs in eval mode
            and is left as it was; see `classify`.
        x: (N, 3, H, W) floating, normalized as the model expects, of the model's device and dtype.
            N may be 0.
        method: ``"cam"`` or ``"pc1"``.
        target: the class to explain: None for each image's top-1, one index for all images, or
            an (N,) integer tensor, array or list.
        layer: dotted name of the module whose output is explained; None for the model's last
            feature maps (``forward_features``).
        map_size: side of the maps in pixels; None for H (then x must be square).
        pc1_range: see `finish_maps`; used by ``"pc1"`` alone.

    Returns:
        A `Localization`. The same call gives the maps that ``generate-heatmap`` stores and that
        ``evaluate`` scores.

    Raises:
        ValueError: an unknown method, a target outside the classes, or shapes that do not fit.
        TypeError: the model has no usable features or linear head, `x` is no tensor, or `target` is
            not made of integers.
        InputError: the features hold NaN or infinite values.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
    if not torch.is_tensor(x):
        raise TypeError(f"x must be a tensor (N, 3, H, W), got {type(x).__name__}")
    if x.ndim != 4:
        raise ValueError(f"x must be (N, 3, H, W), got shape {tuple(x.shape)}")
    target = None if target is None else _as_targets(target, len(x))
    if map_size is None:
        if x.shape[2] != x.shape[3]:
            raise ValueError(f"give map_size: the input is not square, {tuple(x.shape[2:])}")
        map_size = x.shape[3]
    num_images = len(x)
    if not num_images:  # not every model takes an empty batch; a black image gives the shapes
        x, target = x.new_zeros((1, *x.shape[1:])), None
    features, logits, weight = classify(model, x, layer)
    _check_finite(features)
    top5 = logits.float().topk(min(5, logits.shape[1]), dim=1).indices
    targets = top5[:, 0] if target is None else target.to(top5.device).expand(len(x))
    _check_targets(targets, logits.shape[1])
    small = METHODS[method](features, weight[targets])
    value_range = pc1_range if method == "pc1" else "clip"
    maps = finish_maps(small[:num_images].cpu().numpy(), map_size, value_range)
    targets, top5 = (v[:num_images].cpu().numpy() for v in (targets, top5))
    return Localization(maps, is_constant(maps), targets, top5)


def _as_targets(target: int | Tensor, num_images: int) -> Tensor:
    """Return `target` as int64 of shape () or (N,)."""
    try:
        targets = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(f"target must be None or integer, got {target!r}") from e
    if targets.dtype.is_floating_point or targets.dtype.is_complex or targets.dtype == torch.bool:
        got = targets.dtype if targets.ndim else f"{target!r}"
        raise TypeError(f"target must be None or integer, got {got}")
    if targets.ndim and tuple(targets.shape) != (num_images,):
        raise ValueError(
            f"target must be one index or (N,) = ({num_images},) indices, got shape "
            f"{tuple(targets.shape)}"
        )
    return targets.to(torch.int64)


def _check_finite(features: Tensor) -> None:
    finite = features.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        n = int((~finite).nonzero()[0, 0])
        raise InputError(f"the feature maps of image {n} of the batch hold NaN or infinite values")


def _check_targets(targets: Tensor, num_classes: int) -> None:
    bad = targets[(targets < 0) | (targets >= num_classes)]
    if len(bad):
        raise ValueError(f"target {int(bad[0])} is outside the model's {num_classes} classes")


def cam(
    model: nn.Module,
    x: Tensor,
    target: int | Tensor | None = None,
    layer: str | None = None,
    *,
    map_size: int | None = None,
) -> Tensor:
    """Make class activation maps of any classifier with pooling and a linear head.

    Args:
        model: e.g. ``timm.create_model("convnext_tiny")``.
        x: (N, 3, H, W) floating, normalized as the model expects.
        target: None for each image's top-1 class, one index, or an (N,) tensor of indices.
        layer: dotted name of a module to explain instead of the last feature maps.
        map_size: side of the maps; None for the side of `x`.

    Returns:
        (N, S, S) float64 in [0, 1] on the device of `x`: rectified, divided by the maximum,
        bilinearly upsampled, quantized to 256 levels and min-max normalized as in the study.

    Raises:
        ValueError, TypeError: as :func:`localize`.
    """
    found = localize(model, x, method="cam", target=target, layer=layer, map_size=map_size)
    return torch.from_numpy(found.maps).to(x.device)


def pc1(
    model: nn.Module,
    x: Tensor,
    target: int | Tensor | None = None,
    layer: str | None = None,
    *,
    map_size: int | None = None,
    pc1_range: str = "wrap",
) -> Tensor:
    """Make PC1 maps; arguments and result as :func:`cam`, `pc1_range` as in `finish_maps`."""
    found = localize(
        model,
        x,
        method="pc1",
        target=target,
        layer=layer,
        map_size=map_size,
        pc1_range=pc1_range,
    )
    return torch.from_numpy(found.maps).to(x.device)
