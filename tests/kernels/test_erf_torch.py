"""ERF sizes by PyTorch's sort: equal to the reference, and rarely left to it."""

import numpy as np
import pytest
import torch
from test_erf_kernels import DTYPES, KINDS, SHARES, gradients, layouts

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
def test_sizes_equal_the_reference(kind, left, monkeypatch):
    monkeypatch.setattr(erf_torch, "GROUP_BYTES", 2**15)  # three images of 13x17, one of 30x31
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 1, 1), (3, 3, 13, 17), (2, 9, 30, 31)):
        values = torch.from_numpy(gradients(kind, shape, rng))
        for dtype in DTYPES:
            grad = values.to(dtype)
            if not grad.isfinite().all():  # beyond float16
                continue
            for shares in (SHARES, [0.2], []):
                found = erf_size(grad, shares, backend="torch")
                assert torch.equal(found, reference.erf_size(grad, shares))
            left.clear()
            erf_size(grad, 0.2, backend="torch")
            # Only float64 has sums of equal values at which rounding decides.
            assert not left or (dtype == torch.float64 and kind == "flat")


def test_the_self_check_passes():
    SIZE.backends["torch"].self_check(torch.device("cpu"))


def test_layouts():
    x = torch.randn(3, 3, 17, 14, generator=torch.Generator().manual_seed(2))
    for grad in (*layouts(x).values(), x.mT, x.expand(3, 3, 17, 14)):
        assert torch.equal(erf_torch.erf_size(grad, SHARES), reference.erf_size(grad, SHARES))
    assert erf_torch.erf_size(x[:0], SHARES).shape == (0, len(SHARES))
    assert erf_torch.erf_size(x[..., :0], [0.5]).tolist() == [[0]] * 3


def test_sums_that_rounding_decides_are_left_to_the_reference(left):
    grad = torch.full((1, 1, 1, 1000), 0.1, dtype=torch.float64)
    shares = [k / 10 for k in range(11)]
    assert torch.equal(erf_torch.erf_size(grad, shares), reference.erf_size(grad, shares))
    assert left == [0]
    left.clear()
    grad = grad.float()  # whose sums are exact
    assert torch.equal(erf_torch.erf_size(grad, shares), reference.erf_size(grad, shares))
    assert not left


@pytest.mark.parametrize("p", [[], [0.3]])
def test_errors_name_the_image(p):
    grad = torch.ones(5, 3, 4, 5, dtype=torch.float64)
    grad[2, 1, 3, 3], grad[4] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="image 2 holds NaN or infinite values"):
        erf_size(grad, p, backend="torch")
    with pytest.raises(ValueError, match="sum of image 1's gradient exceeds float64"):
        erf_size(torch.stack([grad[0], 1e307 * grad[0]]), p, backend="torch")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_device_equals_cpu(dtype):
    for kind in ("normal", "flat", "decaying", "mostly zero", "denormal"):
        grad = torch.from_numpy(gradients(kind, (4, 3, 384, 384), np.random.default_rng(8)))
        grad = grad.to(dtype)
        found = erf_size(grad.cuda(), SHARES, backend="torch")
        assert torch.equal(found.cpu(), erf_size(grad, SHARES))
