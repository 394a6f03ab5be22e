"""Effective receptive fields: input gradients, ERF sizes and ERF maps of any classifier."""

from cba_fast.erf.gradients import SCORES, center_gradient, input_gradient
from cba_fast.erf.maps import AreaRatio, ErfMap, area_ratio, erf_map, measure_erf_map
from cba_fast.erf.partial import Partial
from cba_fast.erf.sizes import SizeResult, erf_sizes, measure_erf_sizes, sample_indices
from cba_fast.erf.walk import Walk

__all__ = [
    "SCORES",
    "AreaRatio",
    "ErfMap",
    "Partial",
    "SizeResult",
    "Walk",
    "area_ratio",
    "center_gradient",
    "erf_map",
    "erf_sizes",
    "input_gradient",
    "measure_erf_map",
    "measure_erf_sizes",
    "sample_indices",
]
