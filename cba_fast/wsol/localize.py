"""Make score maps by CAM or PC1, for the commands and for users with their own models."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..data.reading import to_device
from ..shapes import Size, map_shape
from .class_activation import cam_from_features
from .device_maps import DeviceMaps, Localization
from .features import classify
from .heatmap import normalize, quantize_maps
from .principal_component import pc1_from_features

METHODS = {"cam": cam_from_features, "pc1": pc1_from_features}


def localize(
    model: nn.Module,
    x: Tensor,
    *,
    method: str = "cam",
    target: int | Tensor | None = None,
    layer: str | None = None,
    map_size: Size = None,
    pc1_range: str = "wrap",
    layout: str | None = None,
) -> Localization:
    """Make one score map per image, and return it with the predicted classes.

    Args:
        model: a classifier with global pooling and a linear head, see `classify`. It runs in eval
            mode; its mode is restored at the end.
        x: (N, 3, H, W) floating, normalized as the model expects, with the model's device and
            dtype. N may be 0.
        method: ``"cam"`` or ``"pc1"``.
        target: the class to explain: None for each image's top-1, one index for all images, or
            an (N,) integer tensor, array or list.
        layer: dotted name of the module whose output is explained; None for the model's last
            feature maps (``forward_features``).
        map_size: (H, W) of the maps in pixels or their side; None or "input" for those of `x`.
        pc1_range: ``"wrap"``, ``"clip"`` or ``"minmax"``, see `finish_maps`; for ``"pc1"`` only.
        layout: how the explained output holds its map: ``"NCHW"``, ``"NHWC"`` (Swin) or ``"NLC"``
            (tokens); None to find out.

    Returns:
        The maps that ``generate-heatmap`` stores and that ``evaluate`` scores.

    Raises:
        ValueError: an unknown method, a target outside the classes, or shapes that do not fit.
        TypeError: the model has no usable features or linear head, `x` is no tensor, or `target` is
            not made of integers.
        InputError: the feature maps or the map of an image hold NaN or infinite values.

    Notes:
        Everything is computed on the device of `x`, the maps in float32 and the axis of PC1 in
        float64, also under autocast. The host waits for it once, at the end. On a GPU maps are
        resized by `resize_bilinear` instead of OpenCV.
    """
    found = localize_on_device(
        model,
        x,
        method=method,
        target=target,
        layer=layer,
        map_size=map_size,
        pc1_range=pc1_range,
        layout=layout,
    )
    return found.send()().localization()


@torch.no_grad()
def localize_on_device(
    model: nn.Module,
    x: Tensor,
    *,
    method: str = "cam",
    target: int | Tensor | None = None,
    layer: str | None = None,
    map_size: Size = None,
    pc1_range: str = "wrap",
    layout: str | None = None,
) -> DeviceMaps:
    """Start what `localize` does on the device, without waiting for the results.

    Two steps wait nevertheless: ``eigh``, by which PC1 finds its axis, to learn whether it
    converged, and the search for the classifier of a model without ``get_classifier``.

    Args:
        model, x, method, target, layer, map_size, pc1_range, layout: as for `localize`.

    Raises:
        ValueError, TypeError: as `localize`; `DeviceMaps.check` checks targets and features later.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
    if not torch.is_tensor(x):
        raise TypeError(f"x must be a tensor (N, 3, H, W), got {type(x).__name__}")
    if x.ndim != 4:
        raise ValueError(f"x must be (N, 3, H, W), got shape {tuple(x.shape)}")
    target = None if target is None else _as_targets(target, len(x))
    map_size = map_shape(map_size, x.shape[2:])
    num_images = len(x)
    if not num_images:  # not every model takes an empty batch; a black image gives the shapes
        x, target = x.new_zeros((1, *x.shape[1:])), None
    found = classify(model, x, layer, layout)
    # Autocast would compute the maps' products in half precision.
    with torch.autocast(found[0].device.type, enabled=False):
        value_range = pc1_range if method == "pc1" else "clip"
        made = _quantized_maps(*found, target, METHODS[method], map_size, value_range)
    return DeviceMaps(made.u[:num_images], made.facts[:num_images], made.num_classes)


def _quantized_maps(
    features: Tensor,
    logits: Tensor,
    weight: Tensor,
    target: Tensor | None,
    make: Callable[[Tensor, Tensor], Tensor],
    map_size: tuple[int, int],
    value_range: str,
) -> DeviceMaps:
    top5 = logits.float().topk(min(5, logits.shape[1]), dim=1).indices
    targets = top5[:, 0]
    if target is not None:
        targets = to_device(target, top5.device).expand(len(features))
    # Targets outside of the classes are clamped here and refused later by the host, because an
    # index outside of a tensor ends a CUDA process.
    rows = weight[targets.clamp(0, logits.shape[1] - 1)]
    small = make(features, rows)  # not finite where the features are not
    finite = small.isfinite().all(dim=2).all(dim=1) & ~logits.isnan().any(dim=1)
    # Devices that are neither CPU nor CUDA may lack float64, so the host continues in their place.
    small, finite, targets, top5 = (
        t if t.is_cuda else t.cpu() for t in (small, finite, targets, top5)
    )
    u = quantize_maps(small, map_size, value_range)
    constant = u.amin((1, 2)) == u.amax((1, 2))
    columns = [finite, constant, targets]
    facts = torch.cat([torch.stack([c.long() for c in columns], 1), top5], 1)
    return DeviceMaps(u, facts, logits.shape[1])


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


def cam(
    model: nn.Module,
    x: Tensor,
    target: int | Tensor | None = None,
    layer: str | None = None,
    *,
    map_size: Size = None,
    layout: str | None = None,
) -> Tensor:
    """Make class activation maps of any classifier with pooling and a linear head.

    Args:
        model: e.g. ``timm.create_model("convnext_tiny")``.
        x: (N, 3, H, W) floating, normalized as the model expects.
        target: None for each image's top-1 class, one index, or an (N,) tensor of indices.
        layer: dotted name of a module to explain instead of the last feature maps.
        map_size: (H, W) of the maps or their side; None or "input" for those of `x`.
        layout: layout of the explained feature maps, see :func:`localize`.

    Returns:
        (N, H, W) float64 in [0, 1] on the device of `x`: rectified, divided by the maximum,
        bilinearly upsampled, quantized to 256 levels and min-max normalized as in the study.

    Raises:
        ValueError, TypeError: as :func:`localize`.
    """
    options = {"target": target, "layer": layer, "map_size": map_size, "layout": layout}
    return _maps(localize_on_device(model, x, method="cam", **options))


def pc1(
    model: nn.Module,
    x: Tensor,
    target: int | Tensor | None = None,
    layer: str | None = None,
    *,
    map_size: Size = None,
    pc1_range: str = "wrap",
    layout: str | None = None,
) -> Tensor:
    """Make PC1 maps, the first principal component of the weighted feature maps.

    Arguments, result and errors are those of :func:`cam`; `pc1_range` is that of `finish_maps`. A
    map is the principal axis, divided by its maximum, instead of a rectified mean.
    """
    options = {"target": target, "layer": layer, "map_size": map_size, "layout": layout}
    return _maps(localize_on_device(model, x, method="pc1", pc1_range=pc1_range, **options))


def _maps(found: DeviceMaps) -> Tensor:
    """Check the maps and return them on their device: (N, H, W) float64 in [0, 1]."""
    found.check(found.facts.cpu().numpy())
    return normalize(found.u)
