"""Launches the C++ depthwise convolution (CPU tensors; float32, bfloat16 or float16).

A launcher is made for tensors of one layout (shape, strides, dtype) and serves all tensors of that
layout: what can be known without their values is checked and computed once, when it is made.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import native

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def launcher(
    image: Tensor,
    kernel_size: tuple[int, int],
    memory_format: torch.memory_format,
    algorithm: str,
    *,
    turned: bool = False,
    isa: str = "",
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the function (x, weight, bias) -> y for x of the layout of `image`.

    Args:
        image: (N, C, H, W), not empty.
        kernel_size: (kh, kw) of the weights (C, 1, kh, kw).
        memory_format: of y.
        algorithm: "fft" or "direct".
        turned: turn the kernel by 180 degrees, which gives the input gradient for x = grad.
        isa: the instruction set; empty for the best one.
    """
    shape, dtype, copied = image.shape, image.dtype, not _is_readable(image)
    strides = _strides(torch.empty_like(image, device="meta", memory_format=memory_format))
    run = (
        native.load_for_isa()
        .DepthwiseConv(
            "grad_x" if turned else "forward",
            _planes(image),
            _kernel_planes(kernel_size),
            (*shape[2:], strides),
            _DTYPES[dtype],
            *shape[:2],
            algorithm,
            isa,
        )
        .run
    )

    def launch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.empty(shape, dtype=dtype, memory_format=memory_format)
        if copied:
            x = x.contiguous()
        weight = weight.contiguous()
        if bias is not None:
            bias = bias.float().contiguous()
        run(
            x.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y

    return launch


def weight_launcher(
    grad: Tensor, x: Tensor, kernel_size: tuple[int, int], algorithm: str, *, isa: str = ""
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function (grad, x) -> the weight gradient (C,1,kh,kw), contiguous.

    Args:
        grad, x: (N, C, H, W), not empty; the function takes tensors of their layouts.
        kernel_size: (kh, kw).
        algorithm, isa: as `launcher`.
    """
    shape = (x.shape[1], 1, *kernel_size)
    run = (
        native.load_for_isa()
        .DepthwiseConv(
            "grad_weight",
            _planes(grad),
            _planes(x),
            _kernel_planes(kernel_size),
            _DTYPES[x.dtype],
            *x.shape[:2],
            algorithm,
            isa,
        )
        .run
    )
    grad_copied, x_copied = not _is_readable(grad), not _is_readable(x)

    def launch(grad: Tensor, x: Tensor) -> Tensor:
        if grad_copied:
            grad = grad.contiguous()
        if x_copied:
            x = x.contiguous()
        # Zeros: the FFT kernel leaves out taps that lie outside of the image everywhere.
        weight = x.new_zeros(shape)
        threads = torch.get_num_threads()
        run(grad.data_ptr(), x.data_ptr(), 0, weight.data_ptr(), threads)
        return weight

    return launch


def _strides(x: Tensor) -> tuple[int, ...]:
    """Return x's strides, 1 in dimensions of size 1 (theirs may be anything)."""
    return tuple([s if n > 1 else 1 for n, s in zip(x.shape, x.stride(), strict=True)])


def _is_readable(x: Tensor) -> bool:
    """Say whether channels or columns lie side by side; the kernel reads a copy otherwise."""
    _, c, _, w = _strides(x)
    return 1 in (c, w)


def _planes(x: Tensor) -> tuple:
    """Return what the compiled core knows of a tensor, or of its contiguous copy."""
    if not _is_readable(x):
        x = torch.empty(x.shape, device="meta")
    return *x.shape[2:], _strides(x)


def _kernel_planes(kernel_size: tuple[int, int]) -> tuple:
    kh, kw = kernel_size
    return kh, kw, (0, kh * kw, kw, 1)
