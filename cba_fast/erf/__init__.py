"""Effective receptive fields (ERF): input gradients, ERF sizes and ERF maps of any classifier."""

from .gradients import SCORES, input_gradient
from .layers import center_gradient
from .maps import (
    AreaRatio,
    ErfMap,
    area_ratio,
    erf_depth,
    erf_map,
    measure_erf_map,
    measure_erf_maps,
    scale_free_area_ratio,
)
from .memory import CHECKPOINTS, choose_checkpoint
from .partial import Partial
from .recompute import LEVELS, kept_bytes
from .shape import ErfShape, erf_shape, radial_profile, shape_distance
from .sizes import SizeResult, erf_sizes, measure_erf_sizes, sample_indices
from .walk import Walk

__all__ = [
    "CHECKPOINTS",
    "LEVELS",
    "SCORES",
    "AreaRatio",
    "ErfMap",
    "ErfShape",
    "Partial",
    "SizeResult",
    "Walk",
    "area_ratio",
    "center_gradient",
    "choose_checkpoint",
    "erf_depth",
    "erf_map",
    "erf_shape",
    "erf_sizes",
    "input_gradient",
    "kept_bytes",
    "measure_erf_map",
    "measure_erf_maps",
    "measure_erf_sizes",
    "radial_profile",
    "sample_indices",
    "scale_free_area_ratio",
    "shape_distance",
]
