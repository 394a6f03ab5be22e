"""The ERF size of whole networks, the study's way against ours: time and peak memory per image.

    pytest benchmarks/bench_erf_models.py -k convnext
    python benchmarks/table.py

The study's way takes one image at a time and uses the network as it is built, `torch.nn.Conv2d` on
contiguous tensors, ``score.backward()`` with parameters that require gradients, and NumPy's sort.
Ours uses the inference form, computes input gradients only, and calls `cba_fast.ops.erf_size`. The
weights are random. Gradients and sizes are compared before anything is timed. Peak memory is
measured in fresh processes: how much the resident set grows after the model is built, and the peak
of the whole process.
"""

import copy
import ctypes
import sys

import numpy as np
import pytest
import torch
from bench_memory import in_fresh_process, status
from torch import Tensor, nn

from cba_fast import erf, ops
from cba_fast.bench.contest import Contest
from cba_fast.bench.dwconv_contest import relative_error
from cba_fast.bench.model_contest import DEFAULT, OURS, create
from cba_fast.models import inference_form
from cba_fast.nn import DepthwiseConv2d

MODELS = ["replknet_31b", "convnext_base.fb_in22k_ft_in1k_384"]
SIZE, SHARE, BATCH = 384, 0.2, 4
OURS_BATCH = f"{OURS}_batch{BATCH}"
OURS_BLOCK = f"{OURS}_block"
PER_MODEL = 20  # a model has so many times the seconds of a layer
# A way whose gradient has a larger relative L2 error is wrong. Rounding flips the sign of a few
# ReLU inputs near zero, each of which switches a path on or off: if a share f of them flips, the
# gradient changes by about sqrt(f), 4e-3 in RepLKNet-31B (1e-6 in ConvNeXt, which has no ReLU).
WRONG = 2e-2
SIZE_TOLERANCE = 0.01  # rounding of the gradients moves pixels over the edge of the ERF


def images(count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def study_form(name: str) -> nn.Module:
    """Return the network with PyTorch's convolutions and parameters that require gradients."""
    model = copy.deepcopy(create(name))
    for module in model.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = nn.Conv2d
    return model.requires_grad_().eval()


def study_way(model: nn.Module, image: Tensor) -> tuple[list[int], Tensor]:
    """Return the ERF size for the top-1 probability, and the input gradient."""
    model.zero_grad(set_to_none=True)
    x = image.clone().requires_grad_()
    probabilities = model(x).softmax(1)
    probabilities[0, probabilities[0].argmax()].backward()
    g = x.grad.abs().mean(1)[0].numpy()
    total = np.cumsum(np.sort(g.ravel())[::-1], dtype=np.float64)
    return [int(1 + np.searchsorted(total, SHARE * total[-1]))], x.grad


def our_way(form: nn.Module, batch: Tensor, checkpoint: str = "none") -> tuple[list[int], Tensor]:
    """Return the ERF sizes of a batch, and the input gradients."""
    batch = batch.to(memory_format=torch.channels_last)
    grad = erf.input_gradient(form, batch, checkpoint=checkpoint)
    return ops.erf_size(grad, SHARE).tolist(), grad


def peak_kib(name: str, way: str, threads: int) -> tuple[int, int]:
    """Return the KiB that this fresh process takes for one ERF size, and its whole peak."""
    torch.set_num_threads(threads)
    if way == DEFAULT:
        model, image = study_form(name), images(1)
    else:
        model, image = inference_form(create(name)), images(1)
    ctypes.CDLL(None).malloc_trim(0)  # returns what the model's construction freed
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # resets the peak
    before = status("VmRSS")
    if way == DEFAULT:
        study_way(model, image)
    else:
        our_way(model, image, "block" if way == OURS_BLOCK else "none")
    return status("VmHWM") - before, status("VmHWM")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", MODELS)
def test_erf(name, benchmark, play, record, pytestconfig):
    study, ours = study_form(name), inference_form(create(name))
    batch = images(BATCH)
    contest = Contest(
        {
            DEFAULT: lambda: study_way(study, batch[:1]),
            OURS: lambda: our_way(ours, batch[:1]),
            OURS_BATCH: lambda: our_way(ours, batch),
        },
        PER_MODEL * pytestconfig.getoption("seconds"),
        most=20,
    )
    truth = contest.results[DEFAULT][1].double()
    sizes = {way: found[0] for way, (found, _) in contest.results.items()}
    errors = {way: relative_error(g[:1], truth) for way, (_, g) in contest.results.items()}
    assert max(errors.values()) <= WRONG
    for size in sizes.values():
        assert abs(size - sizes[DEFAULT]) <= max(1, SIZE_TOLERANCE * sizes[DEFAULT])
    benchmark.group = f"ERF, {name} {SIZE}"
    play(contest, OURS)
    timings = {way: t.in_ms() for way, t in contest.timings().items()}
    for key in ("median_ms", "p20_ms", "p80_ms"):
        timings[OURS_BATCH][key] = round(timings[OURS_BATCH][key] / BATCH, 5)
    threads = torch.get_num_threads()
    ways = (DEFAULT, OURS, OURS_BLOCK)
    peaks = {way: in_fresh_process(peak_kib, name, way, threads) for way in ways}
    values = {
        "bench": "models",
        "case": f"{name} 1x3x{SIZE}x{SIZE}",
        "direction": "ERF size, per image",
        "dtype": "float32",
        "errors": {way: float(f"{error:.3g}") for way, error in errors.items()},
        "erf_sizes": sizes,
        "timings": timings,
        "peak_growth_kib": {way: growth for way, (growth, _) in peaks.items()},
        "peak_kib": {way: whole for way, (_, whole) in peaks.items()},
    }
    record("erf_models", values)
    print(values)
