"""What accelerate() reports, restore(), and what counters of operations say of swapped models."""

import copy
import pickle

import pytest
import timm
import torch
from test_nn import DepthWiseConv2dImplicitGEMM, close, depthwise, uses_op
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import cba_fast
from cba_fast.erf import erf_sizes
from cba_fast.models import inference_form
from cba_fast.nn import DepthwiseConv2d, MapLinear, accelerate, linears_as_convs, restore
from cba_fast.wsol import cam

pytestmark = pytest.mark.usefixtures("seeded")


class Named(nn.Conv2d):
    """Computes what Conv2d does, and knows more."""

    def __init__(self, channels, kernel):
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.note = "mine"

    def doubled(self):
        return 2 * self.weight


class Functional(nn.Module):
    """Convolves by a parameter of its own."""

    def __init__(self, channels=4):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(channels, 1, 5, 5))
        self.scale = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x):
        y = nn.functional.conv2d(x, self.kernel, padding=2, groups=len(self.kernel))
        return self.scale[:, 0] * y


def network():
    """Return a model with one of each kind."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 1),
        depthwise(4, 7),
        depthwise(4, 7),
        DepthWiseConv2dImplicitGEMM(4, 5),
        Named(4, 3),
        depthwise(4, 7, stride=2),
        Functional(),
        parametrizations.weight_norm(depthwise(4, 5)),
        DepthwiseConv2d(4, 4, 3, padding=1, groups=4),
    ).eval()


def test_the_report_names_every_kind():
    model = network()
    x = torch.randn(1, 3, 12, 12)
    expected = model(x)
    report = accelerate(model)
    assert report == ["1", "2", "3", "4"]
    close(model(x), expected)
    reason = (
        "a parameter of Functional in the shape of depthwise kernels; if a functional convolution "
        "uses it, call cba_fast.ops.depthwise_conv2d there"
    )
    assert str(report).splitlines() == [
        "swapped    2 x Conv2d 7x7, first '1'",
        "swapped    1 x DepthWiseConv2dImplicitGEMM 5x5, first '3'",
        "swapped    1 x Named 3x3, first '4'",
        "ours       1 x DepthwiseConv2d 3x3, first '8'",
        "left       1 x Conv2d 7x7, first '5': stride (2, 2) is not 1",
        f"left       1 x parameter 5x5, first '6.kernel': {reason}",
        "left       1 x ParametrizedConv2d 5x5, first '7': it has parametrizations; a layer may "
        "get them after accelerate",
        "left       1 x other convolutions: they are not depthwise",
    ]
    assert str(pickle.loads(pickle.dumps(report))) == str(copy.deepcopy(report)) == str(report)
    assert accelerate(model) == []
    assert repr(accelerate(nn.ReLU())) == "the model has no convolution"


def test_a_subclass_that_computes_the_same_stays_one():
    model = nn.Sequential(Named(4, 5))
    x = torch.randn(1, 4, 8, 8)
    expected = model(x)
    assert accelerate(model) == ["0"]
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        layer = other[0]
        assert isinstance(layer, DepthwiseConv2d)
        assert isinstance(layer, Named)
        assert torch.equal(layer.doubled(), 2 * model[0].weight)
        assert uses_op(layer, x)
        close(other(x), expected)
        assert restore(other) == ["0"]
        assert type(layer) is Named
        assert torch.equal(other(x), expected)


def _forward(self, x):
    return 2 * nn.Conv2d.forward(self, x)


def _conv_forward(self, x, weight, bias):
    return 2 * nn.Conv2d._conv_forward(self, x, weight, bias)


@pytest.mark.parametrize(
    "changed",
    [
        {"forward": _forward},
        {"_conv_forward": _conv_forward},
        {"__call__": _forward},
        {"padding": property(lambda self: (0, 0), lambda self, value: None)},
    ],
    ids=lambda d: next(iter(d)),
)
def test_a_subclass_that_computes_otherwise_is_left(changed):
    special = type("Special", (Named,), changed)
    report = accelerate(nn.Sequential(special(4, 3)))
    assert report == []
    assert "Special, which may compute something else" in str(report)
    patched = Named(4, 3)
    patched._conv_forward = lambda x, weight, bias: x
    assert accelerate(patched) == []


def snapshot(model):
    """Return all that a model consists of, tensors and containers by identity."""

    def what(value):
        return value if isinstance(value, str | tuple | list) else id(value)

    return [
        (name, type(m), {k: what(v) for k, v in vars(m).items()})
        for name, m in model.named_modules()
    ]


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
def test_restore_undoes_accelerate(algorithm):
    model = network().train()
    model[4].eval()
    calls = []
    model[3].register_forward_hook(lambda module, args, y: calls.append(type(module)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    names = accelerate(model, algorithm=algorithm)
    assert snapshot(model) != before
    assert cba_fast.restore(model) == names
    assert snapshot(model) == before
    assert restore(model) == []
    assert isinstance(model[8], DepthwiseConv2d)  # was one before
    model(torch.randn(1, 3, 12, 12)).sum().backward()
    assert calls == [DepthWiseConv2dImplicitGEMM]
    weight = model[1].weight
    optimizer.step()
    assert weight is model[1].weight
    assert not torch.equal(weight, state["1.weight"])


@pytest.mark.parametrize("function", [accelerate, restore, inference_form, erf_sizes, cam])
@pytest.mark.parametrize("given", ["resnet18", nn.ReLU])
def test_what_is_no_network_is_told(function, given):
    more = (torch.zeros(1, 3, 8, 8),) if function in (erf_sizes, cam) else ()
    with pytest.raises(TypeError, match=f"be a torch.nn.Module, got {type(given).__name__}$"):
        function(given, *more)


def test_a_parametrized_layer_is_not_restored():
    model = nn.Sequential(depthwise(), depthwise())
    accelerate(model)
    parametrizations.weight_norm(model[1])
    with pytest.raises(ValueError, match="'1' cannot be restored"):
        restore(model)
    assert type(model[0]) is DepthwiseConv2d
    torch.nn.utils.parametrize.remove_parametrizations(model[1], "weight")
    assert restore(model) == ["0", "1"]


# Counters of operations.


def of_torch(model, x):
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def of_thop(model, x):
    return pytest.importorskip("thop").profile(copy.deepcopy(model), (x,), verbose=False)


def of_fvcore(model, x):
    analysis = pytest.importorskip("fvcore.nn").FlopCountAnalysis(model, x)
    return analysis.unsupported_ops_warnings(False).total()


def of_ptflops(model, x):
    count = pytest.importorskip("ptflops").get_model_complexity_info
    return count(model, (3, *x.shape[2:]), print_per_layer_stat=False, as_strings=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [of_torch, of_thop, of_fvcore, of_ptflops])
def test_counters_see_the_plain_model(count):
    plain = timm.create_model("test_convnext", num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32)
    swapped, mapped = copy.deepcopy(plain), copy.deepcopy(plain)
    assert accelerate(swapped)
    assert linears_as_convs(mapped)
    assert any(type(m) is MapLinear for m in mapped.modules())
    expected = count(plain, x)
    assert expected
    assert count(swapped, x) == expected
    if count in (of_thop, of_torch):  # the others add the convolution inside to the linear layer
        assert count(mapped, x) == expected
