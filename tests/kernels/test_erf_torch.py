"""ERF sizes by PyTorch's sort: rarely left to the reference. `test_erf_kernels` has the values."""

import numpy as np
import pytest
import torch
from test_erf_kernels import DTYPES, KINDS, SHARES, gradients

from cba_fast.kernels.gpu import erf_torch
from cba_fast.ops import erf_size
from cba_fast.ops.erf import SIZE
from cba_fast.reference import erf as reference


@pytest.fixture
def left(monkeypatch):
    """Return the list of images that are left to the reference."""
    images = []
    measure = erf_torch._size_on_cpu

    def noted(grad, n, shares):
        images.append(n)
        return measure(grad, n, shares)

    monkeypatch.setattr(erf_torch, "_size_on_cpu", noted)
    return images


@pytest.mark.parametrize("kind", KINDS)
def test_only_float64_has_sums_of_equal_values_that_rounding_decides(kind, left, monkeypatch):
    monkeypatch.setattr(erf_torch, "GROUP_BYTES", 2**14)  # two images at a time
    values = torch.from_numpy(gradients(kind, (3, 3, 13, 17), np.random.default_rng(0)))
    for dtype in DTYPES:
        grad = values.to(dtype)
        if grad.isfinite().all():  # otherwise beyond float16
            expected = reference.erf_size(grad, [0.2])
            assert torch.equal(erf_size(grad, [0.2], backend="torch"), expected)
            assert not left or (dtype == torch.float64 and kind == "flat")


def test_the_self_check_passes():
    SIZE.backends["torch"].self_check(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_device_equals_cpu(dtype):
    for kind in ("normal", "flat", "decaying", "mostly zero", "denormal"):
        grad = torch.from_numpy(gradients(kind, (4, 3, 384, 384), np.random.default_rng(8)))
        grad = grad.to(dtype)
        found = erf_size(grad.cuda(), SHARES, backend="torch")
        assert torch.equal(found.cpu(), erf_size(grad, SHARES))
