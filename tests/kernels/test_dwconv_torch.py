"""PyTorch's own kernels: which of them compute bfloat16, and with what rounding."""

import pytest
import torch

from cba_fast.kernels import dwconv_torch

HALF_STEP = 2**-8  # relative error of one rounding to bfloat16


@pytest.mark.parametrize("kernel", [(51, 1), (7, 7), (3, 9), (1, 51), (13, 13)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_bfloat16_is_rounded_once(kernel, memory_format):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 24, 20).bfloat16().contiguous(memory_format=memory_format)
    weight = torch.randn(8, 1, *kernel).bfloat16()
    passes = (lambda x, w: dwconv_torch.forward(x, w, None)), dwconv_torch.grad_x
    for one_pass in passes:
        exact, found = one_pass(x.double(), weight.double()), one_pass(x, weight)
        assert found.dtype == torch.bfloat16
        sums = 1e-5 * exact.abs().max()  # of the float32 sums
        assert ((found - exact).abs() <= HALF_STEP * exact.abs() + sums).all()


@pytest.mark.parametrize(
    ("kernel", "has", "dtype"),
    [
        ((51, 1), True, torch.bfloat16),
        ((7, 9), True, torch.bfloat16),
        ((1, 51), True, torch.float32),  # its bfloat16 kernel does not return on some maps
        ((51, 1), False, torch.float32),
    ],
)
def test_onednn_computes_bfloat16_for_narrow_kernels_where_it_can(monkeypatch, kernel, has, dtype):
    given = []

    def conv2d(x, *args, **kwargs):
        given.append(x.dtype)
        return x

    monkeypatch.setattr(dwconv_torch.F, "conv2d", conv2d)
    monkeypatch.setattr(dwconv_torch, "_onednn_has_bf16", lambda: has)
    x = torch.ones(1, 4, 8, 8, dtype=torch.bfloat16)
    dwconv_torch.forward(x, torch.ones(4, 1, *kernel, dtype=torch.bfloat16), None)
    assert given == [dtype]
