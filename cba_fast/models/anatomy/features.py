"""Find out how a model lays out its feature maps, and bring them to (N, C, h, w) and back."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LAYOUTS = ("NCHW", "NHWC", "NLC")

# How many tokens may come before those of the map where a model has no attribute
# ``num_prefix_tokens``: none, a class token, or a class and a distillation token.
_USUAL_PREFIXES = (0, 1, 2)


@dataclass(frozen=True)
class FeatureLayout:
    """The way in which a tensor holds a feature map.

    Attributes:
        kind: "NCHW": (N, C, h, w); "NHWC": (N, h, w, C), as Swin; "NLC": (N, L, C), as ViT, where
            the map's h * w positions follow `prefix` other tokens row by row.
        prefix: number of tokens before the map, such as the class token ("NLC" only).
        grid: (h, w) of the map ("NLC" only).
    """

    kind: str
    prefix: int = 0
    grid: tuple[int, int] | None = None

    def to_nchw(self, features: Tensor) -> Tensor:
        """Return the map as (N, C, h, w), a view of `features`; prefix tokens are left out.

        Gradients with respect to features have the layout of the features.
        """
        if self.kind == "NCHW":
            return features
        if self.kind == "NLC":
            features = features[:, self.prefix :].unflatten(1, self.grid)
        return features.permute(0, 3, 1, 2)

    def from_nchw(self, maps: Tensor, like: Tensor) -> Tensor:
        """Return features in this layout whose map is `maps` (N, C, h, w).

        Args:
            maps: the map.
            like: features in this layout, which give the prefix tokens.
        """
        if self.kind == "NCHW":
            return maps
        maps = maps.permute(0, 2, 3, 1)
        if self.kind == "NHWC":
            return maps
        return torch.cat([like[:, : self.prefix], maps.flatten(1, 2)], 1)


def layout_of(
    features: Any,
    image_size: Sequence[int],
    *,
    model: nn.Module | None = None,
    last: bool = True,
    channels: int | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
    layout: str | FeatureLayout | None = None,
    where: str = "the model",
) -> FeatureLayout:
    """Find out which axes of `features` are channels, height and width.

    Four dimensions are (N, C, h, w) or (N, h, w, C). These questions are asked in turn until one
    decides: Which of the two axes has the right number of channels? What does timm's ``output_fmt``
    say? Which axes have the aspect ratio of the image? Over which axes does the model's head pool?
    Three dimensions are (N, L, C), with a grid of the aspect ratio of the image.

    Args:
        features: the output of the model or of a layer for images of `image_size`.
        image_size: (H, W) of the images in pixels.
        model: the network whose attributes are read; None if it is not known.
        last: whether `features` are the output of the model's ``forward_features``. Only then do
            its ``num_features`` and ``forward_head`` apply to them; ``output_fmt`` tells of other
            layers only if the aspect ratio does not.
        channels: C where it is known, for example from a linear head; None for the model's
            ``num_features``.
        head: function from such features of one image to the pooled ones; None for the model's
            ``forward_head``.
        layout: what the caller knows: one of `LAYOUTS`, a `FeatureLayout`, or None.
        where: name of what gave the features, for messages.

    Raises:
        ValueError: `features` are no feature map or not of the given layout, or their layout cannot
            be known.
    """
    if isinstance(layout, FeatureLayout):
        return layout
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout must be None or one of {', '.join(LAYOUTS)}, got {layout!r}")
    check_is_map(features, where)
    if layout is not None and len(layout) != features.ndim:
        raise ValueError(f"{where} gives {tuple(features.shape)}, which is not {layout}")
    if features.ndim == 3:
        return _token_layout(features, image_size, model, where)
    if layout is not None:
        return FeatureLayout(layout)
    for kinds in _evidence(features, image_size, model, last, channels, head):
        if len(kinds) == 1:
            return FeatureLayout(kinds.pop())
    raise ValueError(
        f"{where} gives {tuple(features.shape)}, which may be (N,C,h,w) or (N,h,w,C): say"
        " layout='NCHW' or layout='NHWC'"
    )


def check_is_map(features: object, where: str) -> None:
    """Raise ValueError unless `features`, which `where` gave, have the dimensions of a map."""
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"{where} must give a feature map (N,C,h,w), (N,h,w,C) or (N,L,C), got {got}"
        )


def _evidence(
    features: Tensor,
    image_size: Sequence[int],
    model: nn.Module | None,
    last: bool,
    channels: int | None,
    head: Callable[[Tensor], Tensor] | None,
) -> Iterator[set[str]]:
    """Yield the layouts that each piece of evidence speaks for, the strongest piece first."""
    _, a, b, c = features.shape
    said = {kind for kind in ("NCHW", "NHWC") if getattr(model, "output_fmt", None) == kind}
    if channels is None and last:
        channels = getattr(model, "num_features", None)
    yield {kind for kind, size in (("NCHW", a), ("NHWC", c)) if size == channels}
    yield said if last else set()
    sides = {"NCHW": (b, c), "NHWC": (a, b)}
    yield {kind for kind, grid in sides.items() if _has_aspect(grid, image_size)}
    height, width = image_size
    yield {kind for kind, (h, w) in sides.items() if h * width == w * height}
    # timm's models of another format say so.
    yield said or ({"NCHW"} if not last and hasattr(model, "pretrained_cfg") else set())
    if head is None and last and model is not None and hasattr(model, "forward_head"):
        head = pooling_head(model)
    if head is not None:
        probe = random_like(features)
        moved = {"NCHW": probe.roll(1, 3), "NHWC": probe.roll(1, 1)}
        changes = {kind: head_change(head, probe, other) for kind, other in moved.items()}
        yield {kind for kind, change in changes.items() if change < 0.05 * max(changes.values())}


def pooling_head(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the model's ``forward_head``, up to the pooled features where it can return them.

    They tell more than logits: some models start with a classifier of zeros, whose logits never
    change.
    """
    has = "pre_logits" in inspect.signature(model.forward_head).parameters
    return functools.partial(model.forward_head, **({"pre_logits": True} if has else {}))


def random_like(features: Tensor) -> Tensor:
    """Return random features of one image; PyTorch's global generators stay as they are."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((1, *features.shape[1:]), generator=generator).to(features)


@torch.no_grad()
def head_change(head: Callable[[Tensor], Tensor], features: Tensor, others: Tensor) -> float:
    """Return the largest difference between the outputs of a head for two inputs."""
    return float((head(features.clone()) - head(others.clone())).abs().max())


def _token_layout(
    features: Tensor, image_size: Sequence[int], model: nn.Module | None, where: str
) -> FeatureLayout:
    count, known = features.shape[1], getattr(model, "num_prefix_tokens", None)
    prefixes = _USUAL_PREFIXES if known is None else {known, 0}
    found = [FeatureLayout("NLC", p, g) for p in prefixes for g in _grids(count - p, image_size)]
    if known:  # the patch embedding has no prefix tokens yet
        found = [f for f in found if f.prefix == known] or found
    if known is None:  # a single token is most likely a class token, left after dropping the others
        found = [f for f in found if f.grid != (1, 1)]
    if len(found) > 1:
        patches = getattr(getattr(model, "patch_embed", None), "grid_size", None)
        found = [f for f in found if f.grid == patches]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"{where} gives {tuple(features.shape)}: how its {count} tokens lie over an image of"
        f" {image_size[0]}x{image_size[1]} cannot be known; say"
        " layout=FeatureLayout('NLC', prefix, (h, w))"
    )


def _grids(count: int, image_size: Sequence[int]) -> list[tuple[int, int]]:
    """Return the grids of `count` positions that have the aspect ratio of the image."""
    grids = [(h, count // h) for h in range(1, count + 1) if count % h == 0]
    return [grid for grid in grids if _has_aspect(grid, image_size)]


def _has_aspect(grid: tuple[int, int], image_size: Sequence[int]) -> bool:
    """Say whether some stride, equal on both axes, leads from the image to this grid.

    Each side may be rounded up or down.
    """
    (h, w), (height, width) = grid, image_size
    if height == width:
        return h == w
    smallest = max(height / (h + 1), width / (w + 1))
    largest = min(side / (n - 1) for side, n in ((height, h), (width, w), (math.inf, 2)) if n > 1)
    return smallest < largest
