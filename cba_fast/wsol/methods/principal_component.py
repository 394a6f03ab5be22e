"""PC1 maps: the first principal component of the weighted feature maps."""

import torch
from torch import Tensor

from .class_activation import weighted_features


def pc1_from_features(features: Tensor, weights: Tensor) -> Tensor:
    """Compute PC1 maps at the resolution of the features.

    Each weighted feature map ``weights[n, c] * features[n, c]`` is min-max normalized on its own (a
    constant one becomes zeros). The C maps are the samples and the h*w positions the variables of a
    principal component analysis. The PC1 map is the first principal axis, signed so that its entry
    of largest magnitude is positive, divided by its maximum, and turned into ``1 - map`` if
    :func:`is_background` says so.

    Args:
        features: (N, C, h, h) floating, square with h >= 4 (the orientation rule needs a border).
        weights: (N, C), the classifier's row of each image's target.

    Returns:
        (N, h, h) float32. Values may lie outside [0, 1]. A map is zero where all weighted maps are
        constant, as there is no principal axis then, and NaN where the weighted maps or their spans
        are not finite.

    Raises:
        ValueError: the shapes do not fit, the map is not square, or h < 4.

    Notes:
        The axis comes from an exact float64 eigendecomposition of the smaller Gram matrix. The sign
        rule is that of scikit-learn >= 1.5; older versions decide by the scores, and give many maps
        the other sign.

    Source:
        Yasuki and Taki 2024, "CAM Back Again" (arXiv 2403.06676), the PC1 localization method.

    Example:
        >>> import torch
        >>> from cba_fast.wsol import pc1_from_features
        >>> features, weights = torch.rand(2, 16, 7, 7), torch.randn(2, 16)
        >>> pc1_from_features(features, weights).shape
        torch.Size([2, 7, 7])
    """
    maps = weighted_features(features, weights)
    n, c, h, w = maps.shape
    if h != w or h < 4:
        raise ValueError(f"PC1 needs square feature maps of side >= 4, got {h}x{w}")
    low = maps.amin(dim=(2, 3), keepdim=True)
    span = maps.amax(dim=(2, 3), keepdim=True) - low
    # Values that are not finite are replaced, because `eigh` would refuse the whole batch.
    finite = (span.isfinite() & low.isfinite()).flatten(1).all(1)[:, None, None, None]
    maps = torch.where(finite & (span > 0), (maps - low) / span, 0.0)
    axis = first_principal_axis(maps.reshape(n, c, h * w)).float().reshape(n, h, w)
    peak = axis.amax(dim=(1, 2), keepdim=True)
    out = torch.where(peak > 0, axis / peak, 0.0)
    out = torch.where(is_background(out)[:, None, None], 1 - out, out)
    return torch.where(finite[:, 0], out, torch.nan)


def first_principal_axis(samples: Tensor) -> Tensor:
    """Return the first principal axis of each batch of samples.

    Args:
        samples: (N, S, V) floating: N data sets of S samples of V variables.

    Returns:
        (N, V) float64 of unit length, the entry of largest magnitude (the first of equals)
        positive; zeros where the samples do not vary.
    """
    x = samples.double()
    x = x - x.mean(dim=1, keepdim=True)
    s, v = x.shape[1:]
    if s < v:  # the S x S Gram matrix has the same non-zero spectrum
        left = torch.linalg.eigh(x @ x.mT).eigenvectors[..., -1:]
        axis = (x.mT @ left)[..., 0]
        norm = axis.norm(dim=1, keepdim=True)
        axis = torch.where(norm > 0, axis / norm, 0.0)
    else:
        axis = torch.linalg.eigh(x.mT @ x).eigenvectors[..., -1]
        axis = axis * (x != 0).any(dim=2).any(dim=1)[:, None]
    largest = axis.gather(1, axis.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -axis, axis)


def is_background(maps: Tensor) -> Tensor:
    """Tell by the study's orientation rule which maps are bright on the background.

    A map is binarized at its mean. The ones are counted in all cells except those whose row and
    column both lie in 1..h-3 (63 of 144 cells count at h = 12; the asymmetry is the study's own)
    and their number is divided by 4*(h-1). Above 0.5 the map shows the background.

    Args:
        maps: (N, h, h) floating.

    Returns:
        (N,) bool.
    """
    h = maps.shape[1]
    ones = maps > maps.mean(dim=(1, 2), keepdim=True)
    border = torch.ones(h, h, dtype=torch.bool, device=maps.device)
    border[1 : h - 2, 1 : h - 2] = False
    # Integers are compared, because devices divide floats with different roundings.
    return (ones & border).sum(dim=(1, 2)) > 2 * (h - 1)
