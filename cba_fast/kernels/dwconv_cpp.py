"""Launches the C++ depthwise convolution (CPU tensors; float32, bfloat16 or float16).

A launcher is made for one layout (shape, strides, dtype) and takes all tensors of that layout. What
depends on the layout alone is checked and computed once, when the launcher is made.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import native


def launcher(
    image: Tensor,
    kernel_size: tuple[int, int],
    memory_format: torch.memory_format,
    algorithm: str,
    *,
    turned: bool = False,
    relu: bool = False,
    isa: str = "",
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return a function (x, weight, bias) -> y for all x with the layout of `image`.

    Args:
        image: (N, C, H, W), not empty.
        kernel_size: (kh, kw) of the weights (C, 1, kh, kw).
        memory_format: the memory format of y.
        algorithm: "fft" or "direct".
        turned: turn the kernel by 180 degrees, which gives the input gradient for x = grad.
        relu: store max(0, y); NaN stays NaN.
        isa: the instruction set; empty for that of the process.
    """
    shape, dtype, copied = image.shape, image.dtype, not _is_readable(image)
    strides = _strides(torch.empty_like(image, device="meta", memory_format=memory_format))
    kernel = native.load_for_isa(isa).DepthwiseConv(
        "grad_x" if turned else "forward",
        _planes(image),
        _kernel_planes(kernel_size),
        (*shape[2:], strides),
        native.dtype_name(dtype),
        *shape[:2],
        algorithm,
        isa,
        relu,
    )
    run = kernel.run

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
    """Return a function (grad, x) -> the weight gradient (C,1,kh,kw), contiguous.

    Args:
        grad, x: (N, C, H, W), not empty; the function takes tensors of their layouts.
        kernel_size: (kh, kw).
        algorithm, isa: as `launcher`.
    """
    shape = (x.shape[1], 1, *kernel_size)
    kernel = native.load_for_isa(isa).DepthwiseConv(
        "grad_weight",
        _planes(grad),
        _planes(x),
        _kernel_planes(kernel_size),
        native.dtype_name(x.dtype),
        *x.shape[:2],
        algorithm,
        isa,
    )
    run = kernel.run
    grad_copied, x_copied = not _is_readable(grad), not _is_readable(x)

    def launch(grad: Tensor, x: Tensor) -> Tensor:
        if grad_copied:
            grad = grad.contiguous()
        if x_copied:
            x = x.contiguous()
        # The FFT kernel does not write taps that lie outside the image for every output pixel.
        weight = x.new_zeros(shape)
        threads = torch.get_num_threads()
        run(grad.data_ptr(), x.data_ptr(), 0, weight.data_ptr(), threads)
        return weight

    return launch


def _strides(x: Tensor) -> tuple[int, ...]:
    """Return x's strides, with 1 for dimensions of size 1, whose strides may be anything."""
    return tuple([s if n > 1 else 1 for n, s in zip(x.shape, x.stride(), strict=True)])


def _is_readable(x: Tensor) -> bool:
    """Say whether the kernel can read x: channels or columns must be contiguous."""
    _, c, _, w = _strides(x)
    return 1 in (c, w)


def _planes(x: Tensor) -> tuple:
    """Return the size and strides of x, or of its copy, as the compiled core takes them."""
    if not _is_readable(x):
        x = torch.empty(x.shape, device="meta")
    return *x.shape[2:], _strides(x)


def _kernel_planes(kernel_size: tuple[int, int]) -> tuple:
    kh, kw = kernel_size
    return kh, kw, (0, kh * kw, kw, 1)
