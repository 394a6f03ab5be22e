"""What the commands do at the same time changes no file; ``--profile``; memory of ``wsol-eval``."""

import json
import os
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from cli_runner import run_cli
from data_factory import image_folder, metadata_folder, write_file, write_image
from evaluate_setup import images_and_metadata, model_arguments

from cba_fast.cli.main import COMMANDS, LazyGroup
from cba_fast.data import open_image_set, read_image, reading
from cba_fast.runs import generate
from cba_fast.runs.scoring.boxes import score_folder
from cba_fast.runs.settings import BoxConfig
from cba_fast.threads import Crew
from cba_fast.wsol import map_reading

NAMES = ["a/1.jpg", "a/2.png", "b/1.jpg", "b/3.jpg", "b/4.jpg"]
PROFILED = ("evaluate", "generate-heatmap", "erf-compute", "wsol-eval")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    name = SMALL_MODELS["replknet"]
    return make_checkpoint(folder / "w.pth", "replknet", name, num_classes=3)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(weights, workers=0):
    return [
        *("--model_family", "replknet", "--model", SMALL_MODELS["replknet"]),
        *("--weights", weights, "--test_dataset", "images", "--input_size", 64),
        *("--batch_size", 2, "--num_workers", workers),
    ]


def written(root):
    """Return the bytes of all maps and overlays below a folder."""
    found = (p for p in root.rglob("*.*") if p.suffix in (".npy", ".png"))
    return {p.relative_to(root): p.read_bytes() for p in found}


def test_threads_workers_and_kept_pixels_change_no_file(here, weights, capsys, monkeypatch):
    image_folder(here / "images", NAMES)
    write_file(here / "images" / "b" / "2.jpg", b"not an image")
    found = []
    for workers, threads, kept in ((0, 1, 0), (0, 3, 4), (2, 3, 4), (2, 1, 0)):
        monkeypatch.setattr(reading, "MOST_KEPT", kept)
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        out = here / f"{workers}{threads}{kept}"
        args = [*arguments(weights, workers), "--heatmap_output", out / "heat"]
        done = run_cli(capsys, "generate-heatmap", *args)
        assert done.status == 0, done.err
        found.append(written(out))
    assert len(found[0]) == 2 * len(NAMES)
    assert all(files == found[0] for files in found)


def test_images_are_decoded_once_unless_they_are_large(here, weights, capsys, monkeypatch):
    image_folder(here / "images", NAMES)
    write_image(here / "images" / "c" / "large.jpg", (200, 200))  # above 8 * 64 * 64 pixels
    again = []
    read = generate.read_image
    monkeypatch.setattr(generate, "read_image", lambda path: again.append(path) or read(path))
    assert run_cli(capsys, "generate-heatmap", *arguments(weights)).status == 0
    assert [path.name for path in again] == ["large.jpg"]


def test_pixels_are_kept_up_to_a_limit_and_only_if_asked_for(tmp_path):
    write_image(tmp_path / "a" / "1.jpg", (40, 20))
    write_image(tmp_path / "a" / "2.jpg", (80, 60))
    records = open_image_set(tmp_path).records
    small, large = reading.ImageDataset(records, 16, keep=True)
    assert np.array_equal(small["decoded"], np.asarray(read_image(records[0].path)[0]))
    assert "decoded" not in large
    assert "decoded" not in reading.ImageDataset(records, 16)[0]


@pytest.mark.parametrize("broken", ["write_map", "overlay"])
def test_an_error_of_a_thread_ends_the_run_with_its_message(
    here, weights, capsys, monkeypatch, broken
):
    image_folder(here / "images", NAMES)
    if broken == "overlay":
        monkeypatch.setattr(generate, "encoded_overlay", lambda *a: None)
    else:
        (here / "np_heatmap_output").mkdir()
        (here / "np_heatmap_output" / "a").write_text("a file, not a folder")
    done = run_cli(capsys, "generate-heatmap", *arguments(weights))
    assert done.status == 1
    assert ("could not be encoded" if broken == "overlay" else "np_heatmap_output") in done.err
    assert not [t for t in threading.enumerate() if t.name.startswith("cba-crew")]


def test_a_crew_is_at_most_so_far_behind():
    gate, done = threading.Event(), []
    with Crew(2) as crew:
        for i in range(5):
            crew.give(lambda i=i: (gate.wait(), done.append(i)))
        assert done == []
        gate.set()
        crew.catch_up(2)
        assert set(done) >= {0, 1, 2}
    assert sorted(done) == list(range(5))


def test_a_crew_leaves_out_what_has_not_begun_after_an_error():
    begun, gate = [], threading.Event()

    def work(i: int) -> None:
        begun.append(i)
        gate.wait()

    with pytest.raises(KeyboardInterrupt), Crew(1) as crew:  # noqa: PT012
        for i in range(3):
            crew.give(work, i)
        while not begun:
            pass
        gate.set()
        raise KeyboardInterrupt
    assert begun[0] == 0
    with pytest.raises(OSError, match="full"), Crew(1) as crew:
        crew.give(_full)


def _full() -> None:
    raise OSError("full")


def test_the_commands_that_tell_where_their_time_went():
    group = LazyGroup()
    options = {name: {o.name for o in group.get_command(None, name).params} for name in COMMANDS}
    assert {name for name, names in options.items() if "profile" in names} == set(PROFILED)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_profile_of_evaluate_and_of_the_two_commands(here, weights, capsys, workers):
    images_and_metadata(here)
    args = model_arguments(weights)
    args[args.index("--num_workers") + 1] = workers
    scored = ["--metadata_root", here / "meta", "--json", "found.json", "--profile"]
    done = run_cli(capsys, "evaluate", *args, *scored, "--num_samples", 1)
    assert done.status == 0, done.err
    profile = json.loads((here / "found.json").read_text())["profile"]
    reading_stage = "waiting for data" if workers else "decode"
    stages = {"load", reading_stage, "model", "map", "sweep", "sizes"}
    assert stages <= set(profile["stages"])
    assert ("decode" in profile["beside"]) == bool(workers)
    assert sum(profile["stages"].values()) == pytest.approx(profile["seconds"], rel=1e-3)
    assert "Time         : " in done.out

    done = run_cli(capsys, "generate-heatmap", *args, "--profile")
    assert done.status == 0, done.err
    assert all(f"{name} " in done.out for name in ("model", "map", "overlay", "write"))
    scored = ["--metadata_root", here / "meta", "--json", "again.json"]
    done = run_cli(capsys, "wsol-eval", *scored, "--profile")
    assert done.status == 0, done.err
    profile = json.loads((here / "again.json").read_text())["profile"]
    assert {"load", "waiting for data", "sweep"} <= set(profile["stages"])
    assert "read" in profile["beside"]
    assert run_cli(capsys, "wsol-eval", *scored).status == 0
    assert "profile" not in json.loads((here / "again.json").read_text())


def test_the_profile_of_erf_sizes(here, weights, capsys):
    image_folder(here / "images", NAMES)
    args = [*arguments(weights), "--num_samples", 2, "--output", "erf.npy", "--profile"]
    done = run_cli(capsys, "erf-compute", *args)
    assert done.status == 0, done.err
    line = next(line for line in done.out.splitlines() if line.startswith("Time"))
    assert all(f"{name} " in line for name in ("load", "decode", "model", "sizes"))


def test_scoring_stored_maps_imports_no_networks():
    """They take 100 MB and some seconds; and public names stay functions, not files so named."""
    code = (
        "import sys, cba_fast.cli.maps.wsol_eval, cba_fast.runs.scoring.boxes\n"
        "assert not {'timm', 'torchvision', 'torch._dynamo'} & set(sys.modules)\n"
        "import cba_fast.wsol.localize, cba_fast.wsol.heatmap\n"
        "from cba_fast.wsol import heatmap, localize\n"
        "assert callable(heatmap) and callable(localize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_memory_of_a_score_does_not_depend_on_the_number_of_maps(tmp_path, monkeypatch):
    monkeypatch.setattr(map_reading, "CHUNK_BYTES", 1 << 17)
    ids = [f"a/{i:04}.jpg" for i in range(640)]
    np.save(tmp_path / "map.npy", np.random.default_rng(0).random((64, 64)))
    (tmp_path / "np" / "a").mkdir(parents=True)
    for image_id in ids:
        os.link(tmp_path / "map.npy", tmp_path / "np" / image_id.replace(".jpg", ".npy"))
    peaks = []
    for count in (40, 40, 640):  # the first one loads code
        some = ids[:count]
        boxes, sizes = {i: [(1, 2, 30, 40)] for i in some}, dict.fromkeys(some, (64, 64))
        metadata_folder(tmp_path / "meta", boxes, sizes, dict.fromkeys(some, 0))
        tracemalloc.start()
        result = score_folder(tmp_path / "np", BoxConfig(metadata_root=tmp_path / "meta")).result
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result.num_images == count
    # All 640 maps take 21 MB as float64. What grows are ids and boxes.
    assert peaks[2] - peaks[1] < 2e6
