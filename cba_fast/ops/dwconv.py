"""Depthwise convolution with large kernels: three ops that are each other's derivatives.

With y = conv(x, w), grad_x(g, w) is linear in both arguments with the derivatives conv(., w) and
grad_weight(g, .), and grad_weight(g, x) has the derivatives conv(x, .) and grad_x(g, .). So each
backward pass is a public op, and derivatives of any order run through the same three kernels.

Each op chooses by itself how it is computed (`dwconv_choice`). The first call for tensors of a
layout checks its arguments, chooses a kernel and remembers its launcher; the next ones only launch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import dwconv_cpp, dwconv_cuda, dwconv_torch, dwconv_triton
from ..kernels.dwconv_gpu import cuda_strip
from ..reference import dwconv as reference
from . import choice_table
from .dwconv_checks import (
    check_forward,
    check_grad_weight,
    check_grad_x,
    kernel_sides,
    output_format,
)
from .dwconv_choice import ALGORITHMS, COMPILED, choose
from .library import AUTO, backend_argument, check_differentiable, register


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
    algorithm: str = AUTO,
    activation: str = "none",
) -> Tensor:
    """Convolve each channel with its own kernel, with stride 1 and zero "same" padding.

    y[n, c, h, w] = bias[c] + sum over i, j of weight[c, 0, i, j] * x[n, c, h+i-kh//2, w+j-kw//2],
    where x is zero outside the image. This is a cross-correlation and equals
    ``torch.nn.functional.conv2d(x, weight, bias, padding=(kh//2, kw//2), groups=C)``.

    Args:
        x: (N, C, H, W), float32, float64, float16 or bfloat16, CPU or CUDA, any strides. N may
            be 0.
        weight: (C, 1, kh, kw) of x's dtype and device, kh and kw odd, 1 to 63.
        bias: (C,) of x's dtype and device, or None.
        backend: "cpp" (compiled; CPU, all dtypes but float64), "triton" (NVIDIA GPUs of compute
            capability 8.0 and later, float16 and bfloat16), "cuda" (the same GPUs, if built with
            nvcc; all dtypes but float64), "cuda_strip" (the same in half precision for kernels of
            at most 7 taps across, such as 51x5; their weight gradients are of "cuda"), "torch"
            (PyTorch's own, avoiding its faults on CPUs), "conv2d" (as `torch.nn.Conv2d`; no half
            types on CPUs), "reference" (slow), or None for the fastest for these arguments by the
            tables of ``cba-fast tune``. The backward passes use the same backend; with None each
            uses the fastest for itself.
        algorithm: "fft" (Fourier transforms; the compiled kernel only), "direct" (sums over the
            taps) or "auto" for the faster one.
        activation: "relu" to return max(0, y), which the compiled and the GPU kernels compute while
            they store; or "none".

    Returns:
        (N, C, H, W) of x's dtype. Like the result of `conv2d`, it is channels_last if x or weight
        is, else contiguous.

    Raises:
        TypeError: an argument is no tensor, has a dtype that is not listed, or the dtypes differ.
        ValueError: a shape, kernel size or device does not fit, `backend`, `algorithm` or
            `activation` is unknown, or the backend cannot run the algorithm (the message says why).

    Notes:
        On average, transforms are more accurate than sums over the taps: for 31x31 in float32 the
        relative L2 error is about 2e-7 against 5e-7. But their error is relative to the largest
        value of the plane: a spike of 1000 leaves absolute errors of about 1e-4 everywhere in its
        plane, and a NaN or an infinity spreads over all of it. With "direct" neither reaches
        further than the kernel.

        The Triton kernels multiply matrices, in which a NaN or an infinity spreads over up to 80
        columns, or over the whole map if that has at most 144 pixels. In the CUDA kernels for half
        types it spreads over less than 96 rows and 64 columns; in those for float32 it stays under
        the kernel. All of them accumulate in float32 (without TF32) and return the same bits every
        time.

        Half types are accumulated in float32 and rounded once. Under autocast the arguments are
        cast as those of `conv2d`. On CUDA the torch backend follows
        ``torch.backends.cudnn.allow_tf32``. ``torch.autograd.grad(y, x)`` computes the weight
        gradient as well if `weight` requires grad, because PyTorch does not tell an op registered
        from Python which gradients were asked for: freeze the weights (``requires_grad_(False)``)
        for receptive fields and activation maps.

    Example:
        >>> import torch
        >>> from torch.nn.functional import conv2d
        >>> from cba_fast.ops import depthwise_conv2d
        >>> x, weight = torch.randn(2, 8, 32, 32), torch.randn(8, 1, 31, 31)
        >>> y = depthwise_conv2d(x, weight)
        >>> torch.allclose(y, conv2d(x, weight, padding=15, groups=8), atol=1e-3)
        True
    """
    given = {} if bias is None else {"bias": bias}
    check_differentiable("depthwise_conv2d", x=x, weight=weight, **given)
    if torch.jit.is_tracing():  # a TorchScript trace is run without this package
        kh, kw = weight.shape[2:]
        y = F.conv2d(x, weight, bias, padding=(kh // 2, kw // 2), groups=weight.shape[0])
        return F.relu(y) if activation == "relu" else y
    op = torch.ops.cba_fast.depthwise_conv2d.default
    return op(x, weight, bias, *_how(backend, algorithm), activation)


def depthwise_conv2d_grad_x(
    grad: Tensor, weight: Tensor, *, backend: str | None = None, algorithm: str = AUTO
) -> Tensor:
    """Return the gradient of `depthwise_conv2d` with respect to its input.

    gx[n, c, h, w] = sum over i, j of weight[c, 0, i, j] * grad[n, c, h-i+kh//2, w-j+kw//2].

    Args:
        grad: (N, C, H, W), the gradient of the output; dtypes and devices as `depthwise_conv2d`.
        weight: (C, 1, kh, kw).
        backend, algorithm: as `depthwise_conv2d`.

    Returns:
        (N, C, H, W) in the memory format that `depthwise_conv2d` gives for the same arguments.

    Raises:
        TypeError, ValueError: as `depthwise_conv2d`.

    Example:
        >>> import torch
        >>> from cba_fast.ops import depthwise_conv2d_grad_x
        >>> grad, weight = torch.zeros(1, 1, 3, 3), torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> grad[0, 0, 1, 1] = 1
        >>> depthwise_conv2d_grad_x(grad, weight)[0, 0]  # the centre alone sees the kernel
        tensor([[0., 1., 2.],
                [3., 4., 5.],
                [6., 7., 8.]])
    """
    check_differentiable("depthwise_conv2d_grad_x", grad=grad, weight=weight)
    op = torch.ops.cba_fast.depthwise_conv2d_grad_x.default
    return op(grad, weight, *_how(backend, algorithm))


def depthwise_conv2d_grad_weight(
    grad: Tensor,
    x: Tensor,
    kernel_size: int | tuple[int, int],
    *,
    backend: str | None = None,
    algorithm: str = AUTO,
) -> Tensor:
    """Return the gradient of `depthwise_conv2d` with respect to its weight.

    gw[c, 0, i, j] = sum over n, h, w of grad[n, c, h, w] * x[n, c, h+i-kh//2, w+j-kw//2].

    Args:
        grad: (N, C, H, W), the gradient of the output.
        x: (N, C, H, W), the input, of grad's dtype and device.
        kernel_size: (kh, kw), or one number for both; odd, 1 to 63.
        backend, algorithm: as `depthwise_conv2d`.

    Returns:
        (C, 1, kh, kw), contiguous.

    Raises:
        TypeError, ValueError: as `depthwise_conv2d`.

    Example:
        >>> import torch
        >>> from cba_fast.ops import depthwise_conv2d_grad_weight
        >>> grad, x = torch.randn(4, 16, 24, 24), torch.randn(4, 16, 24, 24)
        >>> depthwise_conv2d_grad_weight(grad, x, (13, 5)).shape
        torch.Size([16, 1, 13, 5])
    """
    check_differentiable("depthwise_conv2d_grad_weight", grad=grad, x=x)
    size = kernel_sides(kernel_size)
    op = torch.ops.cba_fast.depthwise_conv2d_grad_weight.default
    return op(grad, x, size, *_how(backend, algorithm))


def _how(backend: str | None, algorithm: str) -> tuple[str, str]:
    """Return the last two arguments of the ops, which check whether the names are known."""
    if not isinstance(algorithm, str):
        raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {algorithm!r}")
    return backend_argument(backend), algorithm


# The launchers that earlier calls chose, by all that the choice depends on. To check and to choose
# takes 20 microseconds; the convolution of a 7x7 map takes 3 on a CPU.
_launchers: dict[tuple, Callable[..., Tensor]] = {}
_MOST_LAUNCHERS = 4096  # images of very many sizes must not fill the memory
choice_table.on_change.append(lambda: _launchers.clear())


def _layout(t: Tensor) -> tuple:
    return t.shape, t.stride(), t.dtype, t.device


def _remember(key: tuple, launcher: Callable[..., Tensor]) -> Callable[..., Tensor]:
    if len(_launchers) >= _MOST_LAUNCHERS:
        _launchers.clear()
    _launchers[key] = launcher
    return launcher


_ON_GPUS = {"triton": dwconv_triton, "cuda": dwconv_cuda, "cuda_strip": cuda_strip}


# Kernels, fakes and derivatives. `how` is a backend's name or "auto", an algorithm and, for the
# forward pass, an activation.


def _forward(x, weight, bias, backend, algorithm, activation="none"):
    how = backend, algorithm, activation  # the dispatcher leaves out arguments that are the default
    of_bias = None if bias is None else _layout(bias)
    key = ("forward", torch.get_num_threads(), *how, _layout(x), _layout(weight), of_bias)
    launch = _launchers.get(key) or _remember(key, _image_launcher("forward", x, weight, bias, how))
    return launch(x, weight, bias)


def _image_launcher(direction, image, weight, bias, how) -> Callable[..., Tensor]:
    """Return a function (image, weight, bias) that computes `direction`: "forward" or "grad_x"."""
    turned, (*how, activation) = direction == "grad_x", how
    if turned:
        memory_format = check_grad_x(image, weight)
    else:
        memory_format = check_forward(image, weight, bias, activation)
    size, relu = tuple(weight.shape[2:]), activation == "relu"
    method = choose(direction, image, size, *how)
    if image.numel() == 0:
        return lambda image, weight, bias: _empty(image, memory_format)
    if method in COMPILED:
        return dwconv_cpp.launcher(image, size, memory_format, method, turned=turned, relu=relu)
    if method in _ON_GPUS:
        kernels = _ON_GPUS[method]
        if turned:
            return lambda grad, weight, _: kernels.grad_x(grad, weight, memory_format)
        return lambda *args: kernels.forward(*args, memory_format, relu=relu)
    elif method == "torch":
        forward, grad_x = dwconv_torch.forward, dwconv_torch.grad_x
    elif method == "conv2d":
        forward, grad_x = dwconv_torch.conv2d, dwconv_torch.conv2d_grad_x
    else:
        forward, grad_x = reference.depthwise_conv2d, reference.depthwise_conv2d_grad_x
    if turned:
        return lambda grad, weight, _: grad_x(grad, weight).contiguous(memory_format=memory_format)
    if relu:
        return lambda *args: forward(*args).contiguous(memory_format=memory_format).relu_()
    return lambda *args: forward(*args).contiguous(memory_format=memory_format)


def _forward_fake(x, weight, bias, backend, algorithm, activation="none"):
    return _empty(x, check_forward(x, weight, bias, activation))


def _grad_x(grad, weight, *how):
    key = ("grad_x", torch.get_num_threads(), *how, _layout(grad), _layout(weight))
    inputs = grad, weight, None
    launch = _launchers.get(key) or _remember(
        key, _image_launcher("grad_x", *inputs, (*how, "none"))
    )
    return launch(*inputs)


def _grad_x_fake(grad, weight, *how):
    return _empty(grad, check_grad_x(grad, weight))


def _grad_weight(grad, x, kernel_size, *how):
    size = tuple(kernel_size)
    key = ("grad_weight", torch.get_num_threads(), *how, _layout(grad), _layout(x), size)
    launch = _launchers.get(key) or _remember(key, _grad_weight_launcher(grad, x, size, how))
    # Dimensions of size 1 may have any stride, but DistributedDataParallel compares these strides,
    # too, with the parameter's. The reshape gives all dimensions those of a contiguous tensor.
    return launch(grad, x).reshape(-1, *size).unsqueeze(1)


def _grad_weight_launcher(grad, x, size, how):
    check_grad_weight(grad, x, size)
    method = choose("grad_weight", x, size, *how)
    if x.numel() == 0:
        return lambda grad, x: x.new_zeros((x.shape[1], 1, *size))
    if method in COMPILED:
        return dwconv_cpp.weight_launcher(grad, x, size, method)
    grad_weight = {
        "conv2d": dwconv_torch.conv2d_grad_weight,
        "torch": dwconv_torch.grad_weight,
        "triton": dwconv_triton.grad_weight,
        "cuda": dwconv_cuda.grad_weight,
        "reference": reference.depthwise_conv2d_grad_weight,
    }[method]
    return lambda grad, x: grad_weight(grad, x, size)


def _grad_weight_fake(grad, x, kernel_size, *how):
    check_grad_weight(grad, x, kernel_size)
    return x.new_empty((x.shape[1], 1, *kernel_size))


def _empty(like: Tensor, memory_format: torch.memory_format) -> Tensor:
    return torch.empty(
        like.shape, dtype=like.dtype, device=like.device, memory_format=memory_format
    )


def _forward_setup(ctx, inputs, output):
    x, weight, _, *ctx.how, activation = inputs
    ctx.save_for_backward(
        x if ctx.needs_input_grad[1] else None,
        weight if ctx.needs_input_grad[0] else None,
        output if activation == "relu" else None,
    )
    ctx.kernel_size, ctx.weight_strides = tuple(weight.shape[2:]), weight.stride()
    ctx.memory_format = output_format(x, weight)


def _forward_backward(ctx, grad):
    x, weight, activated = ctx.saved_tensors
    ops = torch.ops.cba_fast
    if activated is not None:
        grad = torch.ops.aten.threshold_backward.default(grad, activated, 0)
    # An expanded gradient or one of another format is copied once for both passes. grad_x then has
    # the format of x.
    grad = grad.contiguous(memory_format=ctx.memory_format)
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = ops.depthwise_conv2d_grad_x.default(grad, weight, *ctx.how)
    if ctx.needs_input_grad[1]:
        grad_weight = _restrided(
            ops.depthwise_conv2d_grad_weight.default(grad, x, ctx.kernel_size, *ctx.how),
            ctx.weight_strides,
        )
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias, None, None, None


def _restrided(t: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return `t` with these strides if only those of dimensions of size 1 differ, else `t`."""
    differing = [n for n, a, b in zip(t.shape, t.stride(), strides, strict=True) if a != b]
    if differing and all(n == 1 for n in differing):
        return t.as_strided(t.shape, strides)
    return t


def _grad_x_setup(ctx, inputs, output):
    grad, weight, *ctx.how = inputs
    ctx.save_for_backward(
        grad if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None
    )
    ctx.kernel_size = tuple(weight.shape[2:])


def _grad_x_backward(ctx, v):
    grad, weight = ctx.saved_tensors
    ops = torch.ops.cba_fast
    grad_grad = grad_weight = None
    if ctx.needs_input_grad[0]:
        with torch.autocast(v.device.type, enabled=False):  # this op casts, the others do not
            grad_grad = ops.depthwise_conv2d.default(v, weight, None, *ctx.how)
    if ctx.needs_input_grad[1]:
        grad_weight = ops.depthwise_conv2d_grad_weight.default(grad, v, ctx.kernel_size, *ctx.how)
    return grad_grad, grad_weight, None, None


def _grad_weight_setup(ctx, inputs, output):
    grad, x, _, *ctx.how = inputs
    ctx.save_for_backward(
        grad if ctx.needs_input_grad[1] else None, x if ctx.needs_input_grad[0] else None
    )


def _grad_weight_backward(ctx, v):
    grad, x = ctx.saved_tensors
    ops = torch.ops.cba_fast
    grad_grad = grad_x = None
    if ctx.needs_input_grad[0]:
        with torch.autocast(v.device.type, enabled=False):  # as in _grad_x_backward
            grad_grad = ops.depthwise_conv2d.default(x, v, None, *ctx.how)
    if ctx.needs_input_grad[1]:
        grad_x = ops.depthwise_conv2d_grad_x.default(grad, v, *ctx.how)
    return grad_grad, grad_x, None, None, None


def _flops(image_shape: tuple[int, ...], kernel_size: tuple[int, int]) -> int:
    """Count two operations per tap and pixel, padding included, as PyTorch does for `conv2d`."""
    n, c, h, w = image_shape
    return 2 * n * c * h * w * kernel_size[0] * kernel_size[1]


def _image_flops(image_shape, weight_shape, *args, **kwargs) -> int:
    return _flops(image_shape, weight_shape[2:])


def _grad_weight_flops(grad_shape, x_shape, kernel_size, *args, **kwargs) -> int:
    return _flops(grad_shape, kernel_size)


_HOW = "str backend, str algorithm"

register(
    f'depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, {_HOW}, str activation="none")'
    " -> Tensor",
    _forward,
    _forward_fake,
    backward=_forward_backward,
    setup_context=_forward_setup,
    autocast=True,
    flops=_image_flops,
)
register(
    f"depthwise_conv2d_grad_x(Tensor grad, Tensor weight, {_HOW}) -> Tensor",
    _grad_x,
    _grad_x_fake,
    backward=_grad_x_backward,
    setup_context=_grad_x_setup,
    flops=_image_flops,
)
register(
    f"depthwise_conv2d_grad_weight(Tensor grad, Tensor x, int[2] kernel_size, {_HOW}) -> Tensor",
    _grad_weight,
    _grad_weight_fake,
    backward=_grad_weight_backward,
    setup_context=_grad_weight_setup,
    flops=_grad_weight_flops,
)
