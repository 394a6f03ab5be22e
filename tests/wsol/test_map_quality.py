"""Measures of feature maps: planted overlap, exact size under chance, PCA, by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from cba_fast.wsol import map_quality as mq


def ones(features):
    return torch.ones(features.shape[:2])


def cells(h, w, rows, columns):
    box = np.zeros((1, h, w))
    box[0, rows, columns] = 1
    return box


BOX = cells(6, 6, slice(1, 4), slice(2, 4))


def smooth_noise(n, c, side, seed=0):
    """Noise that is stationary on the torus and smooth: an average over 3x3 cells, cyclically."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, c, side, side, generator=g)
    return sum(noise.roll((i, j), (2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1))


# Coverage


def test_coverage_by_hand():
    # cells of 16 pixels: columns 8..23 are half of the first two, rows 0..15 the whole first one
    found = mq.box_coverage(np.array([[8, 0, 23, 15]]), 96, (6, 6))
    expected = np.zeros((6, 6))
    expected[0, :2] = 0.5
    np.testing.assert_allclose(found, expected)


@given(
    st.integers(5, 40),
    st.integers(1, 9),
    st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=1, max_size=3),
)
def test_mean_coverage_is_the_share_of_the_union(side, grid, corners):
    boxes = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners])
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    union = np.zeros((side, side), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        union |= (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    found = mq.box_coverage(boxes, side, (grid, grid))
    assert found.mean() == pytest.approx(union.mean())
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-12
    assert (mq.box_mask(boxes, side) == union).all()


# Channels on the object


def test_planted_channels_are_found():
    box = torch.from_numpy(BOX)[:, None].float()
    elsewhere = box.roll((3, 3), (2, 3))
    maps = torch.cat([box, 2 * box + 1, -box, elsewhere], dim=1)
    assert mq.object_channels(maps, ones(maps), BOX).tolist() == [0.5]
    # the classifier's sign decides what lights up
    weights = torch.tensor([[-1.0, -1.0, -3.0, 1.0]])
    assert mq.object_channels(maps, weights, BOX).tolist() == [0.25]


def test_share_equals_a_count_over_rolled_boxes():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 4, (2, 7, 5, 4)).astype(np.float64)  # many ties
    boxes = rng.integers(0, 3, (2, 5, 4)) / 2
    level = 0.2
    expected = []
    for image, box in zip(maps, boxes):
        phi = []
        for one in image:
            one = (one - one.min()) / (one.max() - one.min())
            mass = np.array(
                [(one * np.roll(box, (i, j), (0, 1))).sum() for i in range(5) for j in range(4)]
            )
            above, tie = (mass > mass[0] + 1e-9).sum(), (abs(mass - mass[0]) <= 1e-9).sum()
            phi.append(np.clip((level * 20 - above) / tie, 0, 1))
        expected.append(np.mean(phi))
    maps = torch.from_numpy(maps)
    found = mq.object_channels(maps, ones(maps), boxes, level)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@settings(max_examples=25)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 999), st.floats(0.01, 0.5))
def test_the_level_is_exact_for_any_map(h, w, seed, level):
    """Over all places of the box the mean share is the level, with ties, for every grid."""
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.integers(0, 3, (1, 4, h, w)).astype(np.float64))
    box = np.zeros((h, w))
    box[: rng.integers(1, h), : rng.integers(1, w + 1)] = 1  # never the whole grid
    places = np.stack([np.roll(box, (i, j), (0, 1)) for i in range(h) for j in range(w)])
    maps = maps.expand(h * w, -1, -1, -1)
    assert mq.object_channels(maps, ones(maps), places, level).mean() == pytest.approx(level)


def test_noise_is_called_significant_at_the_level_and_permuted_cells_would_not_do():
    maps = smooth_noise(60, 100, 6)
    coverage = np.repeat(BOX, 60, axis=0)
    found = mq.object_channels(maps, ones(maps), coverage)
    # the channels are independent here: 6,000 tests, standard error at most 0.0028
    assert found.mean() == pytest.approx(0.05, abs=0.011)
    x = maps.flatten(2).double().numpy()
    z = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    b = BOX.ravel() - BOX.mean()
    exchangeable = (z @ b) / np.sqrt((b**2).sum() * 36 / 35)  # variance over permutations of cells
    assert (exchangeable > 1.645).mean() > 0.15


def test_nothing_to_find():
    maps = torch.full((1, 3, 6, 6), 2.0)
    assert mq.object_channels(maps, ones(maps), BOX)[0] == pytest.approx(mq.LEVEL)
    noise = torch.randn(2, 3, 6, 6)
    flat = np.stack([np.ones((6, 6)), np.zeros((6, 6))])
    assert np.isnan(mq.object_channels(noise, ones(noise), flat)).all()


@pytest.mark.parametrize("level", [0, 1, -0.1])
def test_bad_level_and_shapes_are_refused(level):
    maps = torch.randn(1, 3, 6, 6)
    with pytest.raises(ValueError, match="level"):
        mq.object_channels(maps, ones(maps), BOX, level)
    with pytest.raises(ValueError, match="coverage"):
        mq.object_channels(maps, ones(maps), BOX[:, :5])


# PC1 and areas


def test_explained_variance_is_that_of_scikit_learn():
    g = torch.Generator().manual_seed(1)
    features = torch.randn(2, 20, 5, 5, generator=g).double()
    weights = torch.randn(2, 20, generator=g).double()
    for found, f, w in zip(mq.pc1_explained(features, weights), features, weights):
        maps = (w.float()[:, None, None] * f.float()).double().flatten(1).numpy()
        low, high = maps.min(1, keepdims=True), maps.max(1, keepdims=True)
        ratio = PCA(n_components=1).fit((maps - low) / (high - low)).explained_variance_ratio_[0]
        assert found == pytest.approx(ratio, rel=1e-9)


def test_explained_variance_at_its_ends():
    a, b = torch.randn(2, 1, 1, 6, 6)
    two = torch.cat([a, a, b], dim=1)
    assert mq.pc1_explained(two, ones(two))[0] == pytest.approx(1)  # all on one line
    same = a.expand(-1, 4, -1, -1)
    assert np.isnan(mq.pc1_explained(same, ones(same))[0])


def test_map_iou_by_hand():
    a = torch.tensor([[[0.0, 0, 4, 4]], [[0, 0, 0, 9]], [[1, 1, 1, 1]], [[1, 1, 1, 1]]])
    b = torch.tensor([[[0.0, 5, 5, 0]], [[0, 0, 0, 1]], [[0, 1, 0, 0]], [[2, 2, 2, 2]]])
    np.testing.assert_array_equal(mq.map_iou(a, b), [1 / 3, 1, 0, np.nan])
    with pytest.raises(ValueError, match="alike"):
        mq.map_iou(a, b[:2])


def test_active_pixels_equal_the_masks():
    rng = np.random.default_rng(2)
    u = rng.integers(0, 200, (3, 9, 9), dtype=np.uint8)
    u[2] = 0
    t = np.arange(0, 1, 0.07)
    expected = [[(m > int(x * m.max())).sum() for x in t] for m in u]
    assert mq.active_pixels(u, t).tolist() == expected


def test_maps_too_small_for_pc1_have_no_agreement():
    features = torch.randn(2, 8, 3, 3)
    coverage = np.repeat(cells(3, 3, slice(0, 2), slice(0, 2)), 2, axis=0)
    found = mq.map_quality(features, ones(features), coverage, 24)
    assert np.isnan(found.pc1_cam_iou).all()
    assert np.isfinite(found.object_channels).all()
    assert np.isfinite(found.pc1_explained).all()


def test_object_in_most_channels_and_noise_in_the_others():
    g = torch.Generator().manual_seed(3)
    features = 0.1 * torch.rand(1, 50, 6, 6, generator=g)
    features[:, :30] += torch.from_numpy(BOX)[:, None].float()
    found = mq.map_quality(features, ones(features), BOX, 96)
    assert 0.6 <= found.object_channels[0] < 0.75
    assert found.pc1_cam_iou[0] > 0.8
    assert found.pc1_explained[0] > 0.3
