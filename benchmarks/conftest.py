"""The options of the benchmarks, and fixtures that time a contest and write its record."""

from pathlib import Path

import pytest

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser):
    group = parser.getgroup("cba_fast")
    group.addoption("--seconds", type=float, default=0.5, help="Time for each candidate of a case.")
    group.addoption("--algorithm", default="auto", help="Algorithm of our op: auto, fft or direct.")
    group.addoption("--dtype", default="float32", help="float32 or bfloat16.")
    group.addoption("--threads", type=int, help="Number of threads; default: PyTorch's.")
    group.addoption(
        "--results", type=Path, help="File of records; default: one in benchmarks/results/."
    )


@pytest.fixture(scope="session")
def record(pytestconfig):
    """Return a function that writes the record of a benchmark."""
    import torch
    from peak import fma_peak_gflops

    from cba_fast.bench.records import add_record, device_slug, machine

    if pytestconfig.getoption("threads"):
        torch.set_num_threads(pytestconfig.getoption("threads"))
    peaks: dict[int, float | None] = {}  # by the number of threads, which benchmarks may change

    def add(bench: str, values: dict) -> None:
        path = pytestconfig.getoption("results") or RESULTS / f"{bench}_{device_slug()}.jsonl"
        threads = torch.get_num_threads()
        if threads not in peaks:
            peaks[threads] = fma_peak_gflops(threads)
        peak = peaks[threads]
        where = machine() | {"fma_peak_gflops": peak and round(peak, 1)}
        add_record(path, {**values, "machine": where})

    return add


@pytest.fixture
def play(benchmark):
    """Return a function that runs a contest, with one function timed by pytest-benchmark."""

    def run(contest, name: str) -> None:
        rounds = contest.rounds(name)
        played = iter(range(rounds))

        def others():
            contest.round(next(played) / rounds, without=name)
            contest.warm(name)

        benchmark.pedantic(contest.functions[name], setup=others, rounds=rounds, iterations=1)
        contest.samples[name] = list(benchmark.stats.stats.data)

    return run
