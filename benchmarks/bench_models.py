"""Whole networks, PyTorch's ways against ours: inference at batch 1, and a training step.

    pytest benchmarks/bench_models.py -k "replknet and 384"
    pytest benchmarks/bench_models.py -k inference --dtype bfloat16   # the forms in both types
    python benchmarks/table.py

Results are checked first. Features are compared with those of PyTorch's default form; in a training
step the gradients of all kernels and what each of our layers computes are compared with float64.
The weights are random.
"""

import pytest
from cases import MODEL_SIZES, MODELS, TRAINING

from cba_fast.bench.dwconv_contest import WRONG
from cba_fast.bench.layers_and_models import model_record
from cba_fast.bench.model_contest import (
    OURS,
    ModelContest,
    create,
    exact_gradients,
    inference,
    layer_errors,
    training,
)

PER_MODEL = 10  # a model has so many times the seconds of a layer


@pytest.mark.parametrize("input_size", MODEL_SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_inference(name, input_size, benchmark, play, record, pytestconfig):
    dtype = pytestconfig.getoption("dtype")
    functions = inference(create(name), input_size, bfloat16=dtype == "bfloat16")
    contest = ModelContest(functions, PER_MODEL * pytestconfig.getoption("seconds"))
    assert not contest.wrong()
    benchmark.group = f"{name} {input_size}"
    play(contest.contest, OURS)
    record("models", model_record(contest, name, input_size, 1, dtype))


@pytest.mark.parametrize(("name", "input_size", "batch"), TRAINING)
def test_training_step(name, input_size, batch, benchmark, play, record, pytestconfig):
    model = create(name)
    errors = layer_errors(model, input_size, batch)
    assert all(e <= WRONG["float32"] for e in errors.values()), errors
    exact = exact_gradients(model, input_size, batch)
    functions = training(model, input_size, batch, compiled=True)
    contest = ModelContest(functions, PER_MODEL * pytestconfig.getoption("seconds"), exact)
    assert OURS not in contest.wrong(), contest.wrong()  # a rival's error is recorded
    benchmark.group = f"{name} {input_size} training"
    play(contest.contest, OURS)
    values = model_record(contest, name, input_size, batch, "float32", "training step")
    values["layer_error"] = float(f"{max(errors.values()):.3g}")
    record("models", values)
