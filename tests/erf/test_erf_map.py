"""ERF maps and their area ratios."""

import numpy as np
import pytest
import torch
from torch import nn

from cba_fast import erf


class Features(nn.Module):
    """One convolution as feature extractor: the gradient of its centre is its kernel, flipped."""

    def __init__(self, kernel: torch.Tensor, stride: int = 1):
        super().__init__()
        k = kernel.shape[-1]
        self.conv = nn.Conv2d(
            kernel.shape[1], kernel.shape[0], k, stride=stride, padding=k // 2, bias=False
        ).to(kernel.dtype)
        self.conv.weight.data = kernel

    def forward_features(self, x):
        return self.conv(x)


def expected_map(kernel: torch.Tensor, size: int) -> np.ndarray:
    """Positive contributions around the centre, summed over in- and output channels."""
    k = kernel.shape[-1]
    top = size // 2 - k // 2
    grad = torch.zeros(kernel.shape[1], size, size, dtype=torch.float64)
    grad[:, top : top + k, top : top + k] = kernel.sum(0)
    return grad.relu().sum(0).numpy()


@pytest.mark.parametrize("size", [8, 9])
def test_map_of_a_convolution_is_its_kernel(size):
    kernel = torch.rand(4, 3, 5, 5, dtype=torch.float64) + 0.1
    kernel[:, 1] *= -0.1  # an input channel with negative gradients only: relu drops it
    found = erf.erf_map(Features(kernel), torch.ones(2, 3, size, size, dtype=torch.float64))
    assert found.map.dtype == np.float64
    assert found.count == 2
    np.testing.assert_allclose(found.map, expected_map(kernel, size), rtol=1e-12)


def test_features_below_zero_at_the_centre_do_not_count():
    kernel = torch.rand(2, 3, 3, 3, dtype=torch.float64)
    kernel[1] *= -1
    found = erf.erf_map(Features(kernel), torch.ones(1, 3, 7, 7, dtype=torch.float64))
    np.testing.assert_allclose(found.map, expected_map(kernel[:1], 7), rtol=1e-12)


def test_the_centre_is_at_half_the_feature_size():
    # 8 x 8 pixels, stride 2: 4 x 4 features, centre 2, which sees pixels 3..5
    found = erf.erf_map(Features(torch.ones(1, 3, 3, 3), stride=2), torch.ones(1, 3, 8, 8))
    assert np.argwhere(found.map > 0).min(0).tolist() == [3, 3]
    assert np.argwhere(found.map > 0).max(0).tolist() == [5, 5]


def test_batches_of_any_size_agree_and_nan_images_are_left_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.GELU(), nn.Conv2d(4, 4, 5, padding=2))
    x = torch.randn(6, 3, 12, 12)
    x[4, 0, 5, 5] = float("inf")
    x[2, 0, 6, 6] = float("nan")
    whole = erf.erf_map(model, x, features=model)
    single = erf.erf_map(model, x.split(1), features=model)
    good = erf.erf_map(model, x[[0, 1, 3, 5]], features=model)
    assert whole.count == single.count == good.count == 4
    assert whole.skipped == single.skipped == [2, 4]
    np.testing.assert_allclose(whole.map, single.map, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(whole.map, good.map, rtol=1e-5, atol=1e-9)


def test_no_finite_gradient_is_an_error():
    model = Features(torch.full((1, 3, 3, 3), float("nan")))
    with pytest.raises(ValueError, match="no image has a finite gradient"):
        erf.erf_map(model, torch.ones(2, 3, 8, 8))


@pytest.mark.parametrize("measure", [erf.erf_map, erf.erf_depth])
def test_no_batch_is_an_error(measure):
    with pytest.raises(ValueError, match="`images` holds no batch"):
        measure(Features(torch.ones(1, 3, 3, 3)), [])


def test_a_result_in_place_of_its_map_is_told():
    found = erf.ErfMap(torch.ones(3, 3).numpy(), 1, [])
    with pytest.raises(ValueError, match="got an ErfMap: give its `map`"):
        erf.erf_shape(found)


def test_pooled_features_are_refused():
    with pytest.raises(ValueError, match=r"\(N,C,h,w\).* got \(1, 3\)"):
        erf.erf_map(nn.Identity(), torch.ones(1, 3, 8, 8), features=lambda x: x.mean((2, 3)))


class Items(torch.utils.data.Dataset):
    def __init__(self):
        self.images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 8

    def __getitem__(self, i):
        error = "cannot read image" if i in (1, 6) else ""
        return {"index": i, "image": self.images[i], "truncated": False, "error": error}


class Scaled(nn.Module):
    """Image n gives a map of value 1 + mean(x): tells which images were averaged."""

    def forward_features(self, x):
        return x * (1 + x.detach().mean((1, 2, 3), keepdim=True))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_first_readable_images_are_averaged(batch_size):
    data = Items()
    walk = erf.Walk(data, range(8), batch_size=batch_size)
    found = erf.measure_erf_map(Scaled(), walk, num_images=4)
    assert found.count == 4
    assert 1 in found.skipped
    scales = 1 + data.images[[0, 2, 3, 4]].mean((1, 2, 3))
    assert found.map[4, 4] == pytest.approx(3 * scales.double().mean().item(), rel=1e-6)
    assert np.count_nonzero(found.map) == 1


def test_a_set_with_too_few_images_gives_the_mean_of_all():
    found = erf.measure_erf_map(Scaled(), erf.Walk(Items(), range(8)), num_images=50)
    assert found.count == 6
    assert found.skipped == [1, 6]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_map_continues_to_the_same_bits(tmp_path, after):
    def walk(**kwargs):
        partial = erf.Partial(tmp_path / "map.npy", interval_s=0)
        return erf.Walk(Items(), range(8), batch_size=2, partial=partial, **kwargs)

    def killed(steps, count):
        for n, step in enumerate(steps):
            if n == after:
                raise KeyboardInterrupt
            yield step

    whole = erf.measure_erf_map(Scaled(), erf.Walk(Items(), range(8), batch_size=2), 6)
    with pytest.raises(KeyboardInterrupt):
        erf.measure_erf_map(Scaled(), walk(progress=killed), 6)
    again = walk()
    found = erf.measure_erf_map(Scaled(), again, 6)
    assert again.resumed == 2 * after
    assert np.array_equal(found.map, whole.map)
    assert found.skipped == whole.skipped


@pytest.mark.parametrize("size", [16, 33])
def test_area_ratios_of_a_uniform_map(size):
    thresholds = (0.2, 0.3, 0.5, 0.75)
    for found in erf.area_ratio(np.full((size, size), 7.0), thresholds):
        side = next(s for s in range(3, size, 2) if s * s / size**2 > found.threshold)
        assert found.side == side
        assert found.ratio == side * side / size**2


def test_area_ratio_is_the_first_square_that_exceeds_not_reaches():
    x = np.zeros((9, 9))
    x[4, 4] = 9  # log10(10) = 1
    x[0, 0] = 9
    half, below = erf.area_ratio(x, (0.5, 0.49))
    assert (half.side, half.ratio) == (None, None)  # the central squares hold exactly 50 %
    assert (below.side, below.ratio) == (3, 9 / 81)


def test_area_ratio_takes_the_logarithm():
    x = np.zeros((20, 20))
    x[10, 10] = 99  # log10(100) = 2
    x[10, 14] = 9999  # log10(10000) = 4
    near, far = erf.area_ratio(x, (0.33, 0.34))
    assert near.side == 3
    assert far.side == 9


def test_area_ratio_of_tiny_gradients():
    x = np.full((16, 16), 1e-20)  # log10(1 + 1e-20) is 0 when computed as written
    assert erf.area_ratio(x, (0.2,))[0].side == 9


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((8, 8)), "zero everywhere"),
        (np.full((8, 8), np.nan), "finite"),
        (-np.ones((8, 8)), "finite and >= 0"),
        (np.ones((3, 8, 8)), r"\(3, 8, 8\)"),
        (np.ones((8, 8), dtype=complex), "complex"),
    ],
)
def test_arrays_that_are_no_map_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        erf.area_ratio(bad)
