"""DepthwiseConv2d, accelerate() and the exact rewrites of trained convolutions."""

import copy
import logging
import re

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import cba_fast
from cba_fast.nn import (
    DepthwiseConv2d,
    accelerate,
    fold_bn_before_conv1x1,
    fuse_conv_bn,
    pad_kernel,
)
from cba_fast.nn import depthwise as depthwise_module

pytestmark = pytest.mark.usefixtures("seeded")

OP = torch.ops.cba_fast.depthwise_conv2d.default


def uses_op(module, x):
    """Say whether the module's forward calls the op, as seen by the dispatcher."""
    seen = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Spy():
        module(x)
    return OP in seen


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# DepthwiseConv2d.


COVERED = [
    ((6, 6, 7), {"padding": 3, "groups": 6}),
    ((6, 6, 7), {"padding": "same", "groups": 6, "bias": False}),
    ((6, 6, (51, 5)), {"padding": (25, 2), "groups": 6}),
    ((6, 6, 1), {"groups": 6}),
    ((6, 6, 1), {"padding": "valid", "groups": 6}),
]
NOT_COVERED = [
    ((6, 6, 7), {"padding": 3}, "not depthwise"),
    ((6, 12, 7), {"padding": 3, "groups": 6}, "6 to 12 channels in 6 groups"),
    ((6, 6, 7), {"padding": 3, "groups": 6, "stride": 2}, "stride"),
    ((6, 6, 7), {"padding": 6, "groups": 6, "dilation": 2}, "dilation"),
    ((6, 6, 7), {"padding": 3, "groups": 6, "padding_mode": "circular"}, "'circular'"),
    ((6, 6, 7), {"padding": 2, "groups": 6}, r"padding \(2, 2\)"),
    ((6, 6, 7), {"padding": "valid", "groups": 6}, r"padding \(0, 0\)"),
    ((6, 6, 4), {"padding": "same", "groups": 6}, r"kernel \(4, 4\)"),
    ((6, 6, (1, 65)), {"padding": "same", "groups": 6}, r"kernel \(1, 65\)"),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("args", "kwargs"), [c[:2] for c in (*COVERED, *NOT_COVERED)])
def test_module_is_interchangeable_with_conv2d(args, kwargs):
    conv, ours = nn.Conv2d(*args, **kwargs), DepthwiseConv2d(*args, **kwargs)
    ours.load_state_dict(conv.state_dict())
    assert ours.state_dict().keys() == conv.state_dict().keys()
    for name in ("padding", "stride", "dilation", "groups", "kernel_size", "padding_mode"):
        assert getattr(ours, name) == getattr(conv, name)
    x = torch.randn(2, 6, 9, 10)
    close(ours(x), conv(x))
    close(ours(x[0]), conv(x[0]))  # without a batch dimension
    conv.load_state_dict(ours.state_dict())
    assert uses_op(ours, x) == ((args, kwargs) in COVERED)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("args", "kwargs", "reason"), NOT_COVERED)
def test_fallback_is_logged_once(args, kwargs, reason, caplog, monkeypatch):
    monkeypatch.setattr(depthwise_module, "_logged", set())
    with caplog.at_level(logging.INFO, logger="cba_fast"):
        for _ in range(2):
            module = DepthwiseConv2d(*args, **kwargs)
            module(torch.randn(1, 6, 9, 9))
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert re.search(reason, record.getMessage())


def test_complex_weights_run_as_conv2d():
    module = DepthwiseConv2d(2, 2, 3, padding=1, groups=2, dtype=torch.complex64)
    x = torch.randn(1, 2, 5, 5, dtype=torch.complex64)
    assert torch.equal(module(x), nn.Conv2d.forward(module, x))


def depthwise(channels=4, size=5, **kwargs):
    return nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, **kwargs)


def test_from_conv_shares_parameters():
    conv = depthwise().double().eval()
    conv.weight.requires_grad_(False)
    ours = DepthwiseConv2d.from_conv(conv)
    assert ours.weight is conv.weight
    assert ours.bias is conv.bias
    assert not ours.training
    assert repr(ours) == repr(conv).replace("Conv2d", "DepthwiseConv2d")
    assert DepthwiseConv2d.from_conv(depthwise(bias=False)).bias is None
    with pytest.raises(TypeError, match="got Linear"):
        DepthwiseConv2d.from_conv(nn.Linear(2, 2))


# accelerate().


class DepthWiseConv2dImplicitGEMM(nn.Conv2d):
    """Stand for the extension's module: it says padding 0 and pads by half the kernel."""

    def __init__(self, channels, kernel, bias=False):
        super().__init__(channels, channels, kernel, groups=channels, bias=bias)

    def forward(self, x):
        return nn.functional.conv2d(
            x, self.weight, self.bias, padding=self.kernel_size[0] // 2, groups=self.groups
        )


def test_accelerate_swaps_what_matches_and_nothing_else():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Conv2d(4, 4, 5, padding=2)
            self.large = depthwise(4, 7)
            self.strided = depthwise(4, 5, stride=2)

        def forward(self, x):
            return self.strided(self.large(self.dense(x)))

    model = nn.Sequential(Block(), DepthWiseConv2dImplicitGEMM(4, 5), Block()).eval()
    x = torch.randn(1, 4, 16, 16)
    expected, state = model(x), copy.deepcopy(model.state_dict())
    parameters = list(model.parameters())
    assert cba_fast.accelerate(model) == ["0.large", "1", "2.large"]
    close(model(x), expected)
    assert [n for n, m in model.named_modules() if isinstance(m, DepthwiseConv2d)] == [
        "0.large",
        "1",
        "2.large",
    ]
    assert model[1].padding == (2, 2)
    assert all(a is b for a, b in zip(parameters, model.parameters()))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m.training for m in model.modules())
    assert uses_op(model[1], x)
    assert accelerate(model) == []


def test_accelerated_drop_in_can_be_printed_copied_and_padded_otherwise():
    module = DepthWiseConv2dImplicitGEMM(3, 5)
    x = torch.randn(1, 3, 8, 8)
    assert accelerate(module) == [""]
    module.padding_mode = "circular"  # reads the other attribute that holds the padding
    reference = nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=False, padding_mode="circular")
    reference.load_state_dict(module.state_dict())
    close(copy.deepcopy(module)(x), reference(x))
    assert "padding=(2, 2)" in repr(module)


def test_shared_modules_stay_shared():
    shared = depthwise()
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    assert accelerate(model) == ["a"]
    assert model["a"] is model["b"][0] is shared


def test_hooks_survive():
    conv = depthwise()
    calls = []
    conv.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    model = nn.Sequential(conv)
    assert accelerate(model) == ["0"]
    model(torch.randn(1, 4, 6, 6))
    assert calls == [(1, 4, 6, 6)]


def test_what_cannot_be_swapped_is_left_with_a_logged_reason(caplog):
    class Special(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    patched = depthwise()
    patched.forward = lambda x: x
    model = nn.ModuleDict(
        {
            "normed": parametrizations.weight_norm(depthwise()),
            "special": Special(4, 4, 3, padding=1, groups=4),
            "patched": patched,
            "strided": depthwise(stride=2),
            "dense": nn.Conv2d(4, 4, 3),
        }
    )
    types = {k: type(m) for k, m in model.items()}
    with caplog.at_level(logging.INFO, logger="cba_fast"):
        assert accelerate(model) == []
    assert {k: type(m) for k, m in model.items()} == types
    text = caplog.text
    assert "'normed' as it is: it has parametrizations" in text
    assert "'special' as it is: its type is" in text
    assert "'patched' as it is: its forward is set on the instance" in text
    assert "'strided' as it is: stride (2, 2) is not 1" in text
    assert "'dense'" not in text


@pytest.mark.parametrize(
    ("name", "count"),
    # ConvNeXt: one 7x7 per block. InceptionNeXt: 3x3, 1x9 and 9x1 per block.
    [("test_convnext", 9), ("inception_next_atto", 3 * 12)],
)
def test_accelerated_timm_model_computes_the_same(name, count):
    model = timm.create_model(name, num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    assert len(accelerate(model)) == count
    close(model(x), expected)


def test_the_algorithm_reaches_the_op(monkeypatch):
    seen = []

    def spy(*args, algorithm, original=depthwise_module.depthwise_conv2d):
        seen.append(algorithm)
        return original(*args, algorithm=algorithm)

    monkeypatch.setattr(depthwise_module, "depthwise_conv2d", spy)
    model = nn.Sequential(depthwise(), nn.ReLU(), depthwise())
    accelerate(model, algorithm="direct")
    model[2].algorithm = "auto"
    copy.deepcopy(model)(torch.randn(1, 4, 8, 8))
    assert seen == ["direct", "auto"]
    other = depthwise()
    with pytest.raises(ValueError, match="'winograd'"):
        accelerate(other, algorithm="winograd")
    assert type(other) is nn.Conv2d


# Rewrites.


def trained(bn):
    """Give a batch norm statistics and an affine map that are far from the identity."""
    with torch.no_grad():
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
        if bn.affine:
            bn.weight.normal_()
            bn.bias.normal_()
    return bn.eval()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, 3, groups=2, bias=False, padding_mode="reflect", padding=1),
        DepthwiseConv2d(6, 6, 5, padding=2, groups=6, bias=False),
        DepthWiseConv2dImplicitGEMM(6, 5),
    ],
)
def test_fuse_conv_bn(conv, affine):
    conv = conv.double().eval()
    bn = trained(nn.BatchNorm2d(6, affine=affine).double())
    x = torch.randn(2, conv.in_channels, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(conv.state_dict())
    fused = fuse_conv_bn(conv, bn)
    torch.testing.assert_close(fused(x), bn(conv(x)), rtol=1e-12, atol=1e-12)
    assert isinstance(fused, DepthwiseConv2d) == isinstance(conv, DepthwiseConv2d)
    assert not fused.training
    assert all(torch.equal(v, before[k]) for k, v in conv.state_dict().items())


def test_fuse_conv_bn_rounds_once():
    conv, bn = depthwise().half(), trained(nn.BatchNorm2d(4))
    fused = fuse_conv_bn(conv, bn)
    exact = fuse_conv_bn(copy.deepcopy(conv).double(), copy.deepcopy(bn).double())
    assert torch.equal(fused.weight, exact.weight.half())
    assert torch.equal(fused.bias, exact.bias.half())


def test_fuse_conv_bn_draws_no_random_numbers():
    conv, bn = depthwise(), trained(nn.BatchNorm2d(4))
    state = torch.random.get_rng_state()
    fuse_conv_bn(conv, bn)
    DepthwiseConv2d.from_conv(conv)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_fold_bn_before_conv1x1(groups, bias):
    conv = nn.Conv2d(4, 8, 1, groups=groups, bias=bias, stride=2).double()
    bn = trained(nn.BatchNorm2d(4).double())
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    folded = fold_bn_before_conv1x1(bn, conv)
    torch.testing.assert_close(folded(x), conv(bn(x)), rtol=1e-12, atol=1e-12)


def test_rewrites_that_are_not_exact_are_refused():
    bn = nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match=r"kernel \(3, 3\)"):
        fold_bn_before_conv1x1(bn, nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match=r"padding \(1, 1\)"):
        fold_bn_before_conv1x1(bn, nn.Conv2d(4, 4, 1, padding=1))
    with pytest.raises(ValueError, match="has 4 channels, the convolution's input has 8"):
        fold_bn_before_conv1x1(bn, nn.Conv2d(8, 4, 1))
    with pytest.raises(ValueError, match="has 4 channels, the convolution's output has 8"):
        fuse_conv_bn(nn.Conv2d(4, 8, 1), bn)
    with pytest.raises(ValueError, match="without running statistics"):
        fuse_conv_bn(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))


def test_pad_kernel_merges_branches():
    large = DepthwiseConv2d(3, 3, (13, 7), padding=(6, 3), groups=3, dtype=torch.float64)
    small = DepthwiseConv2d(3, 3, 5, padding=2, groups=3, dtype=torch.float64)
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    expected = large(x) + small(x)
    with torch.no_grad():
        large.weight += pad_kernel(small.weight, (13, 7))
        large.bias += small.bias
    torch.testing.assert_close(large(x), expected, rtol=1e-12, atol=1e-12)


def test_pad_kernel_shapes():
    weight = torch.ones(2, 1, 1, 3)
    assert torch.equal(pad_kernel(weight, (1, 3)), weight)
    assert pad_kernel(weight, 5)[0, 0].nonzero().tolist() == [[2, 1], [2, 2], [2, 3]]
    for size in ((1, 1), (2, 3), (1, 4)):
        with pytest.raises(ValueError, match=f"1x3 kernel cannot be centred in {size[0]}x"):
            pad_kernel(weight, size)


def test_other_derivatives_get_the_plain_convolution():
    conv = DepthwiseConv2d(2, 2, 3, padding=1, groups=2)
    plain = torch.nn.Conv2d(2, 2, 3, padding=1, groups=2)
    plain.load_state_dict(conv.state_dict())
    x, v = torch.randn(2, 1, 2, 5, 5)
    for frozen in (False, True):
        conv.requires_grad_(not frozen)
        _, tangent = torch.func.jvp(conv, (x,), (v,))
        torch.testing.assert_close(tangent, torch.func.jvp(plain, (x,), (v,))[1])
    gradient = torch.func.grad(lambda t: conv(t).sum())(x)
    torch.testing.assert_close(gradient, torch.func.grad(lambda t: plain(t).sum())(x))


def test_a_symbolic_trace_has_one_node_for_the_convolution():
    model = torch.nn.Sequential(DepthwiseConv2d(2, 2, 3, padding=1, groups=2), torch.nn.ReLU())
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(traced(x), model(x))
