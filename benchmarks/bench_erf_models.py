"""ERF size of whole networks, the study's way against ours: seconds and peak memory per image.

    pytest benchmarks/bench_erf_models.py -k convnext
    python benchmarks/table.py

The study's way: one image at a time, the network as it is built, `torch.nn.Conv2d` on contiguous
tensors, ``score.backward()`` with parameters that require gradients, NumPy's sort. Ours: the
inference form, input gradients only, `cba_fast.ops.erf_size`. Weights are random. Gradients and
sizes are compared before anything is timed. Peak memory is measured in fresh processes: growth of
the resident set at its peak over that with the model built, and the peak of the whole process.
"""

import copy
import ctypes
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from bench_memory import status
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
PER_MODEL = 20  # times the seconds of a layer
# Relative L2 error of a gradient, above which a way is wrong. Rounding flips the sign of a few ReLU
# inputs near zero, each of which switches a path on or off: a share f of flips changes the gradient
# by about sqrt(f), 4e-3 in RepLKNet-31B (1e-6 in ConvNeXt, which has no ReLU).
WRONG = 2e-2
# Rounding of the gradients moves pixels over the edge of the ERF.
SIZE_TOLERANCE = 0.01


def images(count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def study_form(name: str) -> nn.Module:
    """Return the network as PyTorch alone runs it, its parameters requiring gradients."""
    model = copy.deepcopy(create(name))
    for module in model.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = nn.Conv2d
    return model.requires_grad_().eval()


def study_way(model: nn.Module, image: Tensor) -> tuple[list[int], Tensor]:
    """Return the ERF size by the top-1 probability, weight gradients computed along, and its g."""
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
    """Return the peak growth of this fresh process for one ERF size, and its whole peak."""
    torch.set_num_threads(threads)
    if way == DEFAULT:
        model, image = study_form(name), images(1)
    else:
        model, image = inference_form(create(name)), images(1)
    ctypes.CDLL(None).malloc_trim(0)  # what building the model left is not there to be used again
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the peak counts from here
    before = status("VmRSS")
    if way == DEFAULT:
        study_way(model, image)
    else:
        our_way(model, image, "block" if way == OURS_BLOCK else "none")
    return status("VmHWM") - before, status("VmHWM")


def in_fresh_process(*args) -> tuple[int, int]:
    """Return `peak_kib(*args)` as a new process computes it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak_kib, *args).result()


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
    peaks = {way: in_fresh_process(name, way, threads) for way in (DEFAULT, OURS, OURS_BLOCK)}
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
