"""Modules: the depthwise convolution and what turns a trained model into its inference form."""

from .depthwise import DepthwiseConv2d
from .fuse import fold_bn_before_conv1x1, fuse_conv_bn, pad_kernel
from .modes import eval_mode
from .swap import accelerate

__all__ = [
    "DepthwiseConv2d",
    "accelerate",
    "eval_mode",
    "fold_bn_before_conv1x1",
    "fuse_conv_bn",
    "pad_kernel",
]
