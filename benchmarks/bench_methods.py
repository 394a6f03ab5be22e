"""Heatmaps of a batch, pytorch-grad-cam's way against ours on the same weights.

    pytest benchmarks/bench_methods.py --threads 2
    python benchmarks/table.py

pytorch-grad-cam keeps the graph of the whole network and takes gradients of all its weights; ours
begins at the feature maps. "form" is `inference_form` of the network, which the commands run. The
maps are compared before anything is timed. The weights are random.
"""

import numpy as np
import pytest
import torch

from cba_fast.bench.contest import Contest
from cba_fast.bench.model_contest import OURS, create
from cba_fast.models import inference_form
from cba_fast.wsol import heatmap

pgc = pytest.importorskip("pytorch_grad_cam")

THEIRS, FORM = "pytorch_grad_cam", f"{OURS}_form"
MODEL, LAYER, SIZE, BATCH = "resnet50", "layer4", 224, 16
METHODS = {"grad-cam": "GradCAM", "grad-cam++": "GradCAMPlusPlus", "eigen-cam": "EigenCAM"}
PER_METHOD = 40  # a method has so many times the seconds of a layer
LEVEL = 1.01 / 255  # maps are quantized to 256 levels


def stretched(maps: np.ndarray) -> np.ndarray:
    """Return maps in which each goes from 0 to 1."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_method(method, benchmark, play, record, pytestconfig):
    model = create(MODEL).eval().requires_grad_()
    form = inference_form(model)
    x = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    channels_last = x.to(memory_format=torch.channels_last)
    theirs = getattr(pgc, METHODS[method])(model, [model.get_submodule(LAYER)])
    contest = Contest(
        {
            THEIRS: lambda: theirs(x, None),
            OURS: lambda: heatmap(model, x, method=method),
            FORM: lambda: heatmap(form, channels_last, method=method),
        },
        PER_METHOD * pytestconfig.getoption("seconds"),
        most=20,
    )
    want = stretched(np.asarray(contest.results[THEIRS], np.float64))
    errors = {n: np.abs(contest.results[n].numpy() - want) for n in (OURS, FORM)}
    # LAPACK may return either sign of an axis, so that some of their maps are of the other side.
    same = {n: e.max((1, 2)) <= LEVEL for n, e in errors.items()}
    assert all(s.all() if method != "eigen-cam" else s.any() for s in same.values())
    benchmark.group = f"{method}, {MODEL} {SIZE}"
    play(contest, OURS)
    timings = {name: t.in_ms() for name, t in contest.timings().items()}
    slow = timings[THEIRS]["median_ms"]
    values = {
        "bench": "methods",
        "case": f"{MODEL} {BATCH}x3x{SIZE}x{SIZE}",
        "direction": method,
        "dtype": "float32",
        "algorithm": "NCHW; form: channels_last",
        "errors": {n: float(f"{e[same[n]].max():.3g}") for n, e in errors.items()},
        "timings": timings,
        "speedup": {n: round(slow / timings[n]["median_ms"], 2) for n in (OURS, FORM)},
    }
    record("methods", values)
    print(values)
