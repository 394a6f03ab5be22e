"""``demo``: the whole study on generated images, in one folder, without download or GPU."""

from .parts import FULL, INPUT_SIZE, MODELS, QUICK, DemoRow, DemoScale
from .run import DemoResult, run_demo

__all__ = [
    "FULL",
    "INPUT_SIZE",
    "MODELS",
    "QUICK",
    "DemoResult",
    "DemoRow",
    "DemoScale",
    "run_demo",
]
