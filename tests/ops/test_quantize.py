"""The quantizer: equal bytes from every backend and instruction set, and clear refusals."""

import numpy as np
import pytest
import torch

from cba_fast import ops
from cba_fast.errors import ScoreMapError
from cba_fast.kernels import native, quantize_cpp
from cba_fast.reference.quantize import quantize as reference

ISAS = native.build_info()["isas_supported"]


def official(values: np.ndarray) -> np.ndarray:
    return (values * 255).astype(np.uint8)


def near_boundaries(dtype) -> np.ndarray:
    """All values within 300 steps of k/255, and what is special about [0, 1]."""
    wide, narrow = (np.int32, np.float32) if dtype == np.float32 else (np.int64, np.float64)
    centers = (np.arange(256) / 255).astype(narrow)
    steps = centers.view(wide)[:, None] + np.arange(-300, 301, dtype=wide)
    values = np.concatenate([steps.view(narrow).ravel(), centers])
    special = np.array([0.0, -0.0, 1.0, np.finfo(narrow).tiny, np.finfo(narrow).tiny / 8], narrow)
    values = np.concatenate([values, special])
    return values[(values >= 0) & (values <= 1)]


def as_map(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).reshape(1, 1, -1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_value_near_a_boundary(isa, dtype):
    values = near_boundaries(dtype)
    assert len(values) > 150_000
    expected = torch.from_numpy(official(values)).reshape(1, 1, -1)
    assert torch.equal(quantize_cpp.quantize(as_map(values), isa), expected)
    assert torch.equal(reference(as_map(values)), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_length_and_alignment(isa, dtype):
    values = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = torch.from_numpy(official(values.numpy()))
    for start in range(5):
        for stop in range(start + 1, start + 75):
            found = quantize_cpp.quantize(values[start:stop].reshape(1, 1, -1), isa)
            assert torch.equal(found[0, 0], expected[start:stop])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_widened_first(dtype):
    values = torch.rand(1, 8, 97, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = torch.from_numpy(official(values.float().numpy()))
    for backend in ("cpp", "reference"):
        assert torch.equal(ops.quantize(values, backend=backend), expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_many_values_and_threads(threads):
    values = np.random.default_rng(0).random((7, 200, 301), np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert np.array_equal(ops.quantize(values), official(values))
        values[5, 3, 300], values[4, 199, 2] = 2.0, np.nan
        with pytest.raises(ScoreMapError, match=r"score map 4 .* nan at \(row 199, column 2\)"):
            ops.quantize(values)
    finally:
        torch.set_num_threads(before)


def layouts() -> dict[str, torch.Tensor]:
    x = torch.rand(4, 6, 10, generator=torch.Generator().manual_seed(2))
    return {
        "contiguous": x,
        "transposed": x.transpose(1, 2),
        "sliced": x[::2, 1:, ::3],
        "expanded": x[:1].expand(3, 6, 10),
        "empty": x[:0],
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("backend", [None, "cpp", "reference"])
def test_layouts(layout, backend):
    x = layouts()[layout]
    found = ops.quantize(x, backend=backend)
    assert found.is_contiguous()
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(official(x.numpy())))


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("backend", ["auto", "cpp", "reference"])
def test_opcheck(layout, backend):
    torch.library.opcheck(torch.ops.cba_fast.quantize.default, (layouts()[layout], backend))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    ("value", "shown"), [(float("nan"), "nan"), (-1e-30, "-1e-30"), (1.0000001, "1.0000001")]
)
@pytest.mark.parametrize("position", [0, 31, 32, 70])
def test_a_bad_value_is_named(backend, value, shown, position):
    maps = torch.full((3, 8, 9), 0.5, dtype=torch.float64)
    maps[2].view(-1)[position] = value
    maps[2, 7, 8] = float("inf")
    where = rf"map 2 .* {shown} at \(row {position // 9}, column {position % 9}\)"
    with pytest.raises(ScoreMapError, match=where):
        ops.quantize(maps.transpose(1, 2).contiguous().transpose(1, 2), backend=backend)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e-40, 1.001])
def test_every_lane_refuses_bad_values(isa, dtype, value):
    for position in range(64):
        values = torch.zeros(1, 1, 64, dtype=dtype)
        values[0, 0, position] = value
        with pytest.raises(ScoreMapError, match=f"column {position}\\)"):
            quantize_cpp.quantize(values, isa)


def test_bytes_pass_through():
    u = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4)
    assert ops.quantize(u) is not None
    assert ops.quantize(u).data_ptr() == u.data_ptr()
    with pytest.raises(ValueError, match="no backend 'torch'"):
        ops.quantize(u, backend="torch")


def test_arrays_of_any_kind():
    array = np.random.default_rng(3).random((2, 5, 7))
    frozen = array.copy()
    frozen.flags.writeable = False
    packed = np.zeros(array.shape, "f4,f8")["f1"]  # 12 bytes from one value to the next
    packed[:] = array
    others = (array.astype(np.float16), array.astype(">f8"), packed)
    for a in (array, frozen, array[:, ::-1], array[..., ::2], *others):
        assert np.array_equal(
            ops.quantize(a), official(a.astype(np.float32) if a.itemsize == 2 else a)
        )


@pytest.mark.parametrize(
    ("scoremaps", "error", "message"),
    [
        ([[[0.5]]], TypeError, "must be a tensor or an array, got list"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.zeros(1, 2, 2, dtype=torch.bool), TypeError, "got torch.bool"),
        (torch.zeros(1, 2, 2, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (np.full((1, 2, 2), None), TypeError, "dtype object"),
        (torch.zeros(2, 2), ValueError, r"got \(2, 2\)"),
        (torch.zeros(1, 1, 2, 2), ValueError, r"got \(1, 1, 2, 2\)"),
        (torch.zeros(1, 0, 2), ValueError, r"got \(1, 0, 2\)"),
    ],
)
def test_refusals(scoremaps, error, message):
    with pytest.raises(error, match=message):
        ops.quantize(scoremaps)


def test_backends_that_cannot_run():
    x = torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="backend 'cuda' cannot run: "):
        ops.quantize(x, backend="cuda")
    with pytest.raises(ValueError, match="has no backend 'torch'"):
        ops.quantize(x, backend="torch")
    with pytest.raises(ValueError, match="got 'quick'"):
        ops.quantize(x, backend="quick")


def test_gradients_autocast_and_compile():
    x = torch.rand(2, 5, 6, requires_grad=True)
    expected = official(x.detach().numpy())
    assert not ops.quantize(x).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(ops.quantize(x), expected)
    compiled = torch.compile(lambda m: ops.quantize(m) + 1, backend="aot_eager", fullgraph=True)
    assert np.array_equal(compiled(x.detach()), expected + 1)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [None, "triton", "reference"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_on_a_gpu(backend, dtype):
    values = as_map(near_boundaries(dtype))
    found = ops.quantize(values.cuda(), backend=backend)
    assert found.is_cuda
    assert torch.equal(found.cpu(), ops.quantize(values))
    values[0, 0, 777] = float("nan")
    with pytest.raises(ScoreMapError, match="column 777"):
        ops.quantize(values.cuda(), backend=backend)
    torch.library.opcheck(torch.ops.cba_fast.quantize.default, (values[:, :, :50].cuda(), "auto"))


@pytest.mark.gpu
def test_the_cuda_kernel_runs_where_it_is_built():
    if native.cuda_unavailable() is None:
        values = as_map(near_boundaries(np.float32))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            found = ops.quantize(values.cuda(), backend="cuda")
        assert torch.equal(found.cpu(), ops.quantize(values))
