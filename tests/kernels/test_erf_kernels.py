"""The compiled ERF ops: equal to the reference for every instruction set, and emulated for CUDA."""

import functools
import math

import cuda_emulator
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cba_fast.kernels import cuda_core, erf_cpp, native
from cba_fast.kernels.gpu import erf_cuda, erf_torch
from cba_fast.ops import erf_accumulate, erf_size
from cba_fast.reference import erf as reference

ISAS = native.build_info()["isas_supported"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHARES = [0.0, 1e-300, 1e-9, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99, 1 - 2**-53, 1.0]
MODES = list(reference.MODES)
FEW_SHARES = [0.0, 1e-9, 0.2, 0.5, 1 - 2**-53, 1.0]
# Every instruction set of C++, PyTorch's sort, and CUDA's kernels emulated, with the threads of a
# block in one order or in three.
ORDERS = ("cuda ascending", "cuda descending", "cuda shuffled")
each_core = pytest.mark.parametrize("core", [*ISAS, "torch", ORDERS[-1]], indirect=True)
each_order = pytest.mark.parametrize("core", [*ISAS, "torch", *ORDERS], indirect=True)


class Core:
    """The ERF ops of an instruction set, or of CUDA's kernels; of PyTorch only the sizes."""

    def __init__(self, name: str):
        self.is_cuda = name in ORDERS
        if name == "torch":
            self.erf_size, self.erf_accumulate = erf_torch.erf_size, reference.erf_accumulate
            return
        options = {} if self.is_cuda else {"isa": name}
        self.module = erf_cuda if self.is_cuda else erf_cpp
        self.erf_size = functools.partial(self.module.erf_size, **options)
        self.erf_accumulate = functools.partial(self.module.erf_accumulate, **options)

    def check_sizes(self, grad: torch.Tensor, shares=SHARES) -> None:
        shares = list(shares)
        assert torch.equal(self.erf_size(grad, shares), reference.erf_size(grad, shares))

    def check_map(self, grad: torch.Tensor, mode: str, expected: torch.Tensor) -> None:
        """Compare what is added to `expected`, which is left with it, in C and in Fortran order."""
        outs = expected.clone(), expected.t().contiguous().t()
        reference.erf_accumulate(grad, expected, mode)
        for out in outs:
            self.erf_accumulate(grad, out, mode)
            assert torch.equal(out, expected)


@pytest.fixture
def core(request, monkeypatch):
    if request.param in ORDERS:
        cuda_emulator.emulate(monkeypatch, ORDERS.index(request.param))
    return Core(request.param)


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


@pytest.mark.parametrize("kind", KINDS)
@each_order
def test_sizes_equal_the_reference(core, kind):
    rng = np.random.default_rng(0)
    # The largest maps have thousands of values in one bucket, which is split further, or take three
    # blocks of the first kernel.
    sizes = [(1, 1), (1, 7), (9, 1), (13, 17), (64, 65)]
    shapes = [(2, channels, *size) for size in sizes for channels in (1, 2, 3, 8)]
    if core.is_cuda:
        shapes = [(1, 2, 1, 1), (1, 1, 9, 1), (1, 3, 13, 17), (1, 5, 40, 53)]
    for shape in shapes:
        values = torch.from_numpy(gradients(kind, shape, rng))
        for dtype in DTYPES[:2] if core.is_cuda and shape[1] == 5 else DTYPES:
            grad = values.to(dtype)
            if grad.isfinite().all():  # otherwise beyond float16
                core.check_sizes(grad, FEW_SHARES if core.is_cuda else SHARES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
@each_order
def test_every_layout_is_read_in_place(core, channels, dtype):
    height, width = (17, 14) if core.is_cuda else (37, 29)
    x = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(1))
    x = x.to(dtype)
    for grad in [*layouts(x).values(), x.transpose(2, 3)]:
        core.check_sizes(grad, [0.2, 0.7])
    for mode in MODES:
        for grad in layouts(x).values():
            core.check_map(grad, mode, torch.ones(height, width, dtype=torch.float64))


@each_core
def test_repeated_images_and_pixels(core):
    x = torch.randn(1, 3, 1, 20, generator=torch.Generator().manual_seed(2))
    core.check_sizes(x.expand(4, 3, 6, 20))
    core.check_map(x.expand(4, 3, 6, 20), "abs", torch.zeros(6, 20, dtype=torch.float64))


# Multiples of 0.1 as p * total of equal values: whether k values reach it is decided by roundings.
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1.0, 7e-41, 3e38])
@each_core
def test_equal_values_on_the_boundary(core, value):
    shares = [k / 10 for k in range(11)]
    for pixels in (10, 1000) if core.is_cuda else (10, 100, 1000, 9216):
        grad = torch.full((1, 1, 1, pixels), value)
        core.check_sizes(grad, shares)
        # 53 bits of mantissa: every addition rounds.
        core.check_sizes(grad.double() * (1 + 2**-40), shares)


@each_core
def test_shares_at_the_sums_themselves(core):
    # The threshold is within an ulp or two of every S_k in turn.
    rng = np.random.default_rng(3)
    for kind in ("normal", "log-normal", "rounding", "ties at the end"):
        for dtype in (np.float32, np.float64):
            shape = (1, 1, 3, 7) if core.is_cuda else (1, 1, 11, 13)
            grad = gradients(kind, shape, rng).astype(dtype)
            sums = np.cumsum(np.sort(np.abs(grad), axis=None)[::-1], dtype=np.float64)
            shares = sums / sums[-1]
            shares = np.concatenate([shares, np.nextafter(shares, 0), np.nextafter(shares, 1)])
            core.check_sizes(torch.from_numpy(grad), shares.tolist())


def arrays(dtype, most):
    elements = st.floats(-most, most, width=8 * np.dtype(dtype).itemsize)
    return hnp.arrays(
        dtype, hnp.array_shapes(min_dims=4, max_dims=4, max_side=6), elements=elements
    )


@each_core
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(arrays(np.float32, 2.0**100), arrays(np.float64, 1e306)),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_any_gradient(core, grad, shares):
    core.check_sizes(torch.from_numpy(grad), shares)


@each_core
def test_sums_that_nearly_overflow(core):
    grad = torch.full((4, 1, 1, 4), 1e307, dtype=torch.float64)
    grad[1] = 4.4e307  # 1.76e308 in all, and 2^1024 is 1.8e308
    core.check_sizes(grad, [0.0, 0.3, 1.0])
    grad[2], grad[3] = 5e307, math.nan
    for size in (core.erf_size, functools.partial(erf_size, backend="reference")):
        with pytest.raises(ValueError, match="sum of image 2's gradient exceeds float64"):
            size(grad, [0.2])
        for value, dtype in ((3e38, torch.float32), (1.7e308, torch.float64)):
            with pytest.raises(ValueError, match="image 0 holds NaN or infinite"):
                size(torch.full((1, 2, 1, 1), value, dtype=dtype), [0.2])


@each_core
def test_the_largest_float32(core):
    """Thousands of values up to the largest one; those below 2^105 are fine."""
    largest = torch.finfo(torch.float32).max
    exponents = 128 * torch.rand(2, 1, 90, 100, generator=torch.Generator().manual_seed(8))
    exponents[1, 0, :, 1:] = 128
    grad = exponents.double().exp2().clamp(max=largest).float()
    assert grad.max() == largest
    core.check_sizes(grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
@each_core
def test_the_first_bad_image_is_named(core, value, dtype):
    for position in (0, 63, 64, 98):
        grad = torch.ones(6, 3, 9, 11, dtype=dtype)
        grad[2, 1].view(-1)[position] = value
        grad[4, 2, 0, 0] = math.nan
        for shares in ([0.2, 0.3], []):
            with pytest.raises(ValueError, match="image 2 holds NaN or infinite values"):
                core.erf_size(grad, shares)


@each_core
def test_memory_is_reused_for_maps_of_other_sizes(core):
    generator = torch.Generator().manual_seed(4)
    for side in (40, 3, 80, 1, 60):
        core.check_sizes(torch.randn(1, 3, side, side, generator=generator))


@pytest.mark.parametrize("mode", MODES)
@each_order
def test_accumulated_bits_equal_the_reference(core, mode):
    rng = np.random.default_rng(5)
    # Groups of eight images: less than one, eight side by side, more than those.
    shapes = [(1, 7, 1, 1), (3, 3, 5, 13), (64, 1, 3, 2), (75, 2, 7, 9)]
    shapes += [] if core.is_cuda else [(11, 7, 7, 1), (11, 1, 40, 53), (11, 3, 40, 53)]
    for kind in ("normal", "rounding", "log-normal", "all magnitudes"):
        for shape in shapes:
            values = torch.from_numpy(gradients(kind, shape, rng) * rng.choice([-1, 1], shape))
            for dtype in DTYPES:
                if (grad := values.to(dtype)).isfinite().all():
                    core.check_map(grad, mode, torch.full(shape[2:], 0.1, dtype=torch.float64))


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
@each_core
def test_bad_values_stay_in_their_pixel(core, value):
    of_reference = functools.partial(erf_accumulate, mode="relu", backend="reference")
    for position in range(20):
        grad = torch.ones(2, 3, 4, 5)
        grad[1, 2].view(-1)[position] = value
        for add in (functools.partial(core.erf_accumulate, mode="relu"), of_reference):
            out = torch.zeros(4, 5, dtype=torch.float64)
            add(grad, out)
            assert out.isnan().view(-1).nonzero().tolist() == [[position]]


@each_core
def test_nothing_to_do(core):
    assert core.erf_size(torch.zeros(0, 3, 4, 4), [0.2, 0.5]).shape == (0, 2)
    assert core.erf_size(torch.zeros(2, 3, 0, 4), [0.2]).tolist() == [[0], [0]]
    assert core.erf_size(torch.zeros(2, 3, 4, 4), []).shape == (2, 0)
    assert core.erf_size(torch.zeros(2, 3, 4, 4), [0.0, 1.0]).tolist() == [[0, 0]] * 2
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4)):
        out = torch.ones(4, 4, dtype=torch.float64)
        core.erf_accumulate(torch.zeros(shape), out, "relu")
        assert torch.equal(out, torch.ones(4, 4, dtype=torch.float64))
    core.erf_accumulate(torch.zeros(2, 3, 0, 4), torch.zeros(0, 4).double(), "relu")


@pytest.mark.parametrize("core", [ISAS[0], ORDERS[0]], indirect=True)
def test_the_core_refuses_bad_arguments(core):
    compiled = cuda_core.load() if core.is_cuda else native.load()
    shape, strides = (1, 1, 2, 2), (4, 4, 2, 1)

    def measure(grad=8, dtype="float32", shape=shape, shares=(0.2,), sizes=8, scratch=8):
        image = (grad, dtype, shape, strides)
        if core.is_cuda:
            if math.prod(shape) >= 2**31:
                return compiled.erf_size_cuda_scratch(image)
            return compiled.erf_size_cuda(image, list(shares), sizes, scratch, 0, 0)
        return compiled.erf_size(image, list(shares), sizes, "", 1)

    def accumulate(mode="relu", out=8):
        image = (8, "float32", shape, strides)
        if core.is_cuda:
            return compiled.erf_accumulate_cuda(image, mode, out, (2, 1), 0, 0)
        return compiled.erf_accumulate(image, mode, out, (2, 1), "", 1)

    refusals = [
        (measure, {"grad": 0}, "grad: null pointer"),
        (measure, {"sizes": 0}, "sizes: null pointer"),
        (measure, {"dtype": "int8"}, "got int8"),
        (measure, {"shares": [math.nan]}, r"shares must lie in \[0, 1\]"),
        (measure, {"grad": 0, "shape": (1, 0, 2, 2)}, "no channels"),
        (measure, {"shape": (1, 1, 2**16, 2**16)}, r"2\^31 pixels"),
        (accumulate, {"out": 0}, "map: null pointer"),
        (accumulate, {"mode": "max"}, "mode must be relu, abs or square, got max"),
    ]
    if core.is_cuda:
        refusals.append((measure, {"scratch": 0}, "scratch: null pointer"))
    for function, changed, message in refusals:
        with pytest.raises(ValueError, match=message):
            function(**changed)


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
