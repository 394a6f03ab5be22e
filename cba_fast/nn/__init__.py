"""Modules: the depthwise convolution and what turns a trained model into its inference form."""

from .depthwise import DepthwiseConv2d
from .fuse import fold_bn_before_conv1x1, fuse_conv_bn, pad_kernel
from .modes import eval_mode, frozen
from .pointwise import MapLinear, conv1x1_is_faster, linears_as_convs
from .swap import AccelerateReport, accelerate, restore

__all__ = [
    "AccelerateReport",
    "DepthwiseConv2d",
    "MapLinear",
    "accelerate",
    "conv1x1_is_faster",
    "eval_mode",
    "fold_bn_before_conv1x1",
    "frozen",
    "fuse_conv_bn",
    "linears_as_convs",
    "pad_kernel",
    "restore",
]
