"""DepthwiseConv2d inside PyTorch's machinery: copies, compilers, exporters, DDP, autocast."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from torch import nn

from cba_fast.nn import DepthwiseConv2d, accelerate
from cba_fast.ops import depthwise_conv2d

pytestmark = pytest.mark.usefixtures("seeded")

OP = torch.ops.cba_fast.depthwise_conv2d.default


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_deepcopy_and_pickle():
    module = DepthwiseConv2d(4, 4, 5, padding=2, groups=4)
    x = torch.randn(1, 4, 8, 8)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert type(other) is DepthwiseConv2d
        assert other.weight is not module.weight
        assert torch.equal(other(x), module(x))


def small_model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        DepthwiseConv2d(8, 8, (13, 3), padding=(6, 1), groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_compile_and_export(memory_format):
    model = small_model().eval().to(memory_format=memory_format)
    x = torch.randn(2, 3, 8, 8).to(memory_format=memory_format)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(compiled(x), expected)
    assert compiled(x).stride() == expected.stride()
    exported = torch.export.export(model, (x,))
    assert OP in [n.target for n in exported.graph.nodes]
    close(exported.module()(x), expected)


def test_autocast_trains_end_to_end():
    model = small_model()
    x = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    for p in model.parameters():
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()
        assert p.grad.stride() == p.stride()


def test_state_dict_is_that_of_conv2d():
    conv, model = nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Sequential()
    model.append(copy.deepcopy(conv))
    accelerate(model)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        f"0.{k}": v.shape for k, v in conv.state_dict().items()
    }
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    conv.load_state_dict({k[2:]: v for k, v in torch.load(buffer, weights_only=True).items()})


# ONNX.


def test_during_onnx_export_the_plain_convolution_runs(monkeypatch):
    module, x = DepthwiseConv2d(4, 4, 5, padding=2, groups=4), torch.randn(1, 4, 8, 8)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    graph = torch.export.export(module, (x,), strict=False).graph
    targets = [n.target for n in graph.nodes if n.op == "call_function"]
    assert targets == [torch.ops.aten.conv2d.default]


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="PyTorch 2.6 does not say that it exports")
def test_onnx_export_computes_the_same(tmp_path):
    from onnx.reference import ReferenceEvaluator  # [test] installs it: never skipped

    model, x = small_model().eval(), torch.randn(1, 3, 8, 8)
    torch.onnx.export(model, (x,), str(tmp_path / "m.onnx"), dynamo=True, verbose=False)
    session = ReferenceEvaluator(str(tmp_path / "m.onnx"))
    (y,) = session.run(None, {session.input_names[0]: x.numpy()})
    close(torch.from_numpy(y), model(x))


# TorchScript.


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_trace_is_the_plain_convolution_and_takes_other_sizes(batch):
    module = DepthwiseConv2d(4, 4, 13, padding=6, groups=4).eval()
    traced = torch.jit.trace(module, torch.randn(*batch, 4, 20, 20))
    for size in ((20, 20), (9, 31)):
        x = torch.randn(*batch, 4, *size)
        close(traced(x), module(x))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert "aten::_convolution" in kinds
    assert not any("cba_fast" in kind for kind in kinds)


class CallsTheFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 13, 5))

    def forward(self, x):
        return depthwise_conv2d(x, self.weight).relu()


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_a_trace_through_the_function_is_the_plain_convolution():
    module = CallsTheFunction().eval()
    traced = torch.jit.trace(module, torch.randn(2, 4, 20, 20))
    for size in ((20, 20), (9, 31)):
        x = torch.randn(3, 4, *size)
        close(traced(x), module(x))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert "aten::_convolution" in kinds
    assert not any("cba_fast" in kind for kind in kinds)


# DistributedDataParallel compares the strides of a gradient with its parameter's, size 1 or not; it
# warns, once per process, and copies where they differ.
DDP = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from cba_fast.nn import DepthwiseConv2d

def step(memory_format, hook=None):
    convs = [DepthwiseConv2d(4, 4, k, padding=k // 2, groups=4) for k in (13, 3)]
    model = nn.Sequential(*convs).to(memory_format=memory_format)
    if hook:
        convs[0].weight.register_hook(hook)
    x = torch.randn(2, 4, 8, 8).to(memory_format=memory_format)
    model = DistributedDataParallel(model)
    for _ in range(2):
        model(x).square().mean().backward()

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
step(torch.contiguous_format)
step(torch.channels_last)
sys.stderr.flush()
print("--", file=sys.stderr, flush=True)
step(torch.contiguous_format, lambda g: g.as_strided(g.shape, (169, 1, 13, 1)))
dist.destroy_process_group()
"""


def test_ddp_does_not_warn_of_strides():
    done = subprocess.run([sys.executable, "-c", DDP], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ours, control = done.stderr.split("--\n")
    assert "strides do not match" not in ours
    assert "strides do not match" in control  # a gradient that breaks the rule is noticed
