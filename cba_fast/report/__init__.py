"""A page of HTML that shows what scored maps are worth, and tables and pictures for papers."""

from .collect import Collected, collect
from .erf import RunErf, Sizes, read_erf
from .keep import MapKeeper
from .render import render, write_report
from .sheets import write_sheets

__all__ = [
    "Collected",
    "MapKeeper",
    "RunErf",
    "Sizes",
    "collect",
    "read_erf",
    "render",
    "write_report",
    "write_sheets",
]
