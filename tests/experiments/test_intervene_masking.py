"""The arithmetic of cut kernels: which taps are outer ones, and how their energy is matched."""

import numpy as np
import pytest
import timm
import torch
from checkpoint_factory import SMALL_MODELS, randomize
from torch import nn

from cba_fast.errors import InputError
from cba_fast.experiments.intervene.masking import (
    cut,
    cut_kernels,
    distances,
    large_kernels,
    largest_radius,
    take_energy,
)
from cba_fast.models import merge

CONTROLS = ("random", "inner")


def kernels(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def rng():
    return np.random.default_rng(3)


@pytest.mark.parametrize("radius", [0, 1, 2, 3])
def test_a_square_kernel_keeps_its_central_square(radius):
    w = kernels(4, 1, 7, 7)
    kept = np.zeros((7, 7), bool)
    kept[3 - radius : 4 + radius, 3 - radius : 4 + radius] = True
    np.testing.assert_array_equal(cut(w, radius, "outer", rng()), w * kept)


@pytest.mark.parametrize("shape", [(9, 3), (3, 9), (9, 1)])
def test_a_strip_is_cut_along_its_longer_side_and_keeps_its_width(shape):
    kept = np.zeros(shape, bool)
    kept[(slice(3, 6), slice(None)) if shape[0] > shape[1] else (slice(None), slice(3, 6))] = True
    w = kernels(2, 1, *shape)
    np.testing.assert_array_equal(cut(w, 1, "outer", rng()), w * kept)


def test_a_kernel_of_an_even_side_has_its_centre_between_taps():
    np.testing.assert_array_equal(distances((4, 4))[0], [1.5, 1.5, 1.5, 1.5])
    w = np.ones((1, 1, 4, 4))
    assert cut(w, 1, "outer", rng()).sum() == 4
    conv = nn.Conv2d(2, 2, 4, groups=2)
    assert largest_radius({"": conv}) == 2


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("shape", [(7, 7), (9, 3), (4, 4)])
@pytest.mark.parametrize("radius", [0, 1, 2])
def test_controls_take_the_energy_of_the_outer_taps_from_each_channel(kind, shape, radius):
    w = kernels(5, 1, *shape)
    outer, control = (cut(w, radius, k, rng()) for k in ("outer", kind))
    taken = [((w - new) ** 2).sum(axis=(1, 2, 3)) for new in (outer, control)]
    np.testing.assert_allclose(taken[1], taken[0], rtol=1e-12)
    # All taps but one per channel are whole or gone.
    partly = (control != 0) & (control != w)
    assert (partly.sum(axis=(1, 2, 3)) <= 1).all()
    assert (np.sign(control[partly]) == np.sign(w[partly])).all()
    assert (np.abs(control[partly]) < np.abs(w[partly])).all()


def test_inner_taps_go_from_the_centre_outward():
    w = np.ones((1, 1, 7, 7))
    found = cut(w, 2, "inner", rng())[0, 0]  # 24 outer taps: as many as the 5x5 square but one
    far = distances((7, 7))
    assert (found[far <= 1] == 0).all()
    assert (found[far == 3] == 1).all()
    assert (found == 0).sum() == 24
    assert found[4 + 1, 4 + 1] == 1  # the last of the square's corners, which are farthest


def test_random_taps_of_a_stronger_cut_contain_those_of_a_weaker_one():
    w = kernels(3, 1, 9, 9)
    gone = [cut(w, r, "random", np.random.default_rng(1)) == 0 for r in (3, 2, 1)]
    assert (gone[0] <= gone[1]).all()
    assert (gone[1] <= gone[2]).all()
    assert not (cut(w, 2, "random", np.random.default_rng(2)) == cut(w, 2, "random", rng())).all()


def test_energy_ends_exactly_at_a_partly_taken_value():
    values = np.array([[3.0, -2.0, 1.0]])
    order = np.array([[1, 0, 2]])
    np.testing.assert_allclose(take_energy(values, np.array([5.0]), order), [[2.0, 0.0, 1.0]])
    np.testing.assert_array_equal(take_energy(values, np.array([0.0]), order), values)
    np.testing.assert_array_equal(take_energy(values, np.array([99.0]), order), [[0, 0, 0]])


@pytest.mark.parametrize("kind", ["outer", *CONTROLS])
def test_the_full_radius_changes_nothing(kind):
    w = kernels(2, 1, 5, 5)
    np.testing.assert_array_equal(cut(w, 2, kind, rng()), w)


@pytest.mark.parametrize("family", SMALL_MODELS)
def test_merged_models_of_all_families_have_kernels_to_cut(family):
    model = merge(randomize(timm.create_model(SMALL_MODELS[family], num_classes=3)))
    found = large_kernels(model, 5)
    assert len(found) >= 3
    before = {n: m.weight.clone() for n, m in found.items()}
    share = cut_kernels(found, 1, "outer")
    assert 0 < share < 1
    for name, conv in found.items():
        outer = torch.from_numpy(distances(conv.kernel_size) > 1)
        assert (conv.weight[..., outer] == 0).all()
        assert (conv.weight[..., ~outer] == before[name][..., ~outer]).all()


def test_networks_without_large_kernels_are_told_what_was_looked_for():
    net = nn.Sequential(nn.Conv2d(3, 8, 7), nn.Conv2d(8, 8, 3, groups=8))
    with pytest.raises(InputError, match=r"no depthwise .* `min_kernel` 5 .*kernels: 3x3\)"):
        large_kernels(net, 5)
    with pytest.raises(InputError, match="its depthwise kernels: none"):
        large_kernels(net[0], 5)


def test_a_shared_weight_is_cut_once():
    a, b = (nn.Conv2d(4, 4, 7, groups=4) for _ in range(2))
    b.weight = a.weight
    assert list(large_kernels(nn.Sequential(a, b), 5)) == ["0"]
