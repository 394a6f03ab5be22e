"""A depthwise convolution that takes the place of `torch.nn.Conv2d`."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.fx
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..ops.dwconv import depthwise_conv2d
from ..ops.dwconv_checks import DTYPES, MAX_KERNEL
from ..shapes import pair
from .counting import count_as

log = logging.getLogger("cba_fast")

Conv = TypeVar("Conv", bound=nn.Conv2d)
_DEVICES = ("cpu", "cuda", "meta")


class DepthwiseConv2d(nn.Conv2d):
    """A drop-in replacement for `torch.nn.Conv2d` that is fast for large depthwise kernels.

    Constructor, attributes, state dict and results are those of `torch.nn.Conv2d`. It computes by
    `cba_fast.ops.depthwise_conv2d` where groups = in_channels = out_channels, the kernel sizes are
    odd and at most 63, stride and dilation are 1, and the padding is zeros of half the kernel
    ("same"). Any other configuration runs as `torch.nn.Conv2d`; the reason is logged once (logger
    ``cba_fast``, level info).

    Shape: x (N, C, H, W) or (C, H, W) -> the same shape.

    Attributes:
        algorithm: the argument of `depthwise_conv2d`, "auto" unless set. "direct" keeps the effect
            of a NaN or a spike under the kernel.

    Notes:
        ``torch.autograd.grad(y, x)`` computes the weight gradient too if the weight requires grad:
        freeze the weights for receptive fields and activation maps. See `depthwise_conv2d` for
        dtypes and accumulation. ONNX export, `torch.jit.trace`, forward-mode derivatives,
        `torch.func` transforms and devices other than CPUs and CUDA GPUs get PyTorch's convolution.
        The module cannot be scripted.

    Example:
        >>> import torch
        >>> from cba_fast.nn import DepthwiseConv2d
        >>> conv = DepthwiseConv2d(16, 16, 31, padding=15, groups=16)
        >>> conv(torch.randn(1, 16, 48, 48)).shape
        torch.Size([1, 16, 48, 48])
        >>> [name for name, _ in conv.named_parameters()]
        ['weight', 'bias']
    """

    algorithm = "auto"

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> "DepthwiseConv2d":
        """Return a module with the geometry and mode of `conv` that shares its parameters.

        Hooks and parametrizations of `conv` are not copied.

        Raises:
            TypeError: `conv` is no `torch.nn.Conv2d`.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv must be a torch.nn.Conv2d, got {type(conv).__name__}")
        return with_parameters(cls, conv, conv.weight, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x, (N, C, H, W) or (C, H, W)."""
        reason = why_not_covered(self)
        symbolic = isinstance(x, torch.fx.Proxy)  # has neither dtype nor device
        if reason is None and not symbolic and self.weight.dtype not in DTYPES:
            reason = f"the weight is {self.weight.dtype}"
        if reason is not None:
            if not torch.compiler.is_compiling():
                _log_once(reason)
            return super().forward(x)
        # ONNX knows PyTorch's convolution but not this op. A TorchScript trace may run without this
        # package and on other sizes than the example's.
        if torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
            return super().forward(x)
        if not symbolic and (_differentiated_otherwise() or x.device.type not in _DEVICES):
            return super().forward(x)
        return _convolve(x, self.weight, self.bias, self.algorithm)

    def apply(self, fn: Callable[[nn.Module], None]) -> nn.Module:  # type: ignore[override]
        """Call `fn` on this module; counters of FLOPs come this way."""
        count_as(DepthwiseConv2d, nn.Conv2d)
        return super().apply(fn)


@torch.fx.wrap  # a symbolic trace keeps it as one node
def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, algorithm: str) -> Tensor:
    batch = x.unsqueeze(0) if x.dim() == 3 else x
    y = depthwise_conv2d(batch, weight, bias, algorithm=algorithm)
    return y.squeeze(0) if x.dim() == 3 else y


def _differentiated_otherwise() -> bool:
    """Say whether forward-mode derivatives or a `torch.func` transform are being computed.

    PyTorch cannot take an op that was registered from Python through either.
    """
    if torch.compiler.is_compiling():
        return False
    return (
        forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
    )


def with_parameters(cls: type[Conv], conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> Conv:
    """Return a `cls` with the geometry and mode of `conv` that holds these parameters."""
    padding = true_padding(conv)
    new = cls(
        conv.in_channels,
        conv.out_channels,
        pair(conv.kernel_size),
        stride=pair(conv.stride),
        padding=padding if isinstance(padding, str) else pair(padding),
        dilation=pair(conv.dilation),
        groups=conv.groups,
        bias=bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",  # nothing is allocated or drawn for parameters that are replaced below
    )
    new.weight, new.bias = weight, bias
    return new.train(conv.training)


def why_not_covered(conv: nn.Conv2d) -> str | None:
    """Return the reason why `depthwise_conv2d` cannot replace `conv`, or None if it can."""
    kernel = tuple(conv.kernel_size)
    if not conv.groups == conv.in_channels == conv.out_channels:
        return (
            f"not depthwise: {conv.in_channels} to {conv.out_channels} channels in {conv.groups} "
            "groups"
        )
    if any(k % 2 == 0 or k > MAX_KERNEL for k in kernel):
        return f"kernel {kernel} is not odd and at most {MAX_KERNEL}"
    if tuple(conv.stride) != (1, 1):
        return f"stride {tuple(conv.stride)} is not 1"
    if tuple(conv.dilation) != (1, 1):
        return f"dilation {tuple(conv.dilation)} is not 1"
    if conv.padding_mode != "zeros":
        return f"padding mode {conv.padding_mode!r} is not 'zeros'"
    padding = true_padding(conv)
    if padding == "valid":
        padding = (0, 0)
    if padding != "same" and tuple(padding) != (kernel[0] // 2, kernel[1] // 2):
        return f"padding {padding} is not half of kernel {kernel}"
    return None


# The implicit-GEMM extension of RepLKNet and SLaK pads inside its kernel; its modules are
# `torch.nn.Conv2d` subclasses whose `.padding` stays 0.
IMPLICIT_GEMM = "DepthWiseConv2dImplicitGEMM"


def true_padding(conv: nn.Conv2d) -> str | tuple[int, ...]:
    """Return the padding that `conv` applies, which may differ from its attribute."""
    if type(conv).__name__ == IMPLICIT_GEMM:
        return tuple(k // 2 for k in conv.kernel_size)
    return conv.padding


_logged: set[str] = set()


def _log_once(reason: str) -> None:
    if reason not in _logged:
        _logged.add(reason)
        log.info("DepthwiseConv2d runs as torch.nn.Conv2d: %s", reason)
