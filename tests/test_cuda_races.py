"""Races in the CUDA kernels: what nothing orders is found without a GPU (cuda_emulator/races.h)."""

import cuda_emulator
import pytest
import torch
from cuda_emulator import races

from cba_fast.kernels import cuda_core, erf_cuda, quantize_cuda
from cba_fast.kernels import dwconv_cuda_fma as fma
from cba_fast.kernels import dwconv_cuda_hankel as hankel
from cba_fast.kernels.dwconv_cuda_hankel import Tile, WeightTile

NCHW = torch.contiguous_format
PAIRS = (
    *("barrier", "ring", "warp", "other warp", "copy read", "copy and barrier", "source of a copy"),
    *("target of a copy", "matrix", "blocks", "blocks that read", "bytes", "atomic", "done"),
    *("fence before", "fence after"),
)


@pytest.fixture(scope="module")
def module():
    if (reason := races.unavailable()) is not None:
        pytest.skip(reason)
    return cuda_emulator.load(races=True)


@pytest.fixture
def kernels(module, monkeypatch):
    """Let the launchers run the instrumented kernels."""
    monkeypatch.setattr(cuda_core, "load", lambda: module)
    races.found(module)
    races.ordering_lines(module)
    yield module
    module.discount([])


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def quantize():
    quantize_cuda.quantize(torch.rand(3, 50, 41))


def fma_forward():
    for shape, size in [((2, 2, 9, 10), (3, 5)), ((1, 1, 70, 140), (9, 7)), ((9, 1, 6, 5), (5, 3))]:
        fma.forward(random(*shape), random(shape[1], 1, *size), random(shape[1]), NCHW)


def fma_weight():
    for shape, size in [((3, 2, 9, 10), (3, 5)), ((2, 1, 70, 140), (9, 7)), ((9, 1, 6, 5), (5, 3))]:
        fma.grad_weight(random(*shape), random(*shape), size)


def hankel_forward():
    for shape, size, tile in [
        ((5, 1, 40, 9), (5, 3), Tile(1, 2, 8)),
        ((1, 1, 40, 26), (9, 17), Tile(1, 12, 1, 2)),
    ]:
        x, weight = random(*shape, dtype=torch.bfloat16), random(1, 1, *size, dtype=torch.bfloat16)
        hankel.forward(x, weight, None, NCHW, using=tile)


def hankel_weight():
    for shape, size, tile in [
        ((9, 1, 12, 20), (5, 3), WeightTile(1, 1, 1, 2)),
        ((2, 1, 20, 33), (7, 11), WeightTile(1, 2, 2, 1, 2)),
    ]:
        grad, x = random(*shape, dtype=torch.bfloat16), random(*shape, dtype=torch.bfloat16)
        hankel.grad_weight(grad, x, size, using=tile)


def erf_size():
    erf_cuda.erf_size(random(1, 2, 37, 30, dtype=torch.float64), [0.3])  # two blocks for the means


def erf_accumulate():
    erf_cuda.erf_accumulate(random(75, 2, 7, 9), torch.zeros(7, 9, dtype=torch.float64), "abs")


WORK = (quantize, fma_forward, fma_weight, hankel_forward, hankel_weight, erf_size, erf_accumulate)
each_kernel = pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)


def test_no_pair_is_left_out(module):
    assert tuple(module.selftest_races()) == PAIRS


@pytest.mark.parametrize("name", PAIRS)
def test_known_races_are_found_and_nothing_else(module, name):
    data = torch.zeros(256, dtype=torch.int32)
    module.selftest_race(name, data.data_ptr(), True)
    assert not races.found(module)
    module.selftest_race(name, data.zero_().data_ptr(), False)
    found = races.found(module)
    assert found
    lines = {line for race in found for line in race.lines}
    sources = [(cuda_emulator.ROOT / line.file).read_text().splitlines() for line in lines]
    assert any("// races" in text[line.number - 1] for text, line in zip(sources, lines))


@each_kernel
def test_kernels_have_no_races(kernels, work):
    before = sum(kernels.checked_words())
    work()
    assert sum(kernels.checked_words()) > before
    assert not (found := races.found(kernels)), "\n".join(map(str, found))


@each_kernel
def test_every_barrier_orders_something(kernels, work):
    work()
    races.found(kernels)
    without = {}
    for line, sites in races.ordering_lines(kernels).items():
        kernels.discount(sites)
        work()
        without[line] = races.found(kernels)
    assert not [str(line) for line, found in without.items() if not found]
