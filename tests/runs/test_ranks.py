"""Several processes of torchrun write the files of one process, and say which of them died."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from data_factory import write_file
from evaluate_setup import IDS, images_and_metadata, model_arguments
from rank_runner import files_of, run
from torch.distributed import TCPStore

import cba_fast.erf.sizes
import cba_fast.experiments.per_image
import cba_fast.runs.evaluate
import cba_fast.runs.generate  # the processes are forked with it
import cba_fast.runs.inference
from cba_fast.erf import Partial
from cba_fast.errors import InputError
from cba_fast.runs import ranks


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Seven images, of which the third is unreadable, and a model of three classes."""
    root = images_and_metadata(tmp_path_factory.mktemp("ranks"))
    write_file(root / "images" / IDS[2], b"no image")
    make_checkpoint(root / "r.pth", "replknet", SMALL_MODELS["replknet"], num_classes=3)
    before = os.getcwd()
    os.chdir(root)
    yield root
    os.chdir(before)


@pytest.fixture(scope="module")
def common(here):
    return [*model_arguments("r.pth"), "--batch_size", 2]


@pytest.mark.parametrize("count", [2, 3])
def test_evaluate_writes_the_files_of_one_process(here, common, count):
    args = ["evaluate", *common, "--metadata_root", "meta", "--threshold", 0.4]
    args += ["--num_samples", 3, "--json", "s.json", "--predictions", "p.csv"]
    (one,) = run(1, *args)
    assert one[0] == 0, one[2]
    wanted = files_of(here / "s.json", here / "p.csv")
    for path in wanted:
        os.remove(path)
    first, *others = run(count, *args)
    assert first == one
    assert others == [(0, "", "")] * (count - 1)
    assert files_of(here / "s.json", here / "p.csv") == wanted


@pytest.mark.parametrize("where", ["np_h", "store"])
def test_generate_heatmap_writes_the_files_of_one_process(here, common, where):
    args = ["generate-heatmap", *common, "--heatmap_output", "h"]
    args += ["--store", "store"] if where == "store" else []
    (one,) = run(1, *args)
    assert one[0] == 0, one[2]
    wanted = files_of(here / "h", here / where)
    assert len(wanted) == 6 + 1 + (4 if where == "store" else 6 + 1)
    for path in [p for p in wanted if IDS[3].removesuffix(".jpg") in p or "0003" in p]:
        os.remove(path)  # as a killed run leaves it
    for count, more, made in ((2, [], 1), (3, ["--overwrite"], 6)):
        (status, out, err), *others = run(count, *args, *more)
        assert status == 0, err
        assert f"Heatmaps     : {made} made" in out
        assert IDS[2] in err
        assert others == [(0, "", "")] * (count - 1)
        assert files_of(here / "h", here / where) == wanted


def in_rank_1(monkeypatch, where, name, stale):
    """Let a function of a module or class be `stale(function, *args)` in the second process."""
    found = getattr(where, name)

    def seen(*args, **options):
        if os.environ["RANK"] == "1":
            return stale(found, *args, **options)
        return found(*args, **options)

    monkeypatch.setattr(where, name, seen)


@pytest.mark.parametrize("command", ["evaluate", "generate-heatmap", "erf-compute"])
def test_processes_that_see_other_images_or_weights_are_refused(here, common, command, monkeypatch):
    def without_last(found, *args, **options):
        images = found(*args, **options)
        return replace(images, records=images.records[:-1])

    args = [command, *common, "--device", "cpu"]
    args += ["--metadata_root", "meta"] if command == "evaluate" else []
    args = [a for a in args if command != "erf-compute" or a not in ("--map_size", 48)]
    with monkeypatch.context() as patch:
        in_rank_1(patch, cba_fast.runs.inference, "open_image_set", without_last)
        (status0, _, err0), (status1, _, err1) = run(2, *args)
    assert (status0, status1) == (1, 1)
    where = f"on {socket.gethostname()}"
    assert err0.splitlines()[-1] == (
        f"Error (rank 0): the 6 images of process 2 of 2 ({where}) are not the 7 images of this "
        f"one ({where}): all must be the same"
    )
    assert "the 7 images of process 1 of 2" in err1
    if command == "evaluate":
        in_rank_1(monkeypatch, ranks, "file_fingerprint", lambda found, path: {"sha256": "0"})
        assert "the weights r.pth of process 2 of 2" in run(2, *args)[0][2]
        in_rank_1(monkeypatch, ranks, "_versions", lambda found: "cba_fast 9")
        assert "the versions cba_fast 9 of process 2 of 2" in run(2, *args)[0][2]


def test_a_process_that_sees_a_folder_later_makes_no_image_be_left_out(here, common, monkeypatch):
    def seen_late(check, outputs, overwrite=False):
        return set(outputs.names[:2])  # of four batches, the first seems to be done

    in_rank_1(monkeypatch, cba_fast.resume.Outputs, "check", seen_late)
    args = ["generate-heatmap", *common, "--no_overlay", "--heatmap_output", "late"]
    (status, out, err), _ = run(2, *args)
    assert status == 0, err
    assert "Heatmaps     : 6 made" in out
    assert len(list((here / "np_late").rglob("*.npy"))) == 6


def test_what_a_run_wrote_before_a_restart_is_kept_though_it_was_to_start_anew(here, common):
    again = {"TORCHELASTIC_RESTART_COUNT": "1"}
    args = ["generate-heatmap", *common, "--no_overlay", "--heatmap_output", "re"]
    assert run(1, *args)[0][0] == 0
    (status, out, err), _ = run(2, *args, "--overwrite", **again)
    assert (status, "5 were there" in out) == (0, True), err
    args = [*erf_arguments("re.npy"), "--overwrite"]
    assert run(1, *args)[0][0] == 0
    for more, kept in (([], True), (["--batch_size", 1], False)):
        (status, _, err), _ = run(2, *args, *more, **again)
        assert (status, "re.npy was there" in err) == (0, kept), err


def test_a_process_that_ends_early_is_named(here, common):
    args = ["evaluate", *common, "--metadata_root", "meta", "--strict", "--num_samples", 0]
    (status0, _, err0), (status1, _, err1) = run(2, *args, "--json", "never.json")
    assert (status0, status1) == (1, 1)
    assert f"Error (rank 1): {IDS[2]}" in err1
    assert "Error (rank 0): rank 1 of this run has ended early" in err0
    assert not (here / "never.json").exists()


def test_an_erf_that_one_process_cannot_measure_is_a_note_of_all(here, common, monkeypatch):
    def refuse(*args, **options):
        raise InputError("no gradient")  # only the process that has the one image comes here

    monkeypatch.setattr("cba_fast.erf.sizes._gradient", refuse)
    args = ["evaluate", *common, "--metadata_root", "meta", "--num_samples", 1, "--seed", 1]
    first, second = run(2, *args, "--json", "note.json")
    assert first[0] == 0, first[2]
    assert second == (0, "", "")
    assert "the ERF size could not be measured: no gradient" in first[2]
    assert '"erf": null' in (here / "note.json").read_text()


def test_commands_that_cannot_share_say_so(here):
    for status, _, err in run(2, "wsol-eval", "--np_root", "maps"):
        assert status == 1
        assert "wsol-eval runs as one process" in err


def test_processes_that_are_started_again_do_not_meet_the_dead_ones():
    store, names = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), []
    stores = [store, *(TCPStore("127.0.0.1", store.port, is_master=False) for _ in range(2))]
    with ThreadPoolExecutor(2) as pool:
        for left in (False, False, True):
            if left:  # a start that ended before all had answered leaves a name, too
                store.set("cba", "left")
                store.add("left/1", 1)
            others = [pool.submit(ranks._meet, stores[rank], rank, 3) for rank in (1, 2)]
            time.sleep(0.1)  # they find what the start before has left
            names.append({ranks._meet(store, 0, 3), *(other.result(10) for other in others)})
    assert [len(each) for each in names] == [1] * 3
    assert len(set.union(*names)) == 3


def erf_arguments(output):
    model = ["--weights", "r.pth", "--model", SMALL_MODELS["replknet"], "--test_dataset", "images"]
    how = ["--input_size", 64, "--batch_size", 2, "--num_workers", 0, "--p", "0.2,0.5"]
    return ["erf-compute", *model, *how, "--output", output]


def killing(monkeypatch, module, name, rank, at):
    """Kill a process of a run as it calls a function for the `at`-th time; it has kept its part."""
    real, calls = getattr(module, name), iter(range(1, 1000))

    def call(*args, **options):
        if os.environ["RANK"] == str(rank) and next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    monkeypatch.setattr(module, name, call)
    monkeypatch.setitem(Partial.__init__.__kwdefaults__, "interval_s", 0)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def sizes_of_one(here):
    """The files of one process."""
    (one,) = run(1, *erf_arguments("one/s.npy"))
    assert one[0] == 0, one[2]
    wanted = contents(here / "one")
    assert wanted.keys() == {"s.npy", ".s.npy.run.json"}
    return wanted


def test_erf_sizes_of_several_processes_are_those_of_one(here, sizes_of_one):
    for count in (2, 3):
        (status, _, err), *others = run(count, *erf_arguments(f"of{count}/s.npy"))
        assert status == 0, err
        assert IDS[2] in err
        assert others == [(0, "", "")] * (count - 1)
        assert contents(here / f"of{count}") == sizes_of_one


def test_erf_sizes_go_on_with_another_number_of_processes(here, sizes_of_one, monkeypatch):
    args = erf_arguments("again/s.npy")
    with monkeypatch.context() as patch:
        killing(patch, cba_fast.erf.sizes, "_gradient", rank=1, at=2)  # after two of its images
        (status0, _, err0), (status1, _, _) = run(2, *args)
    assert (status0, status1) == (1, -signal.SIGKILL)
    assert "Error (rank 0): rank 1 of this run has ended early" in err0
    left = {".s.npy.partial.npz", ".s.npy.partial.rank1.npz", ".s.npy.run.json"}
    assert {p.name for p in Path("again").iterdir()} == left
    (here / "again/.tmp-0a1b-.s.npy.partial.rank7.npz").touch()  # killed as it was writing
    with monkeypatch.context() as patch:
        killing(patch, cba_fast.erf.sizes, "_gradient", rank=0, at=1)
        run(3, *args)
    (status, _, err) = run(1, *args)[0]
    assert status == 0, err
    assert "continued after 6 images" in err
    assert contents(here / "again") == sizes_of_one


def test_parts_that_were_joined_already_are_not_counted_twice(tmp_path):
    def part(*visited):
        rows = {"sizes": np.array(visited, np.float32), "visited": np.array(visited)}
        return lambda: rows | {"report": np.array('{"failed": [], "truncated": [3]}')}

    first, second = (Partial(tmp_path / "s.npy", rank) for rank in (0, 2))
    for partial, images in ((first, (0, 1, 4)), (second, (4, 7))):
        partial.save(part(*images), force=True)
    assert first.gather()["visited"].tolist() == [0, 1, 4]
    second.save(part(5, 2), force=True)
    assert first.gather()["sizes"].tolist() == [0, 1, 4, 5, 2]
    assert first.load()["report"] == '{"failed": [], "truncated": [3, 3]}'
    assert not second.path.exists()


def test_a_map_of_several_processes_is_refused(here):
    for status, _, err in run(2, *erf_arguments("m/s.npy"), "--save_map", "m/map.npy"):
        assert status == 1
        assert "--save_map needs one process" in err
    assert not Path("m").exists()


PLAN = """
defaults:
  model_family: replknet
  model: {model}
  weights: r.pth
  test_dataset: images
  metadata_root: meta
  input_size: 64
  num_workers: 0
  num_samples: 7
experiments: [{{name: r}}]
"""


def test_an_analysis_by_several_processes_writes_the_files_of_one(here, monkeypatch):
    (here / "plan.yaml").write_text(PLAN.format(model=SMALL_MODELS["replknet"]))
    monkeypatch.setattr(cba_fast.experiments.per_image, "GROUP", 2)

    def command(count):
        args = ["analysis-per-image", "--config", "plan.yaml", "--resamples", 9, "--output", "a"]
        return run(count, *args, "--overwrite")

    (one,) = command(1)
    assert one[0] == 0, one[2]
    wanted = files_of(here / "a")
    (status, out, err), *others = command(3)
    assert status == 0, err
    assert out.split("Results:")[0] == one[1].split("Results:")[0]
    assert others == [(0, "", "")] * 2
    assert files_of(here / "a") == wanted
