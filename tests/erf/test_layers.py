"""ERF of any layer, position and kind of network, against direct computations in float64."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from cba_fast import erf
from cba_fast.models.anatomy.layers import layers_of, main_tensor

SWIN = {"img_size": 64, "depths": (1, 2), "num_heads": (1, 1), "embed_dim": 16}


def build(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **options).double().eval()


def images(h=64, w=64, n=2):
    return torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(0)).double()


class Segmenter(nn.Module):
    """Class scores at each position, in a dict, and a body without `forward_features`."""

    def __init__(self, channels=4):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(6, channels, 3, padding=1, stride=2)
        self.double()

    def forward(self, x):
        return {"out": self.head(self.body(x)), "aux": None}


def resnet_to(x, model, last):
    x = model.maxpool(model.act1(model.bn1(model.conv1(x))))
    for name in ("layer1", "layer2", "layer3", "layer4")[:last]:
        x = getattr(model, name)(x)
    return x


def swin_map(x, model):
    return model.layers[1].blocks[0](
        model.layers[1].downsample(model.layers[0](model.patch_embed(x)))
    )


def tokens(x, model, index):
    return model.forward_intermediates(x, indices=[index], intermediates_only=True)[0]


# Name, options, layer, and the layer's map (N,C,h,w) by other means.
CASES = {
    "resnet stage": ("test_resnet", {}, "layer2", lambda x, m: resnet_to(x, m, 2)),
    "resnet module": ("test_resnet", {}, lambda m: m.layer3, lambda x, m: resnet_to(x, m, 3)),
    "resnet number": ("test_resnet", {}, 2, lambda x, m: resnet_to(x, m, 2)),
    "swin block": (
        "swin_tiny_patch4_window7_224",
        SWIN,
        "layers.1.blocks.0",
        lambda x, m: swin_map(x, m).permute(0, 3, 1, 2),
    ),
    "vit block": ("test_vit", {"img_size": 64}, "blocks.1", lambda x, m: tokens(x, m, 1)),
    "vit embedding": (
        "test_vit",
        {"img_size": 64},
        "patch_embed",
        lambda x, m: m.patch_embed.proj(x),
    ),
    "vit number": ("test_vit3", {"img_size": 64}, -1, lambda x, m: tokens(x, m, -1)),
    "last": ("test_convnext", {}, None, lambda x, m: m.stages(m.stem(x))),
}
POINTS = {"centre": None, "row and column": (0, 1), "shares": (0.99, 0.25)}


def place(point, h, w):
    return {None: (h // 2, w // 2), (0, 1): (0, 1), (0.99, 0.25): (h - 1, w // 4)}[point]


def gradient(maps, x, point):
    row, column = place(point, *maps.shape[2:])
    return torch.autograd.grad(maps[:, :, row, column].relu().sum(), x)[0]


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_layer_and_point_of_any_network(case, point):
    name, options, layer, direct = case
    model, x = build(name, **options), images()
    layer = layer(model) if callable(layer) else layer
    found = erf.center_gradient(model, x, layer=layer, point=point)
    taken = x.clone().requires_grad_()
    expected = gradient(direct(taken, model), taken, point)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    mean = expected.relu().sum((0, 1)) / len(x)
    mapped = erf.erf_map(model, x, layer=layer, point=point)
    np.testing.assert_allclose(mapped.map, mean, rtol=1e-9, atol=1e-15)
    if layer is not None:
        sizes = erf.erf_sizes(model, x, layer=layer, point=point)
        assert np.array_equal(sizes, erf_sizes_of(expected))


def erf_sizes_of(grad):
    values = grad.abs().mean(1).flatten(1).sort(1, descending=True).values.cumsum(1)
    return 1 + torch.searchsorted(values, 0.2 * values[:, -1:]).squeeze(1).float().numpy()


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_networks_whose_output_is_a_map(point):
    model, x = Segmenter(), images(12, 20)
    taken = x.clone().requires_grad_()
    out = model(taken)["out"]
    expected = gradient(out, taken, point)
    for layer in (None, "output", model):
        found = erf.center_gradient(model, x, layer=layer, point=point)
        torch.testing.assert_close(found, expected)
    row, column = place(point, *out.shape[2:])
    out = model(taken)["out"][:, :, row, column]
    (expected,) = torch.autograd.grad(out.softmax(1).amax(1).sum(), taken)
    torch.testing.assert_close(erf.input_gradient(model, x, point=point), expected)
    assert np.array_equal(erf.erf_sizes(model, x, point=point), erf_sizes_of(expected))


def test_outputs_that_are_images_have_no_class_score():
    model, x = Segmenter(channels=3), images(12, 20)
    with pytest.raises(ValueError, match=r"are images rather than class scores.* \"output\""):
        erf.erf_sizes(model, x)
    assert (erf.erf_sizes(model, x, layer="output") > 0).all()
    assert (erf.erf_sizes(model, x, score="logit") > 0).all()


def test_a_later_layer_that_works_in_place_changes_nothing():
    model, x = Segmenter(), images(12, 20)
    taken = x.clone().requires_grad_()
    expected = gradient(model.body[0](taken), taken, None)
    torch.testing.assert_close(erf.center_gradient(model, x, layer="body.0"), expected)


@pytest.mark.parametrize("checkpoint", ["none", "block", "stage"])
def test_every_depth_from_one_forward_pass(checkpoint):
    model, x, runs = build("replknet_nano"), images(), []
    handle = model.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    found = erf.erf_depth(model, x, checkpoint=checkpoint)
    assert runs == [False, True]  # without a graph to find the layers, and once with it
    handle.remove()
    names = list(found)
    assert names == layers_of(model, x)
    assert names[-1] == "stages.3.blocks.1"
    for name in (names[0], "stages.1.blocks.0", names[-1]):
        alone = erf.erf_map(model, x, layer=name)
        np.testing.assert_allclose(found[name].map, alone.map, rtol=1e-9, atol=1e-15)
        assert found[name].count == 2
    wide = [np.count_nonzero(found[name].map) for name in names]
    assert wide[0] < wide[len(wide) // 2] < wide[-1] + 100


def test_the_graph_behind_a_layer_is_freed_before_its_turn():
    alive = []

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark = torch.zeros(1)
            alive.append(
                torch.multiprocessing.reductions.StorageWeakRef(ctx.mark.untyped_storage())
            )
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad

    class Step(nn.Conv2d):
        def forward(self, x):
            return Kept.apply(super().forward(x))

    model = nn.Sequential(*(Step(3, 3, 3, padding=1) for _ in range(3)))
    from cba_fast.erf.layers import layer_gradients

    seen = []
    layer_gradients(
        model,
        torch.randn(1, 3, 8, 8),
        ["0", "1", "2"],
        lambda i, grad: seen.append((i, sum(not ref.expired() for ref in alive))),
    )
    assert seen == [(2, 2), (1, 1), (0, 0)]


def test_images_without_a_finite_gradient_are_left_out_of_every_depth():
    model, x, layers = build("test_vit", img_size=64), images(n=3), ["blocks.0", "blocks.5"]
    x[1, 0, 3, 3] = float("nan")
    found = erf.erf_depth(model, x, layers=layers)
    good = erf.erf_depth(model, x[[0, 2]], layers=layers)
    for name, each in found.items():
        assert (each.count, each.skipped) == (2, [1])
        np.testing.assert_allclose(each.map, good[name].map, rtol=1e-9)


@pytest.mark.parametrize("turned", [False, True])
def test_maps_of_equal_sides_are_told_by_the_layers_that_give_them(turned):
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    if turned:
        first = [nn.Conv2d(3, 8, 3, padding=1), Turn(), Last(nn.LayerNorm(8), nn.Linear(8, 8))]
    model = nn.Sequential(*first, nn.Flatten(), nn.Linear(512, 5)).double()
    name = layers_of(model, images(8, 8))[-1]
    assert name == ("2" if turned else "0")
    x = images(8, 8).requires_grad_()
    maps = model[: 3 if turned else 1](x)
    expected = gradient(maps.movedim(-1, 1) if turned else maps, x, (0, 1))
    found = erf.center_gradient(model, x, layer=name, point=(0, 1))
    torch.testing.assert_close(found, expected)


class Turn(nn.Module):
    def forward(self, x):
        return x.movedim(1, -1)


class Last(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.a, self.b = layers

    def forward(self, x):
        return self.b(self.a(x))


def test_no_layer_of_a_depth_is_lost_at_any_size():
    model = timm.create_model("resnet18").eval()  # at 128 pixels its stem gives 64 maps of 64 x 64
    assert len(layers_of(model, torch.zeros(1, 3, 128, 128))) == 9
    del model.pretrained_cfg
    assert len(layers_of(model, torch.zeros(1, 3, 128, 128))) == 9


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice, self.never = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        return self.fc(self.twice(self.twice(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "twice"}, "'twice' ran 2 times"),
        ({"layer": "never"}, "'never' ran 0 times"),
        ({"layer": "nothing"}, "no module named 'nothing'"),
        ({"layer": "fc"}, "layer 'fc' must give a feature map"),
        ({"layer": 1}, "no forward_intermediates"),
        ({}, "'twice' ran 2 times"),
    ],
)
def test_layers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        erf.erf_map(Odd().double(), images(8, 8), **options)
    with pytest.raises(ValueError, match="no layer of Odd gives a feature map"):
        erf.erf_depth(Odd().double(), images(8, 8))


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ((0, 8), "not on the feature map, which is 8x8"),
        ((-1, 0), "not on the feature map"),
        ((0.5, 1.5), "shares of 0 to 1"),
        ((1, 2, 3), "two whole numbers"),
    ],
)
def test_points_that_are_not_on_the_map_are_refused(point, message):
    with pytest.raises(ValueError, match=message):
        erf.center_gradient(build("test_resnet"), images(), layer="layer2", point=point)


def test_numbers_of_maps_end_with_the_last():
    with pytest.raises(ValueError, match="has no map 9"):
        erf.erf_map(build("test_resnet"), images(), layer=9)
    with pytest.raises(ValueError, match="`point` is a position of a map"):
        erf.erf_sizes(build("test_resnet"), images(), point=(0, 0))


def test_the_last_map_is_found_without_an_interface():
    model = build("test_resnet")
    body = nn.Sequential(model.conv1, model.bn1, model.act1, model.layer1, model.layer2)
    classifier = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5))
    x = images()
    taken = x.clone().requires_grad_()
    expected = gradient(body(taken), taken, None)
    for network in (body, classifier.double(), nn.DataParallel(classifier)):
        torch.testing.assert_close(erf.center_gradient(network, x), expected)
        found = erf.erf_depth(network, x)
        assert list(found)[-1].endswith("4.0")
        np.testing.assert_allclose(list(found.values())[-1].map, expected.relu().sum((0, 1)) / 2)


class Both(nn.Module):
    """A classifier that returns its feature map first, and then its logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc = nn.Conv2d(3, 6, 5, padding=2, stride=2), nn.Linear(6, 5)
        self.double()

    def forward(self, x):
        maps = self.body(x)
        return {"maps": maps, "logits": self.fc(maps.mean((2, 3)))}


def test_a_classifier_that_returns_maps_beside_its_logits():
    model, x = Both(), images(12, 20)
    taken = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(taken)["logits"].amax(1).sum(), taken)
    torch.testing.assert_close(erf.input_gradient(model, x, score="logit"), expected)
    expected = gradient(model.body(taken), taken, None)
    for layer in (None, "body", "output"):
        torch.testing.assert_close(erf.center_gradient(model, x, layer=layer), expected)


def test_the_main_tensor():
    t = torch.zeros(1)
    assert all(main_tensor(v) is t for v in (t, (None, t, 3), [{"a": 1, "b": t}], {"x": (t,)}))
    assert main_tensor({"a": 1}) is None
