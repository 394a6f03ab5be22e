"""Shape descriptors of ERF maps whose values are known in closed form."""

import math

import numpy as np
import pytest

from cba_fast import erf


def grid(size: int = 257, center: tuple[float, float] | None = None):
    cy, cx = center or (size // 2, size // 2)
    y, x = np.meshgrid(np.arange(size) - cy, np.arange(size) - cx, indexing="ij")
    return y.astype(float), x.astype(float)


def gaussian(sigma_major, sigma_minor, degrees=0.0, **where):
    y, x = grid(**where)
    t = math.radians(degrees)
    along, across = x * math.cos(t) - y * math.sin(t), x * math.sin(t) + y * math.cos(t)
    return np.exp(-0.5 * ((along / sigma_major) ** 2 + (across / sigma_minor) ** 2))


def disk(radius=100.0, **where):
    y, x = grid(**where)
    return (np.hypot(y, x) <= radius).astype(float)


def square(side=181, size=257):
    m = np.zeros((size, size))
    low = size // 2 - side // 2
    m[low : low + side, low : low + side] = 1
    return m


def cross(size=257):
    m = np.zeros((size, size))
    m[size // 2], m[:, size // 2] = 1, 1
    return m


def diagonal_cross(size=257):
    return np.maximum(np.eye(size), np.eye(size)[::-1])


@pytest.mark.parametrize("degrees", [0, 30, -60, 90])
def test_a_gaussian_has_its_own_sigmas_and_direction(degrees):
    s = erf.erf_shape(gaussian(30, 12, degrees))
    assert s.sigma_major == pytest.approx(30, rel=2e-3)  # the map ends at 4.3 sigma
    assert s.sigma_minor == pytest.approx(12, rel=2e-3)
    assert s.axis_ratio == pytest.approx(0.4, rel=2e-3)
    assert math.cos(math.radians(2 * (s.angle - degrees))) == pytest.approx(1, abs=1e-6)
    # With q = 12 / 30: E cos 2t = (1 - q) / (1 + q) about the major axis.
    assert s.twofold == pytest.approx(3 / 7 * math.cos(math.radians(2 * degrees)), abs=5e-3)


def test_a_round_gaussian_is_round():
    s = erf.erf_shape(gaussian(25, 25))
    assert (s.center_y, s.center_x) == pytest.approx((128, 128))
    assert s.axis_ratio == pytest.approx(1)
    assert s.fourfold == pytest.approx(0, abs=1e-3)  # the pixels' grid is not round
    assert s.roundness == pytest.approx(1, abs=1e-3)
    inside = math.erf(0.25 / math.sqrt(2))
    assert s.cross_share == pytest.approx(1 - (1 - inside) ** 2, rel=2e-3)
    assert s.participation == pytest.approx(4 * math.pi * 25**2 / 257**2, rel=1e-4)


def test_a_uniform_disk():
    s = erf.erf_shape(disk())
    assert s.sigma_major == pytest.approx(50, rel=1e-3)
    b = 1 / 8  # 0.25 * sigma in units of the radius
    strip = 2 * (b * math.sqrt(1 - b * b) + math.asin(b))
    assert s.cross_share == pytest.approx((2 * strip - 4 * b * b) / math.pi, rel=3e-3)
    assert s.fourfold == pytest.approx(0, abs=2e-3)
    assert s.roundness > 0.997
    assert s.participation == pytest.approx(disk().mean())


def test_a_uniform_square():
    s = erf.erf_shape(square())
    assert s.sigma_major == pytest.approx(math.sqrt((181**2 - 1) / 12))
    assert s.twofold == pytest.approx(0, abs=1e-12)
    assert s.fourfold == pytest.approx(3 - math.pi, abs=2e-3)


def test_a_field_that_fills_the_map_has_no_direction():
    s = erf.erf_shape(np.ones((129, 129)))
    assert s.fourfold == pytest.approx(0, abs=5e-3)
    assert s.roundness > 0.99
    assert s.participation == pytest.approx(1)


def test_a_cross_lies_on_the_central_cross():
    s = erf.erf_shape(cross())
    assert s.cross_share == pytest.approx(1)
    assert s.fourfold == pytest.approx(1)
    assert s.roundness == pytest.approx(0, abs=1e-12)
    assert s.axis_ratio == pytest.approx(1)


def test_a_diagonal_cross_has_the_other_sign():
    s = erf.erf_shape(diagonal_cross())
    assert s.fourfold == pytest.approx(-1)
    assert s.roundness == pytest.approx(0, abs=1e-12)
    assert s.cross_share < 0.3


@pytest.mark.parametrize(("axis", "twofold"), [(0, 1), (1, -1)])
def test_a_bar_is_told_from_a_cross(axis, twofold):
    bar = np.zeros((65, 65))
    bar[(32, slice(None)) if axis == 0 else (slice(None), 32)] = 1
    s = erf.erf_shape(bar)
    assert s.twofold == pytest.approx(twofold)
    assert s.axis_ratio == pytest.approx(0, abs=1e-7)
    assert abs(s.angle) == pytest.approx(90 * axis)


def test_the_centre_stays_on_a_cross_that_the_border_cuts():
    m = np.zeros((128, 128))
    m[90:94], m[:, 20:24] = 1, 1
    s = erf.erf_shape(m)
    assert 89.5 < s.center_y < 93.5
    assert 19.5 < s.center_x < 23.5  # the centroid's column is 42
    assert s.cross_share > 0.99


def test_the_centre_between_two_halves_is_in_the_middle():
    m = np.zeros((20, 20))
    m[3, 4] = m[11, 12] = 2
    assert erf.erf_shape(m).center_y == 7
    assert erf.erf_shape(m).center_x == 8


def test_a_single_pixel_has_no_extent_and_no_direction():
    m = np.zeros((9, 9))
    m[4, 5] = 3
    s = erf.erf_shape(m)
    assert (s.sigma_major, s.axis_ratio, s.twofold, s.fourfold, s.roundness) == (0, 1, 0, 0, 1)
    assert s.participation == pytest.approx(1 / 81)


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e200])
def test_nothing_depends_on_the_scale(scale):
    m = gaussian(20, 10, 20) + 0.1 * cross()
    expected, found = erf.erf_shape(m).as_dict(), erf.erf_shape(scale * m).as_dict()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert erf.shape_distance(scale * m, m) == pytest.approx(0, abs=1e-9)
    assert erf.scale_free_area_ratio(scale * m) == erf.scale_free_area_ratio(m)


def test_the_published_ratios_do_depend_on_the_scale():
    m = gaussian(20, 20)
    assert erf.area_ratio(m, (0.5,)) != erf.area_ratio(1e6 * m, (0.5,))
    small = erf.area_ratio(1e-9 * m, (0.5,))  # there the logarithm is linear
    assert small == erf.scale_free_area_ratio(m, (0.5,))


def test_scale_free_ratio_of_a_gaussian():
    (half,) = erf.scale_free_area_ratio(gaussian(20, 20), (0.5,))
    # A centred square of half side a holds erf(a / (sigma sqrt 2))^2.
    assert math.erf((half.side / 2) / (20 * math.sqrt(2))) ** 2 > 0.5
    assert math.erf((half.side / 2 - 1) / (20 * math.sqrt(2))) ** 2 < 0.5
    assert half.ratio == half.side**2 / 257**2


def test_the_distance_orders_shapes_and_sizes():
    cross_like = gaussian(60, 3) + gaussian(3, 60)
    between = 0.5 * cross_like / cross_like.sum() + 0.5 * gaussian(42, 42) / gaussian(42, 42).sum()
    assert erf.shape_distance(cross_like, cross_like) == 0
    near, far = (erf.shape_distance(cross_like, m) for m in (between, gaussian(42, 42)))
    assert 0 < near < far
    assert erf.shape_distance(gaussian(40, 40), gaussian(20, 20)) > 0.1


def test_the_distance_of_disks_is_that_of_their_radii():
    # Radii are spread as R sqrt(u): mean 2R/3, in units of half the side; the rest is equal but
    # for the distance from the cross, which scales likewise (mean of min(|x|, |y|) over a disk:
    # R * 4 (2 - sqrt 2) / (3 pi)).
    a, b = disk(100.0), disk(50.0)
    expected = (50 / 128.5) * (2 / 3 + 4 * (2 - math.sqrt(2)) / (3 * math.pi))
    assert erf.shape_distance(a, b) == pytest.approx(expected, abs=0.01)


def test_maps_of_other_sizes_are_compared_in_units_of_their_side():
    fine = gaussian(40, 40, size=256, center=(127.5, 127.5))
    coarse = fine.reshape(64, 4, 64, 4).sum((1, 3))
    assert erf.shape_distance(fine, coarse) < 0.05


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), -np.ones((4, 4)), np.ones(4)])
def test_arrays_that_are_no_map_are_refused(bad):
    for function in (erf.erf_shape, erf.scale_free_area_ratio):
        with pytest.raises(ValueError):
            function(bad)
    with pytest.raises(ValueError):
        erf.shape_distance(np.ones((4, 4)), bad)
