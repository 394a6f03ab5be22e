"""Measures of how well the feature maps of an image cover its object."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..shapes import Size, map_shape
from ..short import Short
from .methods.class_activation import cam_from_features, weighted_features
from .methods.principal_component import first_principal_axis, pc1_from_features

LEVEL = 0.05
# Sums over a box count as equal if they differ by less than this share of their largest possible
# value. Their rounding is 1e-14 (float64, some hundred cells), and float32 features do not resolve
# smaller differences.
_TIE = 1e-9


@dataclass(repr=False)
class MapQuality(Short):
    """Measures of each image's feature maps, (N,) float64; NaN where one is undefined.

    Attributes:
        object_channels: see :func:`object_channels`.
        pc1_explained: see :func:`pc1_explained`.
        pc1_cam_iou: :func:`map_iou` of the PC1 map and the CAM.
    """

    object_channels: np.ndarray
    pc1_explained: np.ndarray
    pc1_cam_iou: np.ndarray


def map_quality(
    features: Tensor, weights: Tensor, coverage: np.ndarray, map_size: Size
) -> MapQuality:
    """Measure the feature maps of a batch.

    Args:
        features: (N, C, h, w) floating, the last feature maps before pooling.
        weights: (N, C), the classifier's row of each image's target.
        coverage: (N, h, w), from :func:`box_coverage`.
        map_size: side or (H, W) to which CAM and PC1 are resized before they are compared.

    Returns:
        The measures. ``pc1_cam_iou`` is NaN where there is no PC1 map: feature maps that are not
        square or smaller than 4x4.

    Raises:
        ValueError: the shapes do not fit.
    """
    h, w = features.shape[2:]
    agreement = np.full(len(features), np.nan)
    if h == w >= 4:
        cam, pc1 = cam_from_features(features, weights), pc1_from_features(features, weights)
        agreement = map_iou(_resized(cam, map_size), _resized(pc1, map_size))
    return MapQuality(
        object_channels(features, weights, coverage), pc1_explained(features, weights), agreement
    )


def box_coverage(boxes: np.ndarray, map_size: Size, grid: tuple[int, int]) -> np.ndarray:
    """Return which share of each feature cell lies in the union of an image's boxes.

    Args:
        boxes: (G, 4) integers x0, y0, x1, y1 in pixels of a map of `map_size`, both ends
            inclusive, as in the IoU of MaxBoxAcc. Parts outside of the map do not count.
        map_size: side of the map, or its (H, W).
        grid: (h, w) of the feature maps; H and W need not be multiples of them.

    Returns:
        (h, w) float64 in [0, 1]; its mean is the share of the map that the boxes cover.
    """
    inside = box_mask(boxes, map_size).astype(np.float64)
    rows, columns = map(_pooling, grid, inside.shape)
    return rows @ inside @ columns.T


def box_mask(boxes: np.ndarray, map_size: Size) -> np.ndarray:
    """Return (H, W) bool: the pixels in the union of `boxes`; arguments as `box_coverage`."""
    inside = np.zeros(map_shape(map_size), dtype=bool)
    for x0, y0, x1, y1 in np.asarray(boxes).tolist():
        inside[y0 : y1 + 1, x0 : x1 + 1] = True
    return inside


def object_channels(
    features: Tensor, weights: Tensor, coverage: np.ndarray, level: float = LEVEL
) -> np.ndarray:
    """Return the share of channels whose map lies on the object more than chance explains.

    Channel c's map is its part of the CAM, a[c] = weights[n, c] * features[n, c], min-max
    normalized. With b the coverage of the cells by the box, T[s] = sum over cells x of
    a[c, x] * b[x - s] is the map's mass in the box moved by s, cyclically in both directions. There
    are as many shifts as cells, K = h*w. The channel counts as

        phi[c] = min(1, max(0, (level * K - #{s: T[s] > T[0]}) / #{s: T[s] = T[0]})),

    and the share is the mean of phi over the channels.

    phi is the probability that the randomized test of size `level` rejects the hypothesis that the
    map has nothing to do with the box: 1 where the box's own place is among the best share `level`
    of the shifts, 0 where it is not, and a fraction at the border. If the map is equally likely in
    all its K positions relative to the box, the expectation of phi is exactly `level` for every map
    and every K. So 0.05 means chance on feature maps of 6x6 as well as 12x12, where a plain test
    could only reject with probability 1/36 = 0.028 or 7/144 = 0.049.

    Args:
        features: (N, C, h, w) floating.
        weights: (N, C), the classifier's row of each image's target.
        coverage: (N, h, w), from :func:`box_coverage`.
        level: size of the test, in (0, 1).

    Returns:
        (N,) float64 in [0, 1]; NaN where the box covers all cells equally (no place differs).

    Raises:
        ValueError: the shapes do not fit, or `level` is outside (0, 1).

    Notes:
        Shifts keep each map's smoothness. Permuting cells (a hypergeometric test) does not, and
        calls smooth maps significant far too often. There is no false discovery control over the
        channels, because the share is an estimate with a known value under chance and not a list of
        discoveries; and at 36 shifts the smallest p value is 0.028, with which Benjamini-Hochberg
        finds nothing unless half of the channels reach it. A constant channel counts as `level`.
        Cyclic shifts treat the map as a torus without a preferred place, so channels that always
        light up in the middle of the image count where the object is in the middle. Time and memory
        grow with K**2.

    Source:
        The cyclic shift is the null model of Lotwick and Silverman 1982, "Methods for analysing
        spatial processes of several types of points"; phi is the critical function of Geyer and
        Meeden 2005, "Fuzzy and randomized confidence intervals and P-values".
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    maps = _normalized(features, weights)
    n, c, h, w = maps.shape
    boxes = torch.as_tensor(coverage, dtype=torch.float64, device=maps.device)
    if boxes.shape != (n, h, w):
        raise ValueError(f"coverage must be {(n, h, w)}, got {tuple(boxes.shape)}")
    total = boxes.sum(dim=(1, 2))[:, None, None]
    mass = maps.reshape(n, c, h * w) @ _shifted(boxes).mT  # [N, C, K], shift 0 first
    excess = mass - mass[:, :, :1]
    tie = excess.abs() <= _TIE * total
    above = ((excess > 0) & ~tie).sum(dim=2)
    phi = ((level * h * w - above.double()) / tie.sum(dim=2)).clamp(0, 1)
    share = phi.mean(dim=1)
    flat = boxes.amax(dim=(1, 2)) - boxes.amin(dim=(1, 2)) <= _TIE
    return torch.where(flat, torch.nan, share).cpu().numpy()


def pc1_explained(features: Tensor, weights: Tensor) -> np.ndarray:
    """Return the share of the maps' variance that lies along their first principal axis.

    It is |X v|**2 / |X|**2, the explained variance ratio of the PCA behind the PC1 map. X (C, h*w)
    are the weighted maps, each min-max normalized, with centred columns; v is the first principal
    axis.

    Args:
        features: (N, C, h, w) floating.
        weights: (N, C), the classifier's row of each image's target.

    Returns:
        (N,) float64 in (0, 1]; NaN where the maps do not vary between the channels.
    """
    x = _normalized(features, weights).flatten(2)
    axis = first_principal_axis(x)
    x = x - x.mean(dim=1, keepdim=True)
    along = (x @ axis[:, :, None]).square().sum(dim=(1, 2))
    total = x.square().sum(dim=(1, 2))
    return torch.where(total > 0, along / total, torch.nan).cpu().numpy()


def map_iou(a: Tensor, b: Tensor) -> np.ndarray:
    """Return the IoU of two maps, each binarized above its own mean.

    The study's orientation rule for PC1 uses the same threshold. No ground truth is needed.

    Args:
        a, b: (N, H, W) floating.

    Returns:
        (N,) float64 in [0, 1]; 0 where one of the maps is constant, NaN where both are.
    """
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(f"maps must be (N, H, W) alike, got {tuple(a.shape)}, {tuple(b.shape)}")
    a, b = (m.double() > m.double().mean(dim=(1, 2), keepdim=True) for m in (a, b))
    both, either = ((a & b).sum(dim=(1, 2)).double(), (a | b).sum(dim=(1, 2)).double())
    return torch.where(either > 0, both / either, torch.nan).cpu().numpy()


def active_pixels(u: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Count the pixels that MaxBoxAcc's mask holds at each threshold: u > int(t * max(u)).

    Args:
        u: (N, H, W) uint8, quantized score maps.
        thresholds: (T,) float64 in [0, 1).

    Returns:
        (N, T) int64.
    """
    counts = np.empty((len(u), len(thresholds)), dtype=np.int64)
    for n, one in enumerate(u):
        above = one.size - np.cumsum(np.bincount(one.ravel(), minlength=256))
        counts[n] = above[(thresholds * int(one.max())).astype(np.int64)]
    return counts


def _normalized(features: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted maps, each min-max normalized (constant: zeros), (N, C, h, w) float64."""
    maps = weighted_features(features, weights).double()
    low = maps.amin(dim=(2, 3), keepdim=True)
    span = maps.amax(dim=(2, 3), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / span, 0.0)


def _shifted(boxes: Tensor) -> Tensor:
    """Return `boxes` (N, h, w) in all cyclic shifts, the unmoved one first: (N, h*w, h*w)."""
    n, h, w = boxes.shape
    i, j = torch.arange(h, device=boxes.device), torch.arange(w, device=boxes.device)
    rows = (i[None, :] - i[:, None]) % h  # [shift, row]: the row that comes to lie there
    columns = (j[None, :] - j[:, None]) % w
    moved = boxes[:, rows[:, None, :, None], columns[None, :, None, :]]
    return moved.reshape(n, h * w, h * w)


def _pooling(cells: int, size: int) -> np.ndarray:
    """Return for each cell of a line which share of it each pixel covers: (cells, size)."""
    edges = np.arange(cells + 1) * (size / cells)
    pixels = np.arange(size)
    left = np.maximum(edges[:-1, None], pixels)
    right = np.minimum(edges[1:, None], pixels + 1)
    return np.maximum(right - left, 0) * (cells / size)


def _resized(maps: Tensor, size: Size) -> Tensor:
    return interpolate(maps[:, None], map_shape(size), mode="bilinear")[:, 0]
