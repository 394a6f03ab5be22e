"""What both bootstraps share: parts of the resamples, refused arguments, and the interval."""

import numpy as np
import pytest

from cba_fast.analysis import correlations
from cba_fast.errors import InputError
from cba_fast.wsol import bootstrap
from cba_fast.wsol.scoring.resampling import MOST, check_resampling, parts, percentile_interval


def test_parts_add_up_and_are_never_empty():
    assert list(parts(7, 3)) == [3, 3, 1]
    assert list(parts(2, 0)) == [1, 1]  # not even one fits: one at a time all the same
    assert list(parts(4, 100)) == [4]


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_is_that_of_the_defined_resamples(confidence):
    drawn = np.random.default_rng(0).normal(size=100)
    tail = (1 - confidence) / 2
    expected = tuple(np.quantile(drawn, [tail, 1 - tail]))
    assert percentile_interval(drawn, confidence) == expected
    undefined = np.insert(drawn, 50, [np.nan, np.inf, -np.inf])
    assert percentile_interval(undefined, confidence) == expected


def test_no_interval_of_what_is_mostly_undefined():
    drawn = np.arange(100.0)
    least = round(100 * MOST)
    drawn[least:] = np.nan
    assert percentile_interval(drawn, 0.5) is not None
    drawn[least - 1] = np.nan
    assert percentile_interval(drawn, 0.5) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1, 0.95), "num_resamples must be"), ((2, 1.0), "confidence must"), ((2, 0.0), "confidence")],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        check_resampling(*arguments)


def test_scores_and_correlations_use_it():
    for module in (bootstrap.__globals__, vars(correlations)):
        assert module["percentile_interval"] is percentile_interval
        assert module["check_resampling"] is check_resampling
