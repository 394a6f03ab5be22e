"""A page of HTML that shows what scored maps are worth: figures, curves, failures, images."""

from .collect import Collected, collect
from .render import render, write_report

__all__ = ["Collected", "collect", "render", "write_report"]
