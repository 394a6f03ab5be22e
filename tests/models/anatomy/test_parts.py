"""Images that do not fit a network: told by their device, dtype and shape, in every function."""

import pytest
import timm
import torch
from torch import nn

from cba_fast.erf import erf_depth, erf_map, erf_sizes
from cba_fast.errors import InputError
from cba_fast.wsol import cam, heatmap, localize

FUNCTIONS = {
    "cam": cam,
    "grad-cam": lambda model, x: heatmap(model, x, method="grad-cam"),
    "chefer": lambda model, x: localize(model, x, method="chefer"),
    "erf_sizes": erf_sizes,
    "erf_map": erf_map,
    "erf_depth": erf_depth,
}
X = torch.randn(2, 3, 64, 64)
CASES = {
    "device": (
        lambda model: model.to("meta"),
        X,
        "the images are on cpu, but the weights of .* on meta",
    ),
    "dtype": (
        lambda model: model.double(),
        X,
        r"the images are torch.float32, but the weights of .* torch.float64: convert",
    ),
    "grey": (
        lambda model: model,
        X[:, :1],
        r"the images have shape \([12], 1, 64, 64\), but .* takes \(N, 3, H, W\); x.expand",
    ),
    "alpha": (
        lambda model: model,
        torch.cat([X, X[:, :1]], 1),
        r"the images have shape \([12], 4, 64, 64\), but .* takes \(N, 3, H, W\)$",
    ),
}


def own():
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 5, 1))


def classifier():
    return nn.Sequential(own(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))


NETWORKS = {
    "test_vit": lambda: timm.create_model("test_vit", img_size=64),
    "test_resnet": lambda: timm.create_model("test_resnet"),
    "own": classifier,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_does_not_fit_is_named(function, case):
    change, x, message = CASES[case]
    for make in NETWORKS.values():
        with pytest.raises(InputError, match=message):
            FUNCTIONS[function](change(make()), x)


def test_images_that_are_too_small_are_told():
    model = nn.Sequential(nn.MaxPool2d(9), classifier())
    with pytest.raises(InputError, match=r"the images, \(2, 3, 8, 8\), are too small for Sequent"):
        cam(model, X[:, :, :8, :8])


def test_a_network_that_converts_its_images_and_other_errors_stay_as_they_are():
    class Converting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = classifier().double()

        def forward(self, x):
            return self.net(x.double())

    assert cam(Converting(), X).shape == (2, 64, 64)

    class Failing(Converting):
        def forward(self, x):
            raise RuntimeError("no idea")

    with pytest.raises(RuntimeError, match="^no idea$"):
        cam(Failing(), X)
