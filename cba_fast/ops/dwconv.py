"""Depthwise convolution with large kernels: three ops that are each other's derivatives.

With y = conv(x, w): grad_x(g, w) is linear in both arguments with derivatives conv(., w) and
grad_weight(g, .), and grad_weight(g, x) has conv(x, .) and grad_x(g, .). So each backward pass is a
public op, and derivatives of any order run through the same three kernels.
"""

import torch
from torch import Tensor

from ..kernels import dwconv_torch
from ..reference import dwconv as reference
from .backends import Backend, BackendTable
from .library import AUTO, backend_argument, check_tensors, register, requested

ALGORITHMS = (AUTO, "fft", "direct")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAX_KERNEL = 63


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
    algorithm: str = AUTO,
) -> Tensor:
    """Convolve each channel with its own kernel: stride 1, zero "same" padding.

    y[n, c, h, w] = bias[c] + sum over i, j of weight[c, 0, i, j] * x[n, c, h+i-kh//2, w+j-kw//2],
    where x is zero outside the image; a cross-correlation, as
    ``torch.nn.functional.conv2d(x, weight, bias, padding=(kh//2, kw//2), groups=C)``.

    Args:
        x: (N, C, H, W), float32, float64, float16 or bfloat16, CPU or CUDA, any strides. N may
            be 0.
        weight: (C, 1, kh, kw) of x's dtype and device, kh and kw odd, 1 to 63.
        bias: (C,) of x's dtype and device, or None.
        backend: "reference", "torch" or None for the fastest that can run. The backward passes use
            the same one.
        algorithm: "auto", "direct" (a NaN or a spike reaches only the pixels under the kernel) or
            "fft" (needs a compiled kernel).

    Returns:
        (N, C, H, W) of x's dtype, channels_last where x is (or weight, as `conv2d` has it), else
        contiguous.

    Raises:
        TypeError: an argument is no tensor, or of a dtype not listed, or the dtypes differ.
        ValueError: a shape, kernel size or device does not fit, `backend` or `algorithm` is
            unknown, or the backend cannot run the algorithm (the message says why).

    Notes:
        Half types are accumulated in float32 and rounded once. Under autocast the arguments are
        cast as those of `conv2d`. On CUDA the torch backend follows
        ``torch.backends.cudnn.allow_tf32``. ``torch.autograd.grad(y, x)`` computes the weight
        gradient as well if `weight` requires grad, because PyTorch does not tell an op registered
        from Python which gradients were asked for: freeze the weights (``requires_grad_(False)``)
        for receptive fields and activation maps.
    """
    check_tensors(x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    return torch.ops.cba_fast.depthwise_conv2d.default(
        x, weight, bias, backend_argument(backend), algorithm
    )


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
    """
    check_tensors(grad=grad, weight=weight)
    return torch.ops.cba_fast.depthwise_conv2d_grad_x.default(
        grad, weight, backend_argument(backend), algorithm
    )


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
    """
    check_tensors(grad=grad, x=x)
    size = [kernel_size] * 2 if isinstance(kernel_size, int) else list(kernel_size)
    return torch.ops.cba_fast.depthwise_conv2d_grad_weight.default(
        grad, x, size, backend_argument(backend), algorithm
    )


# Backends, best first. Predicates get the op's arguments with the algorithm last.


def _refuses_fft(*args) -> str | None:
    if args[-1] == "fft":
        return "algorithm 'fft' needs an FFT kernel, and none is built; use 'auto' or 'direct'"
    return None


def _table(op: str) -> BackendTable:
    return BackendTable(op, [Backend("torch", _refuses_fft), Backend("reference", _refuses_fft)])


FORWARD = _table("depthwise_conv2d")
GRAD_X = _table("depthwise_conv2d_grad_x")
GRAD_WEIGHT = _table("depthwise_conv2d_grad_weight")

_FORWARD = {"torch": dwconv_torch.forward, "reference": reference.depthwise_conv2d}
_GRAD_X = {"torch": dwconv_torch.grad_x, "reference": reference.depthwise_conv2d_grad_x}
_GRAD_WEIGHT = {
    "torch": dwconv_torch.grad_weight,
    "reference": reference.depthwise_conv2d_grad_weight,
}


# Checks, shared by the kernels and their fakes.


def _check_image(name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"{name} must have shape (N, C, H, W), got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {x.dtype}")


def _check_like(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        raise TypeError(f"{name} and {other_name} differ in dtype: {value.dtype} and {other.dtype}")
    if value.device != other.device:
        raise ValueError(f"{name} is on {value.device}, {other_name} on {other.device}")


def _check_kernel_size(kernel_size) -> None:
    size = tuple(kernel_size)
    if len(size) != 2 or any(k % 2 == 0 or not 1 <= k <= MAX_KERNEL for k in size):
        raise ValueError(f"the kernel size must be two odd numbers, 1 to {MAX_KERNEL}, got {size}")


def _check_algorithm(algorithm: str) -> None:
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {algorithm!r}")


def _check_weight(weight: Tensor, name: str, x: Tensor) -> None:
    _check_like("weight", weight, name, x)
    if weight.dim() != 4 or weight.shape[1] != 1 or weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"weight must have shape (C, 1, kh, kw) with C = {x.shape[1]}, the channels of {name}, "
            f"got {tuple(weight.shape)}"
        )
    _check_kernel_size(weight.shape[2:])


def _check_forward(x: Tensor, weight: Tensor, bias: Tensor | None, algorithm: str) -> None:
    _check_image("x", x)
    _check_weight(weight, "x", x)
    _check_algorithm(algorithm)
    if bias is not None:
        _check_like("bias", bias, "x", x)
        if bias.dim() != 1 or bias.shape[0] != x.shape[1]:
            raise ValueError(
                f"bias must have shape ({x.shape[1]},), one per channel of x, got "
                f"{tuple(bias.shape)}"
            )


def _check_grad_x(grad: Tensor, weight: Tensor, algorithm: str) -> None:
    _check_image("grad", grad)
    _check_weight(weight, "grad", grad)
    _check_algorithm(algorithm)


def _check_grad_weight(grad: Tensor, x: Tensor, kernel_size: list[int], algorithm: str) -> None:
    _check_image("grad", grad)
    _check_image("x", x)
    _check_like("grad", grad, "x", x)
    if grad.shape != x.shape:
        raise ValueError(f"grad and x differ in shape: {tuple(grad.shape)} and {tuple(x.shape)}")
    _check_kernel_size(kernel_size)
    _check_algorithm(algorithm)


# Memory formats.


def _is_channels_last(t: Tensor) -> bool:
    """Say whether `conv2d` would take `t` (4-D) for channels_last.

    The order of strides decides, C < W < H < N, so that slices of channels_last tensors count; a
    tensor that is both (1x1 maps, one channel) counts as contiguous unless its strides say else.
    """
    n, c, h, w = t.stride()
    if c == 0:  # expanded over channels
        return False
    smallest = 0
    for size, stride in ((t.shape[1], c), (t.shape[3], w), (t.shape[2], h)):
        if stride < smallest:
            return False
        smallest = stride * size if size > 1 else stride
    return n >= smallest and smallest != c


def _output_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    if _is_channels_last(x) or _is_channels_last(weight):
        return torch.channels_last
    return torch.contiguous_format


# Kernels, fakes and derivatives.


def _forward(x, weight, bias, backend, algorithm):
    _check_forward(x, weight, bias, algorithm)
    name = FORWARD.resolve(requested(backend), x, weight, algorithm)
    if x.numel() == 0:
        return _forward_fake(x, weight, bias, backend, algorithm)
    y = _FORWARD[name](x, weight, bias)
    return y.contiguous(memory_format=_output_format(x, weight))


def _forward_fake(x, weight, bias, backend, algorithm):
    _check_forward(x, weight, bias, algorithm)
    return _empty(x, _output_format(x, weight))


def _grad_x(grad, weight, backend, algorithm):
    _check_grad_x(grad, weight, algorithm)
    name = GRAD_X.resolve(requested(backend), grad, weight, algorithm)
    if grad.numel() == 0:
        return _grad_x_fake(grad, weight, backend, algorithm)
    return _GRAD_X[name](grad, weight).contiguous(memory_format=_output_format(grad, weight))


def _grad_x_fake(grad, weight, backend, algorithm):
    _check_grad_x(grad, weight, algorithm)
    return _empty(grad, _output_format(grad, weight))


def _grad_weight(grad, x, kernel_size, backend, algorithm):
    _check_grad_weight(grad, x, kernel_size, algorithm)
    size = tuple(kernel_size)
    name = GRAD_WEIGHT.resolve(requested(backend), grad, x, size, algorithm)
    if x.numel() == 0:
        return x.new_zeros((x.shape[1], 1, *size))
    gw = _GRAD_WEIGHT[name](grad, x, size)
    # (C, 1, kh, kw) is contiguous and channels_last at once and `contiguous` leaves such strides as
    # they are, but DistributedDataParallel compares them with the parameter's, size 1 or not.
    return gw.reshape(-1, *size).unsqueeze(1)


def _grad_weight_fake(grad, x, kernel_size, backend, algorithm):
    _check_grad_weight(grad, x, kernel_size, algorithm)
    return x.new_empty((x.shape[1], 1, *kernel_size))


def _empty(like: Tensor, memory_format: torch.memory_format) -> Tensor:
    return torch.empty(
        like.shape, dtype=like.dtype, device=like.device, memory_format=memory_format
    )


def _forward_setup(ctx, inputs, output):
    x, weight, _, ctx.backend, ctx.algorithm = inputs
    ctx.save_for_backward(
        x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None
    )
    ctx.kernel_size, ctx.weight_strides = tuple(weight.shape[2:]), weight.stride()
    ctx.memory_format = _output_format(x, weight)


def _forward_backward(ctx, grad):
    x, weight = ctx.saved_tensors
    how = (ctx.backend, ctx.algorithm)
    ops = torch.ops.cba_fast
    # An expanded or foreign format is mended once for both passes, and grad_x then has x's format.
    grad = grad.contiguous(memory_format=ctx.memory_format)
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = ops.depthwise_conv2d_grad_x.default(grad, weight, *how)
    if ctx.needs_input_grad[1]:
        grad_weight = _restrided(
            ops.depthwise_conv2d_grad_weight.default(grad, x, ctx.kernel_size, *how),
            ctx.weight_strides,
        )
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias, None, None


def _restrided(t: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Give `t` these strides if they differ in dimensions of size 1 only."""
    differing = [n for n, a, b in zip(t.shape, t.stride(), strides, strict=True) if a != b]
    if differing and all(n == 1 for n in differing):
        return t.as_strided(t.shape, strides)
    return t


def _grad_x_setup(ctx, inputs, output):
    grad, weight, ctx.backend, ctx.algorithm = inputs
    ctx.save_for_backward(
        grad if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None
    )
    ctx.kernel_size = tuple(weight.shape[2:])


def _grad_x_backward(ctx, v):
    grad, weight = ctx.saved_tensors
    how = (ctx.backend, ctx.algorithm)
    ops = torch.ops.cba_fast
    grad_grad = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_grad = ops.depthwise_conv2d.default(v, weight, None, *how)
    if ctx.needs_input_grad[1]:
        grad_weight = ops.depthwise_conv2d_grad_weight.default(grad, v, ctx.kernel_size, *how)
    return grad_grad, grad_weight, None, None


def _grad_weight_setup(ctx, inputs, output):
    grad, x, _, ctx.backend, ctx.algorithm = inputs
    ctx.save_for_backward(
        grad if ctx.needs_input_grad[1] else None, x if ctx.needs_input_grad[0] else None
    )


def _grad_weight_backward(ctx, v):
    grad, x = ctx.saved_tensors
    how = (ctx.backend, ctx.algorithm)
    ops = torch.ops.cba_fast
    grad_grad = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad = ops.depthwise_conv2d.default(x, v, None, *how)
    if ctx.needs_input_grad[1]:
        grad_x = ops.depthwise_conv2d_grad_x.default(grad, v, *how)
    return grad_grad, grad_x, None, None, None


def _flops(image_shape: tuple[int, ...], kernel_size: tuple[int, int]) -> int:
    """Count a multiplication and an addition per tap and pixel, padding included, as `conv2d`."""
    n, c, h, w = image_shape
    return 2 * n * c * h * w * kernel_size[0] * kernel_size[1]


def _image_flops(image_shape, weight_shape, *args, **kwargs) -> int:
    return _flops(image_shape, weight_shape[2:])


def _grad_weight_flops(grad_shape, x_shape, kernel_size, *args, **kwargs) -> int:
    return _flops(grad_shape, kernel_size)


register(
    "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, str backend, str algorithm) -> Tensor",
    _forward,
    _forward_fake,
    backward=_forward_backward,
    setup_context=_forward_setup,
    autocast=True,
    flops=_image_flops,
)
register(
    "depthwise_conv2d_grad_x(Tensor grad, Tensor weight, str backend, str algorithm) -> Tensor",
    _grad_x,
    _grad_x_fake,
    backward=_grad_x_backward,
    setup_context=_grad_x_setup,
    flops=_image_flops,
)
register(
    "depthwise_conv2d_grad_weight(Tensor grad, Tensor x, int[2] kernel_size, str backend, "
    "str algorithm) -> Tensor",
    _grad_weight,
    _grad_weight_fake,
    backward=_grad_weight_backward,
    setup_context=_grad_weight_setup,
    flops=_grad_weight_flops,
)
