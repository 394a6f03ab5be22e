"""Inference forms of other people's networks: what is folded and merged, checked and reported."""

import copy
import pickle

import pytest
import timm
import torch
from checkpoint_factory import make_images
from foreign_blocks import RepLKNet, RepVGGBlock, UniRepLKNet, conv_bn, randomized
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cba_fast.models import inference_form
from cba_fast.models.description import ModelDescription
from cba_fast.models.inference.branches import merged
from cba_fast.models.inference.folding import fold
from cba_fast.nn import DepthwiseConv2d
from cba_fast.runs.runtime import Runtime
from cba_fast.runs.settings import RunConfig

pytestmark = pytest.mark.usefixtures("seeded")

CL = torch.channels_last


def names(model, kind):
    return [n for n, m in model.named_modules() if isinstance(m, kind)]


def error(form, model, x):
    exact = copy.deepcopy(model).double()(x.double())
    return ((form(x).double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize(
    ("make", "left", "kernels"),
    [
        (RepLKNet, ["norm"], {"large_kernel": (13, 13)}),
        (lambda: RepLKNet(strips=True), ["norm"], {"large_kernel": (13, 13)}),
        (UniRepLKNet, [], {"dwconv": (13, 13)}),
        (lambda: nn.Sequential(RepVGGBlock(3, 8), RepVGGBlock(8, 8)), [], {}),
    ],
    ids=["replknet", "slak", "unireplknet", "repvgg"],
)
def test_blocks_of_others(make, left, kernels):
    model = randomized(make())
    x = make_images(2, 64, torch.float32)
    form = inference_form(model)
    report = form.fold_report
    assert names(form, _BatchNorm) == left == list(report.left)
    assert len(report.folded) + len(report.merged)
    bound = 4 * error(model, model, x) + 8 * torch.finfo(torch.float32).eps
    assert error(form, model, x.to(memory_format=CL)) < bound
    for name, module in form.named_modules():
        last = name.rpartition(".")[2]
        if last in kernels:
            assert isinstance(module, DepthwiseConv2d)
            assert module.kernel_size == kernels[last]
    assert {p.dtype for p in form.parameters()} == {torch.float32}
    assert "lkb_origin" not in str(form)
    assert "dil_conv" not in str(form)
    assert "rbr_1x1" not in str(form)
    assert names(model, _BatchNorm)  # the original is as it was


def test_the_report_says_what_was_done():
    report = inference_form(randomized(RepLKNet())).fold_report
    assert str(report).splitlines() == [
        "folded   11 norms, first 'stem.bn'",
        "merged    2 sums of branches, first 'blocks.1.large_kernel'",
        "left      1, first 'norm': torch.fx cannot trace RepLKNet: TraceError: symbolically "
        "traced variables cannot be used as inputs to control flow",
    ]


def agree(form, model, *inputs):
    """Say whether a float32 form of a float32 model computes the same up to rounding."""
    torch.testing.assert_close(form(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)


class DepthWiseConv2dImplicitGEMM(nn.Conv2d):
    """Stand for the extension's module: it says padding 0 and pads by half the kernel."""

    def forward(self, x):
        padding = [k // 2 for k in self.kernel_size]
        return nn.functional.conv2d(x, self.weight, self.bias, 1, padding, 1, self.groups)


@pytest.mark.parametrize("strips", [True, False])
def test_drop_ins_and_synchronized_norms(strips):
    model = randomized(RepLKNet(strips=strips))
    x = make_images(1, 32, torch.float32)
    expected = model(x)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.__class__ = DepthWiseConv2dImplicitGEMM
            module.padding = (0, 0)
    form = inference_form(model)
    assert names(form, _BatchNorm) == ["norm"]
    assert form.blocks[0].large_kernel.kernel_size == (13, 13)
    torch.testing.assert_close(form(x), expected, rtol=1e-4, atol=1e-4)


def test_two_strips_alone_become_one_kernel():
    model = randomized(RepLKNet(strips=True, blocks=1))
    del model.blocks[0].large_kernel.small_conv
    form, report = fold(model, strips=False)
    assert report.merged == ["blocks.0.large_kernel"]
    assert form.blocks[0].large_kernel.kernel_size == (13, 13)
    agree(form, model, make_images(1, 32, torch.float32))
    assert fold(model)[1].merged == []


def test_strips_can_stay_two():
    model = randomized(RepLKNet(strips=True))
    x = make_images(1, 32, torch.float32)
    form, report = fold(model)
    agree(form, model, x)
    two = form.blocks[0].large_kernel
    assert [conv.kernel_size for conv in two] == [(13, 5), (5, 13)]
    assert [conv.bias is not None for conv in two] == [True, True]
    assert report.merged == ["blocks.1.large_kernel", "blocks.0.large_kernel"]


# Layers and norms.


def pair(layer, norm):
    return nn.Sequential(layer, nn.Identity(), norm)


FOLDED = {
    "conv": (pair(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect"), nn.BatchNorm2d(4)), (9, 9)),
    "grouped": (pair(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)), (9, 9)),
    "depthwise": (pair(nn.Conv2d(3, 3, 5, padding=2, groups=3), nn.BatchNorm2d(3)), (9, 9)),
    "transposed": (pair(nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4)), (5, 5)),
    "1d": (pair(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (9,)),
    "3d": (pair(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)), (5, 5, 5)),
    "linear": (pair(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False)), ()),
    "activation": (pair(nn.Conv2d(3, 4, 1), BatchNormAct2d(4)), (9, 9)),
    "before": (pair(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)), (9, 9)),
    "both sides": (nn.Sequential(nn.BatchNorm2d(3), *conv_bn(3, 4, 1)), (9, 9)),
}
LEFT = {
    "padded after": (pair(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), "it follows an input"),
    "relu": (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), "follows a ReLU"),
    "no statistics": (
        pair(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        "it has no running statistics",
    ),
    "grouped transposed": (
        pair(nn.ConvTranspose2d(3, 3, 2, groups=3), nn.BatchNorm2d(3)),
        "it follows a ConvTranspose2d",
    ),
    "activation before": (pair(BatchNormAct2d(3), nn.Conv2d(3, 4, 1)), "it follows an input"),
    "instance": (pair(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)), None),
}


@pytest.mark.parametrize("key", FOLDED)
def test_norms_beside_layers_are_folded(key):
    model, size = FOLDED[key]
    randomized(model)
    x = torch.randn(2, 3, *size)
    form, report = fold(model, example=x)
    assert not names(form, _BatchNorm), str(report)
    assert report.folded == names(model, _BatchNorm)
    agree(form, model, x)


@pytest.mark.parametrize("key", LEFT)
def test_norms_that_must_stay(key):
    model, reason = LEFT[key]
    randomized(model)
    form, report = fold(model)
    assert names(form, _BatchNorm) == names(model, _BatchNorm) == list(report.left)
    agree(form, model, torch.randn(1, 3, 64, 64))
    if reason:
        assert reason in str(report)
    else:
        assert str(report) == "nothing to fold or merge"


class Twice(nn.Module):
    """Uses what a convolution computes besides its norm, or calls it twice."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.conv, self.bn = conv_bn(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.first(x)
        y = self.conv(x)
        z = self.bn(y)
        if self.how == "both":
            return y + z
        return z * (self.conv(z) if self.how == "again" else self.bn(x))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("both", "the result of conv is used elsewhere, too"),
        ("again", "conv is called several times"),
        ("norm again", "bn is called several times"),
    ],
)
def test_layers_that_are_used_more_than_once(how, reason):
    model = randomized(Twice(how))
    form, report = fold(model)
    assert report.folded == ["first.bn"]
    assert report.left == {"bn": reason}
    agree(form, model, torch.randn(1, 3, 8, 8))


def test_layers_that_stand_in_two_places():
    conv = nn.Conv2d(3, 3, 1)
    model = randomized(nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3)))
    form, report = fold(model)
    assert report.folded == []
    agree(form, model, torch.randn(1, 3, 8, 8))


def test_watched_layers_and_those_to_be_kept_stay():
    model = randomized(nn.Sequential(*(conv_bn(3, 3, 1) for _ in range(3))))
    seen = []
    model[1].conv.register_forward_hook(lambda module, args, y: seen.append(y))
    form = inference_form(model, keep=["2.conv"])
    assert form.fold_report.folded == ["0.bn"]
    assert form.fold_report.left == {
        "1.bn": "a hook watches 1.conv",
        "2.bn": "it is to be kept",
    }
    block = randomized(RepLKNet())
    kept = inference_form(block, keep=["blocks.0.large_kernel.small_conv.bn"])
    assert kept.fold_report.merged == ["blocks.1.large_kernel"]


def test_layers_that_are_looked_at_give_what_they_gave():
    model = randomized(timm.create_model("test_resnet", num_classes=5))
    x, seen = make_images(1, 64, torch.float32), []
    for form in (model, Runtime.of(RunConfig(device="cpu")).form_of(model, keep_layers=True)):
        form.layer1[0].conv1.register_forward_hook(lambda module, args, y: seen.append(y))
        form(x.to(memory_format=CL))
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-5)


# The check.


class Liar(nn.Module):
    """Does something else when it is traced."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y.relu() if isinstance(x, torch.Tensor) else y)


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_wrong_step_is_taken_back_alone(place):
    blocks = [conv_bn(3, 3, 1) for _ in range(6)]
    blocks.insert(place, Liar())
    model = randomized(nn.Sequential(*blocks))
    form, report = fold(model)
    assert report.left == {f"{place}.bn": "outputs differ without it"}
    assert len(report.folded) == 6
    agree(form, model, torch.randn(1, 3, 8, 8))


def test_many_wrong_steps_leave_the_model_as_it_is():
    model = randomized(nn.Sequential(*(Liar() for _ in range(9)), conv_bn(3, 3, 1)))
    form, report = fold(model)
    assert report.folded == []
    assert len(report.left) == 10
    assert torch.equal(form(x := torch.randn(1, 3, 8, 8)), model(x))


class Two(nn.Module):
    """Takes two inputs of one size only."""

    def __init__(self):
        super().__init__()
        self.conv = conv_bn(2, 3, 1)

    def forward(self, x, y):
        return {"sum": self.conv(x) + y.view(1, 3, 10, 10)}


def test_a_recorded_size_of_two_sides_is_tried():
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4 * 48 * 96, 2)).eval()
    model.description = ModelDescription("resnet", "small", input_size="48x96")
    assert fold(model)[1].folded == ["1"]
    del model.description
    model.pretrained_cfg = {"input_size": (3, 48, 96)}
    assert fold(model)[1].folded == ["1"]


def test_a_model_that_cannot_be_run_needs_an_example():
    model = randomized(Two())
    form, report = fold(model)
    assert report.folded == []
    assert "(an example input can be given): TypeError" in report.left["conv.bn"]
    example = (torch.randn(1, 2, 10, 10), torch.randn(300))
    form = inference_form(model, example=example)
    assert form.fold_report.folded == ["conv.bn"]
    torch.testing.assert_close(form(*example)["sum"], model(*example)["sum"])


# What the form can do.


@pytest.mark.parametrize("make", [UniRepLKNet, lambda: RepVGGBlock(3, 3)], ids=["uni", "vgg"])
def test_forms_are_copied_pickled_and_differentiated(make):
    model = randomized(make())
    form = inference_form(model)
    x = make_images(1, 32, torch.float32).requires_grad_()
    gradients = [torch.autograd.grad(m(x).square().sum(), x)[0] for m in (form, model)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    for other in (copy.deepcopy(form), pickle.loads(pickle.dumps(form))):
        assert torch.equal(other(x), form(x))
        assert str(other.fold_report) == str(form.fold_report)


def test_a_compiled_model_is_taken_out():
    model = randomized(conv_bn(3, 3, 1))
    form = inference_form(torch.compile(model))
    assert type(form) is nn.Sequential
    assert form.fold_report.folded == ["bn"]


def test_dtypes_stay():
    model = randomized(nn.Sequential(conv_bn(3, 4, 1), conv_bn(4, 4, 1).half()))
    form, report = fold(nn.Sequential(model[0], nn.ReLU()))
    assert {p.dtype for p in form.parameters()} == {torch.float32}
    form, report = fold(model[1])
    assert {p.dtype for p in form.parameters()} == {torch.float16}
    assert report.folded == ["bn"]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "repghostnet_050"])
def test_models_of_timm(name):
    model = randomized(timm.create_model(name, num_classes=5))
    x = make_images(1, 96, torch.float32)
    form = inference_form(model)
    assert not names(form, _BatchNorm)
    agree(form, model, x)


# Branches.


def conv(size, channels=4, groups=4, **kwargs):
    size = (size, size) if isinstance(size, int) else size
    kwargs.setdefault("padding", tuple(k // 2 for k in size))
    return nn.Conv2d(channels, channels, size, groups=groups, **kwargs)


@pytest.mark.parametrize(
    ("convs", "strips", "count"),
    [
        ([conv(3), conv(7), conv(1, bias=False)], True, 1),
        ([conv(7, bias=False), conv(3, bias=False)], True, 1),
        (
            [conv(7), conv(3, dilation=3, padding=3), conv((1, 3), dilation=2, padding=(0, 2))],
            True,
            1,
        ),
        ([conv(3, dilation=2, padding=2), conv(3)], True, 2),  # 25 products for 18
        ([conv((9, 5)), conv((5, 9)), conv(5)], True, 2),
        ([conv((9, 5)), conv((5, 9)), conv(5)], False, 1),
        ([conv((9, 1)), conv((1, 9)), conv(1)], False, 2),
        ([conv(5), conv(3, groups=2)], True, 2),
        ([conv(5, groups=1), conv(3, groups=1)], True, 1),
        ([conv(5, stride=2), conv(3, stride=2), conv(1, stride=2)], True, 1),
        ([conv(5, padding="same"), conv(3)], True, 1),
        ([conv(5, padding_mode="reflect"), conv(3)], True, 2),
        ([conv(6, padding=2), conv(4, padding=1), conv(2, padding=0)], True, 1),
    ],
)
def test_branches_that_can_be_summed_are(convs, strips, count):
    convs = [c.double() for c in convs]
    x = torch.randn(1, 4, 12, 11, dtype=torch.float64)
    fewer = merged(convs, strips)
    assert len(fewer) == count
    torch.testing.assert_close(
        sum(c(x) for c in fewer), sum(c(x) for c in convs), rtol=1e-12, atol=1e-12
    )
