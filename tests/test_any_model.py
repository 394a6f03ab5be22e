"""Every method and measurement runs on networks of every kind, but for declared exceptions."""

import any_model_sweep as sweep
import pytest


@pytest.mark.parametrize("name", sweep.SMALL)
def test_everything_runs_but_for_the_declared_exceptions(name):
    assert not sweep.differences(name, sweep.failures(name))


def test_the_documentation_prints_the_exceptions():
    assert sweep.table() in sweep.PAGE.read_text(), "run python tests/any_model_sweep.py"


def test_failures_and_exceptions_that_are_not_declared_are_told():
    declared = {"cam": "LacksError: no linear head over the mean of the tokens", "pc1": "other"}
    assert sweep.differences("test_vit", declared) == ["test_vit: pc1 fails: other"]
    told = sweep.differences("test_vit", {"erf_map": "ValueError: x"})
    assert told[0] == "test_vit: erf_map fails: ValueError: x"
    assert sorted(told[1:]) == [
        f"test_vit: {o} works, an exception is declared" for o in ("cam", "pc1")
    ]
