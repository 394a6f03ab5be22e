"""The ops: one public function per op, registered with PyTorch as ``torch.ops.cba_fast.*``."""

import importlib

# Not lazy: these functions have the names of their files, and a file that is imported later would
# take the name for itself.
from .box_sweep import best_box_iou, box_sweep
from .quantize import quantize

_WHERE = {
    "depthwise_conv2d": "dwconv",
    "depthwise_conv2d_grad_x": "dwconv",
    "depthwise_conv2d_grad_weight": "dwconv",
    "box_sweep": "box_sweep",
    "best_box_iou": "box_sweep",
    "quantize": "quantize",
    "erf_size": "erf",
    "erf_accumulate": "erf",
}

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


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
