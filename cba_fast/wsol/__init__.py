"""Weakly supervised object localization: maps from a classifier, and their scores."""

from .heatmap import finish_maps
from .localize import Localization, cam, heatmap, localize, pc1
from .map_reading import MapReading, find_maps, open_maps, read_maps
from .methods import METHODS, cam_from_features, pc1_from_features, register_method
from .score_maps import MapFolder, check_score_map, read_score_map
from .scoring.bootstrap import BootstrapResult, Difference, Interval, bootstrap, compare
from .scoring.box_result import BoxResult, ClassResult
from .scoring.classification import classification_scores, correct_classes
from .scoring.evaluator import BoxEvaluator
from .scoring.official import evaluate_wsol
from .scoring.pixel_evaluator import PixelEvaluator, PixelResult

__all__ = [
    "METHODS",
    "BootstrapResult",
    "BoxEvaluator",
    "BoxResult",
    "ClassResult",
    "Difference",
    "Interval",
    "Localization",
    "MapFolder",
    "MapReading",
    "PixelEvaluator",
    "PixelResult",
    "bootstrap",
    "cam",
    "cam_from_features",
    "check_score_map",
    "classification_scores",
    "compare",
    "correct_classes",
    "evaluate_wsol",
    "find_maps",
    "finish_maps",
    "heatmap",
    "localize",
    "open_maps",
    "pc1",
    "pc1_from_features",
    "read_maps",
    "read_score_map",
    "register_method",
]
