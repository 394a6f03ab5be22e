"""The ops: one public function per op, registered with PyTorch as ``torch.ops.cba_fast.*``.

``ops.quantize`` and ``ops.box_sweep`` are functions with the names of their files. All files are
imported here, because one that was imported later would replace its function.
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
