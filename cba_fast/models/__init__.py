"""The study's models and their checkpoints; importing this registers the models with timm."""

from .build import build_model
from .checkpoints import (
    Checkpoint,
    load_state_dict_file,
    read_checkpoint,
    save_state_dict_file,
)
from .convnext_study import ConvNeXtStudy
from .description import ModelDescription
from .folding import FoldReport, fold
from .inference import inference_form
from .layers import mergeable
from .layouts import Layout, detect_layout
from .merging import merge
from .replknet import RepLKNet
from .resolve import DEFAULT_MODELS, FAMILIES
from .slak import SLaK
from .slak_flex import SLaKFlex

__all__ = [
    "DEFAULT_MODELS",
    "FAMILIES",
    "Checkpoint",
    "ConvNeXtStudy",
    "FoldReport",
    "Layout",
    "ModelDescription",
    "RepLKNet",
    "SLaK",
    "SLaKFlex",
    "build_model",
    "detect_layout",
    "fold",
    "inference_form",
    "load_state_dict_file",
    "merge",
    "mergeable",
    "read_checkpoint",
    "save_state_dict_file",
]
