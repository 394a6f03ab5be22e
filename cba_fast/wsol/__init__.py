"""Weakly supervised object localization: maps from a classifier, and their scores.

Public names are imported from here, each when it is first used, so that scoring stored maps imports
neither timm nor torchvision, which take 200 MB and some seconds.
"""

import sys
from types import ModuleType

from ..lazy import exports

_WHERE = {
    "finish_maps": "heatmap",
    "Localization": "device_maps",
    "cam": "localize",
    "heatmap": "localize",
    "localize": "localize",
    "pc1": "localize",
    "MapReading": "map_reading",
    "find_maps": "map_reading",
    "open_maps": "map_reading",
    "read_maps": "map_reading",
    "METHODS": "methods",
    "cam_from_features": "methods",
    "pc1_from_features": "methods",
    "register_method": "methods",
    "MapFolder": "score_maps",
    "check_score_map": "score_maps",
    "read_score_map": "score_maps",
    "BootstrapResult": "scoring.bootstrap",
    "Difference": "scoring.bootstrap",
    "Interval": "scoring.bootstrap",
    "bootstrap": "scoring.bootstrap",
    "compare": "scoring.bootstrap",
    "BoxResult": "scoring.box_result",
    "ClassResult": "scoring.box_result",
    "classification_scores": "scoring.classification",
    "correct_classes": "scoring.classification",
    "BoxEvaluator": "scoring.evaluator",
    "evaluate_wsol": "scoring.official",
    "PixelEvaluator": "scoring.pixel_evaluator",
    "PixelResult": "scoring.pixel_evaluator",
}

__all__ = sorted(_WHERE)
__getattr__, __dir__ = exports(__name__, _WHERE)


class _Package(ModuleType):
    """This package, in which `localize` and `heatmap` are functions and not the files so named."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
