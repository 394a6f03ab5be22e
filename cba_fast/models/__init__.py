"""The study's models and their checkpoints; importing this registers the models with timm."""

from .build import DEFAULT_MODELS, FAMILIES, build_model
from .checkpoints import Layout, detect_layout, load_state_dict_file, save_state_dict_file
from .convnext_study import ConvNeXtStudy
from .inference import inference_form
from .layers import mergeable
from .merging import merge
from .replknet import RepLKNet
from .slak import SLaK
from .slak_flex import SLaKFlex

__all__ = [
    "DEFAULT_MODELS",
    "FAMILIES",
    "ConvNeXtStudy",
    "Layout",
    "RepLKNet",
    "SLaK",
    "SLaKFlex",
    "build_model",
    "detect_layout",
    "inference_form",
    "load_state_dict_file",
    "merge",
    "mergeable",
    "save_state_dict_file",
]
