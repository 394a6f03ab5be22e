"""The ops: one public function per op, registered with PyTorch as ``torch.ops.cba_fast.*``.

Two functions have the names of their files (``ops.quantize`` is the function); nothing here is
lazy, or a file imported later would take its name back.
"""

from .box_sweep import best_box_iou, box_sweep
from .dwconv import depthwise_conv2d, depthwise_conv2d_grad_weight, depthwise_conv2d_grad_x
from .erf import erf_accumulate, erf_size
from .quantize import quantize

__all__ = [
    "best_box_iou",
    "box_sweep",
    "depthwise_conv2d",
    "depthwise_conv2d_grad_weight",
    "depthwise_conv2d_grad_x",
    "erf_accumulate",
    "erf_size",
    "quantize",
]
