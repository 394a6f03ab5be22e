"""erf-intervene as a command: from images to an answer, going on after a kill, refusals."""

import csv

import numpy as np
import pytest
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from cli_runner import run_cli
from evaluate_setup import images_and_metadata, read

from cba_fast.data import load_boxes
from cba_fast.experiments.intervene import run as intervene
from cba_fast.experiments.intervene.findings import METRICS


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "r.pth"
    return make_checkpoint(path, "replknet", SMALL_MODELS["replknet"], num_classes=3)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return images_and_metadata(tmp_path)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the picture out, which takes most of the time of so small a run."""
    monkeypatch.setattr("cba_fast.analysis.plots.save_figure", lambda fig, path: path.touch())


def common(weights):
    return [
        *("--model_family", "replknet", "--model", SMALL_MODELS["replknet"]),
        *("--weights", weights, "--test_dataset", "images", "--metadata_root", "meta"),
        *("--input_size", 64, "--map_size", 32, "--num_workers", 0, "--num_samples", 2),
    ]


def arguments(weights, *more):
    options = dict(zip(more[::2], more[1::2], strict=True))
    quick = {"--bootstrap": 20, "--radii": "6,1", "--kinds": "outer,inner,blur"}
    options = [x for pair in {**quick, **options}.items() for x in pair]
    return ["erf-intervene", *common(weights), *options]


def test_the_command_goes_from_images_to_an_answer(here, weights, capsys):
    before = weights.read_bytes()
    done = run_cli(capsys, *arguments(weights))
    assert done.status == 0, done.err
    assert weights.read_bytes() == before
    out = here / "erf_intervene"
    told = read(out / "erf_intervene.json")
    assert [r["setting"]["kind"] for r in told["rows"]] == [
        "untouched",
        *2 * ["outer", "inner", "blur"],
    ]
    assert (told["num_images"], told["num_erf"], told["num_resamples"]) == (7, 2, 20)
    assert told["settings"]["num_samples"] == 2
    for line in told["answer"]:
        assert line in done.out
    with open(out / "erf_intervene.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 7
    for row, of_json in zip(rows, told["rows"], strict=True):
        for metric in METRICS:
            effect = of_json["effects"][metric]
            assert float(row[metric]) == effect["value"]
            assert effect["low"] <= effect["difference"] <= effect["high"]
    # The full radius cuts nothing: a network, and all that is measured of it, is the untouched one.
    full = [r for r in told["rows"] if r["setting"]["radius"] == 6]
    for row in full:
        assert row["change"] == 0
        assert all(e["difference"] == e["low"] == e["high"] == 0 for e in row["effects"].values())
    assert (out / "erf_intervene.png").stat().st_size > 10_000


def test_the_untouched_network_and_the_full_radius_have_the_counts_of_evaluate(
    here, weights, capsys, undrawn
):
    few = ("--kinds", "outer,blur", "--radii", 6)
    assert run_cli(capsys, *arguments(weights, *few)).status == 0
    done = run_cli(capsys, "evaluate", *common(weights), "--json", "e.json")
    assert done.status == 0, done.err
    wanted, boxes = read(here / "e.json"), load_boxes(metadata_root="meta")
    for name in ("untouched", "outer_r6", "blur_r6"):
        with np.load(here / "erf_intervene" / f"{name}.npz") as stored:
            assert sorted(stored["ids"]) == sorted(set(boxes.image_ids) - set(wanted["missing"]))
            for m, mode in enumerate(("largest", "all")):
                counts = [(stored["rows"][:, m] > k).sum(0).tolist() for k in range(3)]
                assert counts == wanted[mode]["num_correct"]
            assert 100 * stored["right"].mean() == pytest.approx(wanted["classification"]["top1"])
            assert stored["erf_size"].mean() == pytest.approx(wanted["erf"]["mean"])


def test_a_killed_run_goes_on_and_a_larger_one_measures_what_is_new(
    here, weights, capsys, monkeypatch, undrawn
):
    few = ("--kinds", "outer,inner", "--radii", 1)
    whole = run_cli(capsys, *arguments(weights, *few, "--output", "whole"))
    assert whole.status == 0, whole.err
    write, written = intervene.write_arrays, []

    def dies(path, arrays):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, arrays)

    monkeypatch.setattr(intervene, "write_arrays", dies)
    assert run_cli(capsys, *arguments(weights, *few)).status == 130
    assert written == ["untouched.npz", "outer_r1.npz"]

    def lives(path, arrays):
        written.append(path.name)
        write(path, arrays)

    monkeypatch.setattr(intervene, "write_arrays", lives)
    assert run_cli(capsys, *arguments(weights, *few)).status == 0
    assert written[2:] == ["inner_r1.npz"]
    a, b = (read(here / f / "erf_intervene.json") for f in ("whole", "erf_intervene"))
    assert a == b
    more = ("--kinds", "outer", "--radii", "3,1", "--bootstrap", 30)
    assert run_cli(capsys, *arguments(weights, *more)).status == 0
    assert written[3:] == ["outer_r3.npz"]


def test_another_run_and_foreign_files_are_refused(here, weights, capsys, undrawn):
    few = ["--kinds", "outer", "--radii", "2"]
    assert run_cli(capsys, *arguments(weights, *few)).status == 0
    done = run_cli(capsys, *arguments(weights, *few, "--num_images", 3))
    assert done.status == 1
    assert "untouched.npz belongs to another run: num_images was 200, is 3" in done.err
    other = make_checkpoint(
        here / "o.pth", "replknet", SMALL_MODELS["replknet"], num_classes=3, seed=1
    )
    done = run_cli(capsys, *arguments(other, *few))
    assert "are other bytes" in done.err
    assert run_cli(capsys, *arguments(other, *few), "--overwrite").status == 0
    (here / "mine").mkdir()
    (here / "mine" / "erf_intervene.csv").write_text("mine")
    done = run_cli(capsys, *arguments(weights, *few, "--output", "mine"))
    assert "no record says that an earlier run wrote" in done.err
    assert (here / "mine" / "erf_intervene.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--min_kernel", 31], "no depthwise convolution with a side of --min_kernel 31"),
        (["--kinds", "outer,other"], "'other' is not one of"),
        (["--radii", "2,2"], "2 is given twice"),
        (["--layer", "stages.2"], "--layer stages.2: the --kinds blur and drop change the last"),
        (["--changes", "0"], "0 is not in the range"),
    ],
)
def test_bad_settings_are_named(here, weights, capsys, more, message):
    done = run_cli(capsys, *arguments(weights, *more))
    assert done.status in (1, 2)
    assert message in done.err
    assert not (here / "erf_intervene").exists()
