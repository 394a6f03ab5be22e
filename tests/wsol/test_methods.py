"""Every localization method against pytorch-grad-cam or its paper's formula, and the registry."""

from types import SimpleNamespace
from typing import get_args

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import nn

from cba_fast.choices import Method as MethodName
from cba_fast.data import Boxes
from cba_fast.errors import InputError, ModelError
from cba_fast.wsol import METHODS, BoxEvaluator, heatmap, localize, register_method
from cba_fast.wsol.methods import gather

CLASSES = 5
# Our names and the classes of pytorch-grad-cam.
THEIRS = {
    "grad-cam": "GradCAM",
    "grad-cam++": "GradCAMPlusPlus",
    "x-grad-cam": "XGradCAM",
    "hires-cam": "HiResCAM",
    "layer-cam": "LayerCAM",
    "grad-cam-elementwise": "GradCAMElementWise",
    "eigen-cam": "EigenCAM",
    "eigen-grad-cam": "EigenGradCAM",
}


def images(*size, n=3):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(0))


def build(name, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **options).eval()
    for p in model.parameters():  # new models have zeros and ones, which hide what depends on them
        p.data.add_(torch.randn_like(p) * 0.05)
    return model


def tokens_to_map(h, w):
    return lambda tokens: tokens[:, 1:].unflatten(1, (h, w)).permute(0, 3, 1, 2)


# Network, size of the images, layer, and what pytorch-grad-cam needs to see a map in its output.
CASES = {
    "resnet": (lambda: build("test_resnet"), (96, 128), "layer4", None),
    "deep layer": (lambda: build("test_resnet"), (96, 96), "layer2", None),
    "vgg": (lambda: Vgg().eval(), (64, 64), "features", None),
    "vit": (
        lambda: build("test_vit", img_size=(64, 96)),
        (64, 96),
        "blocks.5.norm1",
        tokens_to_map(4, 6),
    ),
}


class Vgg(nn.Module):
    """Feature maps and a head with a hidden layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        stages = ((3, 12), (12, 24), (24, 24))
        self.features = nn.Sequential(
            *(
                m
                for i, o in stages
                for m in (nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
            )
        )
        self.classifier = nn.Sequential(
            nn.Linear(24 * 16, 32), nn.ReLU(inplace=True), nn.Linear(32, CLASSES)
        )

    def forward(self, x):
        return self.classifier(nn.functional.adaptive_avg_pool2d(self.features(x), 4).flatten(1))


def theirs(method, model, layer, reshape, x, targets):
    """Return pytorch-grad-cam's maps before ReLU and normalization, and its finished ones."""
    cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    raw = []
    make = getattr(cam, THEIRS[method])
    with make(model, [model.get_submodule(layer)], reshape_transform=reshape) as found:
        image = found.get_cam_image
        found.get_cam_image = lambda *args: raw.append(image(*args)) or raw[-1]
        maps = found(x.clone(), [ClassifierOutputTarget(t) for t in targets])
    return raw[0], maps


def stretched(maps):
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / np.where(high > low, high - low, 1)


@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.parametrize("case", CASES)
def test_maps_equal_those_of_pytorch_grad_cam(case, method):
    make, size, layer, reshape = CASES[case]
    model, x, targets = make(), images(*size), [4, 0, 2]
    raw, finished = theirs(method, model, layer, reshape, x, targets)
    chosen = METHODS[method]
    small = chosen.small_maps(
        gather(model, x, chosen.needs, target=torch.tensor(targets), layer=layer)
    ).numpy()
    if method.startswith("eigen"):  # LAPACK's sign of an axis says nothing
        turned = -raw.min((1, 2)) > raw.max((1, 2))
        raw = np.where(turned[:, None, None], -raw, raw)
    want = np.maximum(raw, 0)
    assert want.any((1, 2)).sum() >= 2  # a map without a positive value becomes zeros
    scale = want.max((1, 2), keepdims=True) + 1e-12
    np.testing.assert_allclose(small / scale, want / scale, atol=1e-4)
    if method.startswith("eigen"):
        finished = np.stack([cv2.resize(m, size[::-1]) for m in want])
    resized = np.stack([cv2.resize(m, size[::-1]) for m in small])
    np.testing.assert_allclose(stretched(resized), stretched(finished), atol=1e-4)
    got = heatmap(model, x, targets, layer, method=method).numpy()
    np.testing.assert_allclose(got, stretched(finished), atol=1.01 / 255)
    levels = np.abs((255 * got).astype(int) - (255 * stretched(finished)).astype(int))
    assert levels.max() <= 1
    assert (levels > 0).mean() < 0.01  # pixels where a rounding decides


def test_the_choices_of_the_commands_are_the_methods():
    assert set(get_args(MethodName)) == set(METHODS)


def plain_attention(model, x):
    """Return a ViT's logits and each layer's attention, with gradients, by its unfused path."""
    found = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda m, args, out: found.append(args[0]))
    return model(x), found


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_attention_is_followed_as_in_the_papers(pool):
    x, targets = images(64, 96), [4, 0, 2]
    model = build("test_vit", img_size=(64, 96), global_pool=pool)
    fused = {m: gather(model, x, METHODS[m].needs) for m in ("attention-rollout", "chefer")}
    maps = {m: heatmap(model, x, targets, method=m, map_size=(4, 6)) for m in fused}
    logits, found = plain_attention(model, x)
    for a, b in zip(fused["chefer"].attentions, found, strict=True):
        torch.testing.assert_close(a, b.detach(), atol=1e-6, rtol=1e-4)
    grads = torch.autograd.grad(logits[range(3), targets].sum(), found)
    eye = torch.eye(found[0].shape[-1])
    rollout, relevance = eye, eye
    for a, g in zip(found, grads, strict=True):
        a = a.detach()
        rollout = ((a.mean(1) + eye) / 2) @ rollout
        relevance = relevance + (a * g).clamp(min=0).mean(1) @ relevance
    for method, want in (("attention-rollout", rollout), ("chefer", relevance)):
        rows = want[:, 0] if pool == "token" else want[:, 1:].mean(1)
        want = stretched(rows[:, 1:].unflatten(1, (4, 6)).numpy())
        np.testing.assert_allclose(maps[method].numpy(), want, atol=1.01 / 255)


def test_relevance_is_seen_where_the_layers_change_little():
    model = build("test_vit", img_size=64, global_pool="avg")
    for block in model.blocks:
        block.attn.proj.weight.data *= 1e-5
    assert heatmap(model, images(64, 64), method="chefer").any((1, 2)).all()


class Encoder(nn.Module):
    """A transformer of PyTorch's own layers, which never shows its attention."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).mT).mean(1))


def test_attention_of_multi_head_layers_is_seen():
    model, x = Encoder().eval(), images(32, 32)
    found = gather(model, x, METHODS["chefer"].needs)
    inside = model.encoder.layers[0].self_attn
    tokens = model.patches(x).flatten(2).mT
    want = inside(tokens, tokens, tokens, average_attn_weights=False)[1]
    torch.testing.assert_close(found.attentions[0], want)
    assert all(g.abs().sum() > 0 for g in found.attention_gradients)
    torch.testing.assert_close(found.logits, model(x))
    for method in ("attention-rollout", "chefer"):
        assert heatmap(model, x, method=method).any((1, 2)).all()
    # the mean over tokens is classified linearly, so that CAM works, too
    assert heatmap(model, x, method="cam").any((1, 2)).all()


def test_methods_that_a_network_has_nothing_for_name_those_that_work():
    with pytest.raises(ModelError, match=r"no linear head .* these methods work: grad-cam, .*"):
        heatmap(Vgg(), images(64, 64))
    between_channels = build("xcit_nano_12_p16_224", img_size=64, depth=1)
    for model in (build("test_resnet"), build("test_mambaout"), between_channels):
        with pytest.raises(ModelError, match=r"no layers of attention .*: grad-cam, .*"):
            heatmap(model, images(64, 64), method="attention-rollout")


def test_neither_weights_nor_earlier_layers_get_gradients():
    model, x = build("test_resnet"), images(64, 64)
    seen = []
    model.layer3.register_forward_hook(lambda m, args, out: seen.append(out.requires_grad))
    model.layer4.register_forward_hook(lambda m, args, out: seen.append(out.requires_grad))
    x.requires_grad_()
    heatmap(model, x, method="grad-cam", layer="layer3")
    assert seen == [False, True]
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_gradient_that_is_switched_off_is_told():
    class Cut(Vgg):
        def forward(self, x):
            x = self.features(x).detach()
            return self.classifier(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))

    with pytest.raises(ModelError, match="logits of Cut do not depend on module 'features'"):
        heatmap(Cut(), images(64, 64), method="grad-cam", layer="features")


def test_a_flat_map_is_constant_in_spite_of_rounding():
    gradients = torch.randn(2, 40, 1, 1, generator=torch.Generator().manual_seed(0))
    gradients = gradients.expand(2, 40, 12, 12).contiguous()
    features = 1 + 2e-7 * torch.rand_like(gradients)
    given = {"features": features, "gradients": gradients}
    found = SimpleNamespace(**given, attentions=None, targets=torch.zeros(2, dtype=torch.int64))
    assert METHODS["layer-cam"].make(**given)[0].unique().numel() > 1
    assert not METHODS["layer-cam"].small_maps(found).any()


@pytest.fixture
def registered():
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.usefixtures("registered")
def test_a_method_of_the_user():
    @register_method("mean")
    def mean(features):
        return features.mean(1)

    model, x = build("test_resnet"), images(64, 96)
    want = model.forward_features(x).mean(1).detach().numpy()
    got = heatmap(model, x, method="mean").numpy()
    want = stretched(np.stack([cv2.resize(m, (96, 64)) for m in want]))
    np.testing.assert_allclose(got, want, atol=1.01 / 255)
    with pytest.raises(InputError, match="must be of features, .*; it has image"):
        register_method("bad", lambda image: image)
    with pytest.raises(InputError, match="either attention or features, not both"):
        register_method("bad", lambda features, attentions: features)
    register_method(
        "both", lambda gradients, weights: (gradients.mean((2, 3)) * weights)[..., None]
    )
    assert heatmap(model, x, method="both", layer="layer4").shape == (3, 64, 96)
    with pytest.raises(InputError, match="it has none"):
        register_method("bad", lambda: None)
    register_method("flat", lambda features: features)
    with pytest.raises(ValueError, match=r"'flat' must return maps \(N, h, w\), got"):
        heatmap(model, x, method="flat")[0]
    with pytest.raises(ValueError, match="`method` must be one of cam, pc1, .*, got 'nope'"):
        heatmap(model, x, method="nope")


def test_counts_are_those_of_pytorch_grad_cams_maps():
    pytest.importorskip("pytorch_grad_cam")
    model, x = build("test_resnet"), images(96, 96, n=12)
    x = nn.functional.interpolate(images(8, 8, n=12), (96, 96), mode="bilinear") + x / 4
    found = localize(model, x, method="grad-cam")
    _, finished = theirs("grad-cam", model, "layer4", None, x, found.targets.tolist())
    ids = [str(i) for i in range(12)]
    random = np.random.default_rng(0).integers((1, 1, 46, 46), (45, 45, 90, 90), (12, 4))
    truth = {i: random[n : n + 1] for n, i in enumerate(ids)}
    boxes = Boxes(tuple(ids), truth, dict.fromkeys(ids, (96, 96)), None)
    counts = []
    for maps in (found.maps, stretched(finished)):
        evaluator = BoxEvaluator(boxes, cam_curve_interval=0.001)
        evaluator.update(maps, ids)
        counts.append(evaluator.compute())
    # Rounding decides a few pixels, and each can move a box at one threshold.
    for mode in ("largest", "all"):
        ours, others = (np.array(c.modes[mode].num_correct) for c in counts)
        assert ours.shape == (3, 1000)
        assert ours.max() > 2
        assert (ours != others).mean() < 0.01
        assert np.abs(ours - others).max() <= 1
