"""Whole networks at inference, batch 1: PyTorch's ways against our inference form.

    pytest benchmarks/bench_models.py -k "replknet and 384"
    pytest benchmarks/bench_models.py --dtype bfloat16      # times the forms in both types
    python benchmarks/table.py

The features of every form are compared with the default form's first; the weights are random.
"""

import pytest
from cases import MODEL_SIZES, MODELS

from cba_fast.study.model_contest import OURS, ModelContest, create


@pytest.mark.parametrize("input_size", MODEL_SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_model(name, input_size, benchmark, play, record, pytestconfig):
    option = pytestconfig.getoption
    half = option("dtype") == "bfloat16"
    contender = ModelContest(
        create(name), input_size, bfloat16=half, seconds=10 * option("seconds")
    )
    wrong = contender.wrong()
    assert not wrong, f"relative errors {wrong}"
    benchmark.group = f"{name} {input_size}"
    play(contender.contest, OURS)
    values = contender.record(name) | {"dtype": option("dtype")}
    benchmark.extra_info.update(values["timings"])
    record("models", values)
