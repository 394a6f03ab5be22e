"""Architectures: state dict layouts, outputs against the keys read by hand, interface."""

import copy
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from checkpoint_factory import SMALL_MODELS, make_images, make_model, randomize
from torch import nn

from cba_fast.errors import InputError
from cba_fast.models import (
    DEFAULT_MODELS,
    FAMILIES,
    ConvNeXtStudy,
    RepLKNet,
    SLaK,
    SLaKFlex,
    build_model,
    save_state_dict_file,
)
from cba_fast.models.families.slak_flex import MixedLargeKernel

LK = "large_kernel"

# name, options, entries, and some keys with their shapes; counted from the official definitions.
LAYOUTS = [
    (
        "replknet_31b",
        {"num_classes": 200},
        1171,
        {
            "stem.0.conv.weight": (128, 3, 3, 3),
            f"stages.0.blocks.0.{LK}.lkb_origin.conv.weight": (128, 1, 31, 31),
            f"stages.2.blocks.34.{LK}.small_conv.bn.running_mean": (512,),
            "stages.3.blocks.3.pw1.conv.weight": (4096, 1024, 1, 1),
            "transitions.2.1.conv.weight": (1024, 1, 3, 3),
            "head.weight": (200, 1024),
        },
    ),
    ("replknet_31l", {}, 1171, {"stages.3.blocks.0.prelkb_bn.weight": (1536,)}),
    ("replknet_31b", {"merged": True}, 931, {f"stages.0.blocks.0.{LK}.lkb_reparam.bias": (128,)}),
    (
        "replknet_xl",
        {},
        1027,
        {
            f"stages.0.blocks.0.{LK}.lkb_origin.conv.weight": (384, 1, 27, 27),
            "stages.3.blocks.0.pw2.conv.weight": (2048, 3072, 1, 1),
        },
    ),
    # Per block 3 branches of 1 + 5, norm 2, linear layers 4, gamma: 25; and 16 + 2 + 2 around them.
    (
        "slak_tiny",
        {},
        18 * 25 + 20,
        {
            f"stages.0.0.{LK}.LoRA1.conv.weight": (124, 1, 51, 5),
            f"stages.1.0.{LK}.LoRA2.conv.weight": (249, 1, 5, 49),
            f"stages.2.8.{LK}.small_conv.bn.num_batches_tracked": (),
            "head.weight": (1000, 998),
        },
    ),
    ("slak_small", {}, 36 * 25 + 20, {"stages.2.26.gamma": (499,)}),
    ("slak_base", {}, 36 * 25 + 20, {"norm.weight": (1331,)}),
    ("slak_large", {}, 36 * 25 + 20, {"downsample_layers.3.1.weight": (1996, 998, 2, 2)}),
    ("slak_base", {"Decom": False}, 36 * 19 + 20, {f"stages.0.0.{LK}.lkb_origin.bn.bias": (166,)}),
    ("slak_base", {"bn": False}, 36 * 10 + 20, {f"stages.3.2.{LK}.small_conv.conv.weight": None}),
    (
        "slak_flex_base",
        {"num_classes": 200},
        488,
        {
            "0.downsample_layers.0.0.weight": (128, 3, 4, 4),
            "0.stages.0.0.dwconv.conv_h.weight": (128, 1, 51, 1),
            "0.stages.2.26.dwconv.conv_w.weight": (512, 1, 1, 47),
            "0.stages.3.2.dwconv.conv_square.bias": (1024,),
            "0.norm.weight": (1024,),
            "1.fc.weight": (200, 1024),
        },
    ),
]


@pytest.mark.parametrize(("name", "options", "entries", "keys"), LAYOUTS)
def test_state_dict_layout(name, options, entries, keys):
    with torch.device("meta"):
        state = timm.create_model(name, **options).state_dict()
    assert len(state) == entries
    for key, shape in keys.items():
        assert shape is None or tuple(state[key].shape) == shape
        assert key in state


def test_convnext_layout_is_the_one_the_study_saves(monkeypatch):
    # Only keys and shapes matter here, and drawing 88 million weights takes seconds.
    monkeypatch.setattr("timm.models.convnext.trunc_normal_", lambda *args, **kwargs: None)
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda *args, **kwargs: None)
    base = timm.create_model(DEFAULT_MODELS["convnext"])
    head = nn.Module()
    head.fc = nn.Linear(1024, 200)
    theirs = nn.Sequential(nn.Sequential(*list(base.children())[:-2]), head).state_dict()
    ours = ConvNeXtStudy(DEFAULT_MODELS["convnext"], num_classes=200).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert len(ours) == 342


def _bn(s, key, x):
    stats = (s[f"{key}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *stats, eps=1e-5)


def _conv_bn(s, key, x, stride=1):
    w = s[f"{key}.conv.weight"]
    pad = (w.shape[2] // 2, w.shape[3] // 2)
    x = F.conv2d(x, w, stride=stride, padding=pad, groups=x.shape[1] // w.shape[1])
    return _bn(s, f"{key}.bn", x) if f"{key}.bn.weight" in s else x


def replknet_by_keys(s, x):
    """The last stage's output, written from the paper's Figure 4 on the official keys."""
    for i, stride in enumerate((2, 1, 1, 2)):
        x = _conv_bn(s, f"stem.{i}", x, stride).relu()
    for i in range(4):
        if i:
            x = _conv_bn(s, f"transitions.{i - 1}.0", x).relu()
            x = _conv_bn(s, f"transitions.{i - 1}.1", x, 2).relu()
        b = f"stages.{i}.blocks"
        y = _conv_bn(s, f"{b}.0.pw1", _bn(s, f"{b}.0.prelkb_bn", x)).relu()
        y = sum(_conv_bn(s, f"{b}.0.{LK}.{n}", y) for n in ("lkb_origin", "small_conv")).relu()
        x = x + _conv_bn(s, f"{b}.0.pw2", y)
        y = F.gelu(_conv_bn(s, f"{b}.1.pw1", _bn(s, f"{b}.1.preffn_bn", x)))
        x = x + _conv_bn(s, f"{b}.1.pw2", y)
    return x


def _layer_norm(s, key, x):
    """Over channels of (N,C,H,W)."""
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    x = (x - mean) / (var + 1e-6).sqrt()
    return x * s[f"{key}.weight"][:, None, None] + s[f"{key}.bias"][:, None, None]


def convnext_like_by_keys(s, x, depthwise, prefix=""):
    """The last stage's output of SLaK and slak_flex, the depthwise part given."""
    for i in range(4):
        d = f"{prefix}downsample_layers.{i}"
        if i:
            x = _layer_norm(s, f"{d}.0", x)
        conv = f"{d}.{min(i, 1)}"
        w = s[f"{conv}.weight"]
        x = F.conv2d(x, w, s[f"{conv}.bias"], stride=w.shape[-1])
        if i == 0:
            x = _layer_norm(s, f"{d}.1", x)
        b = f"{prefix}stages.{i}.0"
        y = _layer_norm(s, f"{b}.norm", depthwise(s, b, x))
        for n in ("pwconv1", "pwconv2"):
            y = torch.einsum("oc,nchw->nohw", s[f"{b}.{n}.weight"], y)
            y = y + s[f"{b}.{n}.bias"][:, None, None]
            y = F.gelu(y) if n == "pwconv1" else y
        x = x + s[f"{b}.gamma"][:, None, None] * y
    return x


def _double(model):
    return randomize(model, 5).double().eval()


def test_replknet_computes_what_its_keys_say():
    model, x = _double(timm.create_model("replknet_nano", num_classes=5)), make_images()
    s = model.state_dict()
    features = replknet_by_keys(s, x)
    torch.testing.assert_close(model.forward_features(x), features)
    pooled = _bn(s, "norm", features).mean((2, 3))
    torch.testing.assert_close(model(x), pooled @ s["head.weight"].T + s["head.bias"])


@pytest.mark.parametrize("decom", [True, False])
@pytest.mark.parametrize("bn", [True, False])
def test_slak_computes_what_its_keys_say(decom, bn):
    names = ["LoRA1", "LoRA2"] if decom else ["lkb_origin"]

    def depthwise(s, block, x):
        return sum(_conv_bn(s, f"{block}.{LK}.{n}", x) for n in [*names, "small_conv"])

    model = _double(timm.create_model("slak_nano", num_classes=5, Decom=decom, bn=bn))
    s, x = model.state_dict(), make_images()
    features = convnext_like_by_keys(s, x, depthwise)
    torch.testing.assert_close(model.forward_features(x), features)
    pooled = features.mean((2, 3), keepdim=True)
    pooled = _layer_norm(s, "norm", pooled).flatten(1)
    torch.testing.assert_close(model(x), pooled @ s["head.weight"].T + s["head.bias"])


@pytest.mark.parametrize("mixing", [(1.0, 0.0), (0.0, 1.0), (0.3, -0.6), (0.0, 0.0)])
def test_slak_flex_computes_what_its_keys_say(mixing):
    alpha, beta = mixing

    def depthwise(s, block, x):
        y = 0
        for name, factor in (("conv_h", alpha), ("conv_w", alpha), ("conv_square", beta)):
            w, b = (s[f"{block}.dwconv.{name}.{p}"] for p in ("weight", "bias"))
            pad = (w.shape[2] // 2, w.shape[3] // 2)
            y = y + factor * F.conv2d(x, w, b, padding=pad, groups=len(w))
        return y

    model = _double(timm.create_model("slak_flex_nano", num_classes=5))
    model.set_mixing(alpha, beta)
    s, x = model.state_dict(), make_images()
    features = convnext_like_by_keys(s, x, depthwise, "0.")
    torch.testing.assert_close(model.forward_features(x), features)
    logits = features.mean((2, 3)) @ s["1.fc.weight"].T + s["1.fc.bias"]
    torch.testing.assert_close(model(x), logits)


def test_convnext_study_is_timm_without_the_head_norm():
    base = timm.create_model("test_convnext", num_classes=5)
    model = ConvNeXtStudy("test_convnext", num_classes=5).eval()
    model.backbone[0].load_state_dict(base.stem.state_dict())
    model.backbone[1].load_state_dict(base.stages.state_dict())
    x = make_images(dtype=torch.float32)
    features = base.eval().forward_features(x)
    torch.testing.assert_close(model.forward_features(x), features)
    fc = model.get_classifier()
    torch.testing.assert_close(model(x), features.mean((2, 3)) @ fc.weight.T + fc.bias)


@pytest.fixture(params=[*FAMILIES, "timm"])
def small(request):
    """A small model of each family, and timm's own ConvNeXt as a timm checkpoint builds it."""
    if request.param == "timm":
        return make_model("convnext", "test_convnext", num_classes=5, layout="timm")
    return make_model(request.param, SMALL_MODELS[request.param], num_classes=5)


def test_interface(small):
    x = make_images(2, 96, torch.float32)
    features = small.forward_features(x)
    logits = small(x)
    fc = small.get_classifier()
    assert isinstance(fc, nn.Linear)
    assert features.shape == (2, fc.in_features, 3, 3)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(small.forward_head(features), logits, rtol=0, atol=0)
    assert small.num_features == fc.in_features
    pre = small.forward_head(features, pre_logits=True)
    torch.testing.assert_close(fc(pre), logits)


def test_random_models_depend_on_theirmake_images(small):
    # Else the comparisons of outputs here and in other files would compare biases.
    logits = small(make_images(6, 64, torch.float32))
    assert (logits.std(0) > 0.03 * logits.std()).all()
    assert logits.abs().max() < 20


def test_family_attributes():
    for family in FAMILIES:
        model = build_model(family, model=SMALL_MODELS[family], num_classes=3)
        assert model.family == family
        assert model.study_softmax == (family in ("convnext", "slak_flex"))
        assert not model.training
        assert model.num_classes == 3


def test_deepcopy_gives_equal_outputs_and_own_weights(small):
    x = make_images(dtype=torch.float32)
    twin = copy.deepcopy(small)
    torch.testing.assert_close(twin(x), small(x), rtol=0, atol=0)
    before = small(x)
    with torch.no_grad():
        twin.get_classifier().weight.zero_()
    torch.testing.assert_close(small(x), before, rtol=0, atol=0)


def test_channels_last_changes_rounding_alone(small):
    x = make_images()
    small = small.double()
    expected = small(x)
    model = small.to(memory_format=torch.channels_last)
    y = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_used_weight_gets_a_gradient(family):
    options = {"alpha": 0.4, "beta": 0.6} if family == "slak_flex" else {}
    model = make_model(family, SMALL_MODELS[family], num_classes=5, **options).train()
    F.cross_entropy(model(make_images(2, dtype=torch.float32)), torch.tensor([1, 4])).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == ({"0.norm.weight", "0.norm.bias"} if family == "slak_flex" else set())


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputing_activations_keeps_the_gradients(family):
    model = make_model(family, SMALL_MODELS[family], num_classes=5).double()
    x = make_images()

    def gradients():
        model.zero_grad()
        model(x).square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.set_grad_checkpointing(True)
    recomputed = gradients()
    assert plain.keys() == recomputed.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(recomputed[name], grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_reset_classifier(family):
    model = make_model(family, SMALL_MODELS[family], num_classes=5).double()
    model.reset_classifier(9)
    assert model.num_classes == 9
    assert model(make_images()).shape == (1, 9)
    model.reset_classifier(0)
    assert model(make_images()).shape == (1, model.num_features)


@pytest.mark.parametrize("family", FAMILIES)
def test_drop_path_acts_in_training_only_and_grows_with_depth(family):
    options = {"num_classes": 3, "drop_path_rate": 0.5}
    model = make_model(family, SMALL_MODELS[family], **options)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.5)
    x = make_images(4, dtype=torch.float32)
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    model.train()
    torch.manual_seed(0)
    outputs = torch.stack([model.forward_features(x) for _ in range(4)])
    assert (outputs - outputs[0]).abs().max() > 1e-3


def test_mixing_shapes_the_impulse_response():
    mix = MixedLargeKernel(2, 7)
    with torch.no_grad():
        for p in mix.parameters():
            p.fill_(1 if p.ndim == 4 else 0)
    x = torch.zeros(1, 2, 9, 9)
    x[:, :, 4, 4] = 1
    cross = mix(x)[0, 0]
    assert cross.count_nonzero() == 13
    assert cross[4, 4] == 2
    mix.alpha, mix.beta = 0.0, 1.0
    assert mix(x)[0, 0].count_nonzero() == 49
    mix.alpha, mix.beta = 0.5, 0.25
    assert mix(x)[0, 0, 4].tolist() == [0, *[0.75] * 3, 1.25, *[0.75] * 3, 0]


def test_a_part_with_coefficient_0_gets_no_gradient():
    model = make_model("slak_flex", "slak_flex_nano", num_classes=3)
    model(make_images(dtype=torch.float32)).sum().backward()
    assert all(m.conv_square.weight.grad is None for m in model._mixtures())
    assert all(m.conv_h.weight.grad is not None for m in model._mixtures())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_mixing_must_be_finite(value):
    with pytest.raises(InputError, match="finite"):
        build_model("slak_flex", model="slak_flex_nano", alpha=value)
    with pytest.raises(ValueError, match="finite"):
        build_model("slak_flex", model="slak_flex_nano").set_mixing(1, value)


def test_build_model_sets_the_mixture():
    model = build_model("slak_flex", model="slak_flex_nano", beta=0.5)
    assert {(m.alpha, m.beta) for m in model._mixtures()} == {(1.0, 0.5)}
    model = build_model("slak_flex", model="slak_flex_nano")
    assert {(m.alpha, m.beta) for m in model._mixtures()} == {(1.0, 0.0)}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"family": "resnet"}, "unknown model family 'resnet'; one of convnext, replknet"),
        (
            {"family": "slak", "model": "resnet50"},
            "'resnet50' belongs to the family resnet, not",
        ),
        ({"family": "slak", "model": "replknet_31b"}, "'replknet_31b' belongs to the family replk"),
        ({"family": "convnext", "model": "slak_nano"}, "'slak_nano' belongs to the family slak"),
        ({"family": "replknet", "model": "convnext_tiny"}, "belongs to the family convnext"),
        ({"family": "convnext", "model": "convnext_tiny.nope"}, "convnext_tiny.nope: .*tag"),
        ({"family": "replknet", "alpha": 1.0}, "alpha belong to slak_flex, not to replknet"),
        ({"family": "slak", "alpha": 0.0, "beta": 1.0}, "alpha and beta belong to slak_flex"),
        ({"family": "slak", "model": "slak_nano", "num_classes": 0}, "num_classes must be at"),
    ],
)
def test_build_model_refuses(args, message):
    with pytest.raises(InputError, match=message):
        build_model(args.pop("family"), **args)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (RepLKNet, {"layers": (1, 1)}, "one entry per stage"),
        (RepLKNet, {"output_stride": 8}, "output_stride must be 16 or 32"),
        (SLaK, {"kernel_size": (51, 49, 47, 13)}, "one entry per stage"),
        (SLaK, {"kernel_size": (51, 49, 47, 13, None)}, "short edge"),
        (SLaKFlex, {"kernel_sizes": (51, 49)}, "one entry per stage"),
        (SLaKFlex, {"merged": "round"}, "'square' or 'cross'"),
    ],
)
def test_constructors_refuse(cls, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        cls(**options)


def test_timm_knows_the_models():
    names = {n for f in ("replknet", "slak", "slak_flex") for n in timm.list_models(module=f)}
    published = {"replknet_31b", "replknet_31l", "replknet_xl", "slak_tiny", "slak_small"}
    published |= {"slak_base", "slak_large", "slak_flex_base"}
    assert names == published | {"replknet_nano", "slak_nano", "slak_flex_nano"}
    model = timm.create_model("replknet_nano", num_classes=4, drop_path_rate=0.1, in_chans=1)
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 4)
    config = timm.data.resolve_model_data_config(model)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert config["input_size"] == (3, 384, 384)
    with pytest.raises(RuntimeError, match="pretrained"):
        timm.create_model("slak_nano", pretrained=True)


def test_import_is_silent_and_leaves_timm_s_models_alone():
    code = (
        "import timm; before = set(timm.list_models(module='convnext')); import cba_fast.models; "
        "assert set(timm.list_models(module='convnext')) == before"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("family", FAMILIES)
def test_output_stride_16_doubles_the_feature_maps(family, tmp_path):
    name = SMALL_MODELS[family]
    x = torch.randn(1, 3, 96, 96)
    for stride, side in ((32, 3), (16, 6)):
        model = build_model(family, model=name, num_classes=3, output_stride=stride)
        assert model.forward_features(x).shape[2:] == (side, side)
        path = tmp_path / f"{stride}.pth"
        save_state_dict_file(model.state_dict(), path)
        loaded = build_model(family, model=name, checkpoint=path, output_stride=stride)
        torch.testing.assert_close(loaded(x), model(x))
    with pytest.raises(InputError, match="output_stride must be 16 or 32, got 8"):
        build_model(family, model=name, output_stride=8)
