"""ERF maps: the mean input gradient of the central feature position, and its area ratios."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from ..models.anatomy.features import FeatureLayout
from ..models.anatomy.layers import layers_of
from ..short import Short
from .gradients import finite_images, images_of
from .layers import Layer, layer_gradients, with_last
from .point import Point
from .walk import State, Walk, with_finite_gradient

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


@dataclass(repr=False)
class ErfMap(Short):
    """An ERF map.

    Attributes:
        map: (H,W) float64, the mean over the images of relu(gradient) summed over the channels.
        count: number of images in the mean.
        skipped: positions of the images that were left out because their gradient is not finite.
            From :func:`measure_erf_map`, these are data set indices and include unreadable images.
    """

    map: np.ndarray
    count: int
    skipped: list[int]


def erf_map(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    layer: Layer = None,
    point: Point = None,
    layout: str | FeatureLayout | None = None,
    checkpoint: str = "none",
    backend: str | None = None,
) -> ErfMap:
    """Return how much each input pixel adds to one position of a feature map, on average.

    map = mean over n of the sum over c of relu(grad[n, c]), with grad from
    :func:`~cba_fast.erf.center_gradient`. Images whose gradient is not finite are left out.

    Args:
        model: any network, on the device of `images`.
        images: (N,3,H,W), floating, preprocessed, or an iterable of such batches of one H and W.
        features, layer, point, layout: see :func:`~cba_fast.erf.center_gradient`; the default is
            the centre of the last feature map.
        checkpoint: ``none``, ``block`` or ``stage``; see :func:`~cba_fast.erf.input_gradient`.
        backend: see :func:`cba_fast.ops.erf_accumulate`.

    Raises:
        ValueError: a shape does not fit, there is no such layer or point, or no image has a finite
            gradient.

    Notes:
        Gradients have the model's precision, sums are float64. A tensor of images is one batch.

    Source: X. Ding et al., "Scaling Up Your Kernels to 31x31" (2022), the ERF script of its code,
    which keeps float32 sums and leaves out only NaN.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cba_fast.erf import erf_map
        >>> model = nn.Conv2d(3, 4, 3, padding=1)
        >>> model.weight.data[:] = model.bias.data[:] = 0.1
        >>> erf_map(model, torch.ones(2, 3, 5, 5)).map.round(1)
        array([[0. , 0. , 0. , 0. , 0. ],
               [0. , 1.2, 1.2, 1.2, 0. ],
               [0. , 1.2, 1.2, 1.2, 0. ],
               [0. , 1.2, 1.2, 1.2, 0. ],
               [0. , 0. , 0. , 0. , 0. ]])
    """
    layers = [layer if features is None else partial(features)]
    how: dict[str, Any] = {"point": point, "layout": layout, "checkpoint": checkpoint}
    return _maps(model, images, layers, backend, how)[0]


def erf_depth(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    layers: Sequence[str] | None = None,
    point: Point = None,
    checkpoint: str = "none",
    backend: str | None = None,
) -> dict[str, ErfMap]:
    """Return the ERF map of each layer of a network, from one forward pass per batch.

    Args:
        layers: names of layers in the order in which they run; None for all blocks and the layers
            between them, see :func:`cba_fast.models.anatomy.layers.layers_of`.
        model, images, point, checkpoint, backend: see :func:`erf_map`.

    Returns:
        The maps by the layers' names, from the first layer to the last.

    Notes:
        The forward pass keeps its graph, and each layer has a backward pass. The memory is that of
        the last layer's map alone, the time of L equally deep layers about L / 2 times its
        backward pass. An image counts if the gradient of the last layer is finite.

    Example:
        >>> import timm, torch
        >>> from cba_fast.erf import erf_depth, erf_shape
        >>> model = timm.create_model("test_convnext", num_classes=10).eval()
        >>> maps = erf_depth(model, torch.randn(2, 3, 64, 64))
        >>> list(maps)[:3]
        ['stem', 'stages.0.blocks.0', 'stages.1.downsample']
        >>> {found.map.shape for found in maps.values()}
        {(64, 64)}
    """
    images = iter([images] if isinstance(images, Tensor) else images)
    first = next(images, None)
    if first is None:
        raise ValueError("`images` holds no batch")
    layers = [layers] if isinstance(layers, str) else layers
    names = layers_of(model, first) if layers is None else list(layers)
    how = {"point": point, "checkpoint": checkpoint}
    found = _maps(model, itertools.chain([first], images), names, backend, how)
    return dict(zip(names, found, strict=True))


def _maps(model, images, layers: Sequence, backend: str | None, how: dict) -> list[ErfMap]:
    total, count, seen, skipped = None, 0, 0, list[int]()
    for x in [images] if isinstance(images, Tensor) else images:
        if total is None:
            total, layers = _zeros(layers, x), with_last(model, x, layers)

        def choose(grad: Tensor, seen: int = seen) -> list[int]:
            finite = finite_images(grad).tolist()
            skipped.extend(seen + i for i, ok in enumerate(finite) if not ok)
            return [i for i, ok in enumerate(finite) if ok]

        count += _add(model, x, layers, total, choose, backend, how)
        seen += len(x)
    return _means(total, count, skipped)


def _zeros(layers: Sequence, images: Tensor) -> Tensor:
    size = (len(layers), *images.shape[2:])
    return torch.zeros(size, dtype=torch.float64, device=images.device)


def _add(model, images: Tensor, layers: Sequence, total: Tensor, choose, backend, how: dict) -> int:
    """Add a batch to the layers' maps, `total` (L,H,W); return how many images `choose` took."""
    good: list[int] | None = None

    def use(index: int, grad: Tensor) -> None:
        nonlocal good
        if good is None:
            good = choose(grad)
        if good:
            ops.erf_accumulate(images_of(grad, good), total[index], backend=backend)

    layer_gradients(model, images, layers, use, **how)
    return len(good or ())


def measure_erf_map(
    model: nn.Module,
    walk: Walk,
    num_images: int = 50,
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    layer: Layer = None,
    point: Point = None,
    layout: str | FeatureLayout | None = None,
    checkpoint: str = "none",
    backend: str | None = None,
) -> ErfMap:
    """Return the ERF map over the first `num_images` usable images of a data set.

    An image that cannot be read or whose gradient is not finite is reported, and the next one takes
    its place, as in the published script.

    Args:
        model: see :func:`erf_map`, also for the arguments that are not here.
        walk: the images, all of one size; usually the data set in order.
        num_images: how many to average over; a walk with fewer gives the mean over all of them.

    Raises:
        ImageError: a failed image in a strict walk.
        ValueError: no image has a finite gradient.

    Example:
        >>> import timm
        >>> from cba_fast.data import ImageDataset, erf_map_transform, open_image_set
        >>> from cba_fast.erf import Walk, measure_erf_map
        >>> records = open_image_set("CUB_200_2011").records
        >>> images = ImageDataset(records, 64, erf_map_transform(64))
        >>> model = timm.create_model("test_resnet", num_classes=10).eval()
        >>> found = measure_erf_map(model, Walk(images, range(len(images))), num_images=4)
        >>> found.count, found.map.shape
        (4, (64, 64))
    """
    layers = [layer if features is None else partial(features)]
    how: dict[str, Any] = {
        "point": point,
        "layout": layout,
        "checkpoint": checkpoint,
        "backend": backend,
    }
    return measure_erf_maps(model, walk, layers, num_images, **how)[0]


def measure_erf_maps(
    model: nn.Module,
    walk: Walk,
    layers: Sequence,
    num_images: int = 50,
    *,
    backend: str | None = None,
    **how: Any,
) -> list[ErfMap]:
    """Return the ERF map of each of `layers` over the first `num_images` usable images.

    Args:
        layers: names of layers in the order in which they run; see :func:`erf_depth`.
        model, walk, num_images, backend: see :func:`measure_erf_map`.
        how: `point`, `layout` and `checkpoint`, see :func:`erf_map`.

    Example:
        >>> import timm
        >>> from cba_fast.data import ImageDataset, erf_map_transform, open_image_set
        >>> from cba_fast.erf import Walk, measure_erf_maps
        >>> records = open_image_set("CUB_200_2011").records
        >>> images = ImageDataset(records, 64, erf_map_transform(64))
        >>> model = timm.create_model("test_resnet", num_classes=10).eval()
        >>> walk = Walk(images, range(len(images)))
        >>> [m.count for m in measure_erf_maps(model, walk, ["layer1", "layer3"], num_images=4)]
        [4, 4]
    """

    layers = list(layers)

    def step(state: State, images: Tensor, indices: list[int]) -> State:
        layers[:] = with_last(model, images, layers)
        missing = num_images - int(state["count"])
        total = state["total"].clone() if int(state["count"]) else _zeros(layers, images)

        def choose(grad: Tensor) -> list[int]:
            return with_finite_gradient(walk.report, grad, indices)[:missing]

        count = _add(model, images, layers, total, choose, backend, how)
        return {"total": total, "count": state["count"] + count} if count else state

    first = {
        "total": torch.empty(0, 0, 0, dtype=torch.float64, device=walk.device),
        "count": torch.tensor(0),
    }
    state = walk.run(
        step, first, until=lambda s: int(s["count"]) >= num_images, expected=num_images
    )
    skipped = [index for index, _ in walk.report.failed]
    return _means(state["total"], int(state["count"]), skipped)


class AreaRatio(NamedTuple):
    """The smallest central square that holds more than a share of an ERF map.

    Attributes:
        threshold: the share.
        side: the square's side in pixels, odd; None if no square inside the map exceeds the share.
        ratio: side**2 / (H*W); None if `side` is.
    """

    threshold: float
    side: int | None
    ratio: float | None


def area_ratio(erf: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> list[AreaRatio]:
    """Return the published high-contribution area ratios of an ERF map.

    Let x = log10(erf + 1) / max(log10(erf + 1)) in float64, and consider the squares
    x[H//2-i : H//2+1+i, W//2-i : W//2+1+i] for i = 1, 2, ... The first one whose share of the sum
    of x exceeds t has the side 2i+1 and the ratio (2i+1)**2 / (H*W). As published, i ends at
    H//2 - 1 (here at min(H,W)//2 - 1), so that a square never leaves the map. If no square exceeds
    t, the side and the ratio are None.

    Because the logarithm is taken first, the ratios grow with the scale of the gradients. Those of
    :func:`scale_free_area_ratio` do not depend on it.

    Args:
        erf: (H,W), real, finite, >= 0, not zero everywhere.
        thresholds: shares t.

    Returns:
        One :class:`AreaRatio` per threshold, in their order.

    Raises:
        ValueError: `erf` breaks one of the conditions above.

    Source: X. Ding et al., "Scaling Up Your Kernels to 31x31" (2022), table 11 and the analysis
    script of its code; differs from it in that everything is float64.

    Example:
        >>> import numpy as np
        >>> from cba_fast.erf import area_ratio
        >>> erf = np.zeros((9, 9))
        >>> erf[2:7, 2:7] = 1
        >>> for found in area_ratio(erf, [0.3, 0.99]):
        ...     print(found.threshold, found.side, round(found.ratio, 3))
        0.3 3 0.111
        0.99 5 0.309
    """
    return _squares(log_scaled(erf), thresholds)


def scale_free_area_ratio(
    erf: np.ndarray, thresholds: Sequence[float] = THRESHOLDS
) -> list[AreaRatio]:
    """Return high-contribution area ratios of the map itself, without the published logarithm.

    They are computed as in :func:`area_ratio`, but with x = erf / max(erf). Multiplying the map by
    a number changes nothing; the ratios cannot be compared with published ones.

    Args:
        erf, thresholds: as :func:`area_ratio`, also for the result and the errors.

    Example:
        >>> import numpy as np
        >>> from cba_fast.erf import scale_free_area_ratio
        >>> y, x = np.mgrid[-32:33, -32:33]
        >>> erf = np.exp(-(x**2 + y**2) / (2 * 6.0**2))
        >>> [found.side for found in scale_free_area_ratio(erf)]
        [9, 11, 13, 35]
        >>> [found.side for found in scale_free_area_ratio(1000 * erf)]
        [9, 11, 13, 35]
    """
    x = checked_map(erf)
    return _squares(x / x.max(), thresholds)


def _squares(x: np.ndarray, thresholds: Sequence[float]) -> list[AreaRatio]:
    """Return the smallest central square of `x` for each share of its sum."""
    h, w = x.shape
    total = x.sum()
    found: dict[float, int] = {}
    for i in range(1, min(h, w) // 2):
        share = x[h // 2 - i : h // 2 + 1 + i, w // 2 - i : w // 2 + 1 + i].sum() / total
        for t in thresholds:
            if t not in found and share > t:
                found[t] = 2 * i + 1
        if len(found) == len(set(thresholds)):
            break
    sides = [found.get(t) for t in thresholds]
    return [
        AreaRatio(t, s, None if s is None else s * s / (h * w)) for t, s in zip(thresholds, sides)
    ]


def log_scaled(erf: np.ndarray) -> np.ndarray:
    """Return log10(erf + 1) divided by its maximum, (H,W) float64 in [0,1].

    Raises:
        ValueError: see :func:`checked_map`.
    """
    x = np.log1p(checked_map(erf))  # log10's factor cancels; log1p is exact for values far below 1
    return x / x.max()


def checked_map(erf: np.ndarray) -> np.ndarray:
    """Return an ERF map as (H,W) float64.

    Raises:
        ValueError: `erf` is not a real, finite, non-negative (H,W) array with a value above 0.
    """
    if isinstance(erf, ErfMap):
        raise ValueError("an ERF map is a real (H,W) array, got an ErfMap: give its `map`")
    erf = np.asarray(erf)
    if erf.ndim != 2 or erf.size == 0 or erf.dtype.kind not in "fiu":
        raise ValueError(f"an ERF map is a real (H,W) array, got {erf.shape} {erf.dtype}")
    erf = erf.astype(np.float64)
    if not np.isfinite(erf).all() or erf.min() < 0:
        raise ValueError(f"an ERF map is finite and >= 0, got {erf.min()} to {erf.max()}")
    if erf.max() == 0:
        raise ValueError("the ERF map is zero everywhere")
    return erf


def _means(total: Tensor | None, count: int, skipped: list[int]) -> list[ErfMap]:
    if total is None:
        raise ValueError("`images` holds no batch")
    if count == 0:
        raise ValueError("no image has a finite gradient")
    return [ErfMap((each / count).cpu().numpy(), count, skipped) for each in total]
