"""The float32 depthwise convolution on CUDA's FMA units, its kernels run on a CPU."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tolerance import assert_forward, assert_grad_weight, assert_grad_x

from cba_fast.kernels.dwconv_gpu import cuda_fma as fma
from cba_fast.ops.dwconv_choice import TABLES

CSRC = Path(__file__).parents[2] / "csrc"
NCHW, CL = torch.contiguous_format, torch.channels_last

# (N, C, H, W), (KH, KW). Together they reach, in forward pass and weight gradient: 4, 6 and 8 rows
# per thread; 1, 2 and 4 whole images per block, and 8 and more, where the lanes of a warp are
# images, of which some are missing; planes cut in rows, and in rows and columns.
CASES = [
    ((1, 1, 1, 1), (1, 1)),
    ((2, 3, 1, 1), (63, 63)),
    ((2, 1, 5, 7), (3, 3)),
    ((4, 1, 9, 10), (3, 5)),
    ((1, 2, 3, 130), (5, 3)),
    ((1, 1, 257, 5), (3, 7)),
    ((3, 2, 12, 12), (13, 13)),
    ((17, 1, 12, 12), (13, 13)),
    ((2, 2, 24, 24), (27, 27)),
    ((15, 2, 24, 24), (27, 27)),
    ((31, 1, 6, 3), (5, 9)),
    ((16, 1, 16, 10), (15, 13)),
    ((8, 1, 14, 25), (47, 5)),
    ((23, 1, 11, 24), (5, 47)),
    ((3, 1, 31, 17), (7, 5)),
    ((1, 1, 37, 39), (29, 29)),
    ((1, 1, 96, 96), (31, 31)),
    ((1, 1, 40, 36), (51, 5)),
    ((1, 1, 36, 40), (5, 51)),
    ((2, 1, 38, 9), (63, 1)),
    ((2, 1, 9, 38), (1, 63)),
    ((1, 1, 67, 135), (5, 7)),
    ((1, 1, 70, 140), (63, 61)),
    ((1, 1, 33, 34), (1, 1)),
]


def ids(case):
    return "-".join("x".join(map(str, sizes)) for sizes in case)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def within_nan(values, before=1, after=3):
    """Return `values` as part of a larger tensor of NaN: its rows may be aligned to nothing."""
    n, c, h, w = values.shape
    larger = torch.full((n, c, h + 2, before + w + after), torch.nan, device=values.device)
    part = larger[:, :, 1 : 1 + h, before : before + w]
    part.copy_(values)
    return part


def inputs(case, generator):
    """Return x, grad, weight and bias."""
    (n, c, h, w), (kh, kw) = case
    shapes = ((n, c, h, w), (n, c, h, w), (c, 1, kh, kw), (c,))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def check_all(x, grad, weight, bias, memory_format=NCHW):
    size = tuple(weight.shape[2:])
    y = fma.forward(x, weight, bias, memory_format)
    gx, gw = (
        fma.forward(grad, weight, None, memory_format, flip=True),
        fma.grad_weight(grad, x, size),
    )
    assert_forward(y, x, weight, bias)
    assert_grad_x(gx, grad, weight)
    assert_grad_weight(gw, grad, x)
    assert y.is_contiguous(memory_format=memory_format)
    assert gx.is_contiguous(memory_format=memory_format)
    assert gw.is_contiguous()


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values(case, emulated_cuda, generator):
    x, grad, weight, bias = inputs(case, generator)
    check_all(within_nan(x), within_nan(grad, 2), weight, bias)


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("columns", [8, 13, 15])
def test_every_result_is_written_and_nothing_else(shift, columns, emulated_cuda, generator):
    x, _, weight, bias = inputs(((15, 2, 10, columns), (3, 5)), generator)
    x, weight = x.contiguous(), weight.contiguous()
    pitch = 16 if shift < 2 else 15
    memory = torch.full((15 * 2 * 12 * pitch + 8,), torch.nan)
    y = memory[shift:][: 15 * 2 * 12 * pitch].view(15, 2, 12, pitch)[:, :, 1:11, :columns]
    emulated_cuda.dwconv_fma_cuda(
        (x.data_ptr(), x.stride()[:3]),
        weight.data_ptr(),
        bias.data_ptr(),
        (y.data_ptr(), y.stride()[:3]),
        "float32",
        (*x.shape, 3, 5),
        False,
        False,
        (),
        0,
        0,
    )
    assert_forward(y, x, weight, bias)
    assert int(memory.isnan().sum()) == memory.numel() - y.numel()


@pytest.mark.parametrize(
    "case",
    [((2, 2, 24, 24), (13, 9)), ((15, 1, 12, 12), (13, 13)), ((1, 1, 70, 40), (51, 5))],
    ids=ids,
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_nan_reaches_exactly_the_windows_that_hold_it(case, value, emulated_cuda, generator):
    x, _, weight, _ = inputs(case, generator)
    (n, c, h, w), (kh, kw) = case
    expected = torch.zeros(n, c, h, w, dtype=torch.bool)
    for row, column in ((0, 0), (h // 2, w // 2 + 1), (h - 1, 5)):
        x[-1, -1, row, column] = value
        rows = slice(max(row - kh // 2, 0), row + kh // 2 + 1)
        expected[-1, -1, rows, max(column - kw // 2, 0) : column + kw // 2 + 1] = True
    for flip in (False, True):
        y = fma.forward(x, weight, None, NCHW, flip=flip)
        assert torch.equal(~y.isfinite(), expected)


def test_a_nan_reaches_exactly_the_weight_gradients_that_read_it(emulated_cuda, generator):
    # In the corner: only the taps that put it under some gradient, all of one quadrant.
    x, grad, _, _ = inputs(((1, 2, 20, 18), (25, 21)), generator)
    x[0, 1, 0, 0] = torch.nan
    gw = fma.grad_weight(grad, x, (25, 21))
    expected = torch.zeros(2, 1, 25, 21, dtype=torch.bool)
    expected[1, :, :13, :11] = True
    assert torch.equal(gw.isnan(), expected)


@pytest.mark.parametrize("case", [CASES[i] for i in (8, 9, 15, 17)], ids=ids)
def test_the_same_bits_in_any_order_of_threads(case, emulated_cuda, generator):
    x, grad, weight, bias = inputs(case, generator)

    def results():
        gw = fma.grad_weight(grad, x, case[1])
        return (
            fma.forward(x, weight, bias, NCHW),
            fma.forward(grad, weight, None, NCHW, flip=True),
            gw,
        )

    first = results()
    for order in range(4):
        emulated_cuda.set_order(order)
        assert all(map(torch.equal, first, results()))


@pytest.mark.parametrize("blocks", [1, 4, 10, 1000])
def test_splits_of_the_batch(blocks, emulated_cuda, monkeypatch, generator):
    monkeypatch.setattr(fma, "_BLOCKS", blocks)
    for shape in ((21, 2, 9, 10), (5, 2, 33, 32)):
        x, grad, _, _ = inputs((shape, (5, 3)), generator)
        assert_grad_weight(fma.grad_weight(grad, x, (5, 3)), grad, x)


def test_the_shape_alone_says_how_a_batch_is_split():
    assert fma.splits((64, 128, 96, 96)) == 12
    assert fma.splits((64, 512, 24, 24)) == 3
    assert fma.splits((64, 4096, 7, 7)) == 1
    assert fma.splits((2, 8, 24, 24)) == 1
    assert fma.splits((2, 8, 96, 96)) == 2


TILED = {
    "fma": ((), ()),
    "hankel": ((1, 2, 8, 1), (1, 1, 1, 1, 1)),
    "strip": ((3, 1, 4, 1, 1), None),
}


@pytest.mark.parametrize("family", TILED)
def test_all_bindings_check_the_same(family, emulated_cuda):
    dtype = "float32" if family == "fma" else "bfloat16"
    x = torch.ones(1, 1, 4, 4, dtype=getattr(torch, dtype))
    address = x.data_ptr()
    planes = (address, x.stride()[:3])
    tile, weight_tile = TILED[family]

    def call(x=planes, kernel=address, sizes=(1, 1, 4, 4, 3, 3), splits=1, dtype=dtype, tile=tile):
        args = (sizes, False, False, tile, 0, 0)
        getattr(emulated_cuda, f"dwconv_{family}_cuda")(x, kernel, 0, planes, dtype, *args)
        if weight_tile is not None:
            of_weight = getattr(emulated_cuda, f"dwconv_{family}_weight_cuda")
            of_weight(planes, x, kernel, 0, splits, dtype, sizes, weight_tile, 0, 0)

    refusals = [
        ({"x": (0, x.stride()[:3])}, "x: null pointer"),
        ({"kernel": 0}, "kernel: null pointer"),
        ({"sizes": (1, 1, 0, 4, 3, 3)}, "empty plane"),
        ({"sizes": (1, 1, 4, 2**31, 3, 3)}, r"more than 2\^30"),
        *(({"sizes": (1, 1, 4, 4, *k)}, "odd and at most 63 x 63") for k in [(2, 3), (3, 65)]),
        ({"sizes": (1, 1, 4, 4, -1, 3)}, "odd and at most 63 x 63"),
        ({"dtype": "float64"}, "dtype must be one of .* got float64"),
        ({"dtype": "float16" if family == "fma" else "float32"}, "no kernel for this"),
    ]
    if weight_tile is not None:
        refusals += [({"splits": 2}, "partials: null pointer"), ({"splits": 0}, "splits")]
    for changed, message in refusals:
        with pytest.raises(ValueError, match=message):
            call(**changed)


@pytest.mark.parametrize("source", ["dwconv_fma", "dwconv_fma_weight"])
def test_compiled_without_spills(source, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc to compile the kernels with")
    archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90, 100)]
    command = ["nvcc", "-O3", "-std=c++17", f"-I{CSRC}", *archs, "-Xptxas", "-v", "-fatbin"]
    command += ["-o", tmp_path / "out.fatbin", CSRC / "cuda" / f"{source}.cu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [line.strip() for line in done.stderr.splitlines() if "stack frame" in line]
    assert len(found) >= 9  # three kernels for each architecture
    clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    assert set(found) == {clean}, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_on_a_gpu(case, generator):
    tensors = [t.cuda() for t in inputs(case, generator)]
    cuda = TABLES["forward"].backends["cuda"]
    if (reason := cuda.reason(tensors[0], case[1], "auto")) is not None:
        pytest.skip(reason)
    x, grad, weight, bias = tensors
    check_all(within_nan(x), within_nan(grad, 2), weight, bias)
    check_all(x.contiguous(memory_format=CL), grad, weight, bias, CL)
    again = [fma.grad_weight(grad, x, case[1]) for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.gpu
def test_threads_on_a_gpu_launch_the_same_kernel(cuda_device):
    # With different shared memory, more than a kernel has without asking.
    cases = [((2, 4, 128, 128), size) for size in ((63, 63), (51, 63), (63, 41), (63, 63))]
    generators = [torch.Generator().manual_seed(0) for _ in cases]
    tensors = [[t.to(cuda_device) for t in inputs(*pair)] for pair in zip(cases, generators)]

    def results(case, count):
        x, _, weight, _ = tensors[case]
        return [fma.forward(x, weight, None, NCHW) for _ in range(count)]

    alone = [results(case, 1)[0] for case in range(len(cases))]
    with ThreadPoolExecutor(len(cases)) as pool:
        together = list(pool.map(lambda case: results(case, 200), range(len(cases))))
    for expected, found in zip(alone, together):
        assert all(torch.equal(y, expected) for y in found)
