"""Races in the CUDA kernels: what nothing orders is found without a GPU (cuda_emulator/races.h)."""

import re

import cuda_emulator
import pytest
import torch
from cuda_emulator import races

from cba_fast.kernels import cuda_core
from cba_fast.kernels.dwconv_gpu import cuda_fma as fma
from cba_fast.kernels.dwconv_gpu import cuda_hankel as hankel
from cba_fast.kernels.dwconv_gpu import cuda_strip as strip
from cba_fast.kernels.dwconv_gpu.cuda_hankel import Tile, WeightTile
from cba_fast.kernels.dwconv_gpu.cuda_strip import Tile as StripTile
from cba_fast.kernels.gpu import box_sweep_cuda, erf_cuda, quantize_cuda

NCHW = torch.contiguous_format
ORDERING = re.compile(r"\b(__syncthreads\w*|__syncwarp|__threadfence\w*|cp_async_wait<.*>)\(")
# Reason enough: what a vote tells; lanes that an instruction needs together; the order of atomics.
NOT_FOR_MEMORY = re.compile(
    r"__syncthreads_\w+\(|__syncwarp\(\);  // ldmatrix needs all lanes at once"
    r"|__syncthreads\(\);  // orders atomics, which never race"
)
PAIRS = (
    *("barrier", "ring", "warp", "other warp", "copy read", "copy barrier", "copy source"),
    *("copy target", "matrix", "blocks", "blocks read", "bytes", "atomic", "done"),
    *("release", "acquire"),
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
    module.set_order(0)
    races.found(module)
    races.ordering_lines(module)
    yield module
    module.discount([])


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def quantize():
    quantize_cuda.quantize(random(3, 50, 41).sigmoid())


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


def strip_forward():
    for shape, size, tile in [
        ((5, 1, 20, 30), (5, 13), StripTile(4, 1, 20, 2, 1)),  # images side by side, in turns
        ((2, 1, 40, 20), (13, 5), StripTile(4, 2, 20, 1, 1)),  # standing
        ((1, 1, 40, 70), (7, 21), StripTile(4, 1, 16, 1, 1)),  # cut in both directions
    ]:
        x, weight = random(*shape, dtype=torch.bfloat16), random(1, 1, *size, dtype=torch.bfloat16)
        strip.forward(x, weight, None, NCHW, using=tile)


def erf_size():
    erf_cuda.erf_size(random(1, 2, 37, 30, dtype=torch.float64), [0.3])  # two blocks for the means


def erf_accumulate():
    erf_cuda.erf_accumulate(random(75, 2, 7, 9), torch.zeros(7, 9, dtype=torch.float64), "abs")


def box_sweep():
    """Sweep a level with a hole that reaches two words, holes in holes, and more than 32 rows."""
    maps = torch.zeros(1, 40, 45, dtype=torch.uint8)
    for inset in range(0, 20, 2):
        maps[:, inset : 40 - inset, inset : 45 - inset] = 2 - inset % 4
    maps[:, 3::7, ::5] = 1
    thresholds = torch.tensor([0.0, 0.9], dtype=torch.float64)
    truth, offsets = torch.tensor([[1, 2, 30, 35]]), torch.tensor([0, 1])
    for contours in ("largest", "all"):
        box_sweep_cuda.best_box_iou(maps, truth, offsets, thresholds, contours)


WORK = (
    quantize,
    box_sweep,
    fma_forward,
    fma_weight,
    hankel_forward,
    hankel_weight,
    strip_forward,
    erf_size,
    erf_accumulate,
)
each_kernel = pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)


def test_without_instrumented_kernels_there_is_no_answer():
    if cuda_emulator.compiler() is None:
        pytest.skip("no C++ compiler to build the emulated kernels with")
    with pytest.raises(RuntimeError, match="not instrumented"):
        races.found(cuda_emulator.load())


def test_no_pair_is_left_out(module):
    assert tuple(module.selftest_races()) == PAIRS


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("name", PAIRS)
def test_known_races_are_found_and_nothing_else(module, name, order):
    module.set_order(order)
    data = torch.zeros(256, dtype=torch.int32)
    module.selftest_race(name, data.data_ptr(), True)
    assert not races.found(module)
    module.selftest_race(name, data.zero_().data_ptr(), False)
    found = races.found(module)
    assert found
    for race in found:
        assert race.kernel == f"{name.replace(' ', '_')}_kernel"
        assert any(line.text().endswith("// races") for line in race.lines), race


@each_kernel
def test_kernels_have_no_races(kernels, work):
    before = kernels.checked_words()
    work()
    in_global, in_shared = (now - then for now, then in zip(kernels.checked_words(), before))
    assert in_global > 0
    assert in_shared > 0 or work is quantize
    assert not (found := races.found(kernels)), "\n".join(map(str, found))


@each_kernel
def test_every_barrier_orders_something(kernels, work):
    """A barrier without which nothing races is superfluous, or `work` reaches too little."""
    work()
    for line, sites in races.ordering_lines(kernels).items():
        kernels.discount(sites)
        work()
        text = line.text()
        assert races.found(kernels) or NOT_FOR_MEMORY.search(text), f"{line}: {text}"


def test_every_barrier_is_reached(kernels):
    for work in WORK:
        work()
    reached = {(line.file, line.number) for line in races.ordering_lines(kernels)}
    missing = []
    for path in sorted((cuda_emulator.CSRC / "cuda").iterdir()):
        if path.name == "ptx.h":  # what the waits are made of
            continue
        name = str(path.relative_to(cuda_emulator.ROOT))
        for number, text in enumerate(path.read_text().splitlines(), 1):
            if ORDERING.search(text.partition("//")[0]) and (name, number) not in reached:
                missing.append(f"{name}:{number}: {text.strip()}")
    assert not missing
