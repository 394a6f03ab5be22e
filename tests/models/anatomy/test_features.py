"""Features, logits and classifier: which heads are linear, and what the model is left like."""

import pytest
import timm
import torch
from torch import nn

import cba_fast.models  # noqa: F401  (registers our models)
from cba_fast.nn import eval_mode
from cba_fast.wsol import cam, localize, pc1
from cba_fast.wsol.methods import classify

CLASSES = 5


def images(n=2, side=64, seed=0):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Body, pooling and a head; `late` is registered after the classifier and runs before it."""

    def __init__(self, head, late=None):
        super().__init__()
        self.head = head
        self.body = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16), nn.ReLU())
        self.late = late

    def forward(self, x):
        x = self.body(x).mean((2, 3), keepdim=True)
        if isinstance(self.head, nn.Linear | nn.Sequential):
            x = x.flatten(1)
        if self.late is not None:
            self.extra = self.late(x)
        return self.head(x).flatten(1)


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_a_model_in_train_mode_runs_in_eval_mode_and_is_left_as_it_was():
    model = timm.create_model("resnet10t", num_classes=CLASSES, drop_rate=0.5)
    model.layer1.eval()  # a part that its owner has frozen
    modes = [m.training for m in model.modules()]
    before, x = state_of(model), images(3)
    got = cam(model, x), pc1(model, images(1, 128)), localize(model, x).maps
    assert [m.training for m in model.modules()] == modes
    assert set(modes) == {True, False}
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    model.eval()
    assert torch.equal(got[0], cam(model, x))
    assert torch.equal(got[0], torch.from_numpy(got[2]))


def test_a_map_does_not_depend_on_the_other_images_of_the_batch():
    model = Net(nn.Linear(16, CLASSES))
    x = images(4)
    whole = cam(model, x, layer="body")
    torch.testing.assert_close(
        cam(model, x[1:2], layer="body"), whole[1:2], atol=1.01 / 255, rtol=0
    )


def test_eval_mode_restores_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with eval_mode(model):
        assert not any(m.training for m in model.modules())
    with pytest.raises(TypeError), eval_mode(model):
        model("no tensor")
    assert [m.training for m in model.modules()] == [True, True, False]


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        "test_convnext",  # a norm between pooling and classifier
        "test_efficientnet",
        "resnetv2_50",  # the classifier is a 1x1 convolution
        "dla46_c",  # the same, outside of a head module
        "replknet_nano",
        "slak_nano",
        "slak_flex_nano",
    ],
)
def test_linear_heads_of_timm_and_of_our_models(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES).eval()
    x = images()
    with torch.no_grad():
        features, logits, weight = classify(model, x)
        assert torch.equal(logits, model(x))
        assert torch.equal(features, model.forward_features(x))
    assert weight.shape == (CLASSES, features.shape[1])
    assert torch.equal(weight, model.get_classifier().weight.flatten(1))
    assert cam(model, x).shape == (2, 64, 64)


def test_a_channels_last_model():
    kwargs = {"img_size": 64, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "embed_dim": 16}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=CLASSES, **kwargs)
    with torch.no_grad():
        features, _, weight = classify(model, images())
    assert features.shape == (2, 128, 2, 2)
    assert weight.shape == (CLASSES, 128)


@pytest.mark.parametrize(
    ("name", "kwargs", "hidden"),
    [
        ("maxvit_tiny_tf_224", {"img_size": 64}, "head.pre_logits.fc"),
        ("test_convnext", {"head_hidden_size": 64}, "head.pre_logits.fc"),
        ("mobilenetv3_small_050", {}, "conv_head"),
    ],
)
def test_heads_with_a_hidden_layer_are_refused(name, kwargs, hidden):
    model = timm.create_model(name, num_classes=CLASSES, **kwargs)
    with pytest.raises(TypeError, match=f"no linear head .* {hidden} .* before the classifier"):
        cam(model, images())


@pytest.mark.parametrize(
    "head",
    [
        nn.Linear(16, CLASSES),
        nn.Conv2d(16, CLASSES, 1),
        nn.Sequential(nn.LayerNorm(16), nn.Dropout(), nn.Linear(16, CLASSES)),
        nn.Sequential(nn.BatchNorm1d(16), nn.PReLU(16), nn.Linear(16, CLASSES)),
        nn.utils.parametrizations.weight_norm(nn.Linear(16, CLASSES)),
    ],
    ids=["linear", "conv", "norm", "activation", "weight_norm"],
)
def test_linear_heads_behind_a_named_layer(head):
    model = Net(head)
    with torch.no_grad():
        features, logits, weight = classify(model, images(), "body")
        pooled = features.mean((2, 3))
        assert torch.equal(features, model.eval().body(images()))
        last = head[-1] if isinstance(head, nn.Sequential) else head
        assert torch.equal(weight, last.weight.flatten(1))
        if last is head:
            torch.testing.assert_close(pooled @ weight.T + last.bias, logits)


def test_the_classifier_is_the_layer_that_gives_the_logits():
    # same widths, and both registered and run beside the classifier
    model = Net(nn.Linear(16, CLASSES), late=nn.Linear(16, CLASSES))
    _, _, weight = classify(model, images(), "body")
    assert torch.equal(weight, model.head.weight)


@pytest.mark.parametrize("layer", ["body.0", "body.1"])
def test_an_activation_in_place_does_not_change_the_features(layer):
    model = Net(nn.Linear(16, CLASSES)).eval()
    model.body[2] = nn.ReLU(inplace=True)
    with torch.no_grad():
        features, _, _ = classify(model, images(), layer)
    assert (features < 0).any()


def test_models_without_a_linear_head_are_refused():
    x = images()
    mlp = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    with pytest.raises(TypeError, match=r"head\.0 \(Linear\) runs before the classifier head\.2"):
        classify(Net(mlp), x, "body")
    bent = nn.Sequential(nn.Linear(16, CLASSES), nn.Tanh())
    with pytest.raises(TypeError, match=r"gives its logits \(2, 5\).*head\.0 \(Linear\)"):
        classify(Net(bent), x, "body")
    with pytest.raises(TypeError, match="no layer with weights"):
        classify(Net(nn.Identity()), x, "body")
    deeper = Net(nn.Linear(16, CLASSES))
    deeper.body.append(nn.Conv2d(16, 16, 3))
    with pytest.raises(TypeError, match=r"after module 'body\.2': body\.3 \(Conv2d\) runs before"):
        classify(deeper, x, "body.2")
    flat = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(4 * 64, CLASSES))
    with pytest.raises(TypeError, match="classifier 2 takes 256 channels"):
        classify(flat, x, "0")
    with pytest.raises(TypeError, match="must return .* logits, got tuple"):
        classify(nn.Sequential(nn.Conv2d(3, 4, 8), Pair()), x, "0")
    with pytest.raises(ValueError, match=r"must give a feature map .* got \(2, 5\)"):
        classify(Net(nn.Linear(16, CLASSES)), x, "head")
    wrapped = timm.create_model("resnet10t", num_classes=0)
    with pytest.raises(TypeError, match="got Identity"):
        classify(wrapped, x)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["test_resnet", "replknet_nano", None])
def test_half_precision_models_and_autocast(name, dtype):
    torch.manual_seed(0)
    if name is None:
        model, layer = Net(nn.Linear(16, CLASSES)), "body"
    else:
        model, layer = timm.create_model(name, num_classes=CLASSES), None
    x = images(2, 128)
    with torch.autocast("cpu", dtype):
        mixed = cam(model, x, target=3, layer=layer)
    want = cam(model, x, target=3, layer=layer)
    half = cam(model.to(dtype), x.to(dtype), target=3, layer=layer)
    for got in (mixed, half):
        assert got.dtype == torch.float64
        assert got.shape == want.shape
        # a pixel may move by many levels where a map is nearly flat; the maps stay alike
        assert torch.corrcoef(torch.stack([got.flatten(), want.flatten()]))[0, 1] > 0.98
    assert pc1(model, x[:1].to(dtype), layer=layer).isfinite().all()
