"""What timm's data configuration says about our models: the study's preprocessing."""


def study_cfg(first_conv: str, classifier: str) -> dict:
    """Return a timm default cfg without weights.

    The input is the study's: 384x384 by squashing, bilinear, mean and std 0.5.

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
