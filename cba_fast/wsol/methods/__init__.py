"""Localization methods: what each makes of a network's features, gradients or attention."""

from .attention import attention_rollout, chefer
from .class_activation import cam_from_features
from .evidence import Evidence, classify, gather
from .gradients import (
    eigen_cam,
    eigen_grad_cam,
    grad_cam,
    grad_cam_elementwise,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    x_grad_cam,
)
from .principal_component import pc1_from_features
from .registry import METHODS, Method, method_named, register_method

__all__ = [
    "METHODS",
    "Evidence",
    "Method",
    "cam_from_features",
    "classify",
    "gather",
    "method_named",
    "pc1_from_features",
    "register_method",
]

register_method("cam", cam_from_features, value_range="clip")
register_method("pc1", pc1_from_features, value_range="wrap")
register_method("grad-cam", grad_cam)
register_method("grad-cam++", grad_cam_plus_plus)
register_method("x-grad-cam", x_grad_cam)
register_method("hires-cam", hires_cam)
register_method("layer-cam", layer_cam)
register_method("grad-cam-elementwise", grad_cam_elementwise)
register_method("eigen-cam", eigen_cam)
register_method("eigen-grad-cam", eigen_grad_cam)
register_method("attention-rollout", attention_rollout)
register_method("chefer", chefer)
