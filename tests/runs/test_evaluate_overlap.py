"""evaluate with its steps overlapped, compiled or on a GPU: equal to the plain loop."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from cli_runner import run_cli
from evaluate_setup import IDS, images_and_metadata, model_arguments, read

from cba_fast.data import open_image_set
from cba_fast.errors import InputError
from cba_fast.runs import inference
from cba_fast.runs.evaluate import choose_loop
from cba_fast.runs.overlap import in_background, one_by_one
from cba_fast.runs.runtime import Runtime
from cba_fast.runs.settings import DataConfig, MapConfig, ModelConfig, RunConfig
from cba_fast.wsol import BoxEvaluator


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "r.pth"
    return make_checkpoint(path, "replknet", SMALL_MODELS["replknet"], num_classes=3)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return images_and_metadata(tmp_path)


@pytest.fixture
def overlapped(monkeypatch):
    """What a GPU gets, on the CPU: batches swept in a thread."""
    loops = []

    def loop(items, work):
        loops.append(in_background)
        in_background(items, work)

    monkeypatch.setattr("cba_fast.runs.evaluate.choose_loop", lambda run: loop)
    return loops


def scores_of(capsys, weights, *more):
    """Run evaluate; return how it ended and what it wrote, settings aside."""
    args = [*model_arguments(weights), "--metadata_root", "meta", "--num_samples", 0]
    path = Path("r.json")
    path.unlink(missing_ok=True)
    done = run_cli(capsys, "evaluate", *args, "--json", path, *more)
    found = read(path) if path.exists() else {}
    return done, {k: v for k, v in found.items() if k != "settings"}


@pytest.mark.parametrize(
    "more",
    [
        ["--batch_size", 1],
        ["--batch_size", 2, "--localization_method", "pc1"],
        ["--batch_size", 9, "--eval_size", 24, "--resize_maps"],
    ],
    ids=["single", "pc1", "resized"],
)
def test_the_overlapped_loop_gives_the_result_of_the_plain_one(
    here, weights, capsys, request, more
):
    (here / "images" / IDS[1]).write_bytes(b"not an image")
    plain = scores_of(capsys, weights, *more)
    loops = request.getfixturevalue("overlapped")
    found = scores_of(capsys, weights, *more)
    assert loops == [in_background]
    assert found == plain
    assert found[0].status == 0
    assert found[1]["num_images"] == 6
    assert f"{IDS[1]}: cannot read image" in found[0].err


def third_batch_is_nan(monkeypatch, localize_on_device=inference.localize_on_device):
    made = []

    def poisoned(model, x, **options):
        made.append(x)
        return localize_on_device(model, x * np.nan if len(made) == 3 else x, **options)

    monkeypatch.setattr(inference, "localize_on_device", poisoned)


@pytest.mark.parametrize("case", ["sweep", "features", "unreadable", "interrupt"])
def test_the_overlapped_loop_ends_as_the_plain_one(
    here, weights, capsys, monkeypatch, request, case
):
    real, seen = BoxEvaluator.update, []

    def update(self, maps, ids):
        seen.append(list(ids))
        if len(seen) == 3 and case == "sweep":
            raise InputError(f"no sweep of {ids[0]}")
        if len(seen) == 3 and case == "interrupt":
            raise KeyboardInterrupt
        real(self, maps, ids)

    monkeypatch.setattr(BoxEvaluator, "update", update)
    more = ["--batch_size", 1, "--strict"]
    if case == "unreadable":
        (here / "images" / IDS[4]).write_bytes(b"not an image")
    if case == "features":
        third_batch_is_nan(monkeypatch)
    plain, before = scores_of(capsys, weights, *more), seen.copy()
    seen.clear()
    request.getfixturevalue("overlapped")
    if case == "features":
        third_batch_is_nan(monkeypatch)
    found = scores_of(capsys, weights, *more)
    assert found == plain
    assert found[0].status == (130 if case == "interrupt" else 1)
    assert found[1] == {}
    assert seen[: len(before)] == before
    expected = {
        "sweep": f"no sweep of {IDS[2]}",
        "features": f"Error: {IDS[2]}: its features, logits or map hold NaN or infinite values",
        "unreadable": IDS[4],
        "interrupt": "nothing was written",
    }
    assert expected[case] in found[0].err


@pytest.mark.parametrize("method", ["cam", "pc1"])
def test_an_image_whose_features_overflow_is_reported_and_the_others_are_scored(
    here, weights, capsys, monkeypatch, request, method
):
    more = ["--batch_size", 3, "--localization_method", method]
    _, whole = scores_of(capsys, weights, *more)
    made, real = [], inference.localize_on_device

    def overflowing(model, x, **options):
        made.append(x)
        if len(made) % 3 == 2:  # the second of three batches
            x[1] *= 3e38
        return real(model, x, **options)

    monkeypatch.setattr(inference, "localize_on_device", overflowing)
    done, found = scores_of(capsys, weights, *more)
    assert done.status == 0, done.err
    assert f"{IDS[4]}: its features, logits or map hold NaN or infinite values" in done.err
    assert list(found["unreadable"]) == [IDS[4]]
    assert IDS[4] in found["missing"]
    assert found["num_images"] == whole["num_images"] - 1
    request.getfixturevalue("overlapped")
    assert scores_of(capsys, weights, *more)[1] == found
    out = run_cli(capsys, "generate-heatmap", *model_arguments(weights), *more, "--no_overlay")
    assert out.status == 0, out.err
    assert f"  {IDS[4]}: its features" in out.err
    assert len(list((here / "np_heatmap_output").rglob("*.npy"))) == 6


def test_a_cpu_sweeps_by_turns():
    assert choose_loop(Runtime.of(RunConfig(device="cpu"))) is one_by_one


def test_compiled_features(here, weights, capsys, monkeypatch):
    eager = functools.partial(inference.compiled_form, backend="eager")
    monkeypatch.setattr(inference, "compiled_form", eager)
    common = [*model_arguments(weights), "--compile"]
    done = run_cli(capsys, "generate-heatmap", *common, "--no_overlay")
    assert done.status == 0, done.err
    assert read(here / "np_heatmap_output" / "manifest.json")["settings"]["compile"] is True
    boxes = ["--metadata_root", "meta"]
    done = run_cli(capsys, "wsol-eval", *boxes, "--contours", "both", "--json", "two.json")
    assert done.status == 0, done.err
    more = ["--num_samples", 1, "--json", "one.json"]
    done = run_cli(capsys, "evaluate", *common, *boxes, *more)
    assert done.status == 0, done.err
    one, two = read(here / "one.json"), read(here / "two.json")
    assert (one["largest"], one["all"]) == (two["largest"], two["all"])
    assert one["settings"]["run"]["compile"] is True
    assert one["erf"]["num_samples"] == 1
    done = run_cli(capsys, "generate-heatmap", *common[:-1], "--no_overlay")
    assert done.status == 1
    assert "compile was True, is False" in done.err


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["cam", "pc1"])
@pytest.mark.parametrize("more", [[], ["--precision", "bf16"], ["--compile"]])
def test_both_ways_count_the_same_on_a_gpu(here, weights, capsys, method, more):
    common = [*model_arguments(weights), "--localization_method", method, "--device", "cuda"]
    done = run_cli(capsys, "generate-heatmap", *common, *more, "--no_overlay")
    assert done.status == 0, done.err
    boxes = ["--metadata_root", "meta"]
    done = run_cli(capsys, "wsol-eval", *boxes, "--contours", "both", "--json", "two.json")
    assert done.status == 0, done.err
    done, one = scores_of(capsys, weights, *common[-4:], *more)
    assert done.status == 0, done.err
    two = read(here / "two.json")
    assert (one["largest"], one["all"]) == (two["largest"], two["all"])
    assert one["num_images"] == two["num_images"] == 7


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for_between_batches(here, weights):
    run = RunConfig(batch_size=1, num_workers=0, device="cuda")
    model = inference.load_model(ModelConfig("replknet", weights, SMALL_MODELS["replknet"]), run)
    data, maps = DataConfig("images", input_size=128), MapConfig(map_size=48)
    records = open_image_set(here / "images").records
    report = inference.report_on(records, run)
    waits = inference.iter_host_maps(model, records, data, run, maps, report, scored=True)
    first = [next(waits), next(waits)]  # libraries and pinned memory are set up
    torch.cuda.set_sync_debug_mode("error")
    try:
        first += list(waits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [wait() for wait in first]
    assert [i for indices, _ in found for i in indices] == list(range(7))
    assert all(host_maps.u.any() for _, host_maps in found)
