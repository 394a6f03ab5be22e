"""The localization methods by name; a method is a function of what it asks for."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...choices import Pc1Range
from ...errors import InputError
from ...models.anatomy.parts import type_name
from ...short import Short
from .evidence import KINDS, Evidence, gather
from .linear_head import LacksError

_FLAT = 1e-6  # a map that varies by less, as a share of its maximum, varies by rounding


@dataclass(frozen=True, repr=False)
class Method(Short):
    """A localization method.

    Attributes:
        name: what `heatmap` and ``--method`` call it.
        make: the function that makes the maps.
        needs: what `make` takes, of `cba_fast.wsol.methods.evidence.KINDS`.
        value_range: how the resized maps become bytes, see `finish_maps`.
    """

    name: str
    make: Callable[..., Tensor]
    needs: frozenset[str]
    value_range: Pc1Range = "minmax"

    def gather(self, model: nn.Module, x: Tensor, **options) -> Evidence:
        """Return what `cba_fast.wsol.methods.gather` finds of `needs`; the options are its own.

        Raises:
            ModelError, ValueError: as that; where a method that needs less works, it is named.
        """
        try:
            return gather(model, x, self.needs, **options)
        except LacksError as e:
            can = {"features", "gradients"}
            if "weights" in self.needs and any(
                "Attention" in type_name(m) for m in model.modules()
            ):
                can |= {"attentions", "attention_gradients"}
            others = [m.name for m in METHODS.values() if m.needs <= can]
            raise LacksError(f"{e}; these methods work: {', '.join(others)}") from None

    def small_maps(self, found: Evidence) -> Tensor:
        """Return the maps at the resolution of the features, (N, h, w) float32.

        A map is NaN where the image's features, gradients or attention are not finite.
        """
        given, good = {}, torch.ones_like(found.targets, dtype=torch.bool)
        for name in self.needs:
            value = getattr(found, name)
            parts = value if isinstance(value, tuple) else (value,)
            for part in parts:
                good = good & part.flatten(1).isfinite().all(1)
            given[name] = value
        # Images that are not finite are replaced, because `eigh` would refuse the whole batch.
        given = {name: _without(value, ~good) for name, value in given.items()}
        maps = self.make(**given)
        if found.attentions is not None and maps.ndim == 3 and maps.shape[1] == maps.shape[2]:
            maps = found.over_the_map(maps)
        if maps.ndim != 3 or len(maps) != len(good):
            raise ValueError(
                f"method {self.name!r} must return maps (N, h, w), got {tuple(maps.shape)}"
            )
        maps = maps.float()
        if self.value_range == "minmax":  # which would stretch the rounding of a flat map to [0, 1]
            low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
            maps = torch.where(high - low > _FLAT * high.abs(), maps, 0.0)
        return torch.where(good[:, None, None], maps, torch.nan)


def _without(value, bad: Tensor):
    """Return float32 tensors in which the images marked as `bad` are zeros."""
    if isinstance(value, tuple):
        return tuple(_without(part, bad) for part in value)
    shape = (-1, *[1] * (value.ndim - 1))
    return value.float().masked_fill(bad.view(shape), 0.0)


METHODS: dict[str, Method] = {}


def register_method(
    name: str, make: Callable[..., Tensor] | None = None, *, value_range: Pc1Range = "minmax"
) -> Callable:
    """Add a localization method, by which `heatmap` and `localize` then make maps.

    The parameters of `make` say by their names what it needs of a batch, in float32:

    - ``features`` (N, C, h, w), the explained feature maps;
    - ``gradients`` (N, C, h, w), of each image's target logit with respect to them;
    - ``weights`` (N, C), the row of the linear classifier that belongs to each target;
    - ``attentions`` and ``attention_gradients``, for each layer of a transformer (N, heads, L, L).

    Args:
        name: the method's name; one that is taken is replaced.
        make: returns maps (N, h, w), larger where the class is; from attention it may return
            (N, L, L), the relevance of each token (column) for each token (row). Left out where
            this is used as a decorator.
        value_range: how the resized maps become bytes, see `finish_maps`: "minmax" stretches each
            to [0, 1], "clip" expects maps in [0, 1].

    Returns:
        `make`.

    Raises:
        InputError: a parameter of `make` is none of these.

    Example:
        >>> import timm, torch
        >>> from cba_fast.wsol import METHODS, heatmap, register_method
        >>> @register_method("activation")
        ... def activation(features):
        ...     return features.mean(1).relu()
        >>> model = timm.create_model("test_resnet", num_classes=10)
        >>> heatmap(model, torch.randn(2, 3, 64, 64), method="activation").shape
        torch.Size([2, 64, 64])
        >>> del METHODS["activation"]
    """
    if make is None:
        return lambda function: register_method(name, function, value_range=value_range)
    parameters = inspect.signature(make).parameters
    if not parameters or (unknown := [p for p in parameters if p not in KINDS]):
        named = f"has {', '.join(unknown)}" if parameters else "has none"
        raise InputError(
            f"the parameters of method {name!r} must be of {', '.join(KINDS)}; it {named}"
        )
    attention = {p for p in parameters if p.startswith("attention")}
    if attention and len(attention) < len(parameters):
        raise InputError(f"method {name!r} must take either attention or features, not both")
    METHODS[name] = Method(name, make, frozenset(parameters), value_range)
    return make


def method_named(name: str) -> Method:
    """Return the method of that name.

    Raises:
        InputError: there is none.

    Example:
        >>> from cba_fast.wsol.methods import method_named
        >>> sorted(method_named("grad-cam").needs)
        ['features', 'gradients']
    """
    if name not in METHODS:
        raise InputError(f"`method` must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]
