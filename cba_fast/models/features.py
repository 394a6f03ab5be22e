"""Feature maps of any model as (N, C, h, w): from (N, h, w, C) and from tokens, and back."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LAYOUTS = ("NCHW", "NHWC", "NLC")

# How many tokens may stand before those of the map where a model does not say it (attribute
# ``num_prefix_tokens``): none, a class token, a class and a distillation token.
_USUAL_PREFIXES = (0, 1, 2)


@dataclass(frozen=True)
class FeatureLayout:
    """Says how a tensor holds a feature map.

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
    features: object,
    image_size: Sequence[int],
    *,
    model: nn.Module | None = None,
    last: bool = True,
    channels: int | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
    layout: str | FeatureLayout | None = None,
    where: str = "the model",
) -> FeatureLayout:
    """Return how `features` hold their map.

    Four dimensions are (N, C, h, w) or (N, h, w, C). The first of these that decides is followed:
    the only one of the two axes that has the right number of channels; timm's ``output_fmt``; which
    axes have the aspect of the image; over which axes the model's head pools. Three dimensions are
    (N, L, C) with a grid of the aspect of the image.

    Args:
        features: what the model or a layer gave for images of `image_size`.
        image_size: (H, W) of the images in pixels.
        model: the network, for what it says about its features; None if it is not known.
        last: whether `features` are what the model's ``forward_features`` gives, for which alone
            its ``num_features``, ``output_fmt`` and ``forward_head`` speak.
        channels: C if it is known, as from a linear head; None for the model's ``num_features``.
        head: what the model pools out of such features of one image; None for its ``forward_head``.
        layout: what the caller knows: one of `LAYOUTS`, a `FeatureLayout`, or None.
        where: what gave the features, for messages.

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
    for kinds in _evidence(features, image_size, model if last else None, channels, head):
        if len(kinds) == 1:
            return FeatureLayout(*kinds)
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
    channels: int | None,
    head: Callable[[Tensor], Tensor] | None,
) -> Iterator[set[str]]:
    """Yield the layouts that each piece of evidence speaks for, the strongest piece first."""
    _, a, b, c = features.shape
    channels = getattr(model, "num_features", None) if channels is None else channels
    yield {kind for kind, size in (("NCHW", a), ("NHWC", c)) if size == channels}
    yield {kind for kind in ("NCHW", "NHWC") if getattr(model, "output_fmt", None) == kind}
    sides = {"NCHW": (b, c), "NHWC": (a, b)}
    yield {kind for kind, grid in sides.items() if _has_aspect(grid, image_size)}
    if head is None and hasattr(model, "forward_head"):
        # Not the logits, where they can be left out: some models start with a classifier of zeros.
        has = "pre_logits" in inspect.signature(model.forward_head).parameters
        head = functools.partial(model.forward_head, **({"pre_logits": True} if has else {}))
    if head is not None:
        probe = random_like(features)
        moved = {"NCHW": probe.roll(1, 3), "NHWC": probe.roll(1, 1)}
        changes = {kind: head_change(head, probe, other) for kind, other in moved.items()}
        yield {kind for kind, change in changes.items() if change < 0.05 * max(changes.values())}


def random_like(features: Tensor) -> Tensor:
    """Return random features of one image, without a draw from PyTorch's global generators."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((1, *features.shape[1:]), generator=generator).to(features)


@torch.no_grad()
def head_change(head: Callable[[Tensor], Tensor], features: Tensor, others: Tensor) -> float:
    """Return how much what a head in eval mode makes of two features differs at most."""
    return float((head(features.clone()) - head(others.clone())).abs().max())


def _token_layout(
    features: Tensor, image_size: Sequence[int], model: nn.Module | None, where: str
) -> FeatureLayout:
    count, known = features.shape[1], getattr(model, "num_prefix_tokens", None)
    prefixes = _USUAL_PREFIXES if known is None else (known,)
    found = [FeatureLayout("NLC", p, g) for p in prefixes for g in _grids(count - p, image_size)]
    if known is None:  # a single token is rather the class token of a model that drops the others
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
    """Return the grids of `count` positions that have the aspect of the image."""
    grids = [(h, count // h) for h in range(1, count + 1) if count % h == 0]
    return [grid for grid in grids if _has_aspect(grid, image_size)]


def _has_aspect(grid: tuple[int, int], image_size: Sequence[int]) -> bool:
    """Say whether one stride, the same both ways and rounded up or down, makes a grid of images."""
    (h, w), (height, width) = grid, image_size
    if height == width:
        return h == w
    smallest = max(height / (h + 1), width / (w + 1))
    largest = min(side / (n - 1) for side, n in ((height, h), (width, w), (math.inf, 2)) if n > 1)
    return smallest < largest
