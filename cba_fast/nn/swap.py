"""Put the fast depthwise convolution into models that were written without it."""

import logging

from torch import nn

from ..ops.dwconv_choice import ALGORITHMS
from .depthwise import IMPLICIT_GEMM, DepthwiseConv2d, true_padding, why_not_covered

log = logging.getLogger("cba_fast")


def accelerate(model: nn.Module, *, algorithm: str = "auto") -> list[str]:
    """Turn every matching depthwise `torch.nn.Conv2d` of a model into a `DepthwiseConv2d`.

    A module matches if its type is exactly `torch.nn.Conv2d`, or RepLKNet's drop-in
    ``DepthWiseConv2dImplicitGEMM``, and `DepthwiseConv2d` covers its configuration. Only its class
    is changed: the object keeps its parameters, dtype, device, mode and hooks, and its place in
    every container and optimizer. The ``padding`` of RepLKNet's drop-in, which stays 0 although it
    pads, is set to what it applies.

    Args:
        model: any module; changed in place. It may be a matching convolution itself.
        algorithm: the `algorithm` of the changed modules, see `depthwise_conv2d`.

    Returns:
        The names of the changed modules in the order of ``named_modules``, one name for a module
        that is used in several places. A second call returns an empty list.

    Raises:
        ValueError: `algorithm` is unknown; nothing is changed.

    Notes:
        A depthwise convolution that is left alone, because it has another configuration,
        parametrizations or its own ``forward``, is logged with the reason (logger ``cba_fast``,
        level info).
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {algorithm!r}")
    swapped = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or isinstance(module, DepthwiseConv2d):
            continue
        reason = _why_left(module)
        if reason is None:
            _swap(module, algorithm)
            swapped.append(name)
        elif module.groups > 1 and module.groups == module.in_channels:
            log.info("accelerate leaves %r as it is: %s", name, reason)
    return swapped


def _why_left(module: nn.Conv2d) -> str | None:
    cls = type(module)
    if hasattr(module, "parametrizations"):
        return "it has parametrizations"
    if cls is not nn.Conv2d and cls.__name__ != IMPLICIT_GEMM:
        return f"its type is {cls.__qualname__}, which may compute something else"
    if "forward" in vars(module):
        return "its forward is set on the instance"
    return why_not_covered(module)


def _swap(module: nn.Conv2d, algorithm: str) -> None:
    padding = true_padding(module)
    module.__class__ = DepthwiseConv2d
    if algorithm != DepthwiseConv2d.algorithm:
        module.algorithm = algorithm
    if padding != module.padding:
        # `torch.nn.Conv2d` keeps its padding in two attributes.
        module.padding = padding
        module._reversed_padding_repeated_twice = [p for p in reversed(padding) for _ in (0, 1)]
