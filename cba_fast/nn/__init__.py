"""Modules: the depthwise convolution and what turns a trained model into its inference form."""

from .depthwise import DepthwiseConv2d

__all__ = ["DepthwiseConv2d"]
