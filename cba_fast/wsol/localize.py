"""Make score maps by any method, for the commands and for users with their own models."""

from typing import Any

import torch
from torch import Tensor, nn

from ..data.reading import to_device
from ..models.anatomy.parts import Layer
from ..shapes import Size, map_shape
from ..stages import stage
from .device_maps import DeviceMaps, Localization
from .heatmap import normalize, quantize_maps
from .methods import Evidence, method_named


def localize(
    model: nn.Module,
    x: Tensor,
    *,
    method: str = "cam",
    target: int | Tensor | None = None,
    layer: Layer = None,
    map_size: Size = None,
    pc1_range: str = "wrap",
    layout: str | None = None,
) -> Localization:
    """Make one score map per image, and return it with the predicted classes.

    Args:
        model: a classifier, also within `DataParallel`, `torch.compile` or a module that
            normalizes its input, whose logits may come in a dict or tuple. It runs in eval mode;
            its mode is restored at the end. For "cam" and "pc1" it has global pooling and a linear
            head, see `cba_fast.wsol.methods.gather`.
        x: (N, 3, H, W) floating, normalized as the model expects, with the model's device and
            dtype. N may be 0.
        method: one of `METHODS`, such as "cam" or "grad-cam"; `register_method` adds others.
        target: the class to explain: None for each image's top-1, one index for all images, or
            an (N,) integer tensor, array or list.
        layer: the module whose output is explained, by its dotted name or as such, or in a list of
            one; None for the model's last feature maps (``forward_features`` where the model has
            that, or else the last map on which the logits depend).
        map_size: (H, W) of the maps in pixels or their side; None or "input" for those of `x`.
        pc1_range: ``"wrap"``, ``"clip"`` or ``"minmax"``, see `finish_maps`; for ``"pc1"`` only.
        layout: how the explained output holds its map: ``"NCHW"``, ``"NHWC"`` (Swin) or ``"NLC"``
            (tokens); None to find out.

    Returns:
        The maps that ``generate-heatmap`` stores and that ``evaluate`` scores.

    Raises:
        ValueError: an unknown method, a target outside the classes, or shapes, a device or a dtype
            that do not fit.
        ModelError: the model lacks what the method needs, such as a linear head; a `TypeError`,
            too.
        TypeError: `x` is no floating tensor, or `target` is not made of integers.
        InputError: the feature maps or the map of an image hold NaN or infinite values.

    Notes:
        Everything is computed on the device of `x`, the maps in float32 and the axis of PC1 in
        float64, also under autocast. The host waits for it once, at the end. On a GPU maps are
        resized by `resize_bilinear` instead of OpenCV.

    Example:
        >>> import timm, torch
        >>> from cba_fast.wsol import localize
        >>> model = timm.create_model("test_resnet", num_classes=10)
        >>> found = localize(model, torch.randn(2, 3, 64, 64), method="layer-cam")
        >>> found.maps.shape, found.top5.shape
        ((2, 64, 64), (2, 5))
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
    layer: Layer = None,
    map_size: Size = None,
    pc1_range: str = "wrap",
    layout: str | None = None,
) -> DeviceMaps:
    """Start what `localize` does on the device, without waiting for the results.

    Some steps wait nevertheless: ``eigh``, by which PC1 and Eigen-CAM find their axis, to learn
    whether it converged, and the search for classifier and layer in models without timm's methods.

    Args:
        model, x, method, target, layer, map_size, pc1_range, layout: as for `localize`.

    Raises:
        ValueError, TypeError: as `localize`; `DeviceMaps.check` checks targets and features later.
    """
    chosen = method_named(method)
    if not torch.is_tensor(x):
        raise TypeError(f"x must be a tensor (N, 3, H, W), got {type(x).__name__}")
    if x.ndim != 4:
        raise ValueError(f"x must be (N, 3, H, W), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(
            f"x must be floating and normalized as the model expects, got {x.dtype}: for example"
            " (x / 255 - mean) / std"
        )
    target = None if target is None else _as_targets(target, len(x))
    map_size = map_shape(map_size, x.shape[2:])
    num_images = len(x)
    if not num_images:  # not every model takes an empty batch; a black image gives the shapes
        x, target = x.new_zeros((1, *x.shape[1:])), None
    with stage("model"):
        found = chosen.gather(model, x, target=target, layer=layer, layout=layout)
    value_range = pc1_range if method == "pc1" else chosen.value_range
    # Autocast would compute the maps' products in half precision.
    with stage("map"), torch.autocast(x.device.type, enabled=False):
        made = _quantized_maps(chosen.small_maps(found), found, target, map_size, value_range)
    return DeviceMaps(made.u[:num_images], made.facts[:num_images], made.num_classes)


def _quantized_maps(
    small: Tensor,
    found: Evidence,
    target: Tensor | None,
    map_size: tuple[int, int],
    value_range: str,
) -> DeviceMaps:
    logits, top5 = found.logits, found.top5
    # As they were asked for: those outside of the classes are refused by the host.
    targets = found.targets if target is None else to_device(target, top5.device)
    targets = targets.expand(len(logits))
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


def heatmap(
    model: nn.Module,
    x: Tensor,
    target: int | Tensor | None = None,
    layer: Layer = None,
    *,
    method: str = "cam",
    map_size: Size = None,
    pc1_range: str = "wrap",
    layout: str | None = None,
) -> Tensor:
    """Make heatmaps of a batch of images by any method, for any classifier.

    Args:
        model: e.g. ``timm.create_model("convnext_tiny")``; see :func:`localize`.
        x: (N, 3, H, W) floating, normalized as the model expects.
        target: None for each image's top-1 class, one index, or an (N,) tensor of indices.
        layer: the layer to explain: a dotted name, a module, or a list of one; None for the last
            feature maps.
        method: one of `METHODS`, such as "grad-cam".
        map_size: (H, W) of the maps or their side; None or "input" for those of `x`.
        pc1_range: that of `finish_maps`, for "pc1" only.
        layout: layout of the explained feature maps, see :func:`localize`.

    Returns:
        (N, H, W) float64 in [0, 1] on the device of `x`: bilinearly upsampled, quantized to 256
        levels and min-max normalized, as ``generate-heatmap`` stores them.

    Raises:
        ValueError, TypeError: as :func:`localize`.

    Example:
        >>> import timm, torch
        >>> from cba_fast.wsol import heatmap
        >>> model = timm.create_model("test_resnet", num_classes=10)
        >>> heatmap(model, torch.randn(2, 3, 64, 96), target=3, method="grad-cam").shape
        torch.Size([2, 64, 96])
    """
    options: dict[str, Any] = {"map_size": map_size, "pc1_range": pc1_range, "layout": layout}
    found = localize_on_device(model, x, method=method, target=target, layer=layer, **options)
    found.check(found.facts.cpu().numpy())
    return normalize(found.u)


def cam(
    model: nn.Module,
    x: Tensor,
    target: int | Tensor | None = None,
    layer: Layer = None,
    *,
    map_size: Size = None,
    layout: str | None = None,
) -> Tensor:
    """Make class activation maps of any classifier with pooling and a linear head.

    Arguments, result and errors are those of :func:`heatmap`.

    Example:
        >>> import timm, torch
        >>> from cba_fast.wsol import cam
        >>> model = timm.create_model("test_resnet", num_classes=10)
        >>> maps = cam(model, torch.randn(2, 3, 64, 64), target=3)
        >>> maps.shape, maps.dtype
        (torch.Size([2, 64, 64]), torch.float64)
    """
    return heatmap(model, x, target, layer, map_size=map_size, layout=layout)


def pc1(
    model: nn.Module,
    x: Tensor,
    target: int | Tensor | None = None,
    layer: Layer = None,
    *,
    map_size: Size = None,
    pc1_range: str = "wrap",
    layout: str | None = None,
) -> Tensor:
    """Make PC1 maps, the first principal component of the weighted feature maps.

    Arguments, result and errors are those of :func:`heatmap`. A map is the principal axis, divided
    by its maximum, instead of a rectified mean.

    Example:
        >>> import timm, torch
        >>> from cba_fast.wsol import pc1
        >>> model = timm.create_model("test_resnet", num_classes=10)
        >>> pc1(model, torch.randn(2, 3, 128, 128), map_size=224, pc1_range="clip").shape
        torch.Size([2, 224, 224])
    """
    more: dict[str, Any] = {"map_size": map_size, "pc1_range": pc1_range, "layout": layout}
    return heatmap(model, x, target, layer, method="pc1", **more)
