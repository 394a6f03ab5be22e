"""Inference forms: equal outputs and maps, in float32 and bfloat16, and what they are made of."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from checkpoint_factory import SMALL_MODELS, make_checkpoint, make_images, make_model
from cli_runner import run_cli
from data_factory import cub_folder, image_folder
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cba_fast.models import inference_form, merge
from cba_fast.models.inference import form as form_module
from cba_fast.nn import DepthwiseConv2d, MapLinear, conv1x1_is_faster, linears_as_convs, pointwise
from cba_fast.runs.inference import load_model
from cba_fast.runs.settings import ModelConfig, RunConfig
from cba_fast.wsol import localize

CL = torch.channels_last
VARIANTS = [
    ("convnext", {}),
    ("convnext", {"layout": "timm"}),
    ("replknet", {}),
    ("slak", {}),
    ("slak", {"Decom": False}),
    ("slak_flex", {}),
    ("slak_flex", {"alpha": 0.5, "beta": 2.0}),
]


@pytest.fixture(params=VARIANTS, ids=lambda v: "-".join([v[0], *map(str, v[1].values())]))
def model(request):
    family, options = request.param
    return make_model(family, SMALL_MODELS[family], num_classes=5, **options)


@pytest.fixture(params=[True, False], ids=["convs", "linears"])
def conv1x1(request, monkeypatch):
    """Decide the measurement."""
    monkeypatch.setattr(form_module, "conv1x1_is_faster", lambda: request.param)
    return request.param


def error(y, expected):
    return ((y.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("one_kernel", [True, False], ids=["one", "two"])
def test_outputs_agree(model, conv1x1, one_kernel, monkeypatch):
    monkeypatch.setattr(form_module, "one_kernel_is_faster", lambda model: one_kernel)
    x = make_images(2, 64, torch.float32)
    exact = copy.deepcopy(model).double().forward_features(x.double())
    form = inference_form(model)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    report = form.fold_report
    assert {*report.folded, *report.left} == set(norms)
    assert list(report.left) == (["norm"] if "norm" in norms else [])
    # As for merge: not further from the exact features than the model itself, up to the rounding of
    # the merged weights.
    bound = 4 * error(model.forward_features(x), exact) + 8 * torch.finfo(torch.float32).eps
    assert error(form.forward_features(x.to(memory_format=CL)), exact) < bound
    assert not form.training
    assert not any(p.requires_grad for p in form.parameters())
    assert model.forward_features(x).requires_grad  # the original is as it was
    assert any(type(m) is MapLinear for m in form.modules()) == conv1x1
    strips = [m for m in form.modules() if isinstance(m, nn.Conv2d) and len(set(m.kernel_size)) > 1]
    assert not (one_kernel and strips)


def test_gradients_agree(model, conv1x1):
    grads = []
    for m in (model, inference_form(model)):
        x = make_images(2, 32, torch.float32).to(memory_format=CL).requires_grad_()
        grads.append(torch.autograd.grad(m(x)[:, 1].sum(), x)[0].double())
    assert error(grads[1], grads[0]) < 1e-4


def test_every_depthwise_convolution_that_can_is_ours(model):
    form = inference_form(model)
    left = [
        m
        for m in form.modules()
        if isinstance(m, nn.Conv2d) and m.groups > 1 and not isinstance(m, DepthwiseConv2d)
    ]
    assert all(tuple(m.stride) == (2, 2) for m in left)


class CopySpy(TorchDispatchMode):
    """Count copies of tensors of more than two dimensions."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("clone", "copy_", "_to_copy", "contiguous") and y.ndim > 2:
            self.copies.append((name, tuple(y.shape)))
        return y


@pytest.mark.parametrize("family", SMALL_MODELS)
def test_channels_last_images_are_never_copied(family, conv1x1):
    model = make_model(family, SMALL_MODELS[family], num_classes=5)
    form, x = inference_form(model), make_images(2, 64, torch.float32).to(memory_format=CL)
    with torch.inference_mode():
        form(x)  # tries what the processor can do, and packs the weights
        with CopySpy() as spy:
            form(x)
    assert spy.copies == []
    with torch.inference_mode(), CopySpy() as control:
        form.forward_features(x).contiguous()
    assert len(control.copies) == 1


def test_other_models_are_accelerated_and_folded():
    model = timm.create_model("inception_next_atto", num_classes=3)
    x = make_images(1, 64, torch.float32)
    form = inference_form(model)
    assert not form.training
    assert len(form.fold_report.folded) == 13
    assert model.training
    assert error(form(x), model.eval()(x).double()) < 1e-5
    with pytest.raises(ValueError, match=r"torch\.int8"):
        inference_form(model, dtype=torch.int8)


# Strips.


@pytest.mark.parametrize("options", [{}, {"bn": False}, {"kernel_size": (13, 11, 9, 5, 5)}])
def test_strips_of_slak_become_one_kernel(options):
    model = make_model("slak", SMALL_MODELS["slak"], num_classes=5, **options).double()
    x = make_images(2, 64)
    one, two = merge(model, strips=False), merge(model)
    for form in (one, two, merge(two, strips=False), merge(one)):
        assert error(form.forward_features(x), model.forward_features(x)) < 1e-12
    assert merge(two, strips=False).state_dict().keys() == one.state_dict().keys()
    assert one.stages[0][0].large_kernel.lkb_reparam.kernel_size == (13, 13)
    assert two.stages[0][0].large_kernel.LoRA1.conv.kernel_size == (13, 5)


def test_the_cross_of_slak_flex_becomes_one_kernel():
    model = make_model("slak_flex", SMALL_MODELS["slak_flex"], num_classes=5, alpha=0.7).double()
    x = make_images(2, 64)
    one, two = merge(model, strips=False), merge(model)
    for form in (one, two, merge(two, strips=False), merge(one)):
        assert error(form.forward_features(x), model.forward_features(x)) < 1e-12
    assert one.state_dict().keys() == merge(two, strips=False).state_dict().keys()
    assert one.backbone.stages[0][0].dwconv.conv_merged.kernel_size == (13, 13)


# Linear layers over maps.


@pytest.mark.parametrize("bias", [True, False])
def test_map_linear(bias):
    torch.manual_seed(0)
    linear = nn.Linear(6, 9, bias=bias).double()
    model = nn.Sequential(linear)
    shapes = ((2, 4, 5, 6), (1, 1, 1, 6), (0, 3, 3, 6), (7, 6), (6,))
    inputs = [torch.randn(s, dtype=torch.float64) for s in shapes]
    inputs.append(torch.randn(2, 6, 4, 5, dtype=torch.float64).permute(0, 2, 3, 1))
    expected = [linear(x) for x in inputs]
    state = model.state_dict()
    assert linears_as_convs(model) == ["0"]
    assert linears_as_convs(model) == []
    assert type(linear) is MapLinear
    assert model.state_dict().keys() == state.keys()
    for x, y in zip(inputs, expected, strict=True):
        torch.testing.assert_close(linear(x), y, rtol=1e-12, atol=1e-12)
    x = inputs[0].requires_grad_()
    assert torch.autograd.gradcheck(linear, (x,))
    assert linear(inputs[0]).is_contiguous()


def test_special_linears_are_left():
    class Special(nn.Linear):
        pass

    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert linears_as_convs(nn.ModuleList([Special(2, 2), patched, normed])) == []


def test_the_measurement_is_made_once_and_obeyed(monkeypatch):
    seconds = {"linear": 2.0, "conv": 1.0}
    calls = []

    def measured(function, x, weight):
        name = "conv" if function is pointwise._conv else "linear"
        calls.append(name)
        return seconds[name]

    monkeypatch.setattr(pointwise, "_seconds", measured)
    pointwise._conv1x1_is_faster.cache_clear()
    assert conv1x1_is_faster() is True
    made = len(calls)
    assert conv1x1_is_faster() is True
    assert len(calls) == made
    seconds["conv"] = 1.7  # faster by less than a quarter
    pointwise._conv1x1_is_faster.cache_clear()
    assert conv1x1_is_faster() is False
    pointwise._conv1x1_is_faster.cache_clear()


# Maps.


@pytest.mark.parametrize("method", ["cam", "pc1"])
def test_maps_agree(model, method, monkeypatch):
    monkeypatch.setattr(form_module, "conv1x1_is_faster", lambda: True)
    x = make_images(3, 128, torch.float32)
    plain = localize(model, x, method=method)
    fast = localize(inference_form(model), x.to(memory_format=CL), method=method)
    assert np.array_equal(fast.targets, plain.targets)
    # Maps have 256 levels: rounding may move a value across one border.
    difference = np.abs(fast.maps - plain.maps)
    wrapped = difference > 0.5 if method == "pc1" else np.zeros_like(difference, dtype=bool)
    assert difference[~wrapped].max() < 3 / 255
    assert difference[~wrapped].mean() < 1e-3
    assert wrapped.mean() < 1e-2


@pytest.mark.parametrize("family", SMALL_MODELS)
def test_bfloat16_maps_stay_close(family):
    model = make_model(family, SMALL_MODELS[family], num_classes=5)
    x = make_images(3, 128, torch.float32).to(memory_format=CL)
    exact = localize(inference_form(model), x, method="cam")
    target = torch.from_numpy(exact.targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stored = inference_form(model, dtype=torch.bfloat16)
        half = localize(stored, x, method="cam", target=target)
        plain = localize(inference_form(model), x, method="cam", target=target)
    # Weights stored in bfloat16 are those that autocast would make.
    assert np.array_equal(half.maps, plain.maps)
    assert np.abs(half.maps - exact.maps).mean() < 0.02
    assert np.corrcoef(half.maps.ravel(), exact.maps.ravel())[0, 1] > 0.995


def test_bfloat16_weights_are_stored_but_not_the_classifier_s():
    form = inference_form(make_model("slak", "slak_nano", num_classes=5), dtype=torch.bfloat16)
    for module in form.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            expected = torch.float32 if module is form.get_classifier() else torch.bfloat16
            assert {p.dtype for p in module.parameters()} == {expected}
        elif isinstance(module, nn.LayerNorm):
            assert module.weight.dtype == torch.float32


# Commands.


@pytest.mark.parametrize("channels_last", [True, False])
def test_models_of_commands_are_in_their_inference_form(tmp_path, channels_last):
    path = make_checkpoint(tmp_path / "s.pth", "slak", "slak_nano", num_classes=3)
    config = ModelConfig("slak", path, "slak_nano")
    model = load_model(config, RunConfig(channels_last=channels_last))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    weight = model.downsample_layers[0][0].weight
    assert weight.is_contiguous(memory_format=CL) == channels_last
    half = load_model(config, RunConfig(precision="bf16"))
    assert half.downsample_layers[0][0].weight.dtype == torch.bfloat16


def test_bfloat16_commands_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = make_checkpoint(tmp_path / "s.pth", "slak", "slak_nano", num_classes=3)
    image_folder(tmp_path / "images")
    common = ["--model_family", "slak", "--model", "slak_nano", "--input_size", 64]
    common += ["--fine_tuned_weight_name", weights, "--num_workers", 0]
    maps = {}
    for precision in ("fp32", "bf16"):
        more = ["--precision", precision, "--heatmap_output", precision, "--no_overlay"]
        done = run_cli(capsys, "generate-heatmap", *common, "--test_dataset", "images", *more)
        assert done.status == 0, done.err
        maps[precision] = np.load(f"np_{precision}/a/1.npy")
    difference = np.abs(maps["bf16"] - maps["fp32"])
    assert 0 < difference.mean() < 0.03
    sizes = []
    for precision in ("fp32", "bf16"):
        args = [*common, "--test_dataset", "images", "--num_samples", 2, "--precision", precision]
        done = run_cli(capsys, "erf-compute", *args, "--output", f"erf_{precision}.npy")
        assert done.status == 0, done.err
        sizes.append(np.load(f"erf_{precision}.npy"))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


def test_evaluate_in_bfloat16_measures_the_erf_in_float32(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = make_checkpoint(tmp_path / "s.pth", "slak", "slak_nano", num_classes=3)
    cub_folder(tmp_path / "cub")
    found = {}
    for precision in ("fp32", "bf16"):
        args = ["--model_family", "slak", "--model", "slak_nano", "--input_size", 64]
        args += ["--fine_tuned_weight_name", weights, "--test_dataset", "cub", "--num_workers", 0]
        args += ["--num_samples", 2, "--precision", precision, "--json", f"{precision}.json"]
        done = run_cli(capsys, "evaluate", *args)
        assert done.status == 0, done.err
        found[precision] = json.loads((tmp_path / f"{precision}.json").read_text())
    assert found["bf16"]["erf"] == found["fp32"]["erf"] is not None
