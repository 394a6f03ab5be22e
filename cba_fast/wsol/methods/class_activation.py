"""Class activation maps at the resolution of the features."""

import torch
from torch import Tensor


def cam_from_features(features: Tensor, weights: Tensor) -> Tensor:
    """Compute class activation maps, rectified and divided by their maximum.

    ``map[n] = relu(mean_c(weights[n, c] * features[n, c]))``, then divided by its maximum over
    the positions. A map without a positive value becomes zeros; one whose products or means are not
    finite becomes NaN throughout.

    Args:
        features: (N, C, h, w) floating, the last feature maps before pooling.
        weights: (N, C), the row of the classifier's weight that belongs to each image's target.

    Returns:
        (N, h, w) float32 in [0, 1] on the device of `features`.

    Raises:
        ValueError: the shapes do not fit.

    Source:
        Zhou et al. 2016, "Learning Deep Features for Discriminative Localization". The mean over
        the channels, instead of the sum, cancels in the division; it is kept because it rounds as
        in the study of Yasuki and Taki 2024, "CAM Back Again".

    Example:
        >>> import torch
        >>> from cba_fast.wsol import cam_from_features
        >>> features = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]])
        >>> cam_from_features(features, torch.tensor([[2.0, 1.0]]))
        tensor([[[1.0000, 0.0000],
                 [0.0000, 0.5000]]])
    """
    means = weighted_features(features, weights).mean(dim=1)
    maps = means.relu()
    peak = maps.amax(dim=(1, 2), keepdim=True)
    maps = torch.where(peak > 0, maps / peak, 0.0)
    # Without this, relu and the comparison would turn -inf and NaN into zeros, which look valid.
    return torch.where(means.isfinite().all(2).all(1)[:, None, None], maps, torch.nan)


def weighted_features(features: Tensor, weights: Tensor) -> Tensor:
    """Return ``weights[n, c] * features[n, c]`` as (N, C, h, w) float32; check the shapes."""
    if features.ndim != 4:
        raise ValueError(f"features must be (N, C, h, w), got shape {tuple(features.shape)}")
    if tuple(weights.shape) != tuple(features.shape[:2]):
        raise ValueError(
            f"weights must be (N, C) = {tuple(features.shape[:2])}, got {tuple(weights.shape)}"
        )
    return weights.float()[:, :, None, None] * features.float()
