"""ERF sizes: the fewest pixels that hold a given share of an image's input gradient."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from ..choices import ERF_SHARE
from ..models.anatomy.features import FeatureLayout
from ..short import Short
from ..stages import stage
from .gradients import check_images, finite_images, images_of, input_gradient
from .layers import Layer, center_gradient
from .point import Point
from .walk import State, Walk, with_finite_gradient


def sample_indices(n: int, num_samples: int, seed: int = 0) -> np.ndarray:
    """Return the data set indices that the study samples.

    They are the first `num_samples` (or all, if there are fewer) of 0..n-1 after
    ``numpy.random.RandomState(seed).shuffle``. NumPy keeps the stream of this generator fixed, so
    the sample is the same on every machine and with every version.

    Returns:
        (min(n, num_samples),) int64.

    Raises:
        ValueError: `n` or `num_samples` is not positive.

    Example:
        >>> from cba_fast.erf import sample_indices
        >>> sample_indices(5794, 5, seed=0)  # the test images of CUB_200_2011
        array([1840, 1826, 5769, 2030, 3214])
    """
    if n < 1 or num_samples < 1:
        raise ValueError(f"n and num_samples must be positive, got {n} and {num_samples}")
    indices = np.arange(n, dtype=np.int64)
    np.random.RandomState(seed).shuffle(indices)
    return indices[:num_samples]


def erf_sizes(
    model: nn.Module,
    images: Tensor,
    p: float | Sequence[float] = ERF_SHARE,
    score: str = "prob",
    *,
    study_softmax: bool | None = None,
    layer: Layer = None,
    point: Point = None,
    layout: str | FeatureLayout | None = None,
    batch_size: int = 1,
    checkpoint: str = "none",
    backend: str | None = None,
) -> np.ndarray:
    """Return each image's ERF size: the fewest pixels that hold a share p of the input gradient.

    With g = |d score / d x| averaged over the channels, sorted descending, and S its cumulative
    sum in float64, the size is 1 + searchsorted(S, p * S[-1], side left); 0 where S[-1] is 0.

    Args:
        model: a classifier from images to logits, on the device of `images`; with `layer` any
            network.
        images: (N,3,H,W), floating, preprocessed.
        p: share of the gradient, 0 <= p <= 1, or several.
        score: ``prob``, ``logit`` or ``logprob`` of the top-1 class.
        study_softmax: see :func:`~cba_fast.erf.input_gradient`.
        layer: take the gradient of this layer's features at `point` instead of the score's; see
            :func:`~cba_fast.erf.center_gradient`, also for `layout`.
        point: position of the layer's map, or of an output that is a map; None for its centre.
        batch_size: images per backward pass; the study has 1. Another number changes the gradients'
            rounding, and with it some sizes by a few pixels.
        checkpoint: ``none``, ``block`` or ``stage``; see :func:`~cba_fast.erf.input_gradient`.
        backend: see :func:`cba_fast.ops.erf_size`.

    Returns:
        (N,) float32, or (N,P) for P values of `p`; whole numbers (exact up to 2**24 pixels).

    Raises:
        ValueError: a shape or option does not fit, or an image's gradient is not finite.

    Source: the study's ``erf_compute.py``; differs from it in that the sums are float64.

    Example:
        >>> import timm, torch
        >>> from cba_fast.erf import erf_sizes
        >>> model = timm.create_model("test_resnet", num_classes=10)
        >>> sizes = erf_sizes(model, torch.randn(2, 3, 64, 64), p=[0.2, 0.5, 1.0], score="logit")
        >>> sizes.shape, bool((sizes[:, 0] < sizes[:, 1]).all())
        ((2, 3), True)
    """
    how: dict[str, object] = {"score": score, "study_softmax": study_softmax}
    how = how if layer is None else {"layout": layout}
    check_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    parts = []
    for x in images.split(batch_size):
        grad = _gradient(model, x, layer, how, point=point, checkpoint=checkpoint)
        try:
            parts.append(_sizes(grad, p, backend))
        except ValueError as e:
            start = sum(map(len, parts))
            bad = [start + i for i, ok in enumerate(finite_images(grad).tolist()) if not ok]
            if not bad:
                raise
            raise ValueError(f"the input gradient of image(s) {bad} is not finite") from e
    return np.concatenate(parts)


@dataclass(repr=False)
class SizeResult(Short):
    """The result of :func:`measure_erf_sizes`.

    Attributes:
        sizes: (N,) or (N,P) float32, in the order of the sample.
        indices: (N,) int64, the data set index of each row.
        num_zero: number of images without any gradient, whose size is 0.
        map: (H,W) float64, the mean over these images of g = |gradient| averaged over the channels;
            None unless it was asked for.
    """

    sizes: np.ndarray
    indices: np.ndarray
    num_zero: int
    map: np.ndarray | None = None


def measure_erf_sizes(
    model: nn.Module,
    walk: Walk,
    p: float | Sequence[float] = ERF_SHARE,
    score: str = "prob",
    *,
    layer: Layer = None,
    point: Point = None,
    with_map: bool = False,
    checkpoint: str = "none",
    backend: str | None = None,
) -> SizeResult:
    """Measure the ERF sizes of a data set's images.

    Unreadable images and images whose gradient is not finite have no size; ``walk.report`` lists
    them.

    Args:
        model: a classifier on the walk's device; with `layer` any network.
        walk: the images; its indices are those of :func:`sample_indices`. With `with_map`, all
            images have one size.
        p, score, layer, point, checkpoint, backend: see :func:`erf_sizes`.
        with_map: also average the gradients that the sizes are measured on, for `SizeResult.map`.

    Raises:
        ImageError: a failed image in a strict walk.

    Example:
        >>> import timm
        >>> from cba_fast.data import ImageDataset, open_image_set
        >>> from cba_fast.erf import Walk, measure_erf_sizes, sample_indices
        >>> images = ImageDataset(open_image_set("CUB_200_2011").records, input_size=64)
        >>> model = timm.create_model("test_resnet", num_classes=2).eval()
        >>> walk = Walk(images, sample_indices(len(images), 4))
        >>> result = measure_erf_sizes(model, walk, score="logit")
        >>> result.indices, result.sizes.shape
        (array([5, 2, 1, 3]), (4,))
    """

    how = {"score": score} if layer is None else {}

    def step(state: State, images: Tensor, indices: list[int]) -> State:
        grad = _gradient(model, images, layer, how, point=point, checkpoint=checkpoint)
        try:
            # The op refuses values that are not finite. Looking for them before would be one more
            # pass over the gradient and one more wait for a GPU, so it is done after a refusal.
            sizes = _sizes(grad, p, backend)
        except ValueError:
            good = with_finite_gradient(walk.report, grad, indices)
            if not good:
                return state
            grad, indices = images_of(grad, good), [indices[i] for i in good]
            sizes = _sizes(grad, p, backend)
        found = {
            "sizes": torch.cat([state["sizes"], torch.from_numpy(sizes)]),
            "indices": torch.cat([state["indices"], torch.tensor(indices)]),
        }
        if with_map:
            zeros = torch.zeros(grad.shape[2:], dtype=torch.float64, device=grad.device)
            part = ops.erf_accumulate(grad, zeros, mode="abs", backend=backend) / grad.shape[1]
            found["total"] = state["total"] + part if state["total"].numel() else part
        return found

    first = {"sizes": torch.empty(0, *np.shape(p)), "indices": torch.empty(0, dtype=torch.int64)}
    if with_map:
        first["total"] = torch.empty(0, 0, dtype=torch.float64, device=walk.device)
    state = walk.run(step, first)
    sizes = state["sizes"].numpy()
    num_zero = int((sizes == 0).all(axis=tuple(range(1, sizes.ndim))).sum())
    mean = None
    if with_map and len(sizes):
        mean = (state["total"] / len(sizes)).cpu().numpy()
    return SizeResult(sizes, state["indices"].numpy(), num_zero, mean)


def _gradient(model: nn.Module, images: Tensor, layer: Layer, how: dict, **options) -> Tensor:
    """Return the gradient of the top-1 score, or that of a layer's features."""
    if layer is None:
        return input_gradient(model, images, **how, **options)
    return center_gradient(model, images, layer=layer, **how, **options)


def _sizes(grad: Tensor, p: float | Sequence[float], backend: str | None) -> np.ndarray:
    with stage("sizes"):
        sizes = ops.erf_size(grad, p, backend=backend)
        return sizes.cpu().numpy().astype(np.float32)
