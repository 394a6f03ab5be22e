"""The study's models and their checkpoints; importing this registers the models with timm."""

from .build import build_model
from .checkpoints import (
    Checkpoint,
    load_state_dict_file,
    read_checkpoint,
    save_state_dict_file,
)
from .description import ModelDescription
from .families.convnext_study import ConvNeXtStudy
from .families.layers import mergeable
from .families.layouts import Layout, detect_layout
from .families.replknet import RepLKNet
from .families.slak import SLaK
from .families.slak_flex import SLaKFlex
from .inference.folding import FoldReport, fold
from .inference.form import inference_form
from .inference.merging import merge
from .resolve import DEFAULT_MODELS, FAMILIES

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
