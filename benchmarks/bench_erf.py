"""The ERF ops against the plain way in PyTorch, and against reading memory.

    pytest benchmarks/bench_erf.py

`erf_size` is compared with the mean of absolute values, a sort, a float64 cumsum and searchsorted,
image by image, and with the op's reference, which sorts in NumPy. `erf_accumulate` is compared with
a loop that only reads the same array of 113 MB on as many threads (read_bandwidth.c). Results are
checked first. Each case has its own number of threads, whatever ``--threads`` says. The records are
written to ``benchmarks/results/``.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cba_fast import ops
from cba_fast.bench.contest import Contest
from cba_fast.kernels import native

OURS, PLAIN, REFERENCE, READ = "ours", "torch, sorted", "reference", "reading alone"
SIZE = 384  # pixels of a side in the study
FLAGS = ["-O3", "-march=native", "-shared", "-fPIC"]
FIVE = [0.1, 0.2, 0.5, 0.7, 0.9]


def gradients(kind: str, images: int) -> torch.Tensor:
    """Return (N, 3, 384, 384) float32 with a center and tails like those of input gradients.

    They are signed noise of log-normal strength that decays with the distance from the center by a
    factor of e: in 40 pixels for "wide", in 10 for "steep", where a third of the pixels are below
    2^-30 of the total. "flat" has equal values.
    """
    generator = torch.Generator().manual_seed(0)
    if kind == "flat":
        return torch.full((images, 3, SIZE, SIZE), 0.1)
    noise = torch.randn(images, 3, SIZE, SIZE, generator=generator)
    strength = 0.7 * torch.randn(images, 1, SIZE, SIZE, generator=generator)
    line = torch.arange(SIZE) - SIZE / 2
    distance = torch.hypot(line[:, None], line[None, :])
    return noise * torch.exp(strength - distance / {"wide": 40, "steep": 10}[kind])


def sorted_sizes(grad: torch.Tensor, shares: list[float]) -> torch.Tensor:
    """Return the sizes by plain PyTorch."""
    sizes = []
    for image in grad:
        g = image.abs().mean(0).flatten()
        sums = g.sort(descending=True).values.double().cumsum(0)
        sizes.append(1 + torch.searchsorted(sums, torch.tensor(shares).double() * sums[-1]))
    return torch.stack(sizes)


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def file(record, threads):
    """Return a function that records a contest with the number of threads of its case."""

    def add(contest: Contest, op: str, case: str, layout: str, **values) -> None:
        timings = {name: t.in_ms() for name, t in contest.timings().items()}
        labels = {"bench": "erf", "case": f"{case}, {threads} threads", "direction": op}
        labels |= {"dtype": "float32", "algorithm": layout, "threads": threads}
        record("erf", {**labels, **values, "timings": timings})

    return add


def over_ours(contest: Contest) -> dict[str, float]:
    """Return the median of each rival as a multiple of ours."""
    medians = {name: t.median for name, t in contest.timings().items()}
    return {n: round(m / medians[OURS], 3) for n, m in medians.items() if n != OURS}


@pytest.mark.parametrize("threads", [1], indirect=True)
@pytest.mark.parametrize(
    ("kind", "shares", "layout"),
    [
        ("wide", [0.2], "contiguous"),
        ("wide", [0.2], "channels_last"),
        ("wide", [0.2], "transposed"),
        ("wide", FIVE, "contiguous"),
        ("steep", [0.2], "contiguous"),
        ("steep", [1.0], "contiguous"),  # needs the small values in order
        ("flat", [0.2], "contiguous"),
    ],
)
def test_size_of_one_image(kind, shares, layout, threads, play, file, pytestconfig):
    grad = in_layout(gradients(kind, 1), layout)
    contest = size_contest(grad, shares, pytestconfig.getoption("seconds"))
    play(contest, OURS)
    file(contest, "erf_size", f"1 x {kind}, p = {shares}", layout, speedup=over_ours(contest))


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_sizes_of_a_batch(threads, play, file, pytestconfig):
    contest = size_contest(gradients("wide", 16), [0.2], 4 * pytestconfig.getoption("seconds"))
    play(contest, OURS)
    speedup = over_ours(contest)
    file(contest, "erf_size", "16 x wide, p = [0.2]", "contiguous", speedup=speedup)


def in_layout(grad: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return grad.to(memory_format=torch.channels_last)
    return grad.transpose(2, 3) if layout == "transposed" else grad


def size_contest(grad: torch.Tensor, shares: list[float], seconds: float) -> Contest:
    functions = {
        OURS: lambda: ops.erf_size(grad, shares),
        PLAIN: lambda: sorted_sizes(grad, shares),
        REFERENCE: lambda: ops.erf_size(grad, shares, backend="reference"),
    }
    contest = Contest(functions, seconds)
    # The plain way is not compared, because PyTorch's cumulative sum need not be sequential.
    assert torch.equal(contest.results[OURS], contest.results[REFERENCE])
    return contest


@pytest.fixture(scope="module")
def read_all(tmp_path_factory):
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler for the reading loop")
    library = tmp_path_factory.mktemp("read") / "read_bandwidth.so"
    source = Path(__file__).with_name("read_bandwidth.c")
    subprocess.run([*compiler.split(), *FLAGS, str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).read_all
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_long], ctypes.c_ulong
    return function


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", ["relu", "square"])
def test_accumulate(mode, layout, threads, read_all, play, file, pytestconfig):
    grad = in_layout(gradients("wide", 1).expand(64, -1, -1, -1).contiguous(), layout)
    total = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    expected = ops.erf_accumulate(grad, total.clone(), mode=mode, backend="reference")
    assert torch.equal(ops.erf_accumulate(grad, total.clone(), mode=mode), expected)
    size = grad.numel() * grad.element_size()
    parts = [(grad.data_ptr() + i * (size // threads), size // threads) for i in range(threads)]

    def read(begin: int, end: int) -> None:
        for part in parts[begin:end]:
            read_all(*part)

    functions = {
        OURS: lambda: ops.erf_accumulate(grad, total, mode=mode),
        # It runs on the same threads; others would have to wait until these sleep.
        READ: lambda: native.load().parallel_for(threads, threads, read),
    }
    contest = Contest(functions, 4 * pytestconfig.getoption("seconds"))
    play(contest, OURS)
    gb_per_s = {n: round(size / t.median / 1e9, 2) for n, t in contest.timings().items()}
    share = round(gb_per_s[OURS] / gb_per_s[READ], 3)
    file(contest, "erf_accumulate", f"64 x {mode}", layout, gb_per_s=gb_per_s, share=share)
