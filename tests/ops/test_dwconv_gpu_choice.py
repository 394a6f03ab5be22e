"""Which method a GPU gets: measured ones, and PyTorch's where nothing was measured."""

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tolerance import assert_forward, assert_grad_weight, assert_grad_x

from cba_fast.kernels import dwconv_cuda
from cba_fast.nn import DepthwiseConv2d
from cba_fast.ops import depthwise_conv2d, dwconv_choice, dwconv_gpu
from cba_fast.ops.backends import BackendTable
from cba_fast.ops.dwconv_choice import METHODS, TABLES
from cba_fast.ops.dwconv_gpu import bucket, refuses_cuda

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CL = torch.channels_last
OP = torch.ops.cba_fast.depthwise_conv2d.default
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def meta(*shape, dtype=BF16, memory_format=torch.contiguous_format):
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def choose(image, kernel_size, backend, algorithm):
    """Return what is chosen for the three directions."""
    how = (image, kernel_size, backend, algorithm)
    return tuple(dwconv_choice.choose(direction, *how) for direction in TABLES)


@pytest.fixture(scope="module")
def gpu_choice():
    """Return benchmarks/gpu_choice.py as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("gpu_choice", BENCHMARKS / "gpu_choice.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.mark.parametrize(
    ("image", "kernel_size", "name"),
    [
        (meta(64, 512, 24, 24), (27, 27), "forward half contiguous by8 8x512x28x28_k31x31"),
        (meta(7, 127, 28, 28), (31, 31), "forward half contiguous by4 2x32x28x28_k31x31"),
        (meta(1, 128, 20, 40), (51, 5), "forward half contiguous by4 1x128x56x56_k51x5"),
        (meta(1, 64, 7, 7, dtype=FP16), (7, 1), "forward half contiguous by1 1x32x7x7_k7x1"),
        (
            meta(2, 64, 96, 96, memory_format=CL, dtype=FP32),
            (3, 3),
            "forward float32 channels_last by8 2x32x112x112_k3x3",
        ),
        (meta(2, 64, 96, 96, dtype=FP16), (5, 5), None),  # PyTorch has another kernel for it
        (meta(2, 64, 96, 96, dtype=torch.float64), (9, 9), None),
        (meta(2, 31, 96, 96), (9, 9), None),
        (meta(2, 64, 300, 300), (9, 9), None),
        (meta(0, 64, 96, 96), (9, 9), None),
        (meta(2, 64, 96, 104)[..., 8:], (9, 9), None),  # rows of other strides
        (meta(2, 64, 48, 96).transpose(2, 3), (9, 9), None),
        (meta(2, 72, 48, 96, memory_format=CL)[:, 8:], (9, 9), None),
        (meta(4, 64, 48, 96)[1:], (9, 9), "forward half contiguous by8 2x32x112x112_k9x9"),
    ],
)
def test_buckets(image, kernel_size, name):
    assert bucket("forward", image, kernel_size) == name


def test_the_shipped_table_names_known_methods_and_buckets():
    for arch, entry in json.loads(dwconv_gpu.TABLE.read_text()).items():
        assert arch.startswith("sm_")
        assert entry["device"]
        assert entry["torch"]
        for key, method in entry["methods"].items():
            direction, dtype, layout, aligned, _ = key.split()
            assert direction in TABLES
            assert dtype in ("half", "float32")
            assert layout in ("contiguous", "channels_last")
            assert aligned in ("by1", "by2", "by4", "by8")
            assert method in METHODS


def test_the_op_takes_what_was_measured(a_gpu, monkeypatch):
    pytest.importorskip("triton")
    large, small = a_gpu(64, 512, 24, 24), a_gpu(1, 512, 24, 24)
    assert choose(large, (27, 27), "auto", "auto") == ("torch",) * 3
    assert choose(large, (27, 27), "triton", "auto") == ("triton",) * 3
    methods = {bucket(d, large, (27, 27)): "triton" for d in ("forward", "grad_weight")}
    monkeypatch.setattr(dwconv_gpu, "measured", lambda: {"sm_90": {"methods": methods}})
    assert choose(large, (27, 27), "auto", "auto") == ("triton", "torch", "triton")
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
    args = {"depthwise_conv2d": (image, (3, 3), "auto"), "quantize": (image[:, 0],)}
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
        compiled = torch.compile(conv, backend=recording, fullgraph=True)
        assert compiled(x).shape == x.shape
        if dynamic:
            assert compiled(a_gpu(3, 512, 24, 24)).shape[0] == 3
    torch.compiler.reset()
    assert len(graphs) == 1
    calls = [n for n in graphs[0].graph.nodes if n.target is OP]
    assert [call.args[3:] for call in calls] == [("auto", "auto")]


def test_another_architecture_gets_nothing(a_gpu, monkeypatch):
    image = a_gpu(64, 512, 24, 24)
    methods = {bucket("forward", image, (27, 27)): "triton"}
    monkeypatch.setattr(dwconv_gpu, "measured", lambda: {"sm_80": {"methods": methods}})
    assert choose(image, (27, 27), "auto", "auto") == ("torch",) * 3


def record(case, direction="forward", dtype="bfloat16", **medians):
    timings = {
        n: {"median_ms": m, "p20_ms": 0.9 * m, "p80_ms": 1.1 * m, "host_ms": 0.1}
        for n, m in medians.items()
    }
    return {"case": case, "direction": direction, "dtype": dtype, "timings": timings}


def test_a_table_from_records(gpu_choice):
    rivals = {"nchw": 9.0, "channels_last": 4.0}
    found = gpu_choice.methods(
        [
            # Faster than both of PyTorch's ways, in one memory format.
            record("8x512x24x24_k27x27", triton=1.0, triton_channels_last=3.9, **rivals),
            # The faster of two.
            record("2x512x24x24_k27x27", triton=1.0, cuda=0.5, **rivals),
            # One case of a bucket lost.
            record("8x128x24x24_k27x27", triton=1.0, **rivals),
            record("8x128x24x16_k27x27", triton=5.0, **rivals),
            # Wrong results have no times; nor did PyTorch's run here.
            record("8x32x24x24_k27x27", **rivals),
            record("1x32x24x24_k27x27", triton=1.0),
            record("8x512x24x24_k27x27", "grad_x", "float32", cuda_channels_last=2.0, **rivals),
        ]
    )
    assert found == {
        "forward half contiguous by8 8x512x28x28_k31x31": "triton",
        "forward half contiguous by8 2x512x28x28_k31x31": "cuda",
        "grad_x float32 channels_last by8 8x512x28x28_k31x31": "cuda",
    }


def test_a_method_must_win_where_the_kernel_is_smallest(gpu_choice):
    # 23x23 is of the kind of 31x31 and has 0.55 of its taps, 27x27 has 0.73 of 27x27's.
    assert dwconv_gpu.smallest_share((31, 31)) == pytest.approx((23 / 31) ** 2)
    assert dwconv_gpu.smallest_share((27, 5)) == pytest.approx(23 / 27)
    assert dwconv_gpu.smallest_share((7, 1)) == 1
    rivals = {"nchw": 2.0, "channels_last": 9.0}
    for ours, wins in ((0.85, True), (0.95, False)):  # times 1.1 against 1.8 * 0.55
        found = gpu_choice.methods([record("8x512x24x24_k31x31", triton=ours, **rivals)])
        assert bool(found) == wins


def test_a_method_must_win_on_the_host_too(gpu_choice):
    quick = record("1x512x24x24_k7x7", triton=0.01, nchw=0.05, channels_last=0.09)
    assert gpu_choice.methods([quick]) == {}  # the host takes 0.1 ms for both
    quick["timings"]["triton"]["host_ms"] = 0.04
    assert list(gpu_choice.methods([quick]).values()) == ["triton"]


def test_entries_are_of_records_with_a_place(gpu_choice):
    rivals = {"nchw": 9.0, "channels_last": 4.0}
    one = record("8x512x24x24_k27x27", triton=1.0, **rivals)
    where = {"arch": "sm_90", "device": "NVIDIA H200", "torch": "2.11.0"}
    assert gpu_choice.entries([one, {**one, **where}]) == {
        "sm_90": {
            "device": "NVIDIA H200",
            "torch": "2.11.0",
            "cases": 1,
            "methods": {"forward half contiguous by8 8x512x28x28_k31x31": "triton"},
        }
    }


def test_what_is_measured_fills_every_bucket_it_can(gpu_choice):
    planned = {
        bucket(direction, meta(case.batch, case.channels, case.height, case.width, dtype=dtype),
               (case.kh, case.kw))
        for case, dtype, direction in gpu_choice.cases()
    }  # fmt: skip
    assert None not in planned
    assert len(set(gpu_choice.cases())) == len(list(gpu_choice.cases()))
    for image, kernel in [
        (meta(1, 128, 96, 96), (31, 31)),
        (meta(2, 256, 48, 48), (29, 29)),
        (meta(64, 998, 12, 12), (13, 5)),
        (meta(8, 96, 56, 56, dtype=FP32), (7, 7)),
        (meta(16, 512, 14, 14), (27, 27)),
        (meta(64, 499, 24, 24), (1, 47)),
    ]:
        for direction in TABLES:
            assert bucket(direction, image, kernel) in planned


def test_measuring_on_a_cpu(gpu_choice):
    # Without a GPU neither backend runs; PyTorch's results are checked and timed.
    records = list(gpu_choice.choice("cpu"))
    assert len(records) == 6
    assert all({"nchw", "channels_last"} == set(r["timings"]) for r in records)
    assert gpu_choice.methods(records) == {}
