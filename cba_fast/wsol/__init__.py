"""Weakly supervised object localization: maps from a classifier, and their scores."""

from .class_activation import cam_from_features
from .evaluator import BoxEvaluator, BoxResult
from .heatmap import finish_maps
from .localize import Localization, cam, localize, pc1
from .principal_component import pc1_from_features
from .score_maps import MapFolder, check_score_map, read_score_map

__all__ = [
    "BoxEvaluator",
    "BoxResult",
    "Localization",
    "MapFolder",
    "cam",
    "cam_from_features",
    "check_score_map",
    "finish_maps",
    "localize",
    "pc1",
    "pc1_from_features",
    "read_score_map",
]
