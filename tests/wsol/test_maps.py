"""CAM and PC1 maps against the study's steps written plainly with NumPy, OpenCV, scikit-learn."""

import contextlib

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from cba_fast.errors import InputError
from cba_fast.ops import quantize
from cba_fast.wsol import (
    cam,
    cam_from_features,
    finish_maps,
    heatmap,
    localize,
    pc1,
    pc1_from_features,
)
from cba_fast.wsol.heatmap import score_levels
from cba_fast.wsol.localize import localize_on_device
from cba_fast.wsol.methods import METHODS as ALL_METHODS
from cba_fast.wsol.methods import classify, gather
from cba_fast.wsol.methods.principal_component import first_principal_axis, is_background

METHODS = [name for name, m in ALL_METHODS.items() if "attentions" not in m.needs]


def features_and_weights(n=3, c=40, h=12, w=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, c, h, w, generator=g)
    # smooth blobs, so that maps have structure
    features = nn.functional.avg_pool2d(features, 5, 1, 2) * 3
    return features, torch.randn(n, c, generator=g)


def study_finish(heatmap, size, wrap=False):
    """The study's resize, cast and normalization of one map."""
    heatmap = cv2.resize(heatmap, (size, size))
    if wrap:
        heatmap = (255 * heatmap).astype(np.int32).astype(np.uint8)
    else:
        heatmap = np.uint8(255 * heatmap)
    return (heatmap - np.min(heatmap)) / (np.max(heatmap) - np.min(heatmap))


def test_cam_equals_the_study_step_by_step():
    features, weights = features_and_weights()
    got = finish_maps(cam_from_features(features, weights).numpy(), 384)
    for n in range(3):
        weighted = weights[n].numpy()[:, None, None] * features[n].numpy()
        heatmap = np.maximum(weighted.mean(axis=0), 0)
        heatmap = heatmap / heatmap.max()
        want = study_finish(heatmap, 384)
        # float32 means differ in the last bit, which can move a pixel by one of 255 levels
        assert np.abs(got[n] - want).max() <= 1.01 / 255
        assert (got[n] != want).mean() < 0.01
    assert got.dtype == np.float64
    assert got.min() == 0
    assert got.max() == 1


def study_pc1(features, weights):
    """One PC1 map at feature resolution, with scikit-learn."""
    maps = weights[:, None, None] * features
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    maps = (maps - low) / (high - low)
    axis = PCA(n_components=1, svd_solver="full").fit(maps.reshape(len(maps), -1)).components_[0]
    heat = axis.reshape(features.shape[1:])
    heat = heat / heat.max()
    h = heat.shape[0]
    binary = heat > heat.mean()
    count = sum(
        binary[y, x]
        for y in range(h)
        for x in range(h)
        if not (1 <= y <= h - 3 and 1 <= x <= h - 3)
    )
    return 1 - heat if count / (4 * (h - 1)) > 0.5 else heat


@pytest.mark.parametrize(("c", "h"), [(40, 12), (200, 12), (64, 4), (1024, 7)])
def test_pc1_equals_scikit_learn(c, h):
    features, weights = features_and_weights(n=4, c=c, h=h, w=h, seed=c)
    got = pc1_from_features(features, weights).numpy()
    for n in range(4):
        want = study_pc1(features[n].double().numpy(), weights[n].double().numpy())
        np.testing.assert_allclose(got[n], want, atol=2e-5)


def test_pc1_orientation_turns_a_bright_border_around():
    h = 12
    maps = torch.zeros(2, h, h)
    maps[0, :, 0] = maps[0, 0] = maps[0, -2:] = maps[0, :, -2:] = 1  # a frame
    maps[1, 3:8, 3:8] = 1  # an object
    assert is_background(maps).tolist() == [True, False]


def test_orientation_counts_63_of_144_cells():
    one_cell = torch.eye(144).reshape(144, 12, 12)
    # a cell counts if adding 22 counted cells (0.5 * 44) to it turns the map
    base = torch.zeros(12, 12)
    base[0] = 1
    base[11, :10] = 1
    free = [i for i in range(144) if base.flatten()[i] == 0]
    turned = is_background(base[None] + one_cell[free])
    assert int(turned.sum()) + 22 == 63


def test_principal_axis_sign_and_constant_samples():
    x = torch.randn(2, 50, 9, generator=torch.Generator().manual_seed(1))
    x[1] = 3.0
    axis = first_principal_axis(x)
    assert axis[0, axis[0].abs().argmax()] > 0
    torch.testing.assert_close(axis[0].norm(), torch.tensor(1.0, dtype=torch.float64))
    assert not axis[1].any()
    few = torch.randn(1, 5, 30, generator=torch.Generator().manual_seed(2))  # S < V
    want = PCA(n_components=1, svd_solver="full").fit(few[0].double().numpy()).components_[0]
    got = first_principal_axis(few)[0].numpy()
    np.testing.assert_allclose(np.abs(got), np.abs(want), atol=1e-9)


def test_wrap_keeps_the_low_byte_and_clip_and_minmax_do_not():
    small = np.array([[[-0.2, 0.5], [1.2, 0.25]]], dtype=np.float32)
    wrapped = finish_maps(small, 2, "wrap")[0] * (205 - 50) + 50
    assert np.rint(wrapped).tolist() == [[205, 127], [50, 63]]  # -51 & 255, 306 & 255
    clipped = finish_maps(small, 2, "clip")[0] * 255
    assert np.rint(clipped).tolist() == [[0, 127], [255, 63]]
    rescaled = finish_maps(small, 2, "minmax")[0] * 255
    assert np.rint(rescaled).tolist() == [[0, 127], [255, 81]]


@given(st.integers(0, 2**32 - 1), st.integers(4, 9), st.integers(2, 40))
@settings(max_examples=25)
def test_wrap_equals_numpy_int32_cast(seed, h, size):
    small = np.random.default_rng(seed).uniform(-1.5, 2, (1, h, h)).astype(np.float32)
    np.testing.assert_array_equal(
        finish_maps(small, size, "wrap")[0], study_finish(small[0], size, wrap=True)
    )


def test_constant_maps_become_zeros():
    features, weights = features_and_weights()
    features[1] = 0
    assert not cam_from_features(features, weights)[1].any()
    assert not pc1_from_features(features, weights)[1].any()
    assert not finish_maps(np.full((1, 3, 3), 0.7, np.float32), 8).any()


@given(st.floats(1e-3, 1e3))
@settings(max_examples=20)
def test_cam_is_scale_invariant(scale):
    features, weights = features_and_weights()
    want = cam_from_features(features, weights)
    torch.testing.assert_close(
        cam_from_features(features * scale, weights), want, rtol=1e-5, atol=1e-6
    )


class Tiny(nn.Module):
    """A classifier without timm's interface."""

    def __init__(self, classes=7):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU())
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def test_cam_of_any_model_with_a_named_layer():
    torch.manual_seed(0)
    model = Tiny().eval()
    x = torch.randn(2, 3, 64, 64)
    got = cam(model, x, target=3, layer="body")
    features = model.body(x).detach()
    small = cam_from_features(features, model.fc.weight[3].detach().expand(2, -1))
    np.testing.assert_array_equal(got.numpy(), finish_maps(small.numpy(), 64))
    assert pc1(model, x, layer="body", map_size=32).shape == (2, 32, 32)
    found = localize(model, x, layer="body")
    assert found.targets.tolist() == model(x).argmax(1).tolist()
    assert found.top5.shape == (2, 5)


def test_a_timm_model_works_without_a_layer():
    import timm

    model = timm.create_model("resnet10t", num_classes=5).eval()
    maps = cam(model, torch.randn(2, 3, 64, 64))
    assert maps.shape == (2, 64, 64)
    assert maps.dtype == torch.float64


@pytest.mark.parametrize(
    "target", [2, np.int64(2), torch.tensor(2), [2, 2], np.array([2, 2]), torch.tensor([2, 2])]
)
def test_targets_in_every_form(target):
    model, x = Tiny(), torch.randn(2, 3, 64, 64)
    found = localize(model, x, target=target, layer="body")
    assert found.targets.tolist() == [2, 2]
    assert found.targets.dtype == np.int64


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (
            torch.zeros(3, dtype=torch.int64),
            ValueError,
            r"\(N,\) = \(2,\) indices, got shape \(3,\)",
        ),
        (torch.zeros(1, dtype=torch.int64), ValueError, r"got shape \(1,\)"),
        (torch.zeros(2, 1, dtype=torch.int64), ValueError, r"got shape \(2, 1\)"),
        (1.7, TypeError, r"got 1\.7"),
        (True, TypeError, "got True"),
        ("cat", TypeError, "got 'cat'"),
        (torch.zeros(2), TypeError, r"got torch\.float32"),
        (torch.zeros(2, dtype=torch.bool), TypeError, r"got torch\.bool"),
        ([0, -1], ValueError, "target -1 is outside the model's 7 classes"),
    ],
)
def test_bad_targets_are_refused(target, error, message):
    model, x = Tiny(), torch.randn(2, 3, 64, 64)
    for make in (cam, pc1):
        with pytest.raises(error, match=message):
            make(model, x, target=target, layer="body")


@pytest.mark.parametrize("target", [None, 3, torch.zeros(0, dtype=torch.int64)])
def test_an_empty_batch_has_empty_maps(target):
    model, x = Tiny(), torch.randn(2, 3, 64, 64)[:0]
    assert cam(model, x, target=target, layer="body").shape == (0, 64, 64)
    assert pc1(model, x, target=target, layer="body", map_size=9).shape == (0, 9, 9)
    found = localize(model, x, target=target, layer="body")
    assert (found.constant.shape, found.targets.shape) == ((0,), (0,))
    assert found.top5.shape == (0, 5)


def test_what_cannot_be_localized_is_refused():
    model = Tiny().eval()
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(TypeError, match="x must be a tensor .* got ndarray"):
        cam(model, x.numpy(), layer="body")
    with pytest.raises(TypeError, match="x must be floating and normalized .* got torch.uint8"):
        localize(model, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"x must be .* got shape \(3, 64, 64\)"):
        cam(model, x[0], layer="body")
    with pytest.raises(ValueError, match="no module named 'nope'"):
        cam(model, x, layer="nope")
    with pytest.raises(ValueError, match="outside the model's 7 classes"):
        cam(model, x, target=7, layer="body")
    with pytest.raises(ValueError, match="`map_size` must be .* got 0"):
        cam(model, x, layer="body", map_size=0)
    with pytest.raises(ValueError, match="square feature maps"):
        pc1(model, torch.randn(1, 3, 64, 32), layer="body", map_size=16)
    with pytest.raises(InputError, match="NaN or infinite"):
        cam(model, x * float("nan"), layer="body")
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        cam_from_features(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4))
    too_large = Given(torch.full((1, 6, 4, 4), 3e38))
    too_large.fc.weight.data.abs_()
    with pytest.raises(ValueError, match="image 0 of the batch: .* hold NaN"):
        cam(too_large, x, target=0)


def test_maps_have_the_shape_of_the_input_or_the_one_asked_for():
    model, x = Tiny().eval(), torch.randn(2, 3, 64, 32)
    own = cam(model, x, layer="body")
    assert own.shape == (2, 64, 32)
    assert torch.equal(own, cam(model, x, layer="body", map_size="input"))
    features, _, weight = classify(model, x, "body")
    target = model(x).argmax(1)
    small = cam_from_features(features, weight[target]).detach().numpy()
    resized = np.stack([cv2.resize(m, (50, 20)) for m in small])  # OpenCV takes (width, height)
    u = (255 * resized).astype(np.uint8).astype(float)
    low, high = u.min((1, 2), keepdims=True), u.max((1, 2), keepdims=True)
    found = localize(model, x, layer="body", map_size=(20, 50)).maps
    np.testing.assert_array_equal(found, (u - low) / (high - low))
    np.testing.assert_array_equal(found, localize(model, x, layer="body", map_size="20x50").maps)


@pytest.mark.parametrize("make", [cam_from_features, pc1_from_features])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_maps_that_overflow_are_nan_and_leave_the_others_alone(make, bad):
    features, weights = features_and_weights(n=3, c=8, h=6, w=6)
    want = make(features, weights)
    features[1, 2, 3, 3], weights[1, 2] = bad, 2.0  # 3e38 is finite, its product is not
    got = make(features, weights)
    assert got[1].isnan().all()
    torch.testing.assert_close(got[[0, 2]], want[[0, 2]], rtol=0, atol=0)


class Given(nn.Module):
    """A classifier whose feature maps are given; its images do not matter."""

    def __init__(self, features, classes=5):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.register_buffer("features", features)
        self.fc = nn.Linear(features.shape[1], classes)
        self.fc.weight.data = torch.randn(classes, features.shape[1], generator=g) * 9

    def get_classifier(self):
        return self.fc

    def forward_features(self, x):
        return self.features[: len(x)]

    def forward_head(self, x):
        return self.fc(x.mean((2, 3)))


def given_model(n=4, dtype=torch.float32, h=12):
    return Given(features_and_weights(n=n, c=40, h=h, w=h)[0].to(dtype))


@pytest.mark.parametrize("method", METHODS)
def test_the_bytes_on_their_way_are_those_of_the_maps(method):
    model, x = given_model(), torch.zeros(4, 3, 96, 96)
    model.features[2] = 1  # a constant map
    want = localize(model, x, method=method, target=[0, 1, 2, 3])
    plain = localize_on_device(model, x, method=method, target=[0, 1, 2, 3]).send()()
    scored = localize_on_device(model, x, method=method, target=[0, 1, 2, 3]).send(scored=True)()
    np.testing.assert_array_equal(plain.localization().maps, want.maps)
    np.testing.assert_array_equal(scored.u, quantize(want.maps).numpy())
    for found in (plain, scored, want):
        assert found.constant.tolist() == [False, False, True, False]
        assert found.targets.tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(found.top5, want.top5)
    assert scored.u.dtype == plain.u.dtype == np.uint8
    assert want.maps.reshape(4, -1).any(1).tolist() == [True, True, False, True]


@pytest.mark.parametrize("method", METHODS)
def test_one_bad_image_is_named_and_nan_does_not_reach_the_decomposition(method):
    model, x = given_model(), torch.zeros(4, 3, 96, 96)
    model.features[1, 3, 2, 2] = np.nan
    model.features[3, 0, 0, 0] = np.inf
    found = localize_on_device(model, x, method=method, target=[0, 9, 0, -1])
    with pytest.raises(InputError, match="image 1 of the batch: .* hold NaN"):
        found.send()()
    model = given_model()
    for target, named in (([0, 9, 0, -1], 9), ([0, 1, 0, -1], -1), (9, 9)):
        found = localize_on_device(model, x, method=method, target=target)
        with pytest.raises(ValueError, match=f"target {named} is outside the model's 5 classes"):
            found.send()()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_are_computed_outside_of_autocast(method, dtype):
    model, x = given_model(dtype=dtype), torch.zeros(4, 3, 96, 96)
    with torch.autocast("cpu", dtype):
        mixed = localize(model, x, method=method, target=2)
        found = gather(model, x, ALL_METHODS[method].needs, target=torch.tensor(2))
    chosen = ALL_METHODS[method]
    want = finish_maps(chosen.small_maps(found).numpy(), 96, chosen.value_range)
    np.testing.assert_array_equal(mixed.maps, want)


@pytest.mark.parametrize("method", METHODS)
def test_no_step_before_the_map_is_done_reads_its_values(method):
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, x = given_model(), torch.empty(4, 3, 96, 96)
        model.features = torch.empty(4, 40, 12, 12)
        chosen = ALL_METHODS[method]
        small = chosen.small_maps(gather(model, x, chosen.needs))
        assert small.shape == (4, 12, 12)
        with pytest.raises(DataDependentOutputException):
            bool(small.any())


# A backward pass of tensors that say they are on a GPU would look for one.
WITHOUT_GRADIENTS = [m for m in METHODS if "gradients" not in ALL_METHODS[m].needs]


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="slices of fake tensors look for a GPU")
@pytest.mark.parametrize("method", WITHOUT_GRADIENTS)
@pytest.mark.parametrize("pc1_range", ["wrap", "minmax"])
def test_no_step_on_a_device_reads_its_values(method, pc1_range):
    # tensors without values, which say that they are on a GPU: what a host would have to read
    # (`item`, `bool`, a mask as an index) raises
    model = given_model()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.features = torch.empty(4, 40, 12, 12, device="cuda")
        for name, value in list(model.fc.named_parameters()):
            setattr(model.fc, name, nn.Parameter(torch.empty(value.shape, device="cuda")))
        x = torch.empty(4, 3, 96, 96, device="cuda")
        found = localize_on_device(model, x, method=method, pc1_range=pc1_range)
        for bytes_ in (found.u, score_levels(found.u)):
            assert (bytes_.device.type, bytes_.dtype) == ("cuda", torch.uint8)
            assert bytes_.shape == (4, 96, 96)
        assert found.facts.shape == (4, 8)
        assert found.facts.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            bool(found.u.any())


@pytest.fixture
def no_waiting():
    """Return a context in which PyTorch refuses whatever makes the host wait for the GPU."""

    @contextlib.contextmanager
    def refused():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return refused


def close_levels(got, want):
    """Same levels but for one pixel in a hundred, which may be one level off (modulo 256).

    The two devices add the channels up in different orders.
    """
    apart = (got.astype(int) - want.astype(int)) % 256
    return np.isin(apart, [0, 1, 255]).all() and (apart != 0).mean() < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pc1_range", ["wrap", "clip"])
def test_a_gpu_makes_the_same_maps(method, pc1_range):
    model, x = given_model(n=16), torch.zeros(16, 3, 384, 384)
    options = {"method": method, "target": 3, "pc1_range": pc1_range}
    want = localize_on_device(model, x, **options).send()()
    got = localize_on_device(model.cuda(), x.cuda(), **options).send()()
    assert close_levels(got.u, want.u)
    assert got.targets.tolist() == want.targets.tolist()
    assert got.constant.tolist() == want.constant.tolist()
    on_gpu = heatmap(model, x.cuda(), **options)
    assert on_gpu.is_cuda
    np.testing.assert_array_equal(on_gpu.cpu().numpy(), got.localization().maps)


@pytest.mark.gpu
@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("target", [None, 3, [0, 1, 2, 3]])
def test_a_gpu_is_not_waited_for(no_waiting, scored, target):
    model, x = given_model().cuda(), torch.zeros(4, 3, 384, 384).cuda()
    want = localize_on_device(model, x, target=target).send(
        scored
    )()  # the libraries' first calls may wait
    with no_waiting():
        read = localize_on_device(model, x, target=target).send(scored)
    np.testing.assert_array_equal(read().u, want.u)


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_stream_of_the_caller(method):
    model, x = given_model().cuda(), torch.randn(4, 3, 384, 384).cuda()
    want = localize(model, x, method=method, target=1).maps
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a default stream would overtake this one
        late = x.clone()
        features, model.features = model.features, torch.zeros_like(model.features)
        model.features.copy_(features)
        got = localize(model, late, method=method, target=1).maps
    np.testing.assert_array_equal(got, want)


@pytest.mark.gpu
def test_what_a_gpu_cannot_localize_is_refused_and_the_device_lives_on():
    model, x = given_model().cuda(), torch.zeros(4, 3, 96, 96).cuda()
    with pytest.raises(ValueError, match="target 9 is outside the model's 5 classes"):
        localize(model, x, target=[0, 9, 0, 1])
    model.features[1, 3, 2, 2] = np.nan
    for method in METHODS:
        with pytest.raises(InputError, match="image 1 of the batch: .* hold NaN"):
            localize(model, x, method=method, target=0)
    assert float(x.sum()) == 0
