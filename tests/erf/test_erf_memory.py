"""Input gradients in bounded memory: lean convolutions, recomputed activations, their choice."""

import numpy as np
import pytest
import timm
import torch
from checkpoint_factory import SMALL_MODELS, randomize
from torch import nn

import cba_fast.models  # noqa: F401  (registers the small models with timm)
from cba_fast import erf
from cba_fast.erf import lean, memory, recompute
from cba_fast.erf.gradients import frozen
from cba_fast.erf.lean import lean_convolutions
from cba_fast.errors import InputError
from cba_fast.models import inference_form
from cba_fast.nn import MapLinear

FAMILIES = sorted(SMALL_MODELS)


def small(family: str) -> nn.Module:
    return inference_form(randomize(timm.create_model(SMALL_MODELS[family], num_classes=5)))


def images(n: int = 1, size: int = 64) -> torch.Tensor:
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(5))
    return x.to(memory_format=torch.channels_last)


def plain_gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).softmax(1).max(1).values.sum(), x)[0]


def kept(model: nn.Module, x: torch.Tensor) -> int:
    """Return the bytes that autograd really keeps, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x.clone().requires_grad_())
    del y
    return sum(t.untyped_storage().nbytes() for a, t in seen.items() if a not in own)


@pytest.mark.parametrize("level", recompute.LEVELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_plain_network(family, level):
    model = small(family)
    expected = plain_gradient(model, images(2))
    found = erf.input_gradient(model, images(2), study_softmax=False, checkpoint=level)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("level", ["block", "stage"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_gradients_have_the_same_bits(family, level):
    model = small(family)
    expected = erf.center_gradient(model, images())
    assert torch.equal(erf.center_gradient(model, images(), checkpoint=level), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": (2, 1)},
        {"groups": 2, "bias": False},
        {"groups": 6, "padding": 1},
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_lean_convolutions_equal_pytorch(options, memory_format):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 12, 3, **options).double().requires_grad_(False)
    x = torch.randn(2, 6, 11, 8, dtype=torch.float64).to(memory_format=memory_format)
    x.requires_grad_()
    y = conv(x)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, x, grad)[0]
    with lean_convolutions(conv):
        again = conv(x)
        found = torch.autograd.grad(again, x, grad)[0]
    assert torch.equal(again, y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=memory_format)
    assert "forward" not in vars(conv)


@pytest.mark.parametrize("faster", [False, True])
@pytest.mark.parametrize("channels", [(lean.WIDE, 6), (6, lean.WIDE)])
def test_wide_1x1_convolutions_may_be_matrix_products(channels, faster, monkeypatch):
    monkeypatch.setattr(lean, "conv1x1_is_faster", lambda: faster)
    products = []
    product = lean._product
    monkeypatch.setattr(lean, "_product", lambda *a: products.append(1) or product(*a))
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, 1).requires_grad_(False)
    x = torch.randn(2, channels[0], 3, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = conv(x)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, x, grad)[0]
    with lean_convolutions(conv):
        again = conv(x)
        found = torch.autograd.grad(again, x, grad)[0]
        in_place = torch.autograd.grad(conv(x).relu_(), x, grad * (y > 0))[0]
    torch.testing.assert_close(
        in_place, torch.autograd.grad(conv(x), x, grad * (y > 0))[0], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(again, y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)
    # In each run once: the direction that sums over the wide side.
    assert len(products) == (0 if faster else 2)


def test_a_lean_map_linear_equals_the_linear_layer():
    torch.manual_seed(0)
    layer = MapLinear(6, 9).double().requires_grad_(False)
    for shape in ((2, 5, 4, 6), (3, 6)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        expected = torch.autograd.grad(nn.functional.linear(x, layer.weight).sum(), x)[0]
        with lean_convolutions(layer):
            found = torch.autograd.grad(layer(x).sum(), x)[0]
        torch.testing.assert_close(found, expected)


def test_trainable_and_special_convolutions_are_left_alone():
    class Own(nn.Conv2d):
        pass

    trainable, own, padded = nn.Conv2d(2, 2, 3), Own(2, 2, 3), nn.Conv2d(2, 2, 3, padding="same")
    circular = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    for m in (own, padded, circular):
        m.requires_grad_(False)
    with lean_convolutions(nn.ModuleList([trainable, own, padded, circular])):
        assert not any("forward" in vars(m) for m in (trainable, own, padded, circular))


def test_a_second_derivative_is_refused_not_wrong():
    conv = nn.Conv2d(2, 2, 1).requires_grad_(False)
    x = torch.ones(1, 2, 3, 3, requires_grad=True)
    with lean_convolutions(conv):
        (grad,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_lean_convolutions_follow_autocast():
    conv = nn.Conv2d(3, 4, 1).requires_grad_(False)
    x = images(size=8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), lean_convolutions(conv):
        y = conv(x)
        assert y.dtype == torch.bfloat16
        assert torch.autograd.grad(y.sum(), x)[0].dtype == torch.float32


def test_forwards_are_restored_after_an_error():
    model = small("replknet")
    with pytest.raises(InputError, match="takes .N, 3, H, W."):
        erf.input_gradient(model, torch.ones(1, 5, 64, 64), checkpoint="block")
    assert not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_bytes_are_what_autograd_keeps(family):
    model, x = small(family), images(2)
    with frozen(model), lean_convolutions(model):
        assert erf.kept_bytes(model, tuple(x.shape)) == kept(model, x)
        for level in ("block", "stage"):
            with recompute.recomputing(model, level):
                # What a part keeps while it is recomputed comes on top.
                assert kept(model, x) < erf.kept_bytes(model, tuple(x.shape), level)


@pytest.mark.parametrize("family", FAMILIES)
def test_lean_convolutions_keep_less(family):
    model, x = small(family), images()
    with frozen(model):
        plain = kept(model, x)
        with lean_convolutions(model):
            # The others are built of linear layers, which keep nothing anyway.
            assert kept(model, x) < (0.75 * plain if family == "replknet" else plain)


def test_parts_of_every_family():
    for family, blocks in (("replknet", 8), ("convnext", 4), ("slak", 4), ("slak_flex", 4)):
        assert len(recompute.parts_of(small(family), "block")) >= blocks
        assert len(recompute.parts_of(small(family), "stage")) == 4


def test_unknown_levels_and_models_are_refused():
    with pytest.raises(ValueError, match="one of"):
        erf.input_gradient(small("slak"), images(), checkpoint="all")
    with pytest.raises(ValueError, match="Sequential has no blocks"):
        erf.input_gradient(nn.Sequential(nn.Flatten()), images(), checkpoint="block")


def test_the_first_level_that_fits_is_chosen():
    model, shape = small("slak"), (2, 3, 64, 64)
    needed = {level: erf.kept_bytes(model, shape, level) for level in recompute.LEVELS}
    assert needed["block"] < needed["none"]
    assert erf.choose_checkpoint(model, shape, limit=needed["none"]) == "none"
    assert erf.choose_checkpoint(model, shape, limit=needed["none"] - 1) == "block"
    least = min(needed, key=needed.get)
    assert erf.choose_checkpoint(model, shape, limit=0) == least
    assert erf.choose_checkpoint(nn.Sequential(nn.Flatten()), shape, limit=0) == "none"


def test_features_may_be_all_that_runs():
    model, shape = small("convnext"), (1, 3, 64, 64)
    features = erf.kept_bytes(model, shape, run=lambda m, x: m.forward_features(x))
    assert 0 < features <= erf.kept_bytes(model, shape)


def test_free_memory_respects_a_control_group(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 100000\n")
    groups = ((str(tmp_path), "memory.max", "memory.current"),)
    monkeypatch.setattr(memory, "_GROUPS", groups)
    assert memory.free_bytes("cpu") == 400000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes("cpu") > 1e6


@pytest.mark.parametrize("level", ["none", "block"])
def test_sizes_do_not_depend_on_the_level(level):
    model = small("slak")
    expected = erf.erf_sizes(model, images(3), [0.2, 0.5])
    assert np.array_equal(erf.erf_sizes(model, images(3), [0.2, 0.5], checkpoint=level), expected)


def test_weights_in_bfloat16_are_taken_as_float32():
    model, shape = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()).bfloat16(), (1, 3, 8, 8)
    halves = recompute.kept_bytes(model, shape)
    assert halves == recompute.kept_bytes(model.float(), shape) > 0
