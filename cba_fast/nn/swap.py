"""Put the fast depthwise convolution into models that were written without it, and take it out."""

import functools
import logging
from collections import Counter
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..ops.dwconv_choice import ALGORITHMS
from .depthwise import IMPLICIT_GEMM, DepthwiseConv2d, true_padding, why_not_covered
from .modes import checked_module

log = logging.getLogger("cba_fast")


class Layer(NamedTuple):
    """A convolution of a model, and what became of it.

    Attributes:
        name: as in ``named_modules``; for a bare parameter as in ``named_parameters``.
        kind: class and kernel size, such as ``Conv2d 31x31``.
        state: "swapped"; "ours", a `DepthwiseConv2d` already; or "left".
        reason: why it was left, else empty.
    """

    name: str
    kind: str
    state: str
    reason: str = ""


class AccelerateReport(list[str]):
    """The names of the modules that `accelerate` changed; prints a line for each kind of layer.

    Attributes:
        layers: the depthwise convolutions of the model and what became of them.
        others: the number of other convolutions.
    """

    def __init__(self, layers: list[Layer], others: int):
        super().__init__(layer.name for layer in layers if layer.state == "swapped")
        self.layers, self.others = layers, others

    def __reduce__(self) -> tuple:
        return type(self), (self.layers, self.others)

    def __str__(self) -> str:
        kinds = Counter((state, kind, reason) for _, kind, state, reason in self.layers)
        first = {layer[1:]: layer.name for layer in reversed(self.layers)}
        lines = [
            f"{state:8}{count:4} x {kind}, first {first[kind, state, reason]!r}"
            + (f": {reason}" if reason else "")
            for (state, kind, reason), count in sorted(kinds.items(), key=lambda k: k[0][0] == LEFT)
        ]
        if self.others:
            lines.append(f"{LEFT:8}{self.others:4} x other convolutions: they are not depthwise")
        return "\n".join(lines) or "the model has no convolution"

    __repr__ = __str__


SWAPPED, OURS, LEFT = "swapped", "ours", "left"


def accelerate(model: nn.Module, *, algorithm: str = "auto") -> AccelerateReport:
    """Turn every matching depthwise `torch.nn.Conv2d` of a model into a `DepthwiseConv2d`.

    A module matches if it computes as `torch.nn.Conv2d` does, or is RepLKNet's drop-in
    ``DepthWiseConv2dImplicitGEMM``, and `DepthwiseConv2d` covers its configuration. Only its class
    is changed: the object keeps its parameters, dtype, device, mode and hooks, and its place in
    every container and optimizer. Subclasses that add something, but compute the same, remain
    instances of their class. The ``padding`` of RepLKNet's drop-in, which stays 0 although it pads,
    is set to what it applies. `restore` undoes all of this.

    Args:
        model: any module; changed in place. It may be a matching convolution itself.
        algorithm: the `algorithm` of the changed modules, see `depthwise_conv2d`.

    Returns:
        The list of the names of the changed modules in the order of ``named_modules``, one name for
        a module that is used in several places. A second call changes nothing. Printed, it says for
        each kind of depthwise convolution what became of it: also of those that were left, with the
        reason, and of parameters that look like depthwise kernels of a functional convolution.

    Raises:
        ValueError: `algorithm` is unknown; nothing is changed.

    Notes:
        A depthwise convolution that is left is also logged (logger ``cba_fast``, level info).

    Example:
        >>> from torch import nn
        >>> import cba_fast
        >>> model = nn.Sequential(nn.Conv2d(8, 8, 31, padding=15, groups=8), nn.Conv2d(8, 4, 1))
        >>> print(cba_fast.accelerate(model))
        swapped    1 x Conv2d 31x31, first '0'
        left       1 x other convolutions: they are not depthwise
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {algorithm!r}")
    layers, others = [], 0
    for name, module in list(checked_module(model).named_modules()):
        if not isinstance(module, _ConvNd):
            layers += _bare_kernels(name, module, model)
            continue
        kind = f"{type(module).__name__} {'x'.join(map(str, module.kernel_size))}"
        reason = _why_left(module)
        if reason is None and isinstance(module, DepthwiseConv2d):
            layers.append(Layer(name, kind, OURS))
        elif reason is None and isinstance(module, nn.Conv2d):
            _swap(module, algorithm)
            layers.append(Layer(name, kind, SWAPPED))
        elif reason is not None and module.groups == module.in_channels > 1:
            layers.append(Layer(name, kind, LEFT, reason))
        else:
            others += 1
    for layer in layers:
        if layer.state == LEFT:
            log.info("accelerate leaves %r as it is: %s", layer.name, layer.reason)
    return AccelerateReport(layers, others)


def restore(model: nn.Module) -> list[str]:
    """Undo `accelerate`: give the modules that it changed their own class and attributes back.

    Parameters, hooks, modes and what else changed since stay as they are. Useful before
    `torch.jit.script`, and for code that asks for exact types.

    Args:
        model: a model, or a copy of one, that `accelerate` changed; changed in place.

    Returns:
        The names of the modules that are as they were.

    Raises:
        ValueError: a module's class was changed by someone else in between, as
            `torch.nn.utils.parametrize` does; nothing is changed.

    Example:
        >>> from torch import nn
        >>> import cba_fast
        >>> model = nn.Sequential(nn.Conv2d(8, 8, 31, padding=15, groups=8), nn.ReLU())
        >>> cba_fast.accelerate(model)[:]
        ['0']
        >>> cba_fast.restore(model)
        ['0']
        >>> type(model[0]) is nn.Conv2d
        True
    """
    swapped = {n: m for n, m in checked_module(model).named_modules() if _BEFORE in vars(m)}
    for name, module in swapped.items():
        if type(module) is not _swapped_class(vars(module)[_BEFORE][0]):
            raise ValueError(
                f"{name!r} cannot be restored: its class was changed after accelerate, to "
                f"{type(module).__qualname__}; remove its parametrizations first"
            )
    for module in swapped.values():
        cls, attributes = vars(module).pop(_BEFORE)
        module.__class__ = cls
        vars(module).pop("algorithm", None)
        vars(module).update(attributes)
    return list(swapped)


# The attribute of a swapped module that holds its class and the attributes that were changed.
_BEFORE = "_before_accelerate"

# What a subclass of `torch.nn.Conv2d` must not touch to compute the same.
_METHODS: tuple[str, ...] = ("forward", "_conv_forward", "__call__", "_call_impl")
_METHODS += ("_wrapped_call_impl", "__getattr__", "__getattribute__")
_VALUES: tuple[str, ...] = ("weight", "bias", "in_channels", "out_channels", "kernel_size")
_VALUES += ("stride", "padding", "dilation", "groups", "padding_mode")
_VALUES += ("_reversed_padding_repeated_twice",)


def computes_as(module: nn.Module, base: type[nn.Module]) -> bool:
    """Say whether a module of `base` or of a subclass computes what `base` does."""
    cls = type(module)
    return (
        isinstance(module, base)
        and not hasattr(module, "parametrizations")
        and not any(name in vars(module) for name in _METHODS)
        and all(getattr(cls, m, None) is getattr(base, m, None) for m in _METHODS)
        and not any(hasattr(cls, value) for value in _VALUES)
    )


def _why_left(module: _ConvNd) -> str | None:
    cls = type(module)
    if not isinstance(module, nn.Conv2d):
        return f"it is a {cls.__qualname__}, not a Conv2d"
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        return "it has no weights before the first call"
    if isinstance(module, DepthwiseConv2d) or cls.__name__ == IMPLICIT_GEMM:
        return why_not_covered(module)
    if hasattr(module, "parametrizations"):
        return "it has parametrizations; a layer may get them after accelerate"
    if "forward" in vars(module):
        return "its forward is set on the instance"
    if not computes_as(module, nn.Conv2d):
        return f"its type is {cls.__qualname__}, which may compute something else"
    return why_not_covered(module)


def _bare_kernels(name: str, module: nn.Module, model: nn.Module) -> list[Layer]:
    """Return the parameters of a module that is no convolution that look like depthwise kernels."""
    kernels = {
        k: "x".join(map(str, p.shape[2:]))
        for k, p in module.named_parameters(recurse=False)
        if p.dim() == 4 and p.shape[1] == 1 < p.shape[0] and p[0].numel() > 1
    }
    if ".parametrizations." in f".{name}.":
        return []  # the layer that it parametrizes is in the list
    prefix = f"{name}." if name else ""
    reason = (
        f"a parameter of {type(module).__qualname__} in the shape of depthwise kernels; if a "
        "functional convolution uses it, call cba_fast.ops.depthwise_conv2d there"
    )
    return [Layer(prefix + k, f"parameter {size}", LEFT, reason) for k, size in kernels.items()]


@functools.cache
def _swapped_class(cls: type[nn.Conv2d]) -> type[DepthwiseConv2d]:
    """Return the class that a module of class `cls` gets."""
    if cls is nn.Conv2d or cls.__name__ == IMPLICIT_GEMM:
        return DepthwiseConv2d
    # Code that asks for its own class, or calls what that adds, still finds it. Copies and files
    # name the class by the one that it was made from.
    namespace = {
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": lambda self, protocol: (_blank, (cls,), vars(self)),
    }
    return type(f"Depthwise{cls.__name__}", (DepthwiseConv2d, cls), namespace)


def _blank(cls: type) -> DepthwiseConv2d:
    swapped = _swapped_class(cls)
    return swapped.__new__(swapped)


def _swap(module: nn.Conv2d, algorithm: str) -> None:
    padding, cls = true_padding(module), type(module)
    before = {}
    module.__class__ = _swapped_class(cls)  # type: ignore[arg-type]  # classes are hashable
    if algorithm != DepthwiseConv2d.algorithm:
        vars(module)["algorithm"] = algorithm
    if not isinstance(padding, str) and padding != module.padding:
        # `torch.nn.Conv2d` keeps its padding in two attributes.
        both = ("padding", "_reversed_padding_repeated_twice")
        before = {name: vars(module)[name] for name in both}
        module.padding = padding
        module._reversed_padding_repeated_twice = [p for p in reversed(padding) for _ in (0, 1)]
    vars(module)[_BEFORE] = (cls, before)
