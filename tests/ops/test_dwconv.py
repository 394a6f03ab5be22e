"""Depthwise convolution: values, gradients, memory formats, compilers, bad input."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_forward, assert_grad_weight, assert_grad_x
from torch.utils._python_dispatch import TorchDispatchMode

from cba_fast.ops import (
    depthwise_conv2d,
    depthwise_conv2d_grad_weight,
    depthwise_conv2d_grad_x,
)
from cba_fast.ops.backends import BackendTable
from cba_fast.ops.dwconv_choice import TABLES

pytestmark = pytest.mark.usefixtures("seeded")

# test_dwconv_cuda*.py, test_dwconv_triton.py and test_dwconv_gpu.py test these.
ON_GPUS = ("cuda", "cuda_strip", "triton")
BACKENDS = tuple(b for b in TABLES["forward"].backends if b not in (*ON_GPUS, "conv2d"))
IN_DOUBLE = tuple(b for b in BACKENDS if b != "cpp")  # float32 arithmetic
HALF = (torch.float16, torch.bfloat16)
ALL = (torch.float32, torch.float64, *HALF)
CL = torch.channels_last
COMBINATIONS = [(b, d) for b in BACKENDS for d in ALL if b in IN_DOUBLE or d != torch.float64]
COMBINATIONS += [("conv2d", torch.float32), ("conv2d", torch.float64)]


def image(layout, n, c, h, w, dtype=torch.float32):
    """Return (n, c, h, w) random numbers in one of the layouts that occur in practice."""
    if layout == "contiguous":
        return torch.randn(n, c, h, w).to(dtype)
    if layout == "channels_last":
        return torch.randn(n, h, w, c).to(dtype).permute(0, 3, 1, 2)
    if layout == "transposed":
        return torch.randn(n, c, w, h).to(dtype).transpose(2, 3)
    if layout == "sliced":
        return torch.randn(n, c, h + 1, w + 2).to(dtype)[:, :, 1:, 1:-1]
    if layout == "channels_last_sliced":
        return torch.randn(n, h, w, c + 3).to(dtype).permute(0, 3, 1, 2)[:, 1:-2]
    assert layout == "expanded"
    return torch.randn(1, c, h, w).to(dtype).expand(n, c, h, w)


LAYOUTS = (
    "contiguous",
    "channels_last",
    "transposed",
    "sliced",
    "channels_last_sliced",
    "expanded",
)


def native(x, weight, bias=None):
    kh, kw = weight.shape[2:]
    return F.conv2d(x, weight, bias, padding=(kh // 2, kw // 2), groups=x.shape[1])


def formats(t):
    """Return whether t is contiguous in each format; sizes of 1 make it both."""
    return t.is_contiguous(), t.is_contiguous(memory_format=CL)


def check_all_passes(x, weight, bias, backend):
    grad = torch.randn(x.shape).to(x)
    size = tuple(weight.shape[2:])
    how = {"backend": backend, "algorithm": "direct"}  # transforms: test_dwconv_cpp.py
    assert_forward(depthwise_conv2d(x, weight, bias, **how), x, weight, bias)
    assert_grad_x(depthwise_conv2d_grad_x(grad, weight, **how), grad, weight)
    assert_grad_weight(depthwise_conv2d_grad_weight(grad, x, size, **how), grad, x)


# Values.


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("size", [(1, 1), (5, 5), (3, 13), (13, 1)])
def test_reference_equals_torch_in_float64(dtype, size):
    # The two share no code, and float64 is the one dtype in which both can be trusted.
    x, weight, bias = torch.randn(2, 3, 9, 11), torch.randn(3, 1, *size), torch.randn(3)
    x, weight, bias = (t.to(dtype).double() for t in (x, weight, bias))
    x.requires_grad_()
    weight.requires_grad_()
    expected = native(x, weight, bias)
    grad = torch.randn_like(expected)
    gx, gw = torch.autograd.grad(expected, (x, weight), grad)
    same = {"rtol": 1e-12, "atol": 1e-12}
    ref = {"backend": "reference"}
    x, weight = x.detach(), weight.detach()
    torch.testing.assert_close(depthwise_conv2d(x, weight, bias, **ref), expected, **same)
    torch.testing.assert_close(depthwise_conv2d_grad_x(grad, weight, **ref), gx, **same)
    torch.testing.assert_close(depthwise_conv2d_grad_weight(grad, x, size, **ref), gw, **same)


odd = st.integers(0, 31).map(lambda k: 2 * k + 1)
sizes = st.one_of(
    odd.map(lambda k: (k, k)),  # squares
    st.tuples(odd, st.sampled_from([1, 3, 5])),  # strips
    st.tuples(st.sampled_from([1, 3, 5]), odd),
)


@settings(max_examples=40)
@given(
    st.sampled_from(COMBINATIONS),
    st.sampled_from(LAYOUTS),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    sizes,
    st.booleans(),
)
def test_all_passes_are_within_bounds(combination, layout, shape, size, with_bias):
    backend, dtype = combination
    x = image(layout, *shape, dtype=dtype)
    weight = torch.randn(shape[1], 1, *size).to(dtype)
    bias = torch.randn(shape[1]).to(dtype) if with_bias else None
    check_all_passes(x, weight, bias, backend)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(51, 1), (51, 3), (63, 3), (51, 5), (5, 51), (1, 51)])
def test_strips_on_tall_images(layout, size):
    # oneDNN's float32 NCHW weight gradient is off by 14 % for 51x1 here; see dwconv_torch.
    x, weight = image(layout, 1, 2, 96, 24), torch.randn(2, 1, *size)
    check_all_passes(x, weight, None, "torch")


@pytest.mark.parametrize(("backend", "dtype"), COMBINATIONS)
def test_delta_kernel_is_the_identity(backend, dtype):
    x = image("contiguous", 2, 3, 8, 9, dtype)
    weight = torch.zeros(3, 1, 5, 11, dtype=dtype)
    weight[:, :, 2, 5] = 1
    assert torch.equal(depthwise_conv2d(x, weight, backend=backend), x)
    assert torch.equal(depthwise_conv2d_grad_x(x, weight, backend=backend), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shifting_the_input_shifts_the_output_inside(backend):
    kh, kw, dy, dx = 7, 3, 2, 4
    x, weight = torch.randn(1, 2, 20, 20), torch.randn(2, 1, kh, kw)
    y = depthwise_conv2d(x, weight, backend=backend)
    shifted = depthwise_conv2d(x.roll((dy, dx), (2, 3)), weight, backend=backend)
    rows, columns = slice(dy + kh // 2, -(kh // 2)), slice(dx + kw // 2, -(kw // 2))
    expected = y.roll((dy, dx), (2, 3))[:, :, rows, columns]
    torch.testing.assert_close(shifted[:, :, rows, columns], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("backend", "dtype"), COMBINATIONS)
def test_relu_keeps_nan_and_equals_relu_of_the_result(backend, dtype):
    x, weight = image("channels_last", 2, 3, 8, 9, dtype), torch.randn(3, 1, 5, 5).to(dtype)
    x[0, 0, 0, 0] = torch.nan
    how = {"backend": backend, "algorithm": "direct"}
    y = depthwise_conv2d(x, weight, **how)
    rectified = depthwise_conv2d(x, weight, **how, activation="relu")
    assert y.isnan().any()
    assert (y < 0).any()
    torch.testing.assert_close(rectified, y.relu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", IN_DOUBLE)
def test_gradients_are_adjoint_to_the_forward_pass(backend):
    x, g = torch.randn(2, 2, 3, 9, 7, dtype=torch.float64)
    weight = torch.randn(3, 1, 11, 5, dtype=torch.float64)
    forward = (depthwise_conv2d(x, weight, backend=backend) * g).sum()
    by_x = (x * depthwise_conv2d_grad_x(g, weight, backend=backend)).sum()
    by_w = (weight * depthwise_conv2d_grad_weight(g, x, (11, 5), backend=backend)).sum()
    torch.testing.assert_close(by_x, forward, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(by_w, forward, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_equals_its_images(backend):
    x, weight = torch.randn(3, 2, 8, 8), torch.randn(2, 1, 5, 5)
    whole = depthwise_conv2d(x, weight, backend=backend)
    parts = [depthwise_conv2d(x[i : i + 1], weight, backend=backend) for i in range(3)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_direct_algorithm_keeps_a_nan_local(backend):
    x, weight = torch.randn(1, 1, 9, 9), torch.randn(1, 1, 3, 3)
    x[0, 0, 0, 0] = torch.nan
    y = depthwise_conv2d(x, weight, backend=backend, algorithm="direct")
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(y[0, 0].isnan(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5), (2, 3, 0, 5)])
def test_empty_tensors(backend, shape):
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(shape[1], 1, 3, 3, requires_grad=True)
    y = depthwise_conv2d(x, weight, backend=backend)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


# Memory formats.


@pytest.mark.parametrize(("backend", "dtype"), COMBINATIONS)
@pytest.mark.parametrize("shape", [(2, 4, 6, 7), (2, 4, 1, 1), (2, 1, 6, 7), (1, 3, 1, 5)])
def test_output_has_the_memory_format_of_conv2d(backend, dtype, shape):
    for weight_format in (torch.contiguous_format, CL):
        weight = torch.randn(shape[1], 1, 3, 5).to(dtype, memory_format=weight_format)
        for layout in LAYOUTS:
            x = image(layout, *shape, dtype=dtype)
            y, expected = depthwise_conv2d(x, weight, backend=backend), native(x, weight)
            assert formats(y) == formats(expected), (layout, weight_format)


@pytest.mark.parametrize("x_format", [torch.contiguous_format, CL])
@pytest.mark.parametrize("w_format", [torch.contiguous_format, CL])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_strides(backend, x_format, w_format):
    # DistributedDataParallel warns and copies if a gradient's strides are not the parameter's, the
    # stride of the dimension of size 1 included; conv2d itself returns (25, 1, 5, 1) here.
    x = torch.randn(2, 4, 6, 7).to(memory_format=x_format).requires_grad_()
    weight = torch.randn(4, 1, 5, 5).to(memory_format=w_format).requires_grad_()
    depthwise_conv2d(x, weight, backend=backend).sum().backward()  # an expanded gradient
    assert weight.grad.stride() == weight.stride()
    assert x.grad.stride() == x.stride()
    # Compiled code relies on the strides of the fake, size 1 or not.
    gw = depthwise_conv2d_grad_weight(x.detach(), x.detach(), 5, backend=backend)
    assert gw.stride() == (25, 25, 5, 1)


# Derivatives.


def doubles(*shapes):
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("backend", IN_DOUBLE)
def test_gradcheck_and_gradgradcheck(backend):
    def conv(x, w, b):
        return depthwise_conv2d(x, w, b, backend=backend)

    def rectified(x, w, b):
        return depthwise_conv2d(x, w, b, backend=backend, activation="relu")

    def grad_x(g, w):
        return depthwise_conv2d_grad_x(g, w, backend=backend)

    def grad_weight(g, x):
        return depthwise_conv2d_grad_weight(g, x, (3, 5), backend=backend)

    cases = [
        (conv, doubles((2, 2, 4, 3), (2, 1, 5, 3), (2,))),
        (rectified, doubles((2, 2, 4, 3), (2, 1, 5, 3), (2,))),
        (grad_x, doubles((2, 2, 4, 3), (2, 1, 5, 3))),
        (grad_weight, doubles((2, 2, 4, 3), (2, 2, 4, 3))),
    ]
    for function, inputs in cases:
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


class Calls(TorchDispatchMode):
    """Records the names of our ops."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cba_fast":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("x_grad", "w_grad"), [(True, False), (False, True), (True, True)])
def test_only_the_gradients_that_are_needed_are_computed(x_grad, w_grad):
    x = torch.randn(1, 2, 5, 5, requires_grad=x_grad)
    weight = torch.randn(2, 1, 3, 3, requires_grad=w_grad)
    loss = depthwise_conv2d(x, weight).sum()
    with Calls() as calls:
        loss.backward()
    expected = ["depthwise_conv2d_grad_x"] * x_grad + ["depthwise_conv2d_grad_weight"] * w_grad
    assert calls.names == expected


# PyTorch's machinery.


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend, layout):
    x, g = (image(layout, 2, 3, 6, 5).requires_grad_() for _ in range(2))
    weight, bias = torch.randn(3, 1, 5, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    ops, how = torch.ops.cba_fast, (backend, "direct")
    torch.library.opcheck(ops.depthwise_conv2d.default, (x, weight, bias, *how))
    torch.library.opcheck(ops.depthwise_conv2d.default, (x, weight, bias, *how, "relu"))
    torch.library.opcheck(ops.depthwise_conv2d_grad_x.default, (g, weight, *how))
    torch.library.opcheck(ops.depthwise_conv2d_grad_weight.default, (g, x, [5, 3], *how))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CL])
def test_compile_fullgraph(memory_format):
    def step(x, weight):
        return torch.relu(depthwise_conv2d(x, weight))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for run in (step, compiled):
        torch.manual_seed(1)
        x = torch.randn(2, 3, 8, 8).to(memory_format=memory_format).requires_grad_()
        weight = torch.randn(3, 1, 5, 5, requires_grad=True)
        y = run(x, weight)
        y.square().sum().backward()
        results.append((y, x.grad, weight.grad))
    for eager, other in zip(*results):
        assert torch.equal(eager, other)
        assert eager.stride() == other.stride()


class Conv(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 1, 5, 5))

    def forward(self, x):
        return depthwise_conv2d(x, self.weight)


def test_export_keeps_one_op_and_a_dynamic_batch():
    module, x = Conv(), torch.randn(2, 3, 8, 8)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    targets = [n.target for n in exported.graph.nodes if n.op == "call_function"]
    assert targets == [torch.ops.cba_fast.depthwise_conv2d.default]
    more = torch.randn(5, 3, 8, 8)
    assert torch.equal(exported.module()(more), module(more))


@pytest.mark.parametrize("dtype", HALF)
def test_autocast(dtype):
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    weight = torch.randn(3, 1, 5, 5, requires_grad=True)
    bias = torch.randn(3, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = depthwise_conv2d(x, weight, bias)
        assert depthwise_conv2d(x, weight.to(dtype)).dtype == dtype  # mixed, as conv2d takes it
        assert depthwise_conv2d(x.double(), weight.double()).dtype == torch.float64
    assert y.dtype == dtype
    cast = [t.detach().to(dtype) for t in (x, weight, bias)]
    assert torch.equal(y, depthwise_conv2d(*cast))
    y.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32


def test_backward_inside_autocast_keeps_float32():
    x, weight = torch.randn(1, 2, 8, 8, requires_grad=True), torch.randn(2, 1, 5, 5)
    y = depthwise_conv2d(x, weight)
    grad = torch.randn_like(y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (gx,) = torch.autograd.grad(y, x, grad)
    assert_grad_x(gx, grad, weight)


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    def flops(function, *args):
        with FlopCounterMode(display=False) as counter:
            function(*args)
        return counter.get_total_flops()

    x, weight = torch.randn(2, 3, 8, 8), torch.randn(3, 1, 5, 3)
    assert flops(depthwise_conv2d, x, weight) == flops(native, x, weight) > 0
    per_pass = flops(depthwise_conv2d, x, weight)
    assert flops(depthwise_conv2d_grad_x, x, weight) == per_pass
    assert flops(depthwise_conv2d_grad_weight, x, x, (5, 3)) == per_pass


def test_modules_may_be_imported_again():
    import importlib

    from cba_fast.ops import dwconv

    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)
    expected = depthwise_conv2d(x, weight)
    tables = dict(BackendTable.registry)
    again = importlib.reload(dwconv)
    BackendTable.registry.update(tables)  # those that the registered kernels use
    assert torch.equal(again.depthwise_conv2d(x, weight), expected)


# Bad input.


X, W = torch.zeros(2, 3, 8, 8), torch.zeros(3, 1, 5, 5)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((X[0], W), {}, ValueError, r"x must have shape \(N, C, H, W\), got \(3, 8, 8\)"),
        ((X.long(), W.long()), {}, TypeError, "torch.int64"),
        ((X, W.double()), {}, TypeError, "torch.float64 and torch.float32"),
        ((X, W[:2]), {}, ValueError, r"C = 3.*got \(2, 1, 5, 5\)"),
        ((X, W.expand(3, 3, 5, 5)), {}, ValueError, r"got \(3, 3, 5, 5\)"),
        ((X, W[..., 0]), {}, ValueError, r"got \(3, 1, 5\)"),
        ((X, W[..., :4]), {}, ValueError, r"odd.*got \(5, 4\)"),
        ((X, torch.zeros(3, 1, 1, 65)), {}, ValueError, r"63.*got \(1, 65\)"),
        ((X, W, torch.zeros(4)), {}, ValueError, r"bias must have shape \(3,\).*\(4,\)"),
        ((X, W, torch.zeros(3).half()), {}, TypeError, "bias and x differ in dtype"),
        ((X, W.to("meta")), {}, ValueError, "weight is on meta, x on cpu"),
        ((X.numpy(), W), {}, TypeError, "x must be a tensor, got ndarray"),
        ((X, None), {}, TypeError, "weight must be a tensor, got NoneType"),
        ((X, W), {"backend": 1}, TypeError, "backend must be None or a string, got int"),
        ((X, W), {"backend": "cudnn"}, ValueError, "cudnn"),
        ((X, W), {"algorithm": "winograd"}, ValueError, "winograd"),
        ((X, W), {"activation": "gelu"}, ValueError, "activation.*gelu"),
        (
            (X, W),
            {"algorithm": "fft", "backend": "torch"},
            ValueError,
            "'torch' cannot run: .*'fft'",
        ),
        ((X.double(), W.double()), {"backend": "cpp"}, ValueError, "not for torch.float64"),
    ],
)
def test_bad_arguments_of_the_forward_pass(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        depthwise_conv2d(*args, **kwargs)


def test_bad_arguments_of_the_gradients():
    with pytest.raises(ValueError, match=r"grad and x differ in shape: \(2, 3, 8, 7\)"):
        depthwise_conv2d_grad_weight(X[..., :7], X, 3)
    with pytest.raises(ValueError, match=r"two odd numbers.*\(3, 4\)"):
        depthwise_conv2d_grad_weight(X, X, (3, 4))
    with pytest.raises(ValueError, match=r"two odd numbers.*\(3, 3, 3\)"):
        depthwise_conv2d_grad_weight(X, X, (3, 3, 3))
    with pytest.raises(ValueError, match="the channels of grad"):
        depthwise_conv2d_grad_x(X, W[:1])
    with pytest.raises(TypeError, match="grad must be a tensor"):
        depthwise_conv2d_grad_x(None, W)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_cuda_passes_are_within_bounds(dtype, layout):
    x = image(layout, 2, 32, 24, 24, dtype).cuda()
    weight = torch.randn(32, 1, 13, 13).to(dtype).cuda()
    # `enabled` is False unless given.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        check_all_passes(x, weight, torch.randn(32).to(dtype).cuda(), "torch")
