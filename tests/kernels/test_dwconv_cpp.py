"""The compiled depthwise convolution: algorithms, instruction sets, threads, and the choice."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_forward, assert_grad_weight, assert_grad_x, assert_transform

from cba_fast.kernels import dwconv_cpp, native
from cba_fast.ops import (
    depthwise_conv2d,
    depthwise_conv2d_grad_weight,
    depthwise_conv2d_grad_x,
    dwconv,
)
from cba_fast.ops.dwconv_choice import fastest
from cba_fast.reference import dwconv as reference

pytestmark = pytest.mark.usefixtures("seeded")

ISAS = native.build_info()["isas_supported"]
CF, CL = torch.contiguous_format, torch.channels_last
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def mapping_flags(address):
    """Return the flags of the memory at an address, as /proc/self/smaps has them."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(span[1], 16) <= address < int(span[2], 16)
        elif here and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no memory at {address:#x}")


def check(x, weight, bias, grad, memory_format, algorithm, isa):
    """Compare the three directions with float64."""
    size = tuple(weight.shape[2:])
    how = (size, memory_format, algorithm)
    y = dwconv_cpp.launcher(x, *how, isa=isa)(x, weight, bias)
    gx = dwconv_cpp.launcher(grad, *how, turned=True, isa=isa)(grad, weight, None)
    gw = dwconv_cpp.weight_launcher(grad, x, size, algorithm, isa=isa)(grad, x)
    assert y.is_contiguous(memory_format=memory_format)
    rectified = dwconv_cpp.launcher(x, *how, relu=True, isa=isa)(x, weight, bias)
    assert torch.equal(rectified, y.relu())
    if algorithm == "direct":
        assert_forward(y, x, weight, bias)
        assert_grad_x(gx, grad, weight)
        assert_grad_weight(gw, grad, x)
        return
    x, grad, bias = x.double(), grad.double(), bias.double()
    weight = weight.double()
    length = 4 * (x.shape[2] + size[0]) * (x.shape[3] + size[1])
    y64 = reference.depthwise_conv2d(x, weight, bias)
    # A bias is added after the transform.
    pairs = [(x, weight[:, 0])]
    assert_transform(y, y64, [*pairs, (bias[:, None, None], torch.ones_like(x))], length)
    gx64 = reference.depthwise_conv2d_grad_x(grad, weight)
    assert_transform(gx, gx64, [(grad, weight[:, 0])], length)
    gw64 = reference.depthwise_conv2d_grad_weight(grad, x, size)[:, 0]
    assert_transform(gw[:, 0], gw64, list(zip(x, grad, strict=True)), length)


def arguments(shape, size, dtype, memory_format):
    x, grad = (torch.randn(shape).to(dtype, memory_format=memory_format) for _ in range(2))
    return x, torch.randn(shape[1], 1, *size).to(dtype), torch.randn(shape[1]).to(dtype), grad


odd = st.integers(0, 31).map(lambda k: 2 * k + 1)
sides = st.integers(1, 40)


@settings(max_examples=40)
@given(
    st.sampled_from(ISAS),
    st.sampled_from(["fft", "direct"]),
    st.sampled_from(DTYPES),
    st.sampled_from([CF, CL]),
    st.tuples(st.integers(1, 3), st.integers(1, 19), sides, sides),
    st.one_of(odd.map(lambda k: (k, k)), st.tuples(odd, odd)),
)
def test_any_shape(isa, algorithm, dtype, memory_format, shape, size):
    x, weight, bias, grad = arguments(shape, size, dtype, memory_format)
    check(x, weight, bias, grad, memory_format, algorithm, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("memory_format", [CF, CL])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 17, 96, 96), (31, 31)),  # 112 = 7 * 16
        ((2, 8, 48, 48), (29, 29)),  # 63 = 7 * 9
        ((1, 9, 96, 40), (51, 5)),
        ((1, 9, 40, 96), (5, 51)),
        ((1, 3, 420, 20), (13, 13)),  # two tiles down
        ((1, 3, 20, 420), (13, 13)),  # two tiles across
        ((2, 2, 400, 9), (51, 1)),  # tiles of a strip
        ((1, 2, 9, 400), (1, 63)),
    ],
)
def test_transforms_of_large_maps(isa, memory_format, shape, size):
    check(*arguments(shape, size, torch.float32, memory_format), memory_format, "fft", isa)


@pytest.mark.parametrize("size", [(13, 13), (21, 3)])
@pytest.mark.parametrize("algorithm", ["fft", "direct"])
def test_strides_of_slices_and_transposes(algorithm, size):
    wide = torch.randn(2, 11, 20, 22)
    views = [
        wide[:, 1:, 2:-1, 3:-2],
        wide.to(memory_format=CL)[:, 1:, 2:-1, 3:-2],
        torch.randn(2, 10, 17, 17).transpose(2, 3),
        torch.randn(1, 10, 17, 17).expand(2, -1, -1, -1),
    ]
    weight, bias = torch.randn(10, 1, *size), torch.randn(10)
    for x, grad in itertools.product(views, views):
        check(x, weight, bias, grad, CF, algorithm, "")


def test_all_lengths_of_the_transform():
    # Every sum of size and radius up to 130 meets every factor and combination of factors.
    for size in range(1, 100):
        x, weight = torch.randn(1, 2, size, 3), torch.randn(2, 1, 63, 1)
        y = dwconv_cpp.launcher(x, (63, 1), CF, "fft")(x, weight, None)
        y64 = reference.depthwise_conv2d(x.double(), weight.double())
        assert_transform(y, y64, [(x, weight[:, 0])], 4 * (size + 31))


@pytest.mark.parametrize("algorithm", ["fft", "direct"])
@pytest.mark.parametrize("size", [(13, 13), (21, 3)])
def test_the_same_bits_for_any_number_of_threads_and_batch(algorithm, size):
    x, weight, _, grad = arguments((5, 20, 24, 24), size, torch.float32, CF)
    how = {"backend": "cpp", "algorithm": algorithm}

    def run(x, grad):
        return (
            depthwise_conv2d(x, weight, **how),
            depthwise_conv2d_grad_x(grad, weight, **how),
            depthwise_conv2d_grad_weight(grad, x, size, **how),
        )

    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(run(x, grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    parts = [run(x[i : i + 1], grad[i : i + 1]) for i in range(len(x))]
    assert torch.equal(torch.cat([p[0] for p in parts]), results[0][0])
    assert torch.equal(torch.cat([p[1] for p in parts]), results[0][1])


def test_a_spike_and_a_nan_are_local_in_the_direct_algorithm_only():
    x, weight = torch.randn(1, 1, 40, 40), torch.randn(1, 1, 13, 13)
    clean = reference.depthwise_conv2d(x.double(), weight.double())
    x[0, 0, 0, 0] = 1000
    far = (slice(None), slice(None), slice(10, None), slice(10, None))

    def error(algorithm):
        y = depthwise_conv2d(x, weight, backend="cpp", algorithm=algorithm)
        return (y.double() - clean)[far].abs().max().item()

    assert 5 * error("direct") < error("fft") < 1e-2
    x[0, 0, 0, 0] = torch.nan
    for algorithm, reach in (("direct", 7), ("fft", 40)):
        y = depthwise_conv2d(x, weight, backend="cpp", algorithm=algorithm)
        expected = torch.zeros(40, 40, dtype=torch.bool)
        expected[:reach, :reach] = True
        assert torch.equal(y[0, 0].isnan(), expected)


@pytest.mark.parametrize("algorithm", ["fft", "direct"])
def test_derivatives_of_second_order(algorithm):
    x, weight, _, v = arguments((2, 3, 9, 8), (5, 13), torch.float32, CF)

    def second(backend, dtype, **how):
        a, w, b = (t.to(dtype).requires_grad_() for t in (x, weight, v))
        y = depthwise_conv2d(a, w, backend=backend, **how)
        gx, gw = torch.autograd.grad((y * b).sum(), (a, w), create_graph=True)
        return torch.autograd.grad(gx.square().sum() + gw.square().sum(), (a, w, b))

    expected = second("reference", torch.float64)
    for actual, e in zip(second("cpp", torch.float32, algorithm=algorithm), expected, strict=True):
        assert (actual.double() - e).norm() < 1e-5 * e.norm()


@pytest.mark.parametrize(
    ("direction", "size", "kernel", "channels_last", "method"),
    [
        ("forward", (96, 96), (31, 31), False, "fft"),
        ("forward", (12, 12), (13, 13), True, "fft"),
        ("forward", (7, 7), (13, 13), False, "direct"),
        ("forward", (7, 7), (3, 3), True, "direct"),
        ("forward", (56, 56), (7, 7), False, "fft"),
        ("forward", (56, 56), (7, 7), True, "fft"),
        ("forward", (96, 96), (7, 7), True, "torch"),
        ("forward", (96, 96), (9, 9), True, "fft"),
        ("forward", (56, 56), (5, 5), True, "torch"),
        ("forward", (56, 56), (5, 5), False, "fft"),
        ("forward", (14, 14), (7, 7), False, "torch"),
        ("forward", (56, 56), (3, 3), False, "torch"),
        ("forward", (96, 96), (51, 5), True, "fft"),
        ("grad_x", (96, 96), (51, 1), False, "fft"),
        ("forward", (96, 96), (1, 51), True, "torch"),
        ("grad_x", (96, 96), (51, 1), True, "fft"),
        ("grad_x", (28, 28), (3, 3), True, "fft"),
        ("grad_x", (28, 28), (1, 5), False, "torch"),
        ("grad_x", (7, 7), (3, 3), False, "direct"),
        ("grad_weight", (96, 96), (31, 31), True, "fft"),
        ("grad_weight", (56, 56), (7, 7), True, "direct"),
        ("grad_weight", (7, 7), (31, 31), False, "direct"),
        ("grad_weight", (96, 96), (51, 1), False, "fft"),
    ],
)
def test_the_rule(direction, size, kernel, channels_last, method):
    assert fastest(direction, size, kernel, channels_last) == method


def test_a_graph_holds_what_was_asked_for():
    x, weight = torch.randn(1, 4, 24, 24), torch.randn(4, 1, 13, 13)
    graph = torch.export.export(Convolution(), (x, weight)).graph
    (call,) = [n for n in graph.nodes if n.op == "call_function"]
    assert call.args[-2:] == ("auto", "auto")  # chosen where the graph runs


class Convolution(torch.nn.Module):
    def forward(self, x, weight):
        return depthwise_conv2d(x, weight)


def test_bad_calls_of_the_op_are_refused():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)
    op = torch.ops.cba_fast.depthwise_conv2d.default
    with pytest.raises(ValueError, match="algorithm must be one of .*'winograd'"):
        op(x, weight, None, "auto", "winograd")
    with pytest.raises(ValueError, match=r"'cpp' cannot run: .*torch\.float64"):
        op(x.double(), weight.double(), None, "cpp", "fft")
    with pytest.raises(ValueError, match="isa|avx9"):
        dwconv_cpp.launcher(x, (3, 3), CF, "fft", isa="avx9")


def test_a_core_that_is_called_wrongly():
    core, image, kernel = native.load(), (5, 5, (25, 25, 5, 1)), (3, 3, (0, 9, 3, 1))

    def made(direction="forward", first=image, second=kernel, out=image, dtype="float32", n=1):
        return core.DepthwiseConv(direction, first, second, out, dtype, n, 1, "direct", "")

    for changed, message in [
        ({"direction": "backward"}, "no direction backward"),
        ({"first": (5, 4, (20, 20, 4, 1))}, "images differ in size"),
        ({"first": (5, 5, (25, 25, 1, 5))}, "first: neither channels nor columns"),
        ({"second": (2, 3, (0, 6, 3, 1))}, "odd and at most 63 x 63"),
        ({"second": image, "out": (65, 1, (0, 65, 1, 1)), "direction": "grad_weight"}, "63 x 63"),
        ({"dtype": "float64"}, "dtype must be one of .* got float64"),
        ({"n": 0}, "empty batch"),
    ]:
        with pytest.raises(ValueError, match=message):
            made(**changed)
    for addresses in [(0, 8, 0, 8), (8, 0, 0, 8), (8, 8, 0, 0)]:
        with pytest.raises(ValueError, match="null pointer"):
            made().run(*addresses, 1)


def test_a_launcher_serves_a_layout_and_no_other(monkeypatch):
    checked, check = [], dwconv.check_forward
    monkeypatch.setattr(dwconv, "check_forward", lambda *a: checked.append(a) or check(*a))
    monkeypatch.setattr(dwconv, "_launchers", {})
    weight = torch.randn(4, 1, 5, 5)
    x = torch.randn(2, 4, 9, 9)
    wide = torch.randn(2, 4, 9, 18)
    for image in (x, x.to(memory_format=CL), wide[..., ::2], wide[..., 1:10], x[:1], x.double()):
        for _ in range(2):  # chosen, and launched again
            y = depthwise_conv2d(image, weight.to(image.dtype))
            assert_forward(y, image, weight.to(image.dtype))
    assert len(dwconv._launchers) == len(checked) == 6
    depthwise_conv2d(x, weight, weight[:, 0, 0, 0])
    depthwise_conv2d(x, weight, backend="torch")
    assert len(dwconv._launchers) == 8
    monkeypatch.setattr(dwconv, "_MOST_LAUNCHERS", 8)
    depthwise_conv2d(x, weight, algorithm="direct")
    assert len(dwconv._launchers) == 1


def test_kernels_and_planes_that_are_too_large_are_refused():
    x = torch.randn(1, 1, 200, 1)
    with pytest.raises(ValueError, match="at most 63 x 63"):
        dwconv_cpp.launcher(x, (401, 1), CF, "fft")
    x = torch.empty(1, 1, 1 << 11, (1 << 9) + 1)
    with pytest.raises(ValueError, match="more than 1048576 pixels"):
        depthwise_conv2d(x, torch.empty(1, 1, 3, 3), backend="cpp")


def test_forward_mode_derivatives_are_refused():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)
    with pytest.raises(NotImplementedError, match="depthwise_conv2d has no derivative in forward"):
        torch.func.jvp(lambda t: depthwise_conv2d(t, weight), (x,), (x,))


@pytest.mark.parametrize("kernel_size", [(3.0, 3), "3", None])
def test_kernel_sizes_that_are_no_integers_are_refused(kernel_size):
    x = torch.randn(1, 2, 5, 5)
    with pytest.raises(TypeError, match="integer"):
        depthwise_conv2d_grad_weight(x, x, kernel_size)


def test_a_missing_core_does_not_break_the_compiler(monkeypatch):
    monkeypatch.setattr(native, "_module", None)
    monkeypatch.setattr(native, "_error", ModuleNotFoundError("none", name="cba_fast._C"))
    monkeypatch.setattr(native, "_message", "not built")
    monkeypatch.setattr(dwconv, "_launchers", {})
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(2, 1, 3, 3)
    compiled = torch.compile(depthwise_conv2d, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, weight), depthwise_conv2d(x, weight, backend="torch"))


@pytest.mark.parametrize("side", [7, 24])
def test_an_exported_graph_takes_maps_of_any_size(side):
    h, w = torch.export.Dim("h", min=2, max=64), torch.export.Dim("w", min=2, max=64)
    sizes = ({2: h, 3: w}, None)
    x, weight = torch.randn(1, 4, side, side), torch.randn(4, 1, 13, 13)
    exported = torch.export.export(Convolution(), (x, weight), dynamic_shapes=sizes).module()
    for height, width in ((24, 24), (7, 7), (40, 9)):
        x = torch.randn(1, 4, height, width)
        torch.testing.assert_close(exported(x, weight), depthwise_conv2d(x, weight))


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="this kernel has no huge pages")
def test_a_large_result_is_asked_to_lie_in_huge_pages():
    x = torch.randn(8, 128, 48, 48)
    y = depthwise_conv2d(x, torch.randn(128, 1, 3, 3), backend="cpp")
    assert "hg" in mapping_flags(y.data_ptr() + y.nbytes // 2)
