"""Benchmarks a network or its depthwise layers on this machine, for ``cba-fast bench``."""

from collections.abc import Iterator

from torch import nn

from ..errors import InputError
from .dwconv_contest import OURS, OURS_CL, Case, DwconvContest
from .model_contest import ModelContest, depthwise_cases, inference
from .records import machine


def layer_cases(name: str, model: nn.Module, input_size: int, batch: int) -> list[Case]:
    """Return the distinct depthwise convolutions of a model that our op covers, in its order.

    Raises:
        InputError: the model, which messages call `name`, has none or does not take the input size.
    """
    try:
        cases = list(depthwise_cases(model, input_size, batch))
    except (RuntimeError, ValueError, AssertionError) as e:
        raise InputError(f"{name} does not take {input_size}x{input_size} images: {e}") from e
    if not cases:
        raise InputError(f"{name} has no depthwise convolution of stride 1 with 'same' padding")
    return cases


def bench_layers(
    cases: list[Case], directions: list[str], dtype: str, algorithm: str, seconds: float
) -> Iterator[dict]:
    """Yield a record for each direction and case (see `DwconvContest`).

    Raises:
        InputError: the op cannot run with these settings, or its result is wrong.
    """
    where = machine()
    for direction in directions:
        for case in cases:
            try:
                contest = DwconvContest(case, direction, dtype, algorithm, seconds)
            except ValueError as e:
                raise InputError(f"{case}: {e}") from e
            wrong = {n: e for n, e in contest.wrong().items() if n in (OURS, OURS_CL)}
            if wrong:
                raise InputError(f"{case} {direction}: wrong results, relative errors {wrong}")
            contest.contest.run()
            yield contest.record() | {"machine": where}


def bench_model(
    name: str,
    model: nn.Module,
    input_size: int,
    batch: int,
    dtype: str,
    seconds: float,
    compiled: bool,
) -> dict:
    """Return the record of a whole network at inference (see `ModelContest`), under this name.

    Raises:
        InputError: one of the model's forms computes other features.
    """
    functions = inference(model, input_size, batch, dtype == "bfloat16", compiled)
    contest = ModelContest(functions, seconds)
    if contest.wrong():
        raise InputError(f"{name}: forms differ, relative errors {contest.wrong()}")
    contest.contest.run()
    return model_record(contest, name, input_size, batch, dtype) | {"machine": machine()}


def model_record(
    contest: ModelContest,
    name: str,
    input_size: int,
    batch: int,
    dtype: str,
    direction: str = "inference",
) -> dict:
    """Return the record of a finished contest, without the machine."""
    return {
        "bench": "models",
        "case": f"{name} {batch}x3x{input_size}x{input_size}",
        "direction": direction,
        "dtype": dtype,
        **contest.record(),
    }
