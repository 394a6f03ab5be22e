"""What `evaluate` and `generate-heatmap` tell about ``--compile``: only what was measured here."""

import pytest

from cba_fast.bench import advice
from cba_fast.bench.records import machine
from cba_fast.runs.settings import DataConfig, ModelConfig, RunConfig

GIVEN = (ModelConfig(name="n"), DataConfig("x", input_size="32x64"), RunConfig(batch_size=2))


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Return a function that keeps a record of medians in milliseconds."""
    monkeypatch.setenv("CBA_CACHE_DIR", str(tmp_path))

    def keep(ours, compiled, half=(10.0, 10.0), case="n 2x3x32x64", where=None) -> None:
        names = ("ours", "ours_compiled", "ours_bf16", "ours_compiled_bf16")
        timings = {n: {"median_ms": ms} for n, ms in zip(names, (ours, compiled, *half))}
        where = machine() if where is None else where
        record = {"bench": "models", "case": case, "timings": timings, "machine": where}
        advice.keep(record)

    return keep


def test_nothing_is_told_that_was_not_measured_here(measured):
    assert advice.advice(*GIVEN) is None
    measured(20.0, 10.0, case="n 1x3x32x64")
    measured(20.0, 10.0, case="m 2x3x32x64")
    assert advice.advice(*GIVEN) is None
    measured(20.0, 10.0, where=machine() | {"threads": 99})
    assert advice.advice(*GIVEN) is None
    measured(10.0, 10.2)  # too close
    assert advice.advice(*GIVEN) is None
    advice.timed_here().write_text("cut off")
    assert advice.advice(*GIVEN) is None


def test_the_faster_way_is_told_for_the_precision(measured):
    measured(20.0, 10.5, half=(5.0, 6.0))
    told = advice.advice(*GIVEN)
    assert "takes 20 ms, and 10.5 ms with `compile`: with it is faster" in told
    half = RunConfig(batch_size=2, precision="bf16")
    told = advice.advice(*GIVEN[:2], half)
    assert "takes 5 ms, and 6 ms with `compile`: without it is faster" in told
