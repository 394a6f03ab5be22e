"""One function that makes maps, for every command and for users with their own models."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..data.transfer import to_device
from ..shapes import Size, map_shape
from .class_activation import cam_from_features
from .features import classify
from .heatmap import normalize, quantize_maps
from .located import Localization, Located
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
        map_size: (H, W) of the maps in pixels or their side; None or "input" for those of `x`.
        pc1_range: see `finish_maps`; used by ``"pc1"`` alone.
        layout: how the output that is explained holds its map: ``"NCHW"``, ``"NHWC"`` (Swin) or
            ``"NLC"`` (tokens); None to find it out.

    Returns:
        A `Localization`. The same call gives the maps that ``generate-heatmap`` stores and that
        ``evaluate`` scores.

    Raises:
        ValueError: an unknown method, a target outside the classes, or shapes that do not fit.
        TypeError: the model has no usable features or linear head, `x` is no tensor, or `target` is
            not made of integers.
        InputError: the feature maps or the map of an image hold NaN or infinite values.

    Notes:
        All is computed on the device of `x`, the maps in float32 and the axis of PC1 in float64,
        also under autocast; the host waits for it once, at the end. On a GPU maps are resized by
        `resize_bilinear` instead of OpenCV.
    """
    found = locate(
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
def locate(
    model: nn.Module,
    x: Tensor,
    *,
    method: str = "cam",
    target: int | Tensor | None = None,
    layer: str | None = None,
    map_size: Size = None,
    pc1_range: str = "wrap",
    layout: str | None = None,
) -> Located:
    """Do on the device what `localize` does, without waiting for it.

    Two steps wait for it nevertheless: ``eigh``, by which PC1 finds its axis, to learn whether it
    converged, and the search for the classifier of a model without ``get_classifier``.

    Args:
        model, x, method, target, layer, map_size, pc1_range, layout: as for `localize`.

    Returns:
        What will be there.

    Raises:
        ValueError, TypeError: as `localize`; targets and features are checked by `Located.check`.
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
    # Autocast would take the maps' products to half precision.
    with torch.autocast(found[0].device.type, enabled=False):
        value_range = pc1_range if method == "pc1" else "clip"
        located = _on_device(*found, target, METHODS[method], map_size, value_range)
    return Located(located.u[:num_images], located.facts[:num_images], located.num_classes)


def _on_device(
    features: Tensor,
    logits: Tensor,
    weight: Tensor,
    target: Tensor | None,
    make: Callable[[Tensor, Tensor], Tensor],
    map_size: tuple[int, int],
    value_range: str,
) -> Located:
    top5 = logits.float().topk(min(5, logits.shape[1]), dim=1).indices
    targets = top5[:, 0]
    if target is not None:
        targets = to_device(target, top5.device).expand(len(features))
    # What the host will refuse must not stop the device before: indices outside of the weight end
    # a CUDA process.
    rows = weight[targets.clamp(0, logits.shape[1] - 1)]
    small = make(features, rows)  # not finite where the features are not
    finite = small.isfinite().all(dim=2).all(dim=1) & ~logits.isnan().any(dim=1)
    # Devices that are neither CPU nor CUDA may lack float64; their small maps go on at the host.
    small, finite, targets, top5 = (
        t if t.is_cuda else t.cpu() for t in (small, finite, targets, top5)
    )
    u = quantize_maps(small, map_size, value_range)
    constant = u.amin((1, 2)) == u.amax((1, 2))
    columns = [finite, constant, targets]
    facts = torch.cat([torch.stack([c.long() for c in columns], 1), top5], 1)
    return Located(u, facts, logits.shape[1])


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
        layout: of the explained feature maps, see :func:`localize`.

    Returns:
        (N, H, W) float64 in [0, 1] on the device of `x`: rectified, divided by the maximum,
        bilinearly upsampled, quantized to 256 levels and min-max normalized as in the study.

    Raises:
        ValueError, TypeError: as :func:`localize`.
    """
    return _maps(
        locate(model, x, method="cam", target=target, layer=layer, map_size=map_size, layout=layout)
    )


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
    """Make PC1 maps; arguments and result as :func:`cam`, `pc1_range` as in `finish_maps`."""
    return _maps(
        locate(
            model,
            x,
            method="pc1",
            target=target,
            layer=layer,
            map_size=map_size,
            pc1_range=pc1_range,
            layout=layout,
        )
    )


def _maps(found: Located) -> Tensor:
    """Return the checked maps where they are."""
    found.check(found.facts.cpu().numpy())
    return normalize(found.u)
