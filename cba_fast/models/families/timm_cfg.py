"""Helpers to register models with timm: their default configuration and their construction."""

from typing import TypeVar

from timm.models import build_model_with_cfg
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def study_cfg(first_conv: str, classifier: str) -> dict:
    """Return timm's default configuration of a model that has no published weights there.

    The input is that of the study: squashed to 384x384 bilinearly, mean and std 0.5.

    Args:
        first_conv: name of the first convolution.
        classifier: name of the linear layer.
    """
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 384, 384),
        "pool_size": (12, 12),
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": first_conv,
        "classifier": classifier,
    }


def create(cls: type[Model], name: str, pretrained: bool, options: dict) -> Model:
    """Build a registered model as timm does; ``features_only`` uses ``forward_intermediates``."""
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(cls, name, pretrained, feature_cfg=features, **options)
