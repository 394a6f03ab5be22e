"""Changes the last feature maps of a network and leaves its layers alone: blur, dropped channels.

Both are given by their change of the features F: the sum over images, channels and positions of
(F' - F)^2, divided by that of F^2.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InputError
from ...models.anatomy.features import FeatureLayout, layout_of
from .masking import take_energy

Change = Callable[[Tensor], Tensor]  # of features (N, C, h, w)


def blur_matrix(n: int, sigma: float) -> np.ndarray:
    """Return the Gaussian blur of n positions, mirrored at the borders, as a matrix (n, n).

    Its rows and its columns sum to 1, so that a blurred map has the mean of the map itself:
    average pooling, and the score after it, see no blur.

    Args:
        n: number of positions.
        sigma: standard deviation in positions; 0 gives the identity.
    """
    reach = int(np.ceil(5 * sigma))
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma else np.ones(1)
    at = (np.arange(n)[:, None] + offsets) % (2 * n)
    at = np.where(at < n, at, 2 * n - 1 - at)
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], at), weights / weights.sum())
    return matrix


def blur(sigma: float) -> Change:
    """Return the change that blurs each channel by a Gaussian of `sigma` positions."""

    def change(features: Tensor) -> Tensor:
        rows, columns = (torch.from_numpy(blur_matrix(n, sigma)) for n in features.shape[2:])
        return rows.to(features) @ features @ columns.to(features).T

    return change


def blur_by(features: Tensor, change: float) -> tuple[float, Change]:
    """Return the standard deviation of the blur with a given change of features, and the blur.

    The change grows with the standard deviation, which is searched by bisection up to the longer
    side of the maps. There each map is almost constant: if `change` is still larger, that is it.

    Args:
        features: (N, C, h, w).
        change: the change that is asked for.
    """
    if change <= 0:
        return 0.0, blur(0.0)
    low, high = 0.0, float(max(features.shape[2:]))
    if change_by(features, blur(high)(features)) > change:
        while high - low > 1e-4 * high:
            middle = (low + high) / 2
            if change_by(features, blur(middle)(features)) > change:
                high = middle
            else:
                low = middle
    return high, blur(high)


def drop_by(features: Tensor, change: float, seed: int) -> tuple[float, Change]:
    """Return the share of channels whose loss changes the features as asked for, and the change.

    Channels become zero in a random order, the last one only smaller, so that the change is met
    exactly. It is at most 0.95, so that something is left. The share counts that last channel by
    what it loses.

    Args:
        features: (N, C, h, w).
        change: the change that is asked for.
        seed: of the order. The channels of a larger change contain those of a smaller one.
    """
    size = features.double().square().sum((0, 2, 3)).sqrt().cpu().numpy()[None]
    order = np.random.default_rng(seed).permutation(size.shape[1])[None]
    energy = min(change, 0.95) * (size**2).sum(axis=1)
    scale = np.divide(
        take_energy(size, energy, order), size, out=np.ones_like(size), where=size > 0
    )

    def drop(features: Tensor) -> Tensor:
        return features * torch.from_numpy(scale[0]).to(features)[:, None, None]

    return float((1 - scale).mean()), drop


def change_by(features: Tensor, changed: Tensor) -> float:
    """Return the sum of (changed - features)^2 over that of features^2."""
    old = features.double()
    return float((changed.double() - old).square().sum() / old.square().sum())


def feature_maps(model: nn.Module, images: Tensor) -> Tensor:
    """Return the last feature maps of `images`, (N, C, h, w) float32 on the CPU, one by one."""
    check_has_features(model)
    with torch.inference_mode():
        found = [_maps(model, model.forward_features(x), x)[0] for x in images.split(1)]
    return torch.cat(found).float().cpu()


def _maps(model: nn.Module, features: Tensor, images: Tensor) -> tuple[Tensor, FeatureLayout]:
    layout = layout_of(features, images.shape[2:], model=model, where="forward_features")
    return layout.to_nchw(features), layout


def check_has_features(model: nn.Module) -> None:
    """Refuse a network whose feature maps cannot be reached between body and head.

    Raises:
        InputError: it lacks timm's methods.
    """
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        raise InputError(
            f"{type(model).__name__} has no forward_features and forward_head, between which its"
            " feature maps could be changed"
        )


def with_changed_features(model: nn.Module, change: Change) -> nn.Module:
    """Let the head of a model get changed features; the model itself is altered and returned.

    Raises:
        InputError: it lacks timm's methods.
    """
    check_has_features(model)
    original = model.forward_features

    def forward_features(images: Tensor) -> Tensor:
        features = original(images)
        maps, layout = _maps(model, features, images)
        return layout.from_nchw(change(maps), features)

    vars(model)["forward_features"] = forward_features
    return model
