"""ERF sizes and the ERF accumulator."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cba_fast.ops import erf_accumulate, erf_size
from cba_fast.ops.erf import SIZE

pytestmark = pytest.mark.usefixtures("seeded")

BACKENDS = ["cpp", "reference"]


def size_by_counting(grad: np.ndarray, p: float) -> int:
    """Add the largest magnitudes one by one, as the definition says, in Python floats."""
    ordered = sorted(np.abs(grad).mean(axis=0).ravel().tolist(), reverse=True)
    total = 0.0
    for value in ordered:
        total += value
    if total == 0:
        return 0
    running = 0.0
    for count, value in enumerate(ordered, 1):
        running += value
        if running >= p * total:
            return count
    raise AssertionError("the share p was never reached")


def test_sizes_of_known_maps():
    point = torch.zeros(1, 3, 4, 5)
    point[0, :, 2, 3] = -7.0
    flat = torch.full((1, 3, 4, 5), 0.25)
    steps = torch.tensor([4.0, 3.0, 2.0, 1.0]).view(1, 1, 2, 2)
    assert erf_size(point).tolist() == [1]
    assert erf_size(flat, [0, 0.05, 0.2, 0.21, 0.5, 1]).tolist() == [[1, 1, 4, 5, 10, 20]]
    assert erf_size(steps, [0.4, 0.41, 0.7, 0.71, 0.9, 1.0]).tolist() == [[1, 2, 2, 3, 3, 4]]
    assert erf_size(torch.zeros(2, 3, 4, 5)).tolist() == [0, 0]
    assert erf_size(torch.zeros(1, 3, 4, 5), [0, 1]).tolist() == [[0, 0]]


def test_channels_are_averaged_by_magnitude():
    grad = torch.zeros(1, 2, 1, 2)
    grad[0, :, 0, 0] = torch.tensor([5.0, -5.0])  # would cancel to 0 without the magnitude
    grad[0, :, 0, 1] = torch.tensor([1.0, 1.0])
    assert erf_size(grad, 0.8).tolist() == [1]


@settings(max_examples=60)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=5),
        elements=st.floats(-1e3, 1e3, width=32),
    ),
    st.floats(0.0, 1.0),
)
def test_sizes_equal_the_definition(grad, p):
    expected = [size_by_counting(g, p) for g in grad]
    for backend in BACKENDS:
        assert erf_size(torch.from_numpy(grad), p, backend=backend).tolist() == expected


def test_shares_and_images_are_independent():
    grad = torch.randn(5, 3, 17, 13)
    shares = [0.5, 0.2, 1.0]
    together = erf_size(grad, shares)
    assert together.shape == (5, 3)
    assert together.dtype == torch.int64
    for i, share in enumerate(shares):
        assert torch.equal(together[:, i], erf_size(grad, share))
    single = torch.cat([erf_size(g[None], shares) for g in grad])
    assert torch.equal(single, together)


def test_size_does_not_depend_on_layout_scale_or_sign():
    grad = torch.randn(2, 3, 9, 11)
    expected = erf_size(grad)
    assert torch.equal(erf_size(grad.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(erf_size(grad.transpose(2, 3)), expected)
    assert torch.equal(erf_size(-4 * grad), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_gradients_are_averaged_in_float32(dtype):
    grad = torch.randn(2, 3, 16, 16).to(dtype)
    assert torch.equal(erf_size(grad, 0.6), erf_size(grad.float(), 0.6))


def test_share_of_one_never_exceeds_the_image():
    grad = torch.rand(20, 3, 31, 31) ** 8  # rounding of the sums differs from map to map
    sizes = erf_size(grad, 1.0)
    assert sizes.max() <= 31 * 31
    assert sizes.min() >= 1


def test_accumulation_is_float64_in_place_and_positive():
    grad = torch.randn(4, 3, 6, 7)
    out = torch.ones(6, 7, dtype=torch.float64)
    result = erf_accumulate(grad, out)
    assert result is out
    expected = 1 + np.maximum(grad.numpy().astype(np.float64), 0).sum(axis=(0, 1))
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-15)
    tiny = torch.full((1, 1, 6, 7), 1e-12)
    assert (erf_accumulate(tiny, out.clone()) > out).all()  # lost in float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_modes_of_accumulation(backend):
    grad = torch.tensor([[-2.0, 3.0], [4.0, -0.5]]).view(1, 2, 1, 2)
    expected = {"relu": [4.0, 3.0], "abs": [6.0, 3.5], "square": [20.0, 9.25]}
    for mode, values in expected.items():
        out = torch.zeros(1, 2, dtype=torch.float64)
        erf_accumulate(grad, out, mode=mode, backend=backend)
        assert out.tolist() == [values]


def test_accumulating_parts_equals_the_whole():
    grad = torch.randn(4, 3, 6, 7)
    whole = erf_accumulate(grad, torch.zeros(6, 7, dtype=torch.float64))
    parts = torch.zeros(7, 6, dtype=torch.float64).t()
    for g in grad:
        erf_accumulate(g[None], parts)
    assert torch.equal(whole, parts)


def test_empty_batches():
    empty = torch.zeros(0, 3, 4, 4)
    assert erf_size(empty).shape == (0,)
    assert erf_size(empty, [0.2, 0.5]).shape == (0, 2)
    out = torch.ones(4, 4, dtype=torch.float64)
    assert torch.equal(erf_accumulate(empty, out.clone()), out)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_opcheck(layout, backend):
    grad = torch.randn(2, 3, 5, 6)
    if layout == "channels_last":
        grad = grad.to(memory_format=torch.channels_last)
    if layout == "transposed":
        grad = grad.transpose(2, 3)
    out = torch.zeros(grad.shape[2:], dtype=torch.float64)
    ops = torch.ops.cba_fast
    torch.library.opcheck(ops.erf_size.default, (grad, [0.2, 0.5], backend))
    torch.library.opcheck(ops.erf_accumulate.default, (grad, out, "relu", backend))


def test_compile_fullgraph():
    def both(grad, out):
        return erf_size(grad, [0.2, 0.5]), erf_accumulate(grad, out) * 2

    grad = torch.randn(2, 3, 5, 6)
    out = torch.zeros(5, 6, dtype=torch.float64)
    sizes, doubled = torch.compile(both, fullgraph=True, backend="aot_eager")(grad, out)
    assert torch.equal(sizes, erf_size(grad, [0.2, 0.5]))
    assert torch.equal(out, erf_accumulate(grad, torch.zeros_like(out)))
    assert torch.equal(doubled, out * 2)


def test_gradients_that_require_grad_are_taken_as_values():
    grad = torch.randn(1, 3, 4, 4, requires_grad=True)
    out = erf_accumulate(grad, torch.zeros(4, 4, dtype=torch.float64))
    assert not out.requires_grad
    assert not erf_size(grad).requires_grad


G = torch.ones(3, 2, 4, 4)
NAN = G.clone()
NAN[1, 0, 2, 2] = torch.nan
INFINITE = G.clone()
INFINITE[2, 1, 0, 0] = -torch.inf


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((NAN,), ValueError, "image 1 holds NaN"),
        ((INFINITE,), ValueError, "image 2 holds NaN or infinite"),
        ((G, -1e-9), ValueError, "at least 0 and at most 1, got -1e-09"),
        ((G, 1.01), ValueError, "got 1.01"),
        ((G, [0.2, float("nan")]), ValueError, "got nan"),
        ((G, "0.2"), TypeError, "p must be a number"),
        ((G[0],), ValueError, r"got \(2, 4, 4\)"),
        ((G[:, :0],), ValueError, r"at least one channel, got \(3, 0, 4, 4\)"),
        ((G.int(),), TypeError, "torch.int32"),
        ((G.numpy(),), TypeError, "grad must be a tensor, got ndarray"),
    ],
)
def test_bad_arguments_of_erf_size(args, error, message):
    with pytest.raises(error, match=message):
        erf_size(*args)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((G, torch.zeros(4, 4)), TypeError, "out must be float64, got torch.float32"),
        ((G, torch.zeros(4, 5).double()), ValueError, r"= \(4, 4\), got \(4, 5\)"),
        ((G, torch.zeros(1, 4, 4).double()), ValueError, r"got \(1, 4, 4\)"),
        ((G, torch.zeros(4, 4).double().to("meta")), ValueError, "grad is on cpu, out on meta"),
        ((G, None), TypeError, "out must be a tensor"),
        ((G, torch.zeros(4, 4).double().requires_grad_()), ValueError, "must not require grad"),
    ],
)
def test_bad_arguments_of_erf_accumulate(args, error, message):
    with pytest.raises(error, match=message):
        erf_accumulate(*args)


def test_bad_modes_and_backends():
    out = torch.zeros(4, 4).double()
    with pytest.raises(ValueError, match="one of relu, abs, square, got 'max'"):
        erf_accumulate(G, out, mode="max")
    with pytest.raises(TypeError, match="mode must be a string, got int"):
        erf_accumulate(G, out, mode=2)
    for op, args, other, has in (
        (erf_size, (G,), "triton", "torch"),
        (erf_accumulate, (G, out), "torch", "triton"),
    ):
        message = f"no backend '{other}'; it has cuda, cpp, {has}, reference"
        with pytest.raises(ValueError, match=message):
            op(*args, backend=other)
    meta = torch.empty(1, 3, 4, 4, device="meta")
    assert "on meta" in SIZE.backends["cpp"].reason(meta)
    huge = torch.zeros(1).expand(1, 1, 2**16, 2**15)
    assert "65536 x 32768 are more than" in SIZE.backends["cpp"].reason(huge)


@pytest.mark.gpu
def test_cuda_equals_cpu():
    with pytest.raises(ValueError, match="'cpp' cannot run: the tensor is on cuda"):
        erf_size(G.cuda(), backend="cpp")
    grad = torch.randn(3, 3, 40, 30)
    assert torch.equal(erf_size(grad.cuda(), [0.2, 0.9]).cpu(), erf_size(grad, [0.2, 0.9]))
    expected = erf_accumulate(grad, torch.zeros(40, 30, dtype=torch.float64))
    for backend in (None, "triton"):
        zeros = torch.zeros(40, 30, dtype=torch.float64, device="cuda")
        assert torch.equal(erf_accumulate(grad.cuda(), zeros, backend=backend).cpu(), expected)
