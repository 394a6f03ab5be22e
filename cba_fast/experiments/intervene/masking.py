"""Cuts the outer taps of large depthwise kernels, or takes the same energy from other taps."""

import numpy as np
import torch
from torch import nn

from ...errors import InputError


def large_kernels(model: nn.Module, min_kernel: int) -> dict[str, nn.Conv2d]:
    """Return the depthwise convolutions whose longer side has `min_kernel` taps or more, by name.

    Convolutions that share one weight are listed once.

    Raises:
        InputError: there is none; the message says what the depthwise kernels of the network are.
    """
    depthwise = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and m.groups == m.in_channels and m.groups > 1
    }
    found = {n: m for n, m in depthwise.items() if max(m.kernel_size) >= min_kernel}
    if not found:
        sizes = sorted({tuple(m.kernel_size) for m in depthwise.values()})
        there = ", ".join(f"{h}x{w}" for h, w in sizes) or "none"
        raise InputError(
            f"{type(model).__name__} has no depthwise convolution with a side of `min_kernel`"
            f" {min_kernel} taps or more to cut (its depthwise kernels: {there}); the `kinds` blur"
            " and drop need none"
        )
    return {n: m for n, m in found.items() if n in _first_of_each_weight(found)}


def _first_of_each_weight(convolutions: dict[str, nn.Conv2d]) -> set[str]:
    return set({id(m.weight): n for n, m in reversed(convolutions.items())}.values())


def distances(kernel_size: tuple[int, ...]) -> np.ndarray:
    """Return how far each tap of a kernel (KH, KW) is from the centre, (KH, KW) float64.

    With (y, x) counted from the centre, ((KH-1)/2, (KW-1)/2), the distance is max(|y|, |x|) in a
    square kernel, so that the taps up to r are the central square of side 2r+1. In a strip it is
    the offset along the longer side alone: a cut strip keeps its width.
    """
    kh, kw = kernel_size
    y, x = (np.abs(np.arange(k) - (k - 1) / 2) for k in (kh, kw))
    if kh == kw:
        return np.maximum(y[:, None], x)
    return np.broadcast_to(y[:, None] if kh > kw else x, (kh, kw)).copy()


def largest_radius(convolutions: dict[str, nn.Conv2d]) -> int:
    """Return the smallest radius that no tap of the convolutions lies beyond."""
    return int(np.ceil(max(distances(m.kernel_size).max() for m in convolutions.values())))


def take_energy(values: np.ndarray, energy: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Set values to zero, in a given order, until a given energy has been taken from each row.

    The energy that is taken from a row is the sum of (value - new value)^2. The value at which the
    sum would exceed `energy` is made smaller instead, by the square root of what is left, so that
    the sum is met exactly. It ends at the row's own energy.

    Args:
        values: (C, n) float64.
        energy: (C,) float64, >= 0.
        order: (C, n), each row a permutation: the columns in the order in which they are visited.

    Returns:
        The new values, (C, n).
    """
    visited = np.take_along_axis(values, order, axis=1)
    squares = visited**2
    left = np.maximum(energy[:, None] - (np.cumsum(squares, axis=1) - squares), 0)
    smaller = visited - np.sign(visited) * np.sqrt(np.minimum(left, squares))
    found = np.empty_like(values)
    np.put_along_axis(found, order, np.where(left >= squares, 0, smaller), axis=1)
    return found


def cut(weight: np.ndarray, radius: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return a depthwise weight (C, 1, KH, KW) without its outer taps, or a control of it.

    Args:
        weight: the taps, float64.
        radius: taps farther than this from the centre (see :func:`distances`) are the outer ones.
        kind: ``outer`` sets the outer taps of each channel to zero. The controls take the energy of
            these taps, their sum of squares, from the same channel by :func:`take_energy`:
            ``random`` in a random order of all taps, ``inner`` from the centre outward.
        rng: draws the random order. With the same seed the taps of a larger energy contain those
            of a smaller one.
    """
    far = distances(weight.shape[-2:])
    if kind == "outer":
        return np.where(far > radius, 0, weight)
    taps = weight.reshape(len(weight), -1)
    energy = (taps[:, far.ravel() > radius] ** 2).sum(axis=1)
    if kind == "random":
        order = rng.random(taps.shape).argsort(axis=1)
    else:
        y, x = (np.arange(k) - (k - 1) / 2 for k in far.shape)
        by_distance = np.lexsort((np.hypot(y[:, None], x).ravel(), far.ravel()))
        order = np.broadcast_to(by_distance, taps.shape)
    return take_energy(taps, energy, order).reshape(weight.shape)


@torch.no_grad()
def cut_kernels(convolutions: dict[str, nn.Conv2d], radius: int, kind: str, seed: int = 0) -> float:
    """Cut the kernels of convolutions in place, each channel on its own.

    Args:
        convolutions: from :func:`large_kernels`, of a copy of the network.
        radius, kind: see :func:`cut`. Radii count taps, also in kernels with dilation.
        seed: of the random order of taps.

    Returns:
        The share of the kernels' energy that was taken.
    """
    taken = total = 0.0
    for number, conv in enumerate(convolutions.values()):
        old = conv.weight.detach().double().cpu().numpy()
        new = cut(old, radius, kind, np.random.default_rng([seed, number]))
        conv.weight.copy_(torch.from_numpy(new))
        taken, total = taken + ((old - new) ** 2).sum(), total + (old**2).sum()
    return float(taken / total) if total else 0.0
