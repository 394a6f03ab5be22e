"""Runs the Triton kernels in Triton's interpreter: results as JSON lines.

Triton reads TRITON_INTERPRET when it is imported, so this runs as a process of its own;
`test_dwconv_triton` starts it and turns each line into a test.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable

import pytest
import torch
from tolerance import (
    assert_forward,
    assert_grad_weight,
    assert_grad_x,
    assert_within,
    sum_bound,
    unit_roundoff,
)

from cba_fast.kernels import dwconv_triton
from cba_fast.ops import (
    depthwise_conv2d,
    depthwise_conv2d_grad_weight,
    depthwise_conv2d_grad_x,
    erf_accumulate,
    quantize,
)
from cba_fast.ops.backends import BackendTable
from cba_fast.reference import dwconv as reference

FP16, BF16 = torch.float16, torch.bfloat16
CL = torch.channels_last
CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def image(layout: str, shape, dtype=FP16):
    n, c, h, w = shape
    if layout == "contiguous":
        t = torch.randn(n, c, h, w)
    elif layout == "channels_last":
        t = torch.randn(n, h, w, c).permute(0, 3, 1, 2)
    elif layout == "transposed":
        t = torch.randn(n, c, w, h).transpose(2, 3)
    elif layout == "sliced":
        return torch.randn(n, c, h + 1, w + 2).to(dtype)[:, :, 1:, 1:-1]
    elif layout == "channels_last_sliced":
        return torch.randn(n, h, w, c + 3).to(dtype).permute(0, 3, 1, 2)[:, 1:-2]
    else:
        assert layout == "expanded"
        return torch.randn(1, c, h, w).to(dtype).expand(n, c, h, w)
    return t.to(dtype)


LAYOUTS = (
    *("contiguous", "channels_last", "transposed"),
    *("sliced", "channels_last_sliced", "expanded"),
)


# The interpreter cuts float32 off where hardware rounds it to bfloat16: another round-off.


def check_forward(y, x, weight, bias=None):
    if y.dtype != BF16:
        return assert_forward(y, x, weight, bias)
    y64 = reference.depthwise_conv2d(x.double(), weight.double(), _double(bias))
    size = reference.depthwise_conv2d(x.double().abs(), weight.double().abs())
    if bias is not None:
        size += bias.double().abs()[:, None, None]
    _check_cut_off(y, y64, size, weight[0].numel() + 1)


def check_grad_x(gx, grad, weight):
    if gx.dtype != BF16:
        return assert_grad_x(gx, grad, weight)
    y64 = reference.depthwise_conv2d_grad_x(grad.double(), weight.double())
    size = reference.depthwise_conv2d_grad_x(grad.double().abs(), weight.double().abs())
    _check_cut_off(gx, y64, size, weight[0].numel())


def check_grad_weight(gw, grad, x):
    if gw.dtype != BF16:
        return assert_grad_weight(gw, grad, x)
    grad, x, kernel_size = grad.double(), x.double(), gw.shape[2:]
    y64 = reference.depthwise_conv2d_grad_weight(grad, x, kernel_size)
    size = reference.depthwise_conv2d_grad_weight(grad.abs(), x.abs(), kernel_size)
    _check_cut_off(gw, y64, size, x[:, 0].numel())


def _double(t):
    return None if t is None else t.double()


def _check_cut_off(y, y64, size, terms):
    bound = sum_bound(y64, size, terms, BF16)
    assert_within(y, y64, bound + unit_roundoff(BF16) * (y64.abs() + bound))


def passes(shape, kernel_size, dtype, layout="contiguous", seed=0, **family):
    """Return a case that checks all three directions, by the ops or by one family of kernels."""

    def run():
        torch.manual_seed(seed)
        x = image(layout, shape, dtype)
        grad = image(layout if layout == "channels_last" else "contiguous", shape, dtype)
        weight = torch.randn(shape[1], 1, *kernel_size).to(dtype)
        bias = torch.randn(shape[1]).to(dtype)
        if family:
            y = dwconv_triton.forward(x, weight, bias, torch.contiguous_format, **family)
            r = dwconv_triton.forward(x, weight, bias, torch.contiguous_format, relu=True, **family)
            gx = dwconv_triton.forward(
                grad, weight, None, torch.contiguous_format, flip=True, **family
            )
            gw = dwconv_triton.grad_weight(grad, x, kernel_size)
        else:
            how = {"backend": "triton"}
            y = depthwise_conv2d(x, weight, bias, **how)
            r = depthwise_conv2d(x, weight, bias, **how, activation="relu")
            gx = depthwise_conv2d_grad_x(grad, weight, **how)
            gw = depthwise_conv2d_grad_weight(grad, x, kernel_size, **how)
        check_forward(y, x, weight, bias)
        assert torch.equal(r, y.relu())
        check_grad_x(gx, grad, weight)
        check_grad_weight(gw, grad, x)

    return run


CASES |= {
    # Bands: tiles and blocks that do not divide the image, whole rows, wide windows.
    "band_many_tiles": passes((1, 1, 11, 40), (9, 9), FP16),
    "band_many_tiles_fp16": passes((2, 1, 19, 37), (13, 15), FP16),
    "band_many_tiles_bf16": passes((1, 1, 9, 50), (11, 9), BF16),
    "band_whole_rows": passes((2, 1, 9, 24), (19, 27), FP16),
    "band_whole_rows_bf16": passes((3, 1, 10, 16), (13, 13), BF16),
    "band_widest_window": passes((1, 1, 5, 65), (17, 63), FP16),
    "band_kernel_exceeds_image": passes((2, 1, 13, 12), (31, 27), FP16),
    "band_one_column": passes((2, 1, 150, 1), (9, 9), FP16),
    "band_one_row": passes((2, 2, 1, 150), (9, 9), BF16),
    "band_many_images": passes((20, 1, 13, 12), (9, 9), FP16),
    "band_splits_of_the_batch": passes((9, 1, 3, 49), (3, 9), FP16),
    "band_single_pixel": passes((2, 3, 1, 1), (9, 3), FP16, family="band"),
    # Strips; tall ones lie down first.
    "strip_51x5": passes((1, 2, 40, 10), (51, 5), FP16),
    "strip_5x51": passes((1, 2, 10, 40), (5, 51), BF16, "channels_last"),
    "strip_63x1": passes((2, 1, 70, 3), (63, 1), BF16),
    "strip_1x63": passes((2, 1, 3, 70), (1, 63), FP16),
    # Dense matrices on small maps.
    "toeplitz_fp16": passes((2, 1, 12, 12), (13, 13), FP16),
    "toeplitz_bf16": passes((2, 3, 7, 7), (5, 13), BF16, "channels_last"),
    "toeplitz_single_pixel": passes((2, 3, 1, 1), (13, 13), FP16),
    "toeplitz_many_images": passes((70, 1, 4, 3), (9, 3), FP16),
    "toeplitz_sliced": passes((2, 2, 4, 8), (9, 9), FP16, "sliced"),
    # Small kernels.
    "small_1x1": passes((2, 3, 5, 6), (1, 1), FP16),
    "small_7x7": passes((1, 2, 17, 18), (7, 7), BF16, "channels_last"),
    "small_5x1": passes((1, 2, 17, 18), (5, 1), FP16),
}
for _layout in LAYOUTS[2:]:
    CASES[f"band_{_layout}"] = passes((2, 2, 8, 19), (3, 9), FP16, _layout)


@case
def delta_kernel_is_the_identity():
    for dtype in (FP16, BF16):
        for kernel_size in ((3, 1), (3, 11)):
            for shape in ((2, 1, 5, 6), (1, 1, 8, 20)):
                x = image("contiguous", shape, dtype)
                weight = torch.zeros(shape[1], 1, *kernel_size, dtype=dtype)
                weight[:, :, kernel_size[0] // 2, kernel_size[1] // 2] = 1
                assert torch.equal(depthwise_conv2d(x, weight, backend="triton"), x)
                assert torch.equal(depthwise_conv2d_grad_x(x, weight, backend="triton"), x)


@case
def memory_formats_are_those_of_conv2d():
    for shape in ((2, 2, 2, 4), (2, 2, 1, 1), (2, 1, 2, 4)):
        for layout in LAYOUTS:
            for kernel_size in ((1, 1), (9, 1)):
                x = image(layout, shape)
                weight = torch.randn(shape[1], 1, *kernel_size, dtype=FP16)
                pad = [k // 2 for k in kernel_size]
                expected = torch.nn.functional.conv2d(x, weight, padding=pad, groups=shape[1])
                y = depthwise_conv2d(x, weight, backend="triton")
                for memory_format in (torch.contiguous_format, CL):
                    same = expected.is_contiguous(memory_format=memory_format)
                    assert y.is_contiguous(memory_format=memory_format) == same, (shape, layout)


@case
def empty_tensors():
    for shape in ((0, 3, 5, 5), (2, 0, 5, 5), (2, 3, 0, 5)):
        x = torch.randn(shape, dtype=FP16, requires_grad=True)
        weight = torch.randn(shape[1], 1, 9, 9, dtype=FP16, requires_grad=True)
        y = depthwise_conv2d(x, weight, backend="triton")
        y.sum().backward()
        assert y.shape == x.grad.shape == x.shape
        assert torch.equal(weight.grad, torch.zeros_like(weight))


@case
def opcheck():
    ops, how = torch.ops.cba_fast, ("triton", "auto")
    x = image("channels_last", (1, 2, 2, 3)).requires_grad_()
    g = image("transposed", (1, 2, 2, 3)).requires_grad_()
    weight = torch.randn(2, 1, 9, 1, dtype=FP16, requires_grad=True)
    bias = torch.randn(2, dtype=FP16, requires_grad=True)
    torch.library.opcheck(ops.depthwise_conv2d.default, (x, weight, bias, *how))
    torch.library.opcheck(ops.depthwise_conv2d_grad_x.default, (g, weight, *how))
    torch.library.opcheck(ops.depthwise_conv2d_grad_weight.default, (g, x, [9, 1], *how))


DTYPES = (torch.float32, torch.float64, FP16, BF16)


@case
def quantized_bytes_are_those_of_the_reference():
    for dtype in DTYPES:
        maps = torch.rand(3, 50, 41).to(dtype).transpose(1, 2)  # two blocks
        maps[0, 0, 0], maps[2, 40, 49] = 0, 1
        expected = quantize(maps, backend="reference")
        assert torch.equal(quantize(maps, backend="triton"), expected)
        for value in (1.5, float("nan"), -0.25):
            wrong = maps.clone()
            wrong[1, 7, 5] = wrong[2, 0, 0] = value
            message = r"score map 1 has the value .* \(row 7, column 5\)"
            with pytest.raises(ValueError, match=message):
                quantize(wrong, backend="triton")
    assert quantize(torch.zeros(0, 4, 4), backend="triton").shape == (0, 4, 4)


@case
def erf_maps_have_the_bits_of_the_reference():
    for dtype in DTYPES:
        grad = torch.randn(19, 3, 15, 11).to(dtype)  # groups of eight, two blocks
        grad[0, 1, 2, 3] = torch.nan
        layouts = grad.mT.contiguous().mT, grad.to(memory_format=CL), grad[:8, :1]
        for mode, x in zip(("relu", "abs", "square"), layouts, strict=True):
            expected = torch.ones(15, 11, dtype=torch.float64)
            out = torch.ones(11, 15, dtype=torch.float64).t()
            erf_accumulate(x, expected, mode=mode, backend="reference")
            erf_accumulate(x, out, mode=mode, backend="triton")
            assert torch.equal(out.nan_to_num(-1), expected.nan_to_num(-1)), (dtype, mode)
            assert out.isnan().sum() == (x.shape[1] > 1)
    erf_accumulate(torch.zeros(0, 3, 15, 11), out, backend="triton")


@case
def self_checks_pass():
    for op in ("quantize", "erf_accumulate"):
        BackendTable.registry[op].backends["triton"].self_check(torch.device("cpu"))


def unusable() -> str | None:
    """Return why this interpreter cannot run loops, or None.

    Triton 3.6 (and others) convert the bounds of loops as NumPy 2.4 no longer lets them.
    """
    try:
        CASES["small_1x1"]()
    except Exception as e:
        if "only 0-dimensional arrays can be converted" in f"{e} {e.__cause__}":
            import numpy
            import triton

            return f"Triton {triton.__version__} cannot interpret with NumPy {numpy.__version__}"
    return None


def main() -> None:
    reason = unusable()
    if reason is not None:
        print(json.dumps({"unusable": reason}))
        return
    for name in sys.argv[1:] or CASES:
        error, started = None, time.perf_counter()
        try:
            torch.manual_seed(0)
            CASES[name]()
        except Exception:
            error = traceback.format_exc()
        seconds = round(time.perf_counter() - started, 2)
        print(json.dumps({"case": name, "error": error, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
