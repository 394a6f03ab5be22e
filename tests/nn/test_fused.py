"""Blocks without elementwise passes: same results, who gets them, and who gets the plain layers."""

import copy
import functools
import pickle
from collections import Counter

import pytest
import torch
from checkpoint_factory import SMALL_MODELS, make_images, make_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cba_fast.models import inference_form
from cba_fast.models.inference import form as form_module
from cba_fast.models.inference.fused import FUSED_BLOCKS
from cba_fast.nn import fused

CL = torch.channels_last
BF16 = torch.bfloat16
FAMILIES = [(f, {}) for f in SMALL_MODELS] + [("convnext", {"layout": "timm"})]
needs_onednn = pytest.mark.skipif(
    not fused.works("none", torch.float32), reason="no oneDNN in this PyTorch"
)
needs_bf16 = pytest.mark.skipif(not fused.works("none", BF16), reason="no bfloat16 in oneDNN here")


@pytest.fixture(params=FAMILIES, ids=lambda v: "-".join([v[0], *v[1].values()]))
def model(request):
    family, options = request.param
    return make_model(family, SMALL_MODELS[family], num_classes=5, **options)


@pytest.fixture
def plain_form(monkeypatch):
    """Make inference forms whose blocks are not fused."""

    def make(model, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(form_module, "fuse_blocks", lambda form: [])
            return inference_form(model, **kwargs)

    return make


class Ops(TorchDispatchMode):
    """Note the ops whose results are maps (N, C, H, W) or (N, H, W, C)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        if isinstance(y, torch.Tensor) and y.ndim == 4:
            self.seen.append(func.overloadpacket.__name__)
        return y

    @property
    def fused(self):
        return self.seen.count("_convolution_pointwise")


def images(n=1, h=72, w=104, dtype=torch.float32):
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, h, w, generator=g).to(dtype).to(memory_format=CL)


def features(form, x, half=False):
    with torch.no_grad(), torch.autocast("cpu", BF16, enabled=half), Ops() as ops:
        y = form.forward_features(x)
    return y.double(), ops


def error(y, expected):
    return ((y.double() - expected).norm() / expected.norm()).item()


@needs_onednn
@pytest.mark.parametrize("half", [False, pytest.param(True, marks=needs_bf16)])
def test_no_elementwise_pass_is_left(model, half):
    form = inference_form(model, dtype=BF16 if half else torch.float32)
    features(form, images(), half)  # packs the weights
    _, ops = features(form, images(), half)
    allowed = {"_convolution_pointwise", "depthwise_conv2d", "convolution", "native_layer_norm"}
    allowed |= {"permute", "view", "as_strided", "detach", "alias"}
    allowed |= {"relu_", "_to_copy"}  # after large kernels, and of the images
    if getattr(model, "family", "") == "slak_flex":
        allowed.add("add")  # of its two strips
    assert set(ops.seen) <= allowed
    assert ops.seen.count("_to_copy") == half
    assert ops.fused > 8


@needs_onednn
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("half", [False, pytest.param(True, marks=needs_bf16)])
def test_results_are_equal_to_rounding(model, plain_form, n, half):
    x, how = images(n), {"dtype": BF16 if half else torch.float32}
    with torch.no_grad():
        exact = copy.deepcopy(model).double().forward_features(x.double())
    plain, none = features(plain_form(model, **how), x, half)
    got, ops = features(inference_form(model, **how), x, half)
    assert ops.fused
    assert not none.fused
    # Not further from the exact features than the plain form, which rounds more often.
    eps = torch.finfo(BF16 if half else torch.float32).eps
    assert error(got, exact) < 2 * error(plain, exact) + eps


@needs_onednn
@needs_onednn
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(BF16, marks=needs_bf16)])
def test_what_is_not_a_number_stays_so(activation, dtype):
    """The images of a run whose features overflow are found by it."""
    x = torch.randn(2, 16, 5, 5).to(dtype).to(memory_format=CL)
    x[1, 3, 2, 2] = torch.nan
    layer = nn.Conv2d(16, 24, 1).to(dtype).requires_grad_(False)
    with torch.inference_mode():
        assert fused.works(activation, dtype)
        y = fused.fused_conv(layer, x, activation)
    assert y[1, :, 2, 2].isnan().all()
    assert y.isnan().sum() == 24


@pytest.mark.parametrize("missing", ["add", "add into", "gelu", "gelu_tanh", "relu"])
def test_what_a_torch_version_lacks_is_computed_plainly(model, missing, monkeypatch):
    x = images(2)
    monkeypatch.setattr(fused, "AT_ONCE", 1 << 12)
    form = inference_form(model)
    expected, _ = features(form, x)
    monkeypatch.setattr(fused, "works", lambda kind, dtype: kind != missing)
    got, ops = features(form, x)
    assert ops.fused
    assert error(got, expected) < 1e-5


@needs_onednn
@pytest.mark.parametrize("n", [1, 2])
def test_maps_of_one_pixel(n):
    layer = nn.Linear(16, 16)
    x, add = torch.randn(n, 16, 1, 1), torch.randn(n, 16, 1, 1)
    with torch.no_grad():
        y = fused.fused_conv(layer, x, add=add)
        torch.testing.assert_close(y[..., 0, 0], layer(x[..., 0, 0]) + add[..., 0, 0])


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(BF16, marks=needs_bf16)])
@pytest.mark.parametrize(("n", "h", "parts"), [(1, 5, 1), (1, 7, 7), (3, 4, 6), (2, 6, 4)])
def test_large_hidden_maps_are_computed_in_parts(n, h, parts, dtype, monkeypatch):
    torch.manual_seed(0)
    first, second = nn.Linear(16, 64), nn.Linear(64, 16)
    layers = nn.ModuleList([first, second]).to(dtype).requires_grad_(False)
    x, add = (torch.randn(n, 16, h, 9).to(dtype).contiguous(memory_format=CL) for _ in range(2))
    limit = -(-n * h * 9 * 64 * x.element_size() // parts)
    monkeypatch.setattr(fused, "AT_ONCE", limit)
    before = add.clone()
    fused.fused_mlp(first, "gelu", second, x, add)  # makes the trials, packs the weights
    with torch.no_grad(), Ops() as ops:
        y = fused.fused_mlp(first, "gelu", second, x, add)
    in_place = ops.seen.count("_convolution_pointwise_")
    assert (ops.fused, in_place) == ((2, 0) if parts == 1 else (parts, parts))
    assert torch.equal(add, before)
    rows = layers.double()
    exact = rows[1](nn.functional.gelu(rows[0](x.double().permute(0, 2, 3, 1))))
    exact = exact.permute(0, 3, 1, 2) + add.double()
    assert y.is_contiguous(memory_format=CL)
    # Roundings of the hidden map and the result, and of float32 sums over 64 channels.
    assert error(y, exact) < 2 * torch.finfo(dtype).eps + 64 * torch.finfo(torch.float32).eps


def test_without_onednn_the_layers_run_as_they_are(model, plain_form):
    x = images(2)
    expected, _ = features(inference_form(model), x)
    with torch.backends.mkldnn.flags(enabled=False):
        got, ops = features(inference_form(model), x)
        same, _ = features(plain_form(model), x)
    assert not ops.fused
    assert torch.equal(got, same)
    assert error(got, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_trial_fails_where_an_op_is_absent_or_wrong(dtype, monkeypatch):
    real = torch.ops.mkldnn._convolution_pointwise

    class Wrong:
        binary = staticmethod(lambda *a: real.binary(*a) * 1.5)
        default = staticmethod(lambda *a: real.default(*a) * 1.5)

    in_place = torch.ops.mkldnn._convolution_pointwise_

    class WrongInPlace:
        binary = staticmethod(lambda y, *a: in_place.binary(y, *a).mul_(1.5))

    class Absent:
        _is_mkldnn_bf16_supported = staticmethod(lambda: True)

    kinds = ("none", "relu", "gelu", "gelu_tanh", "add", "add into")
    trial = fused.works.__wrapped__
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", Wrong())
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise_", WrongInPlace())
    assert not any(trial(kind, dtype) for kind in kinds)
    monkeypatch.setattr(torch.ops, "mkldnn", Absent())
    assert not any(trial(kind, dtype) for kind in kinds)
    assert not any(trial(kind, torch.float16) for kind in kinds)


def test_gradients_are_those_of_the_plain_form(model, plain_form):
    grads = []
    for form in (inference_form(model), plain_form(model)):
        x = images(2, 32, 32).requires_grad_()
        grads.append(torch.autograd.grad(form(x)[:, 1].sum(), x)[0])
    assert torch.equal(*grads)
    form = inference_form(model).requires_grad_()
    form(images(1, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in form.parameters() if p.ndim == 4)


def note(seen, *args):
    seen["calls"] += 1


@needs_onednn
def test_hooks_inside_a_block_see_their_layers(model):
    form, x = inference_form(model), images(1)
    expected, _ = features(form, x)
    block = next(m for m in form.modules() if isinstance(m, FUSED_BLOCKS))
    for name, layer in list(block.named_modules())[1:]:
        if isinstance(layer, nn.Identity | nn.Dropout):
            continue
        seen = Counter()
        handle = layer.register_forward_hook(functools.partial(note, seen))
        got, ops = features(form, x)
        handle.remove()
        assert seen.total() == 1, name
        assert ops.fused  # of the other blocks
        assert error(got, expected) < 1e-5


@needs_onednn
def test_packed_weights_follow_the_weights_and_the_shape(model):
    form, other = inference_form(model), inference_form(copy.deepcopy(model))
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.25)
    small = images(3, 64, 64)
    before, _ = features(form, images())
    wanted, changed = features(form, small)[0], features(other, images())[0]
    form.load_state_dict(other.state_dict())
    assert torch.equal(features(form, images())[0], changed)
    form.load_state_dict(inference_form(model).state_dict())
    assert torch.equal(features(form, images())[0], before)
    assert torch.equal(features(form, small)[0], wanted)


@needs_onednn
def test_copies_and_state_dicts_hold_no_packed_weights(model, plain_form):
    form, x = inference_form(model), images()
    expected, _ = features(form, x)
    assert form.state_dict().keys() == plain_form(model).state_dict().keys()
    for twin in (copy.deepcopy(form), pickle.loads(pickle.dumps(form))):
        assert torch.equal(features(twin, x)[0], expected)


@needs_onednn
def test_contiguous_images_and_training_run_plainly():
    model = make_model("replknet", SMALL_MODELS["replknet"], num_classes=5)
    form = inference_form(model, channels_last=False)
    _, ops = features(form, make_images(2, 64, torch.float32))
    assert not ops.fused
    form = inference_form(model).train()
    _, ops = features(form, images())
    assert not ops.fused


@needs_onednn
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_form_holds_plain_layers_for_images_of_any_size():
    form = inference_form(make_model("replknet", SMALL_MODELS["replknet"], num_classes=5))
    with torch.no_grad():
        form(images(1, 64, 64))
        traced = torch.jit.trace(form, images(1, 64, 64), check_trace=False)
        assert "mkldnn" not in str(traced.inlined_graph)
        y, expected = traced(images(2, 96, 64)), form(images(2, 96, 64))
    assert error(y, expected) < 1e-5
