"""What timm's own tests ask of every model, asked of ours: each behaviour on each small model."""

import pytest
import timm
import torch
from checkpoint_factory import randomize
from timm.data import resolve_model_data_config
from timm.optim import param_groups_layer_decay

from cba_fast.models import ConvNeXtStudy, inference_form, merge

REGISTERED = ("replknet_nano", "slak_nano", "slak_flex_nano")
NAMES = (*REGISTERED, "convnext_study")
CLASSES = 5
SIDE = 64

every = pytest.mark.parametrize("name", NAMES)
registered = pytest.mark.parametrize("name", REGISTERED)


def build(name, num_classes=CLASSES, **options):
    torch.manual_seed(0)
    if name == "convnext_study":
        model = ConvNeXtStudy("test_convnext", num_classes=num_classes, **options)
    else:
        model = timm.create_model(name, num_classes=num_classes, **options)
    randomize(model)
    return model.eval()


def images(n=2, channels=3):
    return torch.randn(n, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@every
@torch.no_grad()
def test_features_then_head(name):
    model, x = build(name), images()
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 2)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    same(model.get_classifier()(pooled), model(x))
    same(model.forward_head(features), model(x))


@every
@torch.no_grad()
def test_without_classifier_and_without_pooling(name):
    x = images()
    given, reset = build(name, 0, global_pool=""), build(name)
    pooled = reset.forward_head(reset.forward_features(x), pre_logits=True)
    reset.reset_classifier(0)
    same(reset(x), pooled)
    same(build(name, 0)(x), pooled)
    reset.reset_classifier(0, "")
    for model in (given, reset):
        assert model(x).shape == (2, model.num_features, 2, 2)
        assert model.num_classes == 0
    reset.reset_classifier(7, "avg")
    assert reset(x).shape == (2, 7)
    assert reset.get_classifier().weight.shape == (7, reset.num_features)


@every
@torch.no_grad()
def test_other_poolings(name):
    x = images()
    model = build(name, global_pool="max")
    features = model.forward_features(x)
    if name == "slak_nano":  # which norms what is pooled; RepLKNet norms the map
        expected = model.norm(features.amax((2, 3)))
    else:
        expected = model.forward_norm(features).amax((2, 3))
    same(model.forward_head(features, pre_logits=True), expected)
    assert not torch.equal(model(x), build(name)(x))


@every
def test_dropout_before_the_classifier(name):
    model, x = build(name, drop_rate=0.5), images()
    assert torch.equal(model(x), model(x))
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates[-1] == 0.5
    features = model.forward_features(x)
    model.train()
    assert (model.forward_head(features, pre_logits=True) == 0).float().mean() > 0.2


@every
def test_names_of_the_configuration(name):
    model, cfg = build(name), build(name).default_cfg
    assert cfg is not None
    assert model.pretrained_cfg["num_classes"] == 1000
    assert f"{cfg['classifier']}.weight" in model.state_dict()
    assert f"{cfg['first_conv']}.weight" in model.state_dict()
    assert resolve_model_data_config(model)["input_size"] == (3, 384, 384)
    assert cfg["pool_size"] == tuple(
        s // model.feature_info[-1]["reduction"] for s in cfg["input_size"][1:]
    )
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()


@every
@torch.no_grad()
def test_other_input_channels(name):
    assert build(name, in_chans=1)(images(channels=1)).shape == (2, CLASSES)


@every
@pytest.mark.parametrize("output_stride", [16, 32])
@torch.no_grad()
def test_intermediate_features(name, output_stride):
    model, x = build(name, output_stride=output_stride), images()
    last, found = model.forward_intermediates(x)
    same(last, model.forward_features(x))
    assert torch.equal(found[-1], last)
    for features, info in zip(found, model.feature_info, strict=True):
        side = SIDE // info["reduction"]
        assert features.shape == (2, info["num_chs"], side, side)
    assert model.feature_info[-1]["reduction"] == output_stride
    # What timm says are the modules whose outputs these are.
    outputs = []
    for info in model.feature_info:
        hook = lambda module, args, output: outputs.append(output)  # noqa: E731
        model.get_submodule(info["module"]).register_forward_hook(hook)
    model(x)
    assert all(torch.equal(a, b) for a, b in zip(outputs, found, strict=True))


@every
@torch.no_grad()
def test_arguments_of_intermediate_features(name):
    model, x = build(name), images()
    last, found = model.forward_intermediates(x)
    only = {"intermediates_only": True}
    for indices, expected in [(2, found[-2:]), ([0, 2], [found[0], found[2]]), ([-1], found[-1:])]:
        got = model.forward_intermediates(x, indices=indices, **only)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    stopped, _ = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert torch.equal(stopped, found[1])
    normed = model.forward_intermediates(x, norm=True, **only)
    assert torch.equal(normed[-1], model.forward_norm(last))
    assert all(torch.equal(a, b) for a, b in zip(normed[:-1], found[:-1], strict=True))
    with pytest.raises(ValueError, match="must be 'NCHW', got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")
    with pytest.raises(AssertionError, match="out of range"):
        model.forward_intermediates(x, indices=[4])


@every
@torch.no_grad()
def test_pruned_models_keep_what_is_asked_for(name):
    whole, x = build(name), images()
    expected = whole.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    model = build(name)
    assert model.prune_intermediate_layers([0, -3]) == [0, 1]
    found = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(model(x), expected[1])  # without norm, pooling and classifier
    assert model.num_features == expected[1].shape[1]
    assert len(model.state_dict()) < len(whole.state_dict())
    untouched = build(name)
    untouched.prune_intermediate_layers(1, prune_head=False)
    same(untouched(x), whole(x))


@registered
@torch.no_grad()
def test_features_only(name):
    x = images()
    model = build(name, features_only=True)
    whole = build(name)
    expected = whole.forward_intermediates(x, intermediates_only=True)
    assert model.feature_info.channels() == [f.shape[1] for f in expected]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    model.model.load_state_dict(whole.state_dict(), strict=False)
    assert all(torch.equal(a, b) for a, b in zip(model(x), expected, strict=True))
    two = build(name, features_only=True, out_indices=(1, 2))
    assert [f.shape[1] for f in two(x)] == [f.shape[1] for f in expected[1:3]]


@every
def test_recomputing_gives_the_same_gradients(name):
    x, grads = images(), []
    for enable in (False, True):
        model = build(name).train()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        grads.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad)


@every
def test_learning_rates_that_fall_with_depth(name):
    model = build(name)
    groups = param_groups_layer_decay(
        model, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay()
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(scales) == len(named)
    cfg = model.default_cfg
    stem = scales[id(named[f"{cfg['first_conv']}.weight"])]
    assert scales[id(named[f"{cfg['classifier']}.weight"])] == 1.0
    of_stages = [
        {s for k, s in ((k, scales[id(p)]) for k, p in named.items()) if k.startswith(module)}
        for module in (f"{info['module']}." for info in model.feature_info)
    ]
    for before, after in zip([{stem}, *of_stages], [*of_stages, {1.0}], strict=True):
        assert max(before) < min(after) or max(before) == min(after) == 1.0
    coarse = timm.models.group_parameters(model, model.group_matcher(coarse=True))
    assert len(coarse) == 1 + len(of_stages) + 1  # stem, stages, head


@every
@pytest.mark.parametrize("form", [None, merge, inference_form])
@pytest.mark.filterwarnings("ignore:.*is deprecated")
@torch.no_grad()
def test_traces_take_other_sizes(name, form):
    model = build(name)
    model = model if form is None else form(model)
    traced = torch.jit.trace(model, images())
    x = torch.randn(1, 3, 96, 64)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-3, atol=1e-4)


@registered
def test_pretrained_weights_are_refused_with_a_sentence(name):
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(name, pretrained=True)
