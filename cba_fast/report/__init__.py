"""A page of HTML that shows what scored maps are worth: figures, curves, failures, images."""

from .collect import Collected, collect
from .keep import MapKeeper
from .render import render, write_report

__all__ = ["Collected", "MapKeeper", "collect", "render", "write_report"]
