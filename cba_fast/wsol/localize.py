"""One function that makes maps, for every command and for users with their own models."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cba_fast.data.transfer import Arriving, to_device
from cba_fast.errors import InputError

from .class_activation import cam_from_features
from .features import classify
from .heatmap import normalize, quantize_maps, score_levels
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


@dataclass
class Levels:
    """A `Localization` with bytes in place of maps.

    Attributes:
        u: (N, S, S) uint8.
        constant, targets, top5: as of `Localization`.
    """

    u: np.ndarray
    constant: np.ndarray
    targets: np.ndarray
    top5: np.ndarray

    def localization(self) -> Localization:
        """Return the maps of bytes that are not `scored`."""
        maps = normalize(torch.from_numpy(self.u)).numpy()
        return Localization(maps, self.constant, self.targets, self.top5)


@dataclass
class Located:
    """A batch on its device; the host has waited for nothing and checked nothing yet.

    Attributes:
        u: (N, S, S) uint8, quantized maps.
        facts: (N, 4 + K) int64: whether the features and the small map are finite, whether the map
            is constant, the target, the K best classes. One tensor, as each copy has its price.
        num_classes: of the model.
    """

    u: Tensor
    facts: Tensor
    num_classes: int

    def check(self, facts: np.ndarray) -> None:
        """Refuse what `facts`, on the host, tell.

        Raises:
            InputError: features that are not finite.
            ValueError: a target that the model does not have, or a map that is not finite.
        """
        finite, finite_maps, _, targets = facts.T[:4]
        if not finite.all():
            n = int(np.argmin(finite))
            raise InputError(
                f"the feature maps of image {n} of the batch hold NaN or infinite values"
            )
        bad = targets[(targets < 0) | (targets >= self.num_classes)]
        if len(bad):
            raise ValueError(f"target {bad[0]} is outside the model's {self.num_classes} classes")
        if not finite_maps.all():
            n = int(np.argmin(finite_maps))
            raise ValueError(f"maps[{n}] holds NaN or infinite values")

    def send(self, scored: bool = False) -> Callable[[], Levels]:
        """Send the batch to the host; the host goes on.

        Args:
            scored: send the bytes that the evaluator scores (`score_levels`) instead of those of
                which maps are made.

        Returns:
            A function that waits for the batch and returns it, in any thread. It raises what
            :meth:`check` does.
        """
        arriving = Arriving(score_levels(self.u) if scored else self.u, self.facts)

        def read() -> Levels:
            u, facts = arriving.wait()
            self.check(facts)
            return Levels(u, facts[:, 2].astype(bool), facts[:, 3], facts[:, 4:])

        return read


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
    map_size: int | None = None,
    pc1_range: str = "wrap",
) -> Located:
    """Do on the device what `localize` does, without waiting for it.

    ``eigh``, by which PC1 finds its axis, waits in PyTorch to learn whether it converged; CAM has
    no such step.

    Args:
        model, x, method, target, layer, map_size, pc1_range: as for `localize`.

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
    if map_size is None:
        if x.shape[2] != x.shape[3]:
            raise ValueError(f"give map_size: the input is not square, {tuple(x.shape[2:])}")
        map_size = x.shape[3]
    num_images = len(x)
    if not num_images:  # not every model takes an empty batch; a black image gives the shapes
        x, target = x.new_zeros((1, *x.shape[1:])), None
    features, logits, weight = classify(model, x, layer)
    # Autocast would take the maps' products to half precision.
    with torch.autocast(features.device.type, enabled=False):
        top5 = logits.float().topk(min(5, logits.shape[1]), dim=1).indices
        targets = top5[:, 0] if target is None else to_device(target, top5.device).expand(len(x))
        # What the host will refuse must not stop the device before: indices outside of the weight
        # end a CUDA process, and `eigh` has an error of its own for NaN.
        rows = weight[targets.clamp(0, logits.shape[1] - 1)]
        finite = features.isfinite().flatten(1).all(dim=1)
        small = METHODS[method](torch.where(finite[:, None, None, None], features, 0), rows)
        u = quantize_maps(small, map_size, pc1_range if method == "pc1" else "clip")
        constant = u.amin((1, 2)) == u.amax((1, 2))
        columns = [finite, small.isfinite().all(dim=2).all(dim=1), constant, targets]
        facts = torch.cat([torch.stack([c.long() for c in columns], 1), top5], 1)
    return Located(u[:num_images], facts[:num_images], logits.shape[1])


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
    return _maps(locate(model, x, method="cam", target=target, layer=layer, map_size=map_size))


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
    return _maps(
        locate(
            model,
            x,
            method="pc1",
            target=target,
            layer=layer,
            map_size=map_size,
            pc1_range=pc1_range,
        )
    )


def _maps(found: Located) -> Tensor:
    """Return the checked maps where they are."""
    found.check(found.facts.cpu().numpy())
    return normalize(found.u)
