"""The depthwise convolution on a GPU: values, streams, graphs, devices, large tensors."""

import pytest
import torch
from tolerance import assert_forward, assert_grad_weight, assert_grad_x

from cba_fast.ops import (
    depthwise_conv2d,
    depthwise_conv2d_grad_weight,
    depthwise_conv2d_grad_x,
)
from cba_fast.ops.dwconv_choice import TABLES

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("seeded")]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CL = torch.channels_last


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    """Return the name of a backend that runs here."""
    reason = TABLES["forward"].backends[request.param].unavailable()
    if reason:
        pytest.skip(reason)
    return request.param


SHAPES = [
    ((4, 8, 96, 96), (31, 31)),
    ((3, 8, 48, 48), (29, 29)),
    ((9, 16, 24, 24), (27, 27)),
    ((64, 16, 12, 12), (13, 13)),
    ((2, 5, 7, 7), (13, 13)),
    ((2, 4, 96, 96), (51, 5)),
    ((2, 4, 96, 96), (5, 51)),
    ((2, 4, 40, 41), (1, 63)),
    ((2, 4, 41, 40), (63, 1)),
    ((2, 3, 33, 65), (63, 41)),
    ((1, 3, 150, 1), (9, 9)),
    ((1, 3, 1, 1), (31, 31)),
    ((2, 70, 56, 56), (7, 7)),
    ((2, 70, 13, 9), (3, 5)),
]


def inputs(shape, kernel_size, dtype=torch.bfloat16, memory_format=torch.contiguous_format):
    """Return x, grad, weight and bias on the device."""
    x, grad = (torch.randn(shape).to("cuda", dtype, memory_format=memory_format) for _ in range(2))
    weight = torch.randn(shape[1], 1, *kernel_size).to("cuda", dtype)
    return x, grad, weight, torch.randn(shape[1]).to("cuda", dtype)


def passes(backend, x, grad, weight, bias):
    size = tuple(weight.shape[2:])
    return (
        depthwise_conv2d(x, weight, bias, backend=backend),
        depthwise_conv2d_grad_x(grad, weight, backend=backend),
        depthwise_conv2d_grad_weight(grad, x, size, backend=backend),
    )


def poison(*tensors):
    """Leave NaN in the memory that results of these sizes are likely to get."""
    poisoned = [torch.full_like(t, torch.nan) for t in tensors for _ in range(3)]
    del poisoned


def check(backend, x, grad, weight, bias):
    poison(x, grad, weight, weight.float())
    y, gx, gw = passes(backend, x, grad, weight, bias)
    assert_forward(y, x, weight, bias)
    assert_grad_x(gx, grad, weight)
    assert_grad_weight(gw, grad, x)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CL], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "kernel_size"), SHAPES, ids=lambda v: "x".join(map(str, v)))
def test_passes_are_within_bounds(backend, shape, kernel_size, dtype, memory_format):
    if backend == "triton" and dtype == torch.float32:
        pytest.skip("Triton has kernels for half types only")
    x, grad, weight, bias = inputs(shape, kernel_size, dtype, memory_format)
    check(backend, x, grad, weight, bias)
    y = depthwise_conv2d(x, weight, bias, backend=backend)
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("kernel_size", [(3, 3), (9, 9), (31, 5)])
@pytest.mark.parametrize("view", ["transposed", "sliced", "unaligned", "expanded"])
def test_views(backend, view, kernel_size):
    x = torch.randn(2, 6, 40, 40, dtype=torch.bfloat16, device="cuda")
    x = {
        "transposed": lambda: x.transpose(2, 3),
        "sliced": lambda: x[:, 1:-1, 3:, 8:32],
        "unaligned": lambda: x[:, :, :, 1:],
        "expanded": lambda: x[:1].expand(3, -1, -1, -1),
    }[view]()
    weight = torch.randn(x.shape[1], 1, *kernel_size, dtype=x.dtype, device="cuda")
    check(backend, x, torch.randn_like(x), weight, None)


@pytest.mark.parametrize("kernel_size", [(5, 5), (13, 13), (31, 31)])
def test_results_are_the_same_every_time(backend, kernel_size):
    arguments = inputs((16, 32, 48, 48), kernel_size)
    first = passes(backend, *arguments)
    for _ in range(5):
        for a, b in zip(first, passes(backend, *arguments)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kernel_size", [(5, 5), (31, 31)])
def test_work_is_queued_on_the_current_stream(backend, kernel_size):
    x, grad, weight, bias = inputs((8, 32, 48, 48), kernel_size)
    expected = passes(backend, x, grad, weight, bias)
    stream = torch.cuda.Stream()
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # some 50 ms; what does not wait for it reads zeros
        late.copy_(x)
        results = passes(backend, late, grad, weight, bias)
    stream.synchronize()
    for a, b in zip(expected, results):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kernel_size", [(5, 5), (13, 13), (31, 5), (31, 31)])
def test_a_cuda_graph_replays_all_passes(backend, kernel_size):
    static = inputs((4, 16, 24, 24), kernel_size)
    passes(backend, *static)  # compiles
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        passes(backend, *static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = passes(backend, *static)
    other = inputs((4, 16, 24, 24), kernel_size)
    for target, source in zip(static, other):
        target.copy_(source)
    for result in captured:
        result.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, passes(backend, *other)):
        assert torch.equal(a, b)


def test_the_second_device_computes_on_itself(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("one NVIDIA GPU here, this needs two")
    arguments = inputs((4, 16, 48, 48), (31, 31))
    there = [t.to("cuda:1") for t in arguments]
    for a, b in zip(passes(backend, *arguments), passes(backend, *there)):
        assert b.device == torch.device("cuda", 1)
        assert torch.equal(a, b.to(a.device))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CL])
@pytest.mark.parametrize("kernel_size", [(3, 3), (9, 9)])
def test_offsets_beyond_32_bits(backend, kernel_size, memory_format):
    needed = 40 << 30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GB of free GPU memory")
    n, c, h, w = 5, 8, 8192, 8192  # 2.7e9 elements, 0.5e9 in an image
    x = torch.empty(n, c, h, w, dtype=torch.bfloat16, device="cuda", memory_format=memory_format)
    x.normal_()
    weight = torch.randn(c, 1, *kernel_size, dtype=x.dtype, device="cuda")
    y = depthwise_conv2d(x, weight, backend=backend)
    near = x[-1:, :, -48:, -48:].clone()  # the last pixels, from a tensor that is small
    corner = depthwise_conv2d(near, weight, backend=backend)
    assert_forward(corner, near, weight)
    same = (..., slice(-32, None), slice(-32, None))
    torch.testing.assert_close(y[-1:][same], corner[same], rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CL])
@pytest.mark.parametrize("kernel_size", [(3, 3), (9, 9), (31, 3)])
def test_opcheck(backend, kernel_size, memory_format):
    dtype = torch.bfloat16 if backend == "triton" else torch.float32
    x, grad, weight, bias = inputs((2, 3, 20, 20), kernel_size, dtype, memory_format)
    x, grad, weight, bias = (t.requires_grad_() for t in (x, grad, weight, bias))
    ops, how = torch.ops.cba_fast, (backend, "auto")
    torch.library.opcheck(ops.depthwise_conv2d.default, (x, weight, bias, *how))
    torch.library.opcheck(ops.depthwise_conv2d_grad_x.default, (grad, weight, *how))
    weight_arguments = (grad, x, list(kernel_size), *how)
    torch.library.opcheck(ops.depthwise_conv2d_grad_weight.default, weight_arguments)


def compiled_training_step(backend, memory_format):
    def step(x, weight):
        return torch.relu(depthwise_conv2d(x, weight, backend=backend))

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True)
    results = []
    for run in (step, compiled):
        torch.manual_seed(1)
        x, _, weight, _ = inputs((32, 128, 24, 24), (27, 27), memory_format=memory_format)
        x, weight = x.requires_grad_(), weight.requires_grad_()
        y = run(x, weight)
        y.square().mean().backward()
        results.append([t.detach().float() for t in (y, x.grad, weight.grad)])
    for eager, other in zip(*results):
        assert eager.stride() == other.stride()
        # Of bfloat16, rounded in other places: 2^-9 each time. A lost factor would be 1.
        assert (eager - other).norm() <= 0.02 * eager.norm()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CL])
def test_compiled_training_step(backend, memory_format):
    compiled_training_step(backend, memory_format)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CL])
def test_compiled_training_step_of_the_automatic_choice(memory_format):
    compiled_training_step(None, memory_format)


def test_autocast(backend):
    x, _, weight, bias = inputs((4, 8, 24, 24), (13, 13), torch.float32)
    weight.requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = depthwise_conv2d(x, weight, bias, backend=backend)
    assert y.dtype == torch.bfloat16
    assert_forward(y, *(t.detach().bfloat16() for t in (x, weight, bias)))
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_empty_batches(backend):
    x, grad, weight, bias = inputs((0, 4, 24, 24), (13, 13))
    y, gx, gw = passes(backend, x, grad, weight, bias)
    assert y.shape == gx.shape == x.shape
    assert torch.equal(gw, torch.zeros_like(weight))
