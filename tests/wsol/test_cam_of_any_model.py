"""Maps of networks of any origin: what they return, what is around them, and their last layer."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from cba_fast.errors import InputError, ModelError
from cba_fast.models.anatomy.parts import known_last_map
from cba_fast.wsol import cam, heatmap, localize
from cba_fast.wsol.methods import classify

CLASSES = 5


def images(*size, n=2):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(0))


def stage(c_in, c_out, stride=2):
    conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Official(nn.Module):
    """What the networks of wsolevaluation share: a dict of logits, or CAMs of given labels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.make()
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x, labels=None, return_cam=False):
        x = self.maps(x)
        pre_logit = self.avgpool(x).flatten(1)
        if return_cam:
            weights = self.fc.weight[labels]
            return (weights[:, :, None, None] * x.detach().clone()).mean(1)
        return {"pre_logits": pre_logit, "logits": self.fc(pre_logit)}


class ResNetCam(Official):
    def make(self):
        self.layer1, self.layer4 = stage(3, 8), stage(8, 16)
        self.fc = nn.Linear(16, CLASSES)

    def maps(self, x):
        return self.layer4(self.layer1(x))


class VggCam(Official):
    def make(self):
        self.features = nn.Sequential(*stage(3, 8), nn.MaxPool2d(2), *stage(8, 16, 1))
        self.conv6, self.relu = nn.Conv2d(16, 12, 3, padding=1), nn.ReLU(inplace=False)
        self.fc = nn.Linear(12, CLASSES)

    def maps(self, x):
        return self.relu(self.conv6(self.features(x)))


class InceptionCam(Official):
    def make(self):
        self.a, self.b1, self.b2 = stage(3, 8), stage(8, 4), stage(8, 6)
        self.SPG_A3_1b = nn.Sequential(nn.Conv2d(10, 12, 3, padding=1), nn.ReLU(inplace=True))
        self.SPG_A3_2b = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(12, CLASSES)

    def maps(self, x):
        x = self.a(x)
        x = torch.cat([self.b1(x), self.b2(x)], 1)
        x = F.dropout(self.SPG_A3_1b(x), 0.5, self.training)
        return F.dropout(self.SPG_A3_2b(x), 0.5, self.training)


@pytest.mark.parametrize("make", [ResNetCam, VggCam, InceptionCam])
def test_the_official_networks_and_their_own_cams(make):
    model, x, labels = make().eval(), images(48, 64), torch.tensor([3, 1])
    own = model(x, labels, return_cam=True).detach()
    found = localize(model, x, target=labels, map_size=tuple(own.shape[1:]))
    want = own.relu() / own.relu().amax((1, 2), keepdim=True)
    got = torch.from_numpy(found.maps)
    assert (got - want).abs().max() <= 2.01 / 255  # 256 levels, stretched from the lowest one
    assert found.top5[:, 0].tolist() == model(x)["logits"].argmax(1).tolist()
    assert heatmap(model, x, method="grad-cam").shape == (2, 48, 64)


class Returning(nn.Module):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.make, self.body, self.fc = make, stage(3, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        maps = self.body(x)
        return self.make(self.fc(maps.mean((2, 3))), maps)


@pytest.mark.parametrize(
    "make",
    [
        lambda logits, maps: (logits, maps),
        lambda logits, maps: [maps, logits],
        lambda logits, maps: {"map": maps, "out": logits},
        lambda logits, maps: {"aux": logits * 2, "logits": logits},
        lambda logits, maps: logits[:, :, None, None],
        lambda logits, maps: logits.softmax(-1),
        lambda logits, maps: {"logits": logits.log_softmax(1), "map": maps},
        lambda logits, maps: logits.sigmoid(),
    ],
)
def test_logits_are_found_in_what_a_network_returns(make):
    x = images(32, 32)
    want = cam(Returning(lambda logits, maps: logits), x)
    assert torch.equal(cam(Returning(make), x), want)


@pytest.mark.parametrize("made", [lambda logits, maps: {"map": maps}, lambda *_: None])
def test_a_network_without_logits_is_refused(made):
    with pytest.raises(ModelError, match=r"Returning must return \(N, K\) logits, got"):
        cam(Returning(made), images(32, 32))


def test_a_network_made_in_inference_mode_keeps_its_flags():
    with torch.inference_mode():
        model = timm.create_model("test_resnet", num_classes=CLASSES)
    assert cam(model, images(64, 64)).shape == (2, 64, 64)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        heatmap(model, images(64, 64), method="grad-cam", layer="layer2")
    assert all(p.requires_grad for p in model.parameters())


def test_a_linear_layer_of_another_package_is_named_in_full():
    class Linear(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.matrix = base.weight

        def forward(self, x):
            return x @ self.matrix.T

    model = timm.create_model("test_resnet", num_classes=CLASSES)
    model.fc = Linear(model.fc)
    with pytest.raises(ModelError, match=r"got test_cam_of_any_model\.test_.*\.Linear; these"):
        cam(model, images(64, 64))


def test_scripted_traced_and_exported_networks_are_told():
    model, x = Returning(lambda logits, maps: logits).eval(), images(32, 32)
    traced = torch.jit.trace(model, x)
    exported = torch.export.export(model, (x,)).module()
    for method in ("cam", "eigen-cam"):
        with pytest.raises(ModelError, match="shows no layers, because it was scripted or traced"):
            heatmap(traced, x, method=method)
        with pytest.raises(ModelError, match="evaluation mode, because it was exported: give the"):
            heatmap(exported, x, method=method)


class Normalize(nn.Module):
    def forward(self, x):
        return (x - 0.2) / 1.5


# A backend that runs the graph as it is, which needs no C++ compiler.
WRAPPERS = {
    "parallel": nn.DataParallel,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "parallel compiled": lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    "in place": lambda m: m.compile(backend="eager") or m,
    "normalized": lambda m: nn.Sequential(Normalize(), m),
    "normalized compiled": lambda m: nn.Sequential(Normalize(), torch.compile(m, backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("method", ["cam", "grad-cam"])
@pytest.mark.parametrize("make", [VggCam, lambda: timm.create_model("test_resnet", num_classes=5)])
def test_wrappers_are_looked_through(wrap, method, make):
    model, x = make().eval(), images(64, 64)
    given = Normalize()(x) if "normalized" in wrap else x
    want = heatmap(model, given, method=method)
    wrapped = WRAPPERS[wrap](make().eval())
    wrapped.load_state_dict(dict(zip(wrapped.state_dict(), model.state_dict().values())))
    if wrap != "normalized":  # it has been run, so that there is compiled code to be left aside
        wrapped(x)
    got = heatmap(wrapped, x, method=method)
    assert (got - want).abs().max() <= 1.01 / 255
    name = "layer4" if hasattr(model, "layer4") else "relu"
    torch.testing.assert_close(got, heatmap(wrapped, x, None, name, method=method))


def test_a_layer_is_a_name_a_module_or_a_list_of_one():
    model, x = VggCam().eval(), images(48, 48)
    want = heatmap(model, x, layer="features.5", method="grad-cam")
    for layer in (model.features[5], [model.features[5]], ["features.5"], ("module.features.5",)):
        assert torch.equal(heatmap(model, x, layer=layer, method="grad-cam"), want)
    inner = nn.Sequential(Normalize(), nn.Sequential(model))
    with pytest.raises(InputError, match=r"it has .*0, 1, 1\.0, 1\.0\.features, .*1\.0\.avgpool$"):
        cam(inner, x, layer="nothing")
    assert heatmap(inner, x, layer="conv6", method="hires-cam").any()
    for layer, message in (
        (
            "conv9",
            r"VggCam has no module named 'conv9'; it has conv6, features, relu, fc, avgpool$",
        ),
        (3, "`layer` must be a name, a module or a list of one, got 3"),
        ([], "`layer` must be one layer, got 0 of them"),
        (["fc", "relu"], "`layer` must be one layer, got 2"),
        (nn.ReLU(), "`layer` is a ReLU that VggCam lacks"),
    ):
        with pytest.raises(InputError, match=message):
            cam(model, x, layer=layer)
    twice = nn.Sequential(nn.Sequential(model), nn.Sequential(VggCam()))
    with pytest.raises(InputError, match=r"several modules named 'fc'; it has 0\.0\.fc, 1\.0\.fc"):
        cam(twice, x, layer="fc")


# Each family of torchvision: its smallest network, the images' side, and its last layer. `cam`
# works but where the layers of the head are named that refuse it. `SMALL` makes some yet smaller.
TORCHVISION = {
    "alexnet": (128, "features", "classifier.1"),
    "convnext_tiny": (64, "features", None),
    "densenet121": (64, "features", None),
    "efficientnet_b0": (64, "features", None),
    "efficientnet_v2_s": (64, "features", None),
    "googlenet": (64, "inception5b", None),
    "inception_v3": (128, "Mixed_7c", None),
    "maxvit_t": (56, "blocks.1", "classifier.3"),
    "mnasnet0_5": (64, "layers", None),
    "mobilenet_v2": (64, "features", None),
    "mobilenet_v3_small": (64, "features", "classifier.0"),
    "regnet_x_400mf": (64, "trunk_output", None),
    "regnet_y_400mf": (64, "trunk_output", None),
    "resnet18": (64, "layer4", None),
    "resnext50_32x4d": (64, "layer4", None),
    "shufflenet_v2_x0_5": (64, "conv5", None),
    "squeezenet1_1": (64, "classifier.0", None),
    "swin_t": (64, "permute", None),
    "swin_v2_t": (64, "permute", None),
    "vgg11": (64, "features", "classifier.0"),
    "vit_b_32": (64, "encoder.layers.encoder_layer_1.ln_1", "self_attention"),
    "wide_resnet50_2": (64, "layer4", None),
}
SMALL = {
    "maxvit_t": {
        "input_size": (56, 56),
        "stem_channels": 8,
        "partition_size": 7,
        "block_channels": [8, 16],
        "block_layers": [1, 1],
        "head_dim": 4,
        "stochastic_depth_prob": 0.0,
    },
    "swin_t": {
        "patch_size": [4, 4],
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": [4, 4],
    },
    "vit_b_32": {
        "image_size": 64,
        "patch_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 32,
        "mlp_dim": 64,
    },
}
CLASSES_OF = {"maxvit_t": "MaxVit", "swin_t": "SwinTransformer", "vit_b_32": "VisionTransformer"}
SLOW = {"vgg11", "wide_resnet50_2", "resnext50_32x4d", "efficientnet_v2_s", "swin_v2_t", "alexnet"}


def family(name):
    return name.split("_")[0].rstrip("0123456789")


def test_images_too_small_for_a_map_are_the_reason_that_is_told():
    model = torchvision.models.resnet18(num_classes=3).eval()
    with pytest.raises(ModelError, match="its map has one position, so give larger images; these"):
        cam(model, images(16, 16, n=1))
    assert cam(model, images(48, 48, n=1)).shape == (1, 48, 48)


def test_the_table_names_every_family_of_torchvision():
    known = torchvision.models.list_models(module=torchvision.models)
    assert {family(n) for n in known} == {family(n) for n in TORCHVISION}


def torchvision_model(name):
    torch.manual_seed(0)
    if name in SMALL:
        make = getattr(torchvision.models, CLASSES_OF[name])
        model = make(num_classes=CLASSES, **SMALL[name]).eval()
    else:
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, num_classes=CLASSES, **more).eval()
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    for m in head:  # ViT's is new: zeros
        nn.init.normal_(m.weight, std=0.1)
    return model


@pytest.mark.parametrize("name", sorted(TORCHVISION.keys() - SLOW))
def test_networks_of_torchvision(name):
    side, last, refused = TORCHVISION[name]
    model, x = torchvision_model(name), images(side, side, n=1)
    found = localize(model, x, method="grad-cam")
    assert known_last_map(model, x) == last
    assert found.maps.shape == (1, side, side)
    if refused:
        with pytest.raises(ModelError, match=f"no linear head .*{refused}.*these methods work: gr"):
            cam(model, x)
        return
    features, logits, weight = classify(model, x)
    torch.testing.assert_close(logits, model(x))
    assert weight.shape == (CLASSES, features.shape[1])
    # a linear head over the mean: Grad-CAM's weights are those of CAM, but for a norm between
    if name != "convnext_tiny":
        target = logits.argmax(1)
        small = torch.einsum("nc,nchw->nhw", weight[target], features).relu()
        small = small / small.amax().clamp(min=1e-9)
        got = cam(model, x, map_size=tuple(small.shape[1:]))
        assert (got - (small - small.min()) / (small.max() - small.min())).abs().max() < 0.02


def test_what_the_head_rectifies_is_rectified_in_the_map():
    model, x = torchvision_model("densenet121"), images(64, 64, n=1)
    features, logits, weight = classify(model, x)
    pooled = features.mean((2, 3))
    torch.testing.assert_close(pooled @ weight.T + model.classifier.bias, logits)
    assert (classify(model, x, "features")[0] < 0).any()  # a layer that is named is taken as it is


def test_a_vit_that_normalizes_its_images_is_known_by_its_tokens():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=CLASSES, depth=2)
    model, x = nn.Sequential(Normalize(), vit).eval(), images(64, 64)
    want = heatmap(vit, Normalize()(x), method="grad-cam", layer="blocks.1.norm1")
    torch.testing.assert_close(heatmap(model, x, method="grad-cam"), want)
    torch.testing.assert_close(heatmap(vit, Normalize()(x), method="grad-cam"), want)
    pooled = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=CLASSES, depth=2, global_pool="avg"
    )
    assert cam(pooled, x, map_size=4).shape == (2, 4, 4)
    # the pooling decides, also where it changes later
    pooled.reset_classifier(CLASSES, global_pool="token")
    assert heatmap(pooled, x, method="grad-cam").any((1, 2)).all()


class Twice(nn.Module):
    """A dropout that runs on the tokens and on the pooled features, and a head in a module."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.drop = stage(3, 8), nn.Dropout()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8, CLASSES))

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.head(self.drop(self.drop(self.body(x)).mean((2, 3))))


def test_a_layer_that_runs_twice_is_not_explained():
    model, x = Twice().eval(), images(32, 32)
    want = cam(Returning(lambda logits, maps: logits), x)
    assert torch.equal(cam(model, x), want)
    assert known_last_map(model, x) == "body"
    with pytest.raises(ModelError, match="module 'drop' ran 2 times in one forward pass, not once"):
        heatmap(model, x, method="grad-cam", layer="drop")


def test_features_that_are_no_map_are_left_aside():
    class Pooled(Twice):
        def forward_features(self, x):
            return self.body(x).mean((2, 3))[:, None]

        def forward_head(self, x):
            return self.head(x[:, 0])

        def forward(self, x):
            return self.forward_head(self.forward_features(x))

    model, x = Pooled().eval(), images(32, 32)
    want = cam(Returning(lambda logits, maps: logits), x)
    assert torch.equal(cam(model, x), want)


# What of timm's test networks a kind of method cannot explain, and why.
REFUSED = {
    ("cam", "test_mambaout"): "no linear head",
    ("cam", "test_vit"): "no linear head over the mean of the tokens",
    ("cam", "test_vit3"): "no linear head",
}


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_networks_of_timm(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES).eval()
    side = model.pretrained_cfg["input_size"][-1]
    for method in ("cam", "grad-cam", "eigen-cam", "chefer"):
        why = REFUSED.get((method, name), "")
        if method == "chefer" and "vit" not in name.split("_", 1)[1][:3]:
            why = "no layers of attention"
        if why:
            with pytest.raises(ModelError, match=why):
                heatmap(model, images(side, side, n=1), method=method)
        else:
            found = heatmap(model, images(side, side, n=1), method=method)
            assert found.shape == (1, side, side)
            assert found.any() or method in ("cam", "grad-cam")  # random weights may all be against
