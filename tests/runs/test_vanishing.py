"""Images that vanish or turn unreadable while a run reads them are named, and the run goes on."""

import errno
import os

import numpy as np
import pytest
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from cli_runner import run_cli
from data_factory import write_file
from evaluate_setup import IDS, images_and_metadata, model_arguments, read

GONE, BROKEN = IDS[4], IDS[5]  # of seven, in batches of two
SEED = 0  # of a sample that does not begin with them


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "r.pth"
    return make_checkpoint(path, "replknet", SMALL_MODELS["replknet"], num_classes=3)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Seven images, of which two change when the first batch is done."""
    monkeypatch.chdir(tmp_path)
    images_and_metadata(tmp_path)

    def track(steps, **options):
        for number, step in enumerate(steps):
            if number == 0:
                os.remove(tmp_path / "images" / GONE)
                write_file(tmp_path / "images" / BROKEN, b"no image")
            yield step

    monkeypatch.setattr("cba_fast.cli.progress.track", track)
    return tmp_path


def common(weights):
    return [*model_arguments(weights), "--batch_size", 2]


def named(text):
    assert "2 images could not be used, without a result:" in text
    assert f"{GONE}: cannot read image images/{GONE}: No such file or directory" in text
    assert f"{BROKEN}: cannot read image images/{BROKEN}: not an image file" in text


def test_heatmaps_of_the_other_images_are_made(here, weights, capsys):
    args = ["generate-heatmap", *common(weights), "--no_overlay"]
    done = run_cli(capsys, *args)
    assert done.status == 0, done.err
    named(done.err)
    assert len(list((here / "np_heatmap_output").rglob("*.npy"))) == 5
    done = run_cli(capsys, *args)
    assert done.status == 1
    assert "the images are not those that were used" in done.err


def test_the_other_images_are_scored(here, weights, capsys):
    args = ["evaluate", *common(weights), "--metadata_root", "meta", "--num_samples", 0]
    done = run_cli(capsys, *args, "--json", "s.json")
    assert done.status == 0, done.err
    named(done.err)
    found = read(here / "s.json")
    assert found["num_images"] == 5
    assert set(found["unreadable"]) == {GONE, BROKEN} <= set(found["missing"])


def test_the_sizes_of_the_other_images_are_measured(here, weights, capsys):
    args = common(weights)
    del args[args.index("--map_size") : args.index("--map_size") + 2]
    args += ["--num_samples", 7, "--seed", SEED, "--output", "e.npy"]
    done = run_cli(capsys, "erf-compute", *args)
    assert done.status == 0, done.err
    named(done.err)
    assert len(np.load(here / "e.npy")) == 5


def test_a_strict_run_ends_with_the_first_of_them(here, weights, capsys):
    args = ["generate-heatmap", *common(weights), "--no_overlay", "--strict"]
    done = run_cli(capsys, *args)
    assert done.status == 1
    assert done.err.strip().endswith(f"images/{GONE}: No such file or directory")
    assert len(list((here / "np_heatmap_output").rglob("*.npy"))) == 4


def test_a_disk_that_is_full_at_the_end_costs_no_scores(here, weights, capsys, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "s.json")

    monkeypatch.setattr("cba_fast.cli.maps.evaluate.write_scores", full)
    args = ["evaluate", *common(weights), "--metadata_root", "meta", "--num_samples", 0]
    done = run_cli(capsys, *args, "--json", "s.json")
    assert done.status == 1
    assert "Error: s.json: No space left on device" in done.err
    assert "MaxBoxAcc " in done.out
    done = run_cli(capsys, *args, "--json", "s.json", "--predictions", here / "s.json")
    assert done.err.endswith("s.json: --json and --predictions name the same file\n")
