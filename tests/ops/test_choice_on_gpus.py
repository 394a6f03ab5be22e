"""Which method a GPU gets: measured ones, and PyTorch's where nothing was measured."""

import dataclasses
import warnings

import pytest
import torch
from tolerance import assert_forward, assert_grad_weight, assert_grad_x

from cba_fast.kernels import dwconv_cuda, native
from cba_fast.nn import DepthwiseConv2d
from cba_fast.ops import choice_table, depthwise_conv2d, dwconv_choice
from cba_fast.ops.backends import BackendTable
from cba_fast.ops.choice_table import Call, Table
from cba_fast.ops.dwconv_choice import TABLES
from cba_fast.ops.dwconv_gpu import refuses_cuda

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CL = torch.channels_last
OP = torch.ops.cba_fast.depthwise_conv2d.default


def meta(*shape, dtype=BF16, memory_format=torch.contiguous_format):
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def choose(image, kernel_size, backend, algorithm):
    """Return what is chosen for the three directions."""
    how = (image, kernel_size, backend, algorithm)
    return tuple(dwconv_choice.choose(direction, *how) for direction in TABLES)


def a_table(monkeypatch, cases, source=choice_table.USER):
    """Let a table of a GPU with these cases be the only one, and return it."""
    table = Table({"kind": "cuda"}, cases, path="measured.json", source=source)
    monkeypatch.setattr(choice_table, "tables", lambda device: [table])
    return table


def test_the_op_takes_what_was_measured(a_gpu, monkeypatch):
    pytest.importorskip("triton")
    large, small = a_gpu(64, 512, 24, 24), a_gpu(1, 512, 24, 24)
    assert choose(large, (27, 27), "auto", "auto") == ("torch",) * 3
    assert choose(large, (27, 27), "triton", "auto") == ("triton",) * 3
    times = {"torch": 2.0, "triton": 1.0}
    calls = [Call.of(d, large, (27, 27)) for d in ("forward", "grad_weight")]
    a_table(monkeypatch, {str(call): times for call in calls})
    assert choose(large, (27, 27), "auto", "auto") == ("triton", "torch", "triton")
    assert choose(a_gpu(70, 520, 24, 24), (27, 27), "auto", "auto") == ("triton", "torch", "triton")
    assert choose(small, (27, 27), "auto", "auto") == ("torch",) * 3
    assert choose(large.to(memory_format=CL), (27, 27), "auto", "auto") == ("torch",) * 3
    # Products of matrices spread a NaN: they are not "direct", measured or not.
    assert choose(large, (27, 27), "auto", "direct") == ("torch",) * 3
    with pytest.raises(ValueError, match="'triton' cannot run: .* a NaN reach beyond the kernel"):
        choose(large, (27, 27), "triton", "direct")
    with pytest.raises(ValueError, match="no backend can run.*'fft'"):
        choose(large, (27, 27), "auto", "fft")
    y = depthwise_conv2d(large, a_gpu(512, 1, 27, 27))
    assert y.shape == large.shape
    assert y.device.type == "cuda"


def test_strips_are_taken_where_they_were_measured_to_be_faster(a_gpu, monkeypatch):
    for table in TABLES.values():
        for name in {"cuda", "cuda_strip"} & table.backends.keys():
            ready = dataclasses.replace(table.backends[name], unavailable=lambda: None)
            monkeypatch.setitem(table.backends, name, ready)
    x, by_name = a_gpu(64, 124, 96, 96), ("cuda_strip", "cuda_strip", "cuda")
    assert choose(x, (51, 5), "cuda_strip", "auto") == by_name
    times = {"torch": 3.0, "cuda": 2.0, "cuda_strip": 1.0}
    a_table(monkeypatch, {str(Call.of(d, x, (51, 5))): times for d in TABLES})
    assert choose(x, (51, 5), "auto", "auto") == by_name
    with pytest.raises(ValueError, match="'cuda_strip' cannot run: .* at most 7 taps across"):
        choose(x, (31, 31), "cuda_strip", "auto")
    with pytest.raises(ValueError, match="no kernels for torch.float32"):
        choose(x.float(), (51, 5), "cuda_strip", "auto")


def test_what_the_cuda_kernels_refuse(a_gpu, monkeypatch):
    assert refuses_cuda(a_gpu(2, 3, 4, 5), (9, 9), "auto") is None
    assert refuses_cuda(a_gpu(2, 3, 4, 5, dtype=FP32), (9, 9), "direct") is None
    assert "a NaN reaches beyond" in refuses_cuda(a_gpu(2, 3, 4, 5), (9, 9), "direct")
    assert "no kernels for torch.float64" in refuses_cuda(
        a_gpu(2, 3, 4, 5, dtype=torch.float64), (9, 9), "auto"
    )
    assert "'fft'" in refuses_cuda(a_gpu(2, 3, 4, 5), (9, 9), "fft")
    for dtype in (FP32, BF16):
        assert "blocks" in refuses_cuda(a_gpu(2**16, 2**16, 1, 1, dtype=dtype), (9, 9), "auto")
        assert "plane" in refuses_cuda(a_gpu(1, 1, 2**15, 2**16, dtype=dtype), (9, 9), "auto")
        assert "images" in refuses_cuda(a_gpu(2**30 + 1, 1, 1, 1, dtype=dtype), (9, 9), "auto")
    # Tiles of tensor cores have 16 times as many pixels.
    assert "blocks" in refuses_cuda(a_gpu(64, 4096, 512, 512, dtype=FP32), (9, 9), "auto")
    assert refuses_cuda(a_gpu(64, 4096, 512, 512, dtype=FP16), (63, 1), "auto") is None
    assert refuses_cuda(meta(2, 3, 4, 5), (9, 9), "auto") == "it runs on NVIDIA GPUs, not on meta"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert "older than compute capability 8.0" in refuses_cuda(a_gpu(2, 3, 4, 5), (9, 9), "auto")


@pytest.mark.parametrize("op", ["depthwise_conv2d", "erf_size", "erf_accumulate", "quantize"])
def test_gpus_that_the_build_is_not_for(op, a_gpu, monkeypatch):
    image = a_gpu(2, 3, 4, 5, dtype=FP32)
    args = {"depthwise_conv2d": (image, (3, 3), "auto"), "quantize": (a_gpu(2, 4, 5, dtype=FP32),)}
    refuses = BackendTable.registry[op].backends["cuda"].refuses
    assert refuses(*args.get(op, (image,))) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    reason = "the CUDA kernels were built for 90-real, the GPU has 8.9"
    assert refuses(*args.get(op, (image,))) == reason


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_the_launchers_serve_their_dtypes(emulated_cuda, dtype):
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(2, 2, 9, 10, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(2, 1, 5, 7, generator=generator).to(dtype)
    assert_forward(dwconv_cuda.forward(x, weight, None, CL), x, weight)
    assert_grad_x(dwconv_cuda.grad_x(grad, weight, CL), grad, weight)
    assert_grad_weight(dwconv_cuda.grad_weight(grad, x, (5, 7)), grad, x)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_op_breaks_no_graph(a_gpu, dynamic):
    # What --compile traces on a GPU: a symbolic batch stays one.
    x, weight = a_gpu(64, 512, 24, 24), a_gpu(512, 1, 27, 27)
    conv = DepthwiseConv2d(512, 512, 27, padding=13, groups=512, bias=False, device="meta")
    conv.weight = torch.nn.Parameter(weight, requires_grad=False)
    graphs = []

    def recording(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of caches that Dynamo looks through
        warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")
        compiled = torch.compile(conv, backend=recording, fullgraph=True)
        assert compiled(x).shape == x.shape
        if dynamic:
            assert compiled(a_gpu(3, 512, 24, 24)).shape[0] == 3
    torch.compiler.reset()
    assert len(graphs) == 1
    calls = [n for n in graphs[0].graph.nodes if n.target is OP]
    assert [call.args[3:5] for call in calls] == [("auto", "auto")]


def test_a_kernel_of_a_shipped_table_is_checked_first(a_gpu, monkeypatch):
    image = a_gpu(64, 512, 24, 24)
    cases = {str(Call.of("forward", image, (27, 27))): {"torch": 2.0, "cuda": 1.0}}
    table = TABLES["forward"]
    for failure, method in ((None, "cuda"), ("its self-check failed", "torch")):
        a_table(monkeypatch, cases, choice_table.OURS)
        monkeypatch.setattr(native, "_cuda_message", None)  # as if a driver were installed
        monkeypatch.setattr(table, "_checked", {("cuda", image.device): failure})
        assert dwconv_choice.choose("forward", image, (27, 27), "auto", "auto") == method
