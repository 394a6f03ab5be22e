"""The CUDA ERF ops: their buckets, what they leave to the CPU, and a GPU if there is one."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from test_erf_kernels import DTYPES, KINDS, gradients, layouts

from cba_fast import erf
from cba_fast.kernels import native
from cba_fast.kernels.gpu import erf_cuda
from cba_fast.ops import erf_accumulate, erf_size
from cba_fast.ops.erf import ACCUMULATE, SIZE
from cba_fast.reference import erf as reference

SHARES = [0.0, 1e-9, 0.2, 0.5, 1 - 2**-53, 1.0]
# One order of threads, where it is the values that differ.
one_order = pytest.mark.parametrize("emulated_cuda", [2], indirect=True)


@pytest.fixture
def on_cpu(monkeypatch):
    """Return the list of images that the kernels leave to the CPU."""
    left = []
    measure = erf_cuda._size_on_cpu

    def noted(grad, n, shares):
        left.append(n)
        return measure(grad, n, shares)

    monkeypatch.setattr(erf_cuda, "_size_on_cpu", noted)
    return left


def assert_equal_sizes(grad: torch.Tensor, shares: list[float]) -> None:
    assert torch.equal(erf_cuda.erf_size(grad, shares), reference.erf_size(grad, shares))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_maps_that_take_the_largest_blocks(emulated_cuda, dtype):
    rng = np.random.default_rng(1)
    for kind in ("normal", "mostly zero"):
        assert_equal_sizes(
            torch.from_numpy(gradients(kind, (1, 3, 131, 127), rng)).to(dtype), [0.3]
        )


def test_every_thread_finds_its_buckets(emulated_cuda):
    # Evenly spread below one bucket of the first digit: each share ends at another thread.
    grad = 1 + torch.arange(4096).view(1, 1, 64, 64) / 2**15
    assert_equal_sizes(grad, [k / 128 for k in range(129)])


@one_order
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bucket_sums_are_exact_to_the_last_bit(emulated_cuda, on_cpu, dtype):
    """Words of buckets overflow: all mantissa bits set, thousands of times."""
    value, pixels = 2 - torch.finfo(dtype).eps, 150 * 151
    grad = torch.full((1, 1, 150, 151), value, dtype=dtype)
    # Just below and above S_k: further from it than D, at most 2^-20, but nearer than what lost
    # carries would take away, 2^-6 and more.
    counts = (1, 4321, 20000)
    shares = [(k * value + by) / (pixels * value) for k in counts for by in (-(2**-18), 2**-18)]
    expected = [size for k in counts for size in (k, k + 1)]
    assert erf_cuda.erf_size(grad, shares).tolist() == [expected]
    assert not on_cpu


@one_order
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1.0, 7e-41, 3e38])
def test_equal_float32_are_not_left_to_the_cpu(emulated_cuda, on_cpu, value):
    for pixels in (10, 1000):
        assert_equal_sizes(torch.full((1, 1, 1, pixels), value), [k / 10 for k in range(11)])
    assert not on_cpu  # their sums are exact


@one_order
def test_images_are_left_to_the_cpu_only_where_roundings_count(emulated_cuda, on_cpu):
    rng = np.random.default_rng(5)
    for kind in sorted(set(KINDS) - {"rounding", "ties at the end"}):
        for dtype in (torch.float32, torch.float64):
            grad = torch.from_numpy(gradients(kind, (2, 3, 29, 31), rng)).to(dtype)
            assert_equal_sizes(grad, [0.21, 0.4])
            assert not on_cpu
    assert_equal_sizes(grad, [1.0])  # reached by the last of the values, each of them rounded
    assert on_cpu == [0, 1]


@one_order
def test_large_batches_go_in_groups(emulated_cuda, monkeypatch):
    grad = torch.randn(5, 1, 6, 7, generator=torch.Generator().manual_seed(6))
    for room in (1, 2 * 50_000):  # one image at a time, two
        monkeypatch.setattr(erf_cuda, "SCRATCH_BYTES", room)
        assert_equal_sizes(grad, [0.2, 0.5])


def test_cpu_tensors_are_refused_with_the_reason():
    grad = torch.ones(1, 3, 4, 4)
    for table in (SIZE, ACCUMULATE):
        assert table.backends["cuda"].refuses(grad) == "the tensor is on cpu"
        assert list(table.backends)[:2] == ["cuda", "cpp"]
    reason = native.cuda_unavailable() or "the tensor is on cpu"
    with pytest.raises(ValueError, match=f"'cuda' cannot run: {re.escape(reason)}"):
        erf_size(grad, backend="cuda")
    with pytest.raises(ValueError, match=f"'cuda' cannot run: {re.escape(reason)}"):
        erf_accumulate(grad, torch.zeros(4, 4, dtype=torch.float64), backend="cuda")


def real_size(kind: str, dtype: torch.dtype) -> torch.Tensor:
    rng = np.random.default_rng(8)
    return torch.from_numpy(gradients(kind, (4, 3, 384, 384), rng)).to(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_device_equals_cpu(dtype):
    for kind in ("normal", "flat", "decaying", "mostly zero", "denormal", "few levels"):
        grad = real_size(kind, dtype)
        expected = erf_size(grad, SHARES)
        total = erf_accumulate(grad, torch.ones(384, 384, dtype=torch.float64), mode="square")
        for layout in layouts(grad.cuda()).values():
            for _ in range(3):  # and the same again
                assert torch.equal(erf_size(layout, SHARES, backend="cuda").cpu(), expected)
                out = torch.ones(384, 384, dtype=torch.float64, device="cuda")
                erf_accumulate(layout, out, mode="square", backend="cuda")
                assert torch.equal(out.cpu(), total)


@pytest.mark.gpu
def test_device_words_of_buckets_overflow():
    """17 million values with all mantissa bits set: what no emulated map is large enough for."""
    value, pixels = 2 - 2.0**-52, 4200 * 4200
    grad = torch.tensor(value, dtype=torch.float64, device="cuda").expand(1, 1, 4200, 4200)
    counts = (1, 4321, 17_000_000)
    shares = [(k + by) / pixels for k in counts for by in (-0.1, 0.1)]
    found = erf_size(grad, shares, backend="cuda")
    assert found.tolist() == [[size for k in counts for size in (k, k + 1)]]


@pytest.mark.gpu
def test_device_errors_name_the_image():
    grad = torch.ones(5, 3, 40, 41, device="cuda")
    grad[2, 1, 7, 8] = math.nan
    grad[3] = math.inf
    with pytest.raises(ValueError, match="image 2 holds NaN or infinite values"):
        erf_size(grad, backend="cuda")
    large = torch.full((1, 1, 40, 41), 1e307, dtype=torch.float64, device="cuda")
    with pytest.raises(ValueError, match="sum of image 0's gradient exceeds float64"):
        erf_size(large, backend="cuda")


@pytest.mark.gpu
def test_device_stream_of_the_caller():
    grad = real_size("normal", torch.float32)
    expected = erf_size(-3 * grad, 0.3)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what the kernels read is not there yet
        on_device = grad.cuda(non_blocking=True) * -3
        zeros = torch.zeros(384, 384, dtype=torch.float64, device="cuda")
        out = erf_accumulate(on_device, zeros, backend="cuda")
        sizes = erf_size(on_device, 0.3, backend="cuda")
    stream.synchronize()
    assert torch.equal(sizes.cpu(), expected)
    cpu = erf_accumulate(-3 * grad, torch.zeros(384, 384, dtype=torch.float64))
    assert torch.equal(out.cpu(), cpu)


@pytest.mark.gpu
def test_device_waits_once_for_sizes_and_never_for_maps():
    grad = torch.randn(4, 3, 96, 96, device="cuda")
    out = torch.zeros(96, 96, dtype=torch.float64, device="cuda")
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            erf_size(grad, 0.2, backend="cuda")
            # The mode's own notice, once per process, speaks of "synchronizing operations" too.
            waits = [w for w in caught if "called a synchronizing" in str(w.message)]
            torch.cuda.set_sync_debug_mode("error")
            erf_accumulate(grad, out, backend="cuda")
        finally:
            torch.cuda.set_sync_debug_mode(before)
    assert len(waits) == 1


@pytest.mark.gpu
def test_device_graph_of_the_accumulator():
    grad = torch.randn(9, 3, 50, 60, device="cuda")
    out = torch.zeros(50, 60, dtype=torch.float64, device="cuda")
    erf_accumulate(grad, out.clone(), backend="cuda")  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        erf_accumulate(grad, out, backend="cuda")
    expected = torch.zeros(50, 60, dtype=torch.float64)
    for seed in (9, 10):
        grad.copy_(torch.randn(9, 3, 50, 60, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        erf_accumulate(grad.cpu(), expected)
    assert torch.equal(out.cpu(), expected)


@pytest.mark.gpu
def test_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    grad = real_size("normal", torch.float32)
    there = grad.to("cuda:1")
    with torch.cuda.device(0):
        assert torch.equal(erf_size(there, SHARES, backend="cuda").cpu(), erf_size(grad, SHARES))
        zeros = torch.zeros(384, 384, dtype=torch.float64, device="cuda:1")
        out = erf_accumulate(there, zeros, backend="cuda")
        assert torch.cuda.current_device() == 0
    cpu = erf_accumulate(grad, torch.zeros(384, 384, dtype=torch.float64))
    assert torch.equal(out.cpu(), cpu)


@pytest.mark.gpu
def test_device_models_are_measured_on_the_device():
    w = torch.randn(5, 3 * 24 * 26, generator=torch.Generator().manual_seed(11))
    data = [{"image": x, "truncated": False, "error": ""} for x in torch.randn(7, 3, 24, 26)]
    found = []
    for device, backend in (("cpu", None), ("cuda", None), ("cuda", "cuda")):
        walk = erf.Walk(data, range(7), batch_size=3, device=device)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 5, bias=False))
        model[1].weight = torch.nn.Parameter(w)  # the gradient of a logit is a row of it, exactly
        model = model.to(device)
        options = {"with_map": True, "backend": backend}
        found.append(erf.measure_erf_sizes(model, walk, [0.2, 0.9], "logit", **options))
    for on_device in found[1:]:
        assert np.array_equal(on_device.sizes, found[0].sizes)
        assert np.array_equal(on_device.map, found[0].map)
        assert on_device.indices.tolist() == list(range(7))
