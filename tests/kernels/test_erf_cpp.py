"""The C++ ERF ops: equal to the reference for every instruction set, layout, dtype and thread."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cba_fast.kernels import erf_cpp, native
from cba_fast.ops import erf_accumulate, erf_size
from cba_fast.reference import erf as reference

ISAS = native.build_info()["isas_supported"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHARES = [0.0, 1e-300, 1e-9, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99, 1 - 2**-53, 1.0]
MODES = list(reference.MODES)
# The largest maps have thousands of values in one bucket, which is split further.
SIZES = [(1, 1), (1, 7), (9, 1), (13, 17), (64, 65)]


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The values of x (N, C, H, W) in memory in all kinds of ways."""
    wide = torch.full((*x.shape[:3], 2 * x.shape[3] + 1), torch.nan, dtype=x.dtype)
    wide[..., 1::2] = x
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "strided": wide[..., 1::2],
        "rows": torch.cat([x, x], dim=3)[..., : x.shape[3]],
    }


def gradients(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return float64 gradients that stress one thing."""
    normal = rng.standard_normal(shape)
    y, x = np.mgrid[: shape[2], : shape[3]]
    distance = np.hypot(y - shape[2] / 2, x - shape[3] / 2)
    kinds = {
        "normal": lambda: normal,
        "flat": lambda: np.full(shape, 0.1),
        "two levels": lambda: np.where(normal > 1, 0.3, 0.1),
        "few levels": lambda: np.round(normal, 1),
        "decaying": lambda: normal * np.exp(-distance),
        "log-normal": lambda: np.exp(10 * normal),
        "all magnitudes": lambda: 10.0 ** rng.uniform(-44, 38, shape),
        "denormal": lambda: normal * 1e-43,
        "one huge": lambda: np.where(distance == distance.min(), 1e30, normal),
        "mostly zero": lambda: np.where(normal > 1.5, normal, 0),
        # One value and many that an addition to it rounds: 2^-54 of it up to 2^-50.
        "rounding": lambda: np.where(
            distance == distance.min(), 1.0, 2.0 ** rng.uniform(-54, -50, shape)
        ),
        # Equal steps, each of which is rounded.
        "ties at the end": lambda: np.where(distance == distance.min(), 1.0, 3 * 2.0**-54),
    }
    return np.broadcast_to(kinds[kind](), shape).copy()


KINDS = [
    *("normal", "flat", "two levels", "few levels", "decaying", "log-normal", "all magnitudes"),
    *("denormal", "one huge", "mostly zero", "rounding", "ties at the end"),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_equal_the_reference(kind, isa):
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        for channels in (1, 2, 3, 8):
            values = torch.from_numpy(gradients(kind, (2, channels, height, width), rng))
            for dtype in DTYPES:
                grad = values.to(dtype)
                if not grad.isfinite().all():
                    continue  # beyond float16
                expected = reference.erf_size(grad, SHARES)
                assert torch.equal(erf_cpp.erf_size(grad, SHARES, isa=isa), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_layout_is_read_in_place(channels, dtype, isa):
    x = torch.randn(3, channels, 37, 29, generator=torch.Generator().manual_seed(1)).to(dtype)
    sizes = reference.erf_size(x, SHARES)
    for grad in [*layouts(x).values(), x.transpose(2, 3)]:
        assert torch.equal(erf_cpp.erf_size(grad, SHARES, isa=isa), sizes)
    for mode in MODES:
        expected = torch.ones(37, 29, dtype=torch.float64)
        reference.erf_accumulate(x, expected, mode)
        for grad in layouts(x).values():
            for transposed in (False, True):
                out = torch.ones(37, 29, dtype=torch.float64)
                out = out.t().contiguous().t() if transposed else out
                erf_cpp.erf_accumulate(grad, out, mode, isa=isa)
                assert torch.equal(out, expected)


def test_repeated_images_and_pixels():
    x = torch.randn(1, 3, 1, 20, generator=torch.Generator().manual_seed(2))
    grad = x.expand(4, 3, 6, 20)
    assert torch.equal(erf_cpp.erf_size(grad, SHARES), reference.erf_size(grad, SHARES))


# Multiples of 0.1 as p * total of equal values: whether k values reach it is decided by roundings.
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1.0, 7e-41, 3e38])
@pytest.mark.parametrize("pixels", [10, 100, 1000, 9216])
def test_equal_values_on_the_boundary(value, pixels):
    shares = [k / 10 for k in range(11)]
    grad = torch.full((1, 1, 1, pixels), value)
    assert torch.equal(erf_cpp.erf_size(grad, shares), reference.erf_size(grad, shares))
    wide = grad.double() * (1 + 2**-40)  # 53 bits of mantissa: every addition rounds
    assert torch.equal(erf_cpp.erf_size(wide, shares), reference.erf_size(wide, shares))


def test_shares_at_the_sums_themselves():
    # The threshold is within an ulp or two of every S_k in turn.
    rng = np.random.default_rng(3)
    for kind in ("normal", "log-normal", "rounding", "ties at the end"):
        for dtype in (np.float32, np.float64):
            grad = gradients(kind, (1, 1, 11, 13), rng).astype(dtype)
            sums = np.cumsum(np.sort(np.abs(grad), axis=None)[::-1], dtype=np.float64)
            shares = sums / sums[-1]
            shares = np.concatenate([shares, np.nextafter(shares, 0), np.nextafter(shares, 1)])
            x = torch.from_numpy(grad)
            assert torch.equal(erf_cpp.erf_size(x, shares), reference.erf_size(x, shares))


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=6),
        elements=st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100),
    ),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_any_float32(grad, shares):
    x = torch.from_numpy(grad)
    assert torch.equal(erf_cpp.erf_size(x, shares), reference.erf_size(x, shares))


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=6),
        elements=st.floats(-1e306, 1e306),
    ),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_any_float64(grad, shares):
    x = torch.from_numpy(grad)
    assert torch.equal(erf_cpp.erf_size(x, shares), reference.erf_size(x, shares))


def test_sums_that_nearly_overflow():
    shares = [0.0, 0.3, 1.0]
    grad = torch.full((2, 1, 1, 4), 1e307, dtype=torch.float64)
    grad[1] = 4.4e307  # 1.76e308 in all, and 2^1024 is 1.8e308
    assert torch.equal(erf_cpp.erf_size(grad, shares), reference.erf_size(grad, shares))
    grad[1] = 5e307
    for backend in ("cpp", "reference"):
        with pytest.raises(ValueError, match="sum of image 1's gradient exceeds float64"):
            erf_size(grad, shares, backend=backend)
    for value, dtype in ((3e38, torch.float32), (1.7e308, torch.float64)):
        grad = torch.full((1, 2, 1, 1), value, dtype=dtype)
        for backend in ("cpp", "reference"):
            with pytest.raises(ValueError, match="image 0 holds NaN or infinite"):
                erf_size(grad, backend=backend)


@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_float32(isa):
    """Thousands of values up to the largest one; those below 2^105 are fine."""
    largest = torch.finfo(torch.float32).max
    exponents = 128 * torch.rand(2, 1, 90, 100, generator=torch.Generator().manual_seed(8))
    exponents[1, 0, :, 1:] = 128
    grad = exponents.double().exp2().clamp(max=largest).float()
    assert grad.max() == largest
    assert torch.equal(erf_cpp.erf_size(grad, SHARES, isa=isa), reference.erf_size(grad, SHARES))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_the_first_bad_image_is_named(value, dtype, isa):
    for position in (0, 63, 64, 98):
        grad = torch.ones(6, 3, 9, 11, dtype=dtype)
        grad[2, 1].view(-1)[position] = value
        grad[4, 2, 0, 0] = math.nan
        with pytest.raises(ValueError, match="image 2 holds NaN or infinite values"):
            erf_cpp.erf_size(grad, [0.2], isa=isa)


def test_memory_is_reused_for_maps_of_other_sizes():
    generator = torch.Generator().manual_seed(4)
    for side in (40, 3, 80, 1, 60):
        grad = torch.randn(1, 3, side, side, generator=generator)
        assert torch.equal(erf_cpp.erf_size(grad, SHARES), reference.erf_size(grad, SHARES))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_accumulated_bits_equal_the_reference(channels, mode, isa):
    rng = np.random.default_rng(5)
    for kind in ("normal", "rounding", "log-normal", "all magnitudes"):
        for height, width in ((1, 1), (7, 1), (5, 13), (40, 53)):
            shape = (11, channels, height, width)  # more than a group of 8
            values = torch.from_numpy(gradients(kind, shape, rng) * rng.choice([-1, 1], shape))
            for dtype in DTYPES:
                grad = values.to(dtype)
                if not grad.isfinite().all():
                    continue
                expected = torch.full((height, width), 0.1, dtype=torch.float64)
                out = expected.clone()
                reference.erf_accumulate(grad, expected, mode)
                erf_cpp.erf_accumulate(grad, out, mode, isa=isa)
                assert torch.equal(out, expected)


def exact_sum(values: np.ndarray) -> np.ndarray:
    """Return the correctly rounded sums over axis 0."""
    flat = values.reshape(len(values), -1).T
    return np.array([math.fsum(v) for v in flat]).reshape(values.shape[1:])


@pytest.mark.parametrize("mode", MODES)
def test_accumulation_is_compensated(mode):
    """2,000 images: as close to the exact sum as the docstring says, where a plain sum is not."""
    rng = np.random.default_rng(6)
    grad = 10.0 ** rng.uniform(-12, 0, (2000, 3, 2, 3)) * rng.choice([-1, 1], (2000, 3, 2, 3))
    terms = reference.MODES[mode](torch.from_numpy(grad)).numpy()
    exact = exact_sum(terms.reshape(-1, 2, 3))
    bound = (8 * 3 + 2) * 2.0**-53 * exact  # 1 for adding to `out`, 1 for `square`
    out = torch.zeros(2, 3, dtype=torch.float64)
    erf_cpp.erf_accumulate(torch.from_numpy(grad), out, mode)
    assert (abs(out.numpy() - exact) <= bound).all()
    plain = np.cumsum(terms.reshape(-1, 2, 3), axis=0)[-1]
    assert (abs(plain - exact) > bound).any()


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
def test_bad_values_stay_in_their_pixel(value):
    for position in range(20):
        grad = torch.ones(2, 3, 4, 5)
        grad[1, 2].view(-1)[position] = value
        for backend in ("cpp", "reference"):
            out = erf_accumulate(grad, torch.zeros(4, 5, dtype=torch.float64), backend=backend)
            assert out.isnan().view(-1).nonzero().tolist() == [[position]]


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(threads):
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(5, 3, 90, 101, generator=generator) ** 5
    results = []
    before = torch.get_num_threads()
    for n in (1, threads):
        torch.set_num_threads(n)
        try:
            out = erf_accumulate(grad, torch.zeros(90, 101, dtype=torch.float64), backend="cpp")
            results.append((erf_size(grad, SHARES, backend="cpp"), out))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_nothing_to_do():
    assert erf_cpp.erf_size(torch.zeros(0, 3, 4, 4), [0.2, 0.5]).shape == (0, 2)
    assert erf_cpp.erf_size(torch.zeros(2, 3, 0, 4), [0.2]).tolist() == [[0], [0]]
    assert erf_cpp.erf_size(torch.zeros(2, 3, 4, 4), []).shape == (2, 0)
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4)):
        out = torch.ones(4, 4, dtype=torch.float64)
        erf_cpp.erf_accumulate(torch.zeros(shape), out, "relu")
        assert torch.equal(out, torch.ones(4, 4, dtype=torch.float64))
    erf_cpp.erf_accumulate(torch.zeros(2, 3, 0, 4), torch.zeros(0, 4).double(), "relu")


def test_the_core_refuses_bad_arguments():
    core = native.load()
    shape, strides = (1, 1, 2, 2), (4, 4, 2, 1)
    with pytest.raises(ValueError, match="grad: null pointer"):
        core.erf_size((0, "float32", shape, strides), [0.2], 0, "", 1)
    with pytest.raises(ValueError, match="sizes: null pointer"):
        core.erf_size((8, "float32", shape, strides), [0.2], 0, "", 1)
    with pytest.raises(ValueError, match="got int8"):
        core.erf_size((8, "int8", shape, strides), [0.2], 8, "", 1)
    with pytest.raises(ValueError, match=r"shares must lie in \[0, 1\]"):
        core.erf_size((8, "float32", shape, strides), [math.nan], 8, "", 1)
    with pytest.raises(ValueError, match="no channels"):
        core.erf_size((0, "float32", (1, 0, 2, 2), strides), [0.2], 8, "", 1)
    with pytest.raises(ValueError, match=r"2\^31 pixels"):
        core.erf_size((8, "float32", (1, 1, 2**16, 2**16), strides), [0.2], 8, "", 1)
    with pytest.raises(ValueError, match="map: null pointer"):
        core.erf_accumulate((8, "float32", shape, strides), "relu", 0, (2, 1), "", 1)
    with pytest.raises(ValueError, match="mode must be relu, abs or square, got max"):
        core.erf_accumulate((8, "float32", shape, strides), "max", 8, (2, 1), "", 1)
