"""Feature maps of any layout: found out, seen as (N, C, h, w), and never guessed."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from cba_fast.erf import center_gradient, choose_checkpoint, erf_map, kept_bytes
from cba_fast.models.anatomy.features import FeatureLayout, layout_of
from cba_fast.wsol import cam, pc1
from cba_fast.wsol.heatmap import finish_maps
from cba_fast.wsol.methods import classify

CLASSES = 5
SWIN = {"depths": (1, 1), "num_heads": (1, 1), "embed_dim": 16}
VIT = {"embed_dim": 16, "depth": 1, "num_heads": 1}
# Name, image side, options and layout.
MODELS = [
    ("test_resnet", 64, {}, FeatureLayout("NCHW")),
    ("test_byobnet", 64, {}, FeatureLayout("NCHW")),
    ("replknet_nano", 64, {}, FeatureLayout("NCHW")),
    ("swin_tiny_patch4_window7_224", 64, {"img_size": 64, **SWIN}, FeatureLayout("NHWC")),
    ("swinv2_tiny_window8_256", 64, {"img_size": 64, **SWIN}, FeatureLayout("NHWC")),
    (
        "swinv2_cr_tiny_ns_224",
        64,
        {"img_size": 64, "window_size": 4, **SWIN},
        FeatureLayout("NCHW"),
    ),
    ("test_mambaout", 64, {}, FeatureLayout("NHWC")),
    ("test_vit", 64, {"img_size": 64}, FeatureLayout("NLC", 1, (4, 4))),
    (
        "vit_relpos_small_patch16_224",
        64,
        {"img_size": 64, **VIT},
        FeatureLayout("NLC", 0, (4, 4)),
    ),
    (
        "deit_tiny_distilled_patch16_224",
        64,
        {"img_size": 64, **VIT},
        FeatureLayout("NLC", 2, (4, 4)),
    ),
    (
        "vit_base_patch16_rope_reg1_gap_256",
        (64, 96),
        {"img_size": (64, 96), **VIT},
        FeatureLayout("NLC", 1, (4, 6)),
    ),
    ("mixer_s32_224", 64, {"img_size": 64}, FeatureLayout("NLC", 0, (2, 2))),
]
IDS = [name for name, *_ in MODELS]


def build(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES, **options).eval()


def images(side, n=2):
    size = (side, side) if isinstance(side, int) else side
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(0))


def seen(features, layout):
    """Return features as (N, C, h, w), by other means than the adapter."""
    if layout.kind == "NLC":
        h, w = layout.grid
        n, count, c = features.shape
        assert count == layout.prefix + h * w
        return features[:, layout.prefix :].transpose(1, 2).reshape(n, c, h, w)
    return features.movedim(-1, 1) if layout.kind == "NHWC" else features


@pytest.mark.parametrize(("name", "side", "options", "layout"), MODELS, ids=IDS)
def test_the_gradient_of_the_central_position(name, side, options, layout):
    model, x = build(name, **options), images(side, 1)
    found = center_gradient(model, x)
    assert layout_of(model.forward_features(x), x.shape[2:], model=model) == layout
    x.requires_grad_()
    maps = seen(model.forward_features(x), layout)
    center = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
    (expected,) = torch.autograd.grad(center.relu().sum(), x)
    scale = expected.abs().max()
    assert scale > 0
    torch.testing.assert_close(found / scale, expected / scale, atol=1e-4, rtol=0)
    mapped = erf_map(model, x.detach(), features=model.forward_features).map
    torch.testing.assert_close(
        torch.from_numpy(mapped).float() / scale, found.relu().sum((0, 1)) / scale
    )


@pytest.mark.parametrize(("name", "side", "options", "layout"), MODELS, ids=IDS)
def test_there_and_back(name, side, options, layout):
    x = images(side)
    features = build(name, **options).forward_features(x).detach()
    maps = layout.to_nchw(features)
    assert torch.equal(maps, seen(features, layout))
    assert torch.equal(layout.from_nchw(maps, features), features)
    if layout.kind == "NLC":
        changed = layout.from_nchw(2 * maps, features)
        assert torch.equal(changed[:, : layout.prefix], features[:, : layout.prefix])
        assert torch.equal(seen(changed, layout), 2 * maps)


@pytest.mark.parametrize(
    ("name", "side", "options", "layout"),
    [m for m in MODELS if m[0] not in ("test_mambaout", "test_vit", MODELS[9][0], "mixer_s32_224")],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_maps_of_linear_heads_over_any_layout(name, side, options, layout):
    model, x = build(name, **options), images(side)
    with torch.no_grad():
        features, logits, weight = classify(model, x)
        assert torch.equal(features, seen(model.forward_features(x), layout))
        assert torch.equal(logits, model(x))
    small = torch.einsum("nchw,nc->nhw", features, weight[logits.argmax(1)]).relu()
    small = small / small.amax((1, 2), keepdim=True).clamp(min=1e-9)
    got = cam(model, x, map_size=64)
    np.testing.assert_allclose(got.numpy(), finish_maps(small.numpy(), 64), atol=0.02)


def test_a_named_layer_of_another_layout():
    model, x = build("swin_tiny_patch4_window7_224", img_size=64, **SWIN), images(64)
    for layer in ("norm", "layers.1"):
        features, _, _ = classify(model, x, layer)
        assert features.shape == (2, 32, 8, 8)
    gap = build("vit_relpos_small_patch16_224", img_size=64, **VIT)
    features, _, _ = classify(gap, x, f"blocks.{len(gap.blocks) - 1}")
    assert features.shape == (2, 16, 4, 4)
    assert pc1(gap, x).shape == (2, 64, 64)


@pytest.mark.parametrize("chosen", [3, 7])
def test_memory_of_transformers_is_estimated(chosen):
    name, side, options, _ = MODELS[chosen]
    model, shape = build(name, **options), (2, 3, side, side)
    assert (
        kept_bytes(model, shape, run=lambda m, x: m.forward_features(x)) > 2 * 3 * side * side * 4
    )
    assert choose_checkpoint(model, shape, limit=1) == "none"  # no blocks that could be recomputed


def test_heads_over_the_class_token_are_refused():
    with pytest.raises(
        TypeError, match="no linear head over the mean of the tokens of forward_features"
    ):
        cam(build("test_vit", img_size=64), images(64))


class Last(nn.Module):
    """Eight channels on 8x8 positions, pooled over the given axes."""

    def __init__(self, axes):
        super().__init__()
        self.num_features, self.axes = 8, axes
        self.conv = nn.Conv2d(3, 8, 8, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward_features(self, x):
        x = self.conv(x)
        return x if self.axes == (2, 3) else x.permute(0, 2, 3, 1)

    def forward_head(self, x):
        return self.fc(x.mean(self.axes))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize(("axes", "kind"), [((2, 3), "NCHW"), ((1, 2), "NHWC")])
def test_equal_sides_are_told_apart_by_what_the_head_pools_over(axes, kind):
    model, x = Last(axes), images(64)
    features = model.forward_features(x).detach()
    assert features.shape == (2, 8, 8, 8)
    state = torch.get_rng_state()
    assert layout_of(features, (64, 64), model=model) == FeatureLayout(kind)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 8\), which may be .* say layout='NCHW' or"):
        layout_of(features, (64, 64))
    model.output_fmt = kind
    del model.num_features
    assert layout_of(features, (64, 64), model=model) == FeatureLayout(kind)
    # the same by hooks, where a layer is named and the model has no such interface
    named = nn.Sequential(model.conv, Pooled(axes), model.fc)
    found, _, _ = classify(named, x, "0" if kind == "NCHW" else "1.turned")
    assert torch.equal(found, model.conv(x))
    assert layout_of(features, (64, 64), model=model, last=False) == FeatureLayout(kind)
    del model.output_fmt
    refused = {"features": model.conv}
    with pytest.raises(ValueError, match="the network gives"):
        center_gradient(model, x, **refused)
    assert center_gradient(model, x, layout="NCHW", **refused).shape == x.shape


class Pooled(nn.Module):
    def __init__(self, axes):
        super().__init__()
        self.axes, self.turned = axes, nn.Identity()

    def forward(self, x):
        if self.axes == (1, 2):
            x = self.turned(x.permute(0, 2, 3, 1))
        return x.mean(self.axes)


def test_the_aspect_of_the_image_tells_layouts_apart():
    for shape, size, kind in [
        ((1, 5, 4, 4), (64, 64), "NCHW"),
        ((1, 4, 4, 5), (64, 64), "NHWC"),
        ((1, 6, 4, 6), (64, 96), "NCHW"),
        ((1, 4, 6, 6), (64, 96), "NHWC"),
        ((1, 9, 1, 1), (64, 64), "NCHW"),
    ]:
        assert layout_of(torch.zeros(shape), size) == FeatureLayout(kind)


def test_tokens_whose_grid_cannot_be_known_are_refused():
    for tokens, size in [(15, (64, 64)), (1, (64, 64)), (2, (64, 64))]:
        with pytest.raises(ValueError, match=f"its {tokens} tokens .* cannot be known"):
            layout_of(torch.zeros(1, tokens, 8), size)
    with pytest.raises(ValueError, match="got list"):
        layout_of([torch.zeros(1, 17, 8)], (64, 64))
    given = FeatureLayout("NLC", 3, (3, 4))
    assert layout_of(torch.zeros(1, 15, 8), (64, 64), layout=given) is given


@pytest.mark.parametrize("wrong", ["NWHC", "NLC"])
def test_a_layout_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ValueError, match=wrong):
        center_gradient(Last((2, 3)), images(64), layout=wrong)
