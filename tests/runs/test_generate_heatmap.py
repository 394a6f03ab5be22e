"""generate-heatmap end to end on small models: files, replacing, resuming, bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from cli_runner import run_cli
from data_factory import edit_lines, image_folder, metadata_folder, write_file

from cba_fast import files, resume
from cba_fast.data.score_store import ScoreStore, StoreWriter

NAMES = ["a/1.jpg", "a/2.x.png", "b/1.jpg", "b/3.jpg", "c/9.jpg"]
SMALL = ["--input_size", 128, "--map_size", 64, "--num_workers", 0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {
        family: make_checkpoint(folder / f"{family}.pth", family, name, num_classes=3)
        for family, name in SMALL_MODELS.items()
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "datasets" / "tiny", NAMES)
    return tmp_path


def arguments(weights, family="replknet", *more):
    model = ["--model_family", family, "--model", SMALL_MODELS[family]]
    checkpoint = ["--fine_tuned_weight_name", weights[family]]
    return ["generate-heatmap", *model, *checkpoint, "--test_dataset", "tiny", *SMALL, *more]


def snapshot(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_maps_have_the_side_of_the_input_by_default_and_stores_take_any_shape(
    here, weights, capsys
):
    args = arguments(weights, "replknet", "--no_overlay")
    args = [a for a in args if a not in ("--map_size", 64)]
    assert run_cli(capsys, *args).status == 0
    assert np.load(here / "np_heatmap_output" / "a" / "1.npy").shape == (128, 128)
    manifest = json.loads((here / "np_heatmap_output" / "manifest.json").read_text())
    assert manifest["settings"]["map_size"] == 128
    assert run_cli(capsys, *args, "--map_size", "40x72", "--store", "s").status == 0
    assert ScoreStore(here / "s").shape == (40, 72)


@pytest.mark.parametrize("family", SMALL_MODELS)
@pytest.mark.parametrize("method", ["cam", "pc1"])
def test_maps_and_overlays_of_every_family(here, weights, capsys, family, method):
    more = ["--localization_method", method, "--heatmap_output", "out/heat", "--batch_size", 2]
    done = run_cli(capsys, *arguments(weights, family, *more))
    assert done.status == 0, done.err
    maps = snapshot(here / "out" / "np_heat")
    assert set(maps) == {
        "manifest.json", "a/1.npy", "a/2.npy", "b/1.npy", "b/3.npy", "c/9.npy"
    }  # fmt: skip
    score_map = np.load(here / "out" / "np_heat" / "a" / "2.npy")
    assert score_map.shape == (64, 64)
    assert score_map.dtype == np.float64
    assert score_map.min() == 0
    assert score_map.max() == 1
    overlays = sorted(p.name for p in (here / "out" / "heat").glob("*.png"))
    assert overlays == [f"heatmap_{i:07d}.png" for i in range(5)]
    assert cv2.imread(str(here / "out" / "heat" / overlays[0])).shape == (24, 32, 3)
    assert "np_heat" in done.out


def test_the_target_changes_the_map(here, weights, capsys):
    found = []
    for target in ("predicted", "label", "0", "1", "2"):
        more = ["--target", target, "--heatmap_output", target, "--no_overlay"]
        assert run_cli(capsys, *arguments(weights, "replknet", *more)).status == 0
        assert not (here / target).exists()
        found.append(snapshot(here / f"np_{target}"))
    label, by_index = found[1], found[2:]
    assert label["a/1.npy"] == by_index[0]["a/1.npy"]
    assert label["c/9.npy"] == by_index[2]["c/9.npy"]
    assert len({maps["a/1.npy"] for maps in by_index}) > 1
    metadata_folder(here / "meta", {}, {}, dict.fromkeys(NAMES, 0))
    write_file(here / "meta/image_ids.txt", "\n".join(NAMES))
    more = ["--target", "label", "--metadata_root", "meta", "--heatmap_output", "labels"]
    assert run_cli(capsys, *arguments(weights, "replknet", *more)).status == 0
    edit_lines(here / "meta/class_labels.txt", lambda lines: [*lines[:-1], f"{NAMES[-1]},1"])
    done = run_cli(capsys, *arguments(weights, "replknet", *more))
    assert done.status == 1
    assert "another run: the labels are not those that were used" in done.err
    done = run_cli(capsys, *arguments(weights, "replknet", "--target", "3"))
    assert done.status == 1
    assert "target 3 is outside the model's 3 classes" in done.err


def test_workers_and_a_second_run_give_the_same_files(here, weights, capsys):
    assert run_cli(capsys, *arguments(weights)).status == 0
    first = snapshot(here / "np_heatmap_output")
    (here / "datasets" / "tiny" / "c" / "8.jpg").write_bytes(
        (here / "datasets" / "tiny" / "c" / "9.jpg").read_bytes()
    )
    done = run_cli(capsys, *arguments(weights))
    assert (
        "the images are not those that were used, by names, sizes or times (5, now 6)" in done.err
    )
    assert run_cli(capsys, *arguments(weights), "--overwrite").status == 0
    assert "c/8.npy" in snapshot(here / "np_heatmap_output")
    (here / "datasets" / "tiny" / "c" / "8.jpg").unlink()
    more = [*arguments(weights), "--overwrite"]
    more[more.index("--num_workers") + 1] = 2
    assert run_cli(capsys, *more).status == 0
    assert snapshot(here / "np_heatmap_output") == first


def test_an_interrupted_run_resumes_to_the_same_files(here, weights, capsys, monkeypatch):
    more = ["--batch_size", 2, "--heatmap_output"]
    assert run_cli(capsys, *arguments(weights, "slak", *more, "whole")).status == 0
    real, written = files.write_npy, []

    def fails_in_the_second_batch(path, array, **how):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        real(path, array, **how)

    monkeypatch.setattr(files, "write_npy", fails_in_the_second_batch)
    done = run_cli(capsys, *arguments(weights, "slak", *more, "cut"))
    assert done.status == 130
    assert "the same command goes on" in done.err
    monkeypatch.setattr(files, "write_npy", real)
    assert len(list((here / "np_cut").rglob("*.npy"))) == 3
    done = run_cli(capsys, *arguments(weights, "slak", *more, "cut"))
    assert done.status == 0, done.err
    assert "3 made, 2 were there" in done.out
    assert snapshot(here / "np_cut") == snapshot(here / "np_whole")
    assert snapshot(here / "cut") == snapshot(here / "whole")
    other = ["--localization_method", "pc1"]
    done = run_cli(capsys, *arguments(weights, "slak", *more, "cut", *other))
    assert done.status == 1
    assert "method was 'cam', is 'pc1' (--overwrite starts anew" in done.err


def test_stale_results_are_not_taken(here, capsys, monkeypatch):
    path = here / "w.pth"
    args = arguments({"replknet": path})
    make_checkpoint(path, "replknet", SMALL_MODELS["replknet"], num_classes=3)
    size, times = path.stat().st_size, (path.stat().st_atime_ns, path.stat().st_mtime_ns)

    def refused(text):
        done = run_cli(capsys, *args)
        assert done.status == 1
        assert text in done.err
        assert "--overwrite starts anew" in done.err

    assert run_cli(capsys, *args).status == 0
    os.utime(path)
    assert "0 made, 5 were there" in run_cli(capsys, *args).out  # the same bytes
    version = resume.__version__
    with monkeypatch.context() as patch:
        patch.setattr(resume, "__version__", "99.0")
        refused(f"written by cba_fast {version}, this is 99.0")
    image = here / "datasets" / "tiny" / "b" / "3.jpg"
    kept = image.stat().st_atime_ns, image.stat().st_mtime_ns
    os.utime(image)
    refused("the images are not those that were used")
    os.utime(image, ns=kept)
    make_checkpoint(path, "replknet", SMALL_MODELS["replknet"], num_classes=3, seed=1)
    assert path.stat().st_size == size
    os.utime(path, ns=times)  # other bytes of the same size and time
    refused(f"the weights {path} are other bytes than those that were used")


def test_flags_of_the_last_release(here, weights, capsys):
    args = arguments(weights)
    assert "--resume" not in run_cli(capsys, "generate-heatmap", "--help").out
    assert run_cli(capsys, *args).status == 0
    done = run_cli(capsys, *args, "--resume")
    assert "0 made, 5 were there" in done.out
    assert done.err.splitlines()[0] == (
        "Warning: --resume is what happens anyway: the same command goes on where it was"
    )


def test_a_store_takes_the_maps_that_files_would_hold(here, weights, capsys, monkeypatch):
    assert run_cli(capsys, *arguments(weights, "slak", "--no_overlay")).status == 0
    done = run_cli(capsys, "pack-maps", "--np_root", "np_heatmap_output", "--store", "packed")
    assert done.status == 0, done.err
    more = ["--batch_size", 2, "--heatmap_output", "heat", "--store"]
    done = run_cli(capsys, *arguments(weights, "slak", *more, "store"))
    assert done.status == 0, done.err
    assert "Score maps   : store" in done.out
    assert not (here / "np_heat").exists()
    assert len(list((here / "heat").glob("*.png"))) == 5
    # a batch of two and one of eight may differ in a map's last bit, not in its name or place
    assert (here / "store" / "names.txt").read_bytes() == (
        here / "packed" / "names.txt"
    ).read_bytes()
    whole = snapshot(here / "store")
    assert run_cli(capsys, *arguments(weights, "slak", "--store", "same")).status == 0
    assert (here / "same" / "maps.npy").read_bytes() == (here / "packed" / "maps.npy").read_bytes()

    real, written = StoreWriter.write, []

    def fails_in_the_second_batch(self, row, u):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(row)
        real(self, row, u)

    monkeypatch.setattr(StoreWriter, "write", fails_in_the_second_batch)
    assert run_cli(capsys, *arguments(weights, "slak", *more, "cut")).status == 130
    monkeypatch.setattr(StoreWriter, "write", real)
    assert ScoreStore(here / "cut").present.tolist() == [True] * 3 + [False] * 2
    done = run_cli(capsys, *arguments(weights, "slak", *more, "cut"))
    assert done.status == 0, done.err
    assert "3 made, 2 were there" in done.out
    assert snapshot(here / "cut") == whole
    other = ["--localization_method", "pc1"]
    done = run_cli(capsys, *arguments(weights, "slak", *more, "cut", *other))
    assert done.status == 1
    assert "method was 'cam', is 'pc1' (--overwrite starts anew" in done.err
    done = run_cli(capsys, *arguments(weights, "slak", *more, "heat"))
    assert done.status == 1
    assert "is a store of maps, not for overlays" in done.err
    inside = ["--heatmap_output", here / "cut" / "deeper"]
    done = run_cli(capsys, *arguments(weights, "slak", *inside))
    assert done.status == 1
    assert f"{here / 'cut'} is a store of maps, not for overlays" in done.err


def test_an_unreadable_image_is_missing_in_the_store(here, weights, capsys):
    write_file(here / "datasets" / "tiny" / "b" / "1.jpg", b"not an image")
    done = run_cli(capsys, *arguments(weights, "replknet", "--store", "store"))
    assert done.status == 0
    assert "b/1.jpg" in done.err
    store = ScoreStore(here / "store")
    assert [name for name, there in zip(store.names, store.present) if not there] == ["b/1"]
    before = snapshot(here / "store")
    done = run_cli(capsys, *arguments(weights, "replknet", "--store", "store", "--target", 500))
    assert done.status == 1
    assert snapshot(here / "store") == before


def test_a_killed_process_resumes_to_the_same_files(here, weights, capsys):
    image_folder(here / "datasets" / "tiny", [f"d/{i}.jpg" for i in range(40)])
    small = ["--batch_size", 1, "--input_size", 64, "--no_overlay"]
    args = [str(a) for a in arguments(weights, "replknet", *small)]
    command = [sys.executable, "-m", "cba_fast", *args]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((here / "np_heatmap_output").rglob("[0-9]*.npy")):
        assert process.poll() is None, "the command ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len(list((here / "np_heatmap_output").rglob("[0-9]*.npy")))
    assert 0 < there < 45
    done = run_cli(capsys, *arguments(weights, "replknet", *small))
    assert done.status == 0, done.err
    resumed = snapshot(here / "np_heatmap_output")
    assert run_cli(capsys, *arguments(weights, "replknet", *small, "--overwrite")).status == 0
    assert snapshot(here / "np_heatmap_output") == resumed


def test_files_that_a_power_failure_cut_are_made_anew(here, weights, capsys):
    args = arguments(weights, "replknet", "--batch_size", 1)
    assert run_cli(capsys, *args).status == 0
    whole = [snapshot(here / name) for name in ("np_heatmap_output", "heatmap_output")]
    for name, size in (("a/1.npy", 0), ("b/1.npy", 1000)):
        os.truncate(here / "np_heatmap_output" / name, size)
    os.truncate(here / "heatmap_output" / "heatmap_0000004.png", 500)
    done = run_cli(capsys, *args)
    assert "3 made, 2 were there" in done.out
    assert [snapshot(here / name) for name in ("np_heatmap_output", "heatmap_output")] == whole


def test_unreadable_images_are_reported_and_do_not_end_the_run(here, weights, capsys):
    root = here / "datasets" / "tiny"
    write_file(root / "b" / "1.jpg", b"not an image")
    whole = (root / "c" / "9.jpg").read_bytes()
    write_file(root / "c" / "9.jpg", whole[: len(whole) * 3 // 4])
    done = run_cli(capsys, *arguments(weights, "replknet", "--batch_size", 2))
    assert done.status == 0
    assert "1 image could not be used" in done.err
    assert "b/1.jpg" in done.err
    assert "decoded 1 truncated image to where the data ends: c/9.jpg" in done.err
    maps = snapshot(here / "np_heatmap_output")
    assert "c/9.npy" in maps
    assert "b/1.npy" not in maps
    done = run_cli(capsys, *arguments(weights, "replknet", "--batch_size", 2, "--strict"))
    assert done.status == 1
    assert "b/1.jpg" in done.err
    for name in NAMES:
        write_file(root / name, b"")
    done = run_cli(capsys, *arguments(weights), "--overwrite")
    assert done.status == 1
    assert "none of the 5 images could be used" in done.err


def test_a_run_that_fails_at_its_start_leaves_the_earlier_one(here, weights, capsys):
    assert run_cli(capsys, *arguments(weights)).status == 0
    before = snapshot(here / "np_heatmap_output"), snapshot(here / "heatmap_output")
    root = here / "datasets" / "tiny"

    def fails(message, *more):
        done = run_cli(capsys, *arguments(weights, "replknet", *more, "--overwrite"))
        assert done.status == 1
        assert message in done.err
        assert before == (snapshot(here / "np_heatmap_output"), snapshot(here / "heatmap_output"))

    fails("target 500 is outside the model's 3 classes", "--target", 500)
    fails("side >= 4", "--localization_method", "pc1", "--input_size", 64)
    image = (root / "c" / "9.jpg").read_bytes()
    write_file(root / "d" / "1.jpg", image)
    where = "lies in the folder of the images, datasets/tiny, where it would be taken for a class"
    fails(where, "--heatmap_output", root / "new")
    fails(where, "--store", root / "new")
    fails("4 class folders and the model 3 classes", "--target", "label")
    (root / "d" / "1.jpg").unlink()
    (root / "d").rmdir()
    write_file(here / "meta" / "image_ids.txt", "\n".join(NAMES))
    fails("a/1.jpg has no label", "--target", "label", "--metadata_root", "meta")
    write_file(root / "a" / "1.jpg", b"")
    fails("a/1.jpg", "--strict")
    for name in NAMES:
        write_file(root / name, b"")
    fails("none of the 5 images could be used")


def test_without_overlays_the_earlier_ones_go_too(here, weights, capsys):
    assert run_cli(capsys, *arguments(weights)).status == 0
    other = ["--target", "1"]
    done = run_cli(capsys, *arguments(weights, "replknet", *other, "--no_overlay", "--overwrite"))
    assert done.status == 0
    assert not (here / "heatmap_output").exists()
    done = run_cli(capsys, *arguments(weights, "replknet", *other))
    assert done.status == 0, done.err
    resumed = snapshot(here / "heatmap_output")
    assert run_cli(capsys, *arguments(weights, "replknet", *other, "--overwrite")).status == 0
    assert snapshot(here / "heatmap_output") == resumed
    done = run_cli(capsys, *arguments(weights, "replknet", *other, "--no_overlay"))
    assert "0 made, 5 were there" in done.out
    assert snapshot(here / "heatmap_output") == resumed


def test_constant_maps_are_zeros_with_a_warning(here, weights, capsys, tmp_path):
    import torch

    state = torch.load(weights["replknet"], weights_only=True)
    state["head.weight"].zero_()
    torch.save(state, tmp_path / "zero.pth")
    args = arguments({"replknet": tmp_path / "zero.pth"})
    done = run_cli(capsys, *args)
    assert done.status == 0
    assert f"5 constant maps stored as zeros: {', '.join(NAMES)}\n" in done.err
    assert not np.load(here / "np_heatmap_output" / "a" / "1.npy").any()


def test_map_names(here, weights, capsys, caplog):
    root = here / "datasets" / "tiny"
    write_file(root / "a" / "1.y.jpg", (root / "a" / "1.jpg").read_bytes())
    done = run_cli(capsys, *arguments(weights))
    assert done.status == 0, done.err
    assert "would write the same score map a/1.npy: maps get official names" in caplog.text
    assert "Images of    : datasets/tiny\n" in done.out
    written = snapshot(here / "np_heatmap_output")
    assert {"a/1.jpg.npy", "a/1.y.jpg.npy"} <= set(map(str, written))


def test_bad_input_is_named_before_anything_is_written(here, weights, capsys):
    def refused(*args):
        done = run_cli(capsys, *args)
        assert done.status == 1
        assert "Traceback" not in done.err
        return done.err

    root = here / "datasets" / "tiny"
    (root / "empty").mkdir()
    assert "empty" in refused(*arguments(weights))
    (root / "empty").rmdir()
    write_file(root / "a" / "1.y.jpg", (root / "a" / "1.jpg").read_bytes())
    message = refused(*arguments(weights, "replknet", "--map_names", "study"))
    assert "a/1.jpg" in message
    assert "a/1.y.jpg" in message
    assert "--map_names official" in message
    (root / "a" / "1.y.jpg").unlink()
    assert "nowhere" in refused(*arguments(weights, "replknet", "--test_dataset", "nowhere"))
    assert "looks like a slak" in refused(*arguments({"replknet": weights["slak"]}))
    assert "no.pth" in refused(*arguments({"replknet": "no.pth"}))
    pickled = here / "pickled.pth"
    import torch

    torch.save({"model": object}, pickled)
    assert "pickled.pth" in refused(*arguments({"replknet": pickled}))
    assert "num_classes" in refused(*arguments(weights, "replknet", "--num_classes", 7))
    assert "slak_flex" in refused(*arguments(weights, "replknet", "--alpha", 0.5))
    assert "cuda:99" in refused(*arguments(weights, "replknet", "--device", "cuda:99"))
    assert "meta" in refused(*arguments(weights, "replknet", "--device", "meta"))
    half = ["--precision", "fp16", "--device", "cpu"]
    assert "fp16" in refused(*arguments(weights, "replknet", *half))
    write_file(here / "np_thesis" / "a.txt", "years of work")
    assert "a.txt" in refused(*arguments(weights, "replknet", "--heatmap_output", "thesis"))
    assert not (here / "np_heatmap_output").exists()
    assert (here / "np_thesis" / "a.txt").read_text() == "years of work"


def run_with_file_limit(limit, args):
    code = (
        "import resource, signal, sys\n"
        "from cba_fast.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_workers_need_no_shared_memory_files(here, weights):
    args = arguments(weights, "replknet", "--no_overlay", "--num_workers", 2)
    done = run_with_file_limit(40000, args)  # a map has 32 kB, a tensor of an image 196 kB
    assert done.returncode == 0, done.stderr
    assert len(list((here / "np_heatmap_output").rglob("*.npy"))) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_one_clear_error(here, weights, workers):
    args = arguments(weights, "replknet", "--no_overlay", "--num_workers", workers)
    done = run_with_file_limit(20000, args)
    assert done.returncode == 1
    assert "a/1.npy: File too large" in done.stderr.replace(os.sep, "/")
    assert "Traceback" not in done.stderr
    left = sorted(p.name for p in (here / "np_heatmap_output").rglob("*") if p.is_file())
    assert left == ["manifest.json"]


def test_the_manifest_holds_settings_and_files(here, weights, capsys):
    assert run_cli(capsys, *arguments(weights)).status == 0
    manifest = json.loads((here / "np_heatmap_output" / "manifest.json").read_text())
    assert manifest["files"][0] == "a/1.npy"
    assert manifest["settings"]["family"] == "replknet"
    assert len(manifest["inputs"]["weights"]["sha256"]) == 64


def test_bf16_maps_stay_close(here, weights, capsys):
    for precision in ("fp32", "bf16"):
        more = ["--precision", precision, "--heatmap_output", precision, "--target", "0"]
        done = run_cli(capsys, *arguments(weights, "replknet", *more, "--no_overlay"))
        assert done.status == 0, done.err
    for path in (here / "np_fp32").rglob("*.npy"):
        other = np.load(here / "np_bf16" / path.relative_to(here / "np_fp32"))
        # bfloat16 has 8 significant bits; a handful of layers keep the map within a few percent
        assert np.abs(np.load(path) - other).mean() < 0.05
