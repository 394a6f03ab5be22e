"""How the size of a map is said."""

import numpy as np
import pytest

from cba_fast.errors import InputError
from cba_fast.shapes import map_shape, point_of


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        *((7, (7, 7)), ((3, 5), (3, 5)), ([3, 5], (3, 5)), (np.int64(4), (4, 4))),
        *(("7", (7, 7)), ("3x5", (3, 5)), ("input", (96, 128)), (None, (96, 128))),
    ],
)
def test_what_a_size_means(size, shape):
    assert map_shape(size, (96, 128)) == shape


@pytest.mark.parametrize(
    "size", [0, -1, 8193, 3.5, True, (3,), (3, 4, 5), (3, 0), (3, 4.0), "3x", "x", "3X4", "1x9000"]
)
def test_other_sizes_are_refused_by_their_value(size):
    with pytest.raises(InputError, match="`eval_size` must be .* got ") as refused:
        map_shape(size, name="eval_size")
    assert repr(size) in str(refused.value)


@pytest.mark.parametrize("size", [None, "input"])
def test_without_an_input_its_size_means_nothing(size):
    with pytest.raises(InputError, match="must be a side"):
        map_shape(size)


@pytest.mark.parametrize(
    ("text", "point"),
    [
        *((None, None), ("3,5", (3, 5)), ("0,1", (0, 1)), ("0.25,0.5", (0.25, 0.5))),
        *((".5,1.", (0.5, 1.0)), ("0.0,1", (0.0, 1.0))),
    ],
)
def test_what_a_point_means(text, point):
    found = point_of(text)
    assert found == point
    assert found is None or [type(v) for v in found] == [type(v) for v in point]


@pytest.mark.parametrize("text", ["3", "3,5,7", "-1,0", "1.5,0.5", "0.5,2", "a,b", "nan,0.1"])
def test_other_points_are_refused_by_their_value(text):
    with pytest.raises(InputError, match="must be a row and a column, .* got ") as refused:
        point_of(text)
    assert repr(text) in str(refused.value)
