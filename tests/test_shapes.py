"""How the size of a map is said."""

import numpy as np
import pytest

from cba_fast.errors import InputError
from cba_fast.shapes import map_shape, size_word


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
    ("size", "word"), [(7, 7), ("7x7", 7), ((3, 5), "3x5"), ("3x5", "3x5"), (np.int64(4), 4)]
)
def test_how_a_size_is_recorded(size, word):
    assert size_word(size) == word
    with pytest.raises(InputError, match="`input_size` must be"):
        size_word((3, 0), "input_size")
