"""Drop-in depthwise convolution."""

from torch import nn


class DepthwiseConv2d(nn.Conv2d):
    """Be `torch.nn.Conv2d` for depthwise convolutions, through `cba_fast.ops.depthwise_conv2d`."""
