"""The Triton kernels without a GPU: values when interpreted, the convolution's plans, refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_interpreter import CASES

from cba_fast.kernels.dwconv_gpu import triton_plan
from cba_fast.kernels.dwconv_gpu.triton_plan import window
from cba_fast.ops import depthwise_conv2d
from cba_fast.ops.dwconv_choice import TABLES
from cba_fast.ops.dwconv_gpu import refuses_triton

RUNNER = Path(__file__).parents[1] / "triton_interpreter.py"
BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def interpreted():
    """Return what became of each case in the interpreter: None, or its traceback."""
    pytest.importorskip("triton")
    result = subprocess.run(
        [sys.executable, RUNNER],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert lines, result.stderr
    if "unusable" in lines[0]:
        pytest.skip(lines[0]["unusable"])
    return {line["case"]: line["error"] for line in lines}


@pytest.mark.parametrize("name", CASES)
def test_in_the_interpreter(name, interpreted):
    assert name in interpreted, "the interpreter ended before"
    assert interpreted[name] is None, interpreted[name]


# Plans.


@pytest.mark.parametrize("kernel_w", [1, 3, 9, 13, 31, 51, 63])
@pytest.mark.parametrize("largest", [16, 64])
def test_windows_hold_every_input_of_their_tiles(kernel_w, largest):
    for width in range(1, 140):
        cut = window(width, kernel_w, largest)
        assert cut.tile * cut.tiles >= width > cut.tile * (cut.tiles - 1)
        assert cut.columns in ((16, 32, 48, 64, 80) if largest == 16 else (16, 32, 64, 128))
        assert cut.offset % 8 == 0
        for tile in range(cut.tiles):
            first = tile * cut.tile
            last = min(first + cut.tile, width) - 1
            start = first - cut.offset
            assert start <= max(first - kernel_w // 2, 0)
            assert start + cut.columns > min(last + kernel_w // 2, width - 1)


def test_windows_are_cheap_for_the_networks_they_are_for():
    # RepLKNet-31B at 384: products per tap of the row, against 1 without bands.
    expected = {(96, 31): 48 / 31, (48, 29): 48 / 29, (24, 27): 32 * 32 / 24 / 27}
    for (width, kernel_w), products in expected.items():
        cut = window(width, kernel_w)
        assert cut.columns * cut.tile * cut.tiles / (width * kernel_w) == pytest.approx(products)


def test_units_are_common_divisors_of_at_most_16_bytes():
    assert triton_plan.unit(BF16, 96, 96 * 96) == 8
    assert triton_plan.unit(BF16, 12, 144) == 4
    assert triton_plan.unit(BF16, 7, 49) == 1


@pytest.mark.parametrize(
    ("size", "family"),
    [((12, 12), "toeplitz"), ((1, 1), "toeplitz"), ((13, 12), "band"), ((96, 96), "band")],
)
def test_families(size, family):
    assert triton_plan.family(size) == family


def test_a_weight_gradient_is_split_by_the_shape_alone():
    # The same splits on every GPU, and in every run: that is what makes it deterministic.
    def plan(n):
        x = torch.empty(n, 8, 96, 96, dtype=BF16, device="meta")
        gw = torch.empty(8, 31, 31, dtype=BF16, device="meta")
        return triton_plan.band_weight(x, x, gw, upcast=False)[0].arguments

    assert plan(64)["splits"] == 3
    assert plan(1)["splits"] == 1
    assert plan(1)["lanes"] == 21


# What a GPU gets.


def test_what_the_kernels_refuse_on_a_gpu(a_gpu, monkeypatch):
    assert refuses_triton(a_gpu(2, 3, 4, 5), (9, 9), "auto") is None
    for dtype in (torch.float32, torch.float64):
        reason = refuses_triton(a_gpu(2, 3, 4, 5, dtype=dtype), (9, 9), "auto")
        assert reason == f"it has no kernels for {dtype}"
    assert "a NaN reach beyond the kernel" in refuses_triton(a_gpu(2, 3, 4, 5), (3, 3), "direct")
    assert "plane has more" in refuses_triton(a_gpu(1, 1, 2**16, 2**15), (9, 9), "auto")
    assert "programs" in refuses_triton(a_gpu(2**16, 2**16, 1, 1), (9, 9), "auto")
    assert refuses_triton(a_gpu(64, 512, 512, 512), (9, 9), "auto") is None  # 2^33 elements
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert "older than compute capability 8.0" in refuses_triton(a_gpu(2, 3, 4, 5), (9, 9), "auto")


def test_cpu_tensors_are_refused():
    x, weight = torch.zeros(1, 2, 9, 9, dtype=BF16), torch.zeros(2, 1, 9, 9, dtype=BF16)
    reason = TABLES["forward"].backends["triton"].refuses(x, (9, 9), "auto")
    assert reason == "it runs on NVIDIA GPUs, not on cpu"
    with pytest.raises(ValueError, match="backend 'triton' cannot run"):
        depthwise_conv2d(x, weight, backend="triton")


def test_without_triton_everything_else_works():
    code = """
import sys
sys.modules["triton"] = None
import torch
from cba_fast.ops import depthwise_conv2d, dwconv_gpu
x, weight = torch.randn(1, 2, 9, 9), torch.randn(2, 1, 9, 9)
depthwise_conv2d(x, weight)
try:
    depthwise_conv2d(x, weight, backend="triton")
except ValueError as e:
    print(e)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "backend 'triton' cannot run: triton is not installed" in result.stdout, result.stderr
