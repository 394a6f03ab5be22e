"""collect-erf-wsol: what is shared, skipped, redone; kills, failures; the rows of the CSV."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from collect_runs import (
    DEFAULTS,
    NANO,
    THREE,
    collect,
    load,
    state_after,
    three,
    trainings,
    write_given,
)
from data_factory import CUB_IMAGES, cub_folder, edit_lines

from cba_fast import files, resume
from cba_fast.analysis.points import Point, append_points, read_points
from cba_fast.errors import InputError
from cba_fast.experiments import collect as study
from cba_fast.experiments.progress import find_steps
from cba_fast.runs.runtime import Runtime
from cba_fast.runs.settings import RunConfig
from cba_fast.training import config as train_config


def test_experiments_share_a_training_and_end_in_the_csv(here, calls, capsys):
    done = collect(capsys, three())
    assert done.status == 0, done.err
    assert len(trainings(calls)) == 1
    rows = read_points("erf_wsol_points.csv")
    assert [r.model_name for r in rows] == THREE
    for row in rows:
        result = json.loads(Path(f"erf_wsol/{row.model_name}.json").read_text())
        assert row.wsol == result["max_box_acc"] / 100
        assert row.erf_path == f"erf_wsol/erf_{row.model_name}.npy"
        assert np.load(row.erf_path).mean() == result["erf"]["mean"] == 100.5
        assert result["optimal_threshold"] == 0.2
        assert row.model_name in done.out
    assert result["training"]["best_top1"] == 50
    assert "Warning: a note" in done.out
    assert result["notes"] == ["a note"]  # none of the run's history, which is printed
    assert "Warning: continued after 1 image" in done.out


def test_a_second_run_does_nothing(here, calls, capsys):
    assert collect(capsys, three()).status == 0
    before = snapshot()
    calls.clear()
    done = collect(capsys, three(num_workers=1))  # how, not what
    assert (done.status, calls) == (0, [])
    assert done.out.count("kept") == 3
    assert snapshot() == before


def snapshot():
    """The files of a run without times."""
    found = {}
    for path in sorted(p for p in Path().rglob("*") if p.is_file() and p.suffix != ".yaml"):
        if path.parent.name == "erf_wsol" and path.suffix == ".json":
            result = json.loads(path.read_text())
            del result["seconds"]
            found[path] = result
        elif path.suffix != ".pth" or "best" in path.name:
            found[path] = path.read_bytes()
    return found


class Killed(BaseException):
    """What ends a process without its consent."""


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_and_run_again(here, calls, capsys, monkeypatch, after):
    replace = files.os.replace
    plan = load(three())

    def run(kill_at):
        left = [kill_at]

        def killing(source, target):
            left[0] -= 1
            if left[0] == 0 and not after:
                raise Killed
            replace(source, target)
            if left[0] == 0:
                raise Killed

        monkeypatch.setattr(files.os, "replace", killing)
        try:
            for _ in study.collect(plan, find_steps(plan), log=lambda text: None):
                pass
        finally:
            monkeypatch.setattr(files.os, "replace", replace)
        return kill_at - left[0]

    writes = run(10**6)
    assert writes == 3 * 3 + 3  # sizes, JSON and row of each; state, weights and state of one
    expected = snapshot()
    for kill_at in range(1, writes + 1):
        for path in [*Path("erf_wsol").iterdir(), *Path("weights").iterdir()]:
            path.unlink()
        Path("erf_wsol_points.csv").unlink()
        with pytest.raises(Killed):
            run(kill_at)
        run(10**6)
        assert snapshot() == expected


def test_a_row_lost_between_json_and_csv_is_repaired(here, calls, capsys):
    assert collect(capsys, three()).status == 0
    before = Path("erf_wsol_points.csv").read_text()
    lines = before.splitlines(keepends=True)
    calls.clear()
    Path("erf_wsol_points.csv").write_text("".join([lines[0], *lines[2:]]))
    assert "add its row" in collect(capsys, three(), "--dry_run").out
    done = collect(capsys, three())
    assert (done.status, calls) == (0, [])
    assert Path("erf_wsol_points.csv").read_text() == before


def test_lost_sizes_are_measured_again(here, calls, capsys):
    assert collect(capsys, three()).status == 0
    before = snapshot()
    Path("erf_wsol/erf_given.npy").unlink()
    assert collect(capsys, three()).status == 0
    assert snapshot() == before


def test_changed_settings_are_refused_or_redone(here, calls, capsys):
    assert collect(capsys, three()).status == 0
    calls.clear()
    before = snapshot()
    changed = three(num_samples=5)
    done = collect(capsys, changed)
    assert (done.status, calls) == (1, [])
    assert "given: num_samples was 200, is 5" in done.err
    assert "--overwrite" in done.err
    assert snapshot() == before
    done = collect(capsys, changed, "--redo")
    assert "Warning: --redo is called --overwrite now" in done.err
    assert done.status == 0, done.err
    assert [r.model_name for r in read_points("erf_wsol_points.csv")] == THREE
    assert len(np.load("erf_wsol/erf_given.npy")) == 5
    assert collect(capsys, changed, "--overwrite").out.count("kept") == 3


def test_a_redo_that_is_killed_leaves_no_old_result_for_new_sizes(here, calls, capsys, monkeypatch):
    assert collect(capsys, three()).status == 0

    def killed(*args, **kwargs):
        raise Killed

    plan = load(three(num_samples=5))
    write_json = files.write_json
    monkeypatch.setattr(files, "write_json", killed)
    with pytest.raises(Killed):
        list(study.collect(plan, find_steps(plan), log=lambda text: None))
    monkeypatch.setattr(files, "write_json", write_json)
    assert collect(capsys, three()).status == 0  # the old settings again
    assert len(np.load("erf_wsol/erf_given.npy")) == 200


def test_compile_is_for_the_scores_alone(here, calls, capsys, monkeypatch):
    assert collect(capsys, three()).status == 0
    done = collect(capsys, three(compile=True))  # another rounding is another result
    assert "given: compile was False, is True" in done.err
    compiled = []
    for name in ("train", "evaluate", "compute_sizes"):
        stand_in = getattr(study, name)

        def noting(*args, name=name, stand_in=stand_in, **options):
            (how,) = (a for a in args if isinstance(a, RunConfig | Runtime))
            compiled.append((name, Runtime.of(how).config.compile))
            return stand_in(*args, **options)

        monkeypatch.setattr(study, name, noting)
    monkeypatch.setattr(torch.compiler, "reset", lambda: compiled.append("reset"))
    assert collect(capsys, three(compile=True), "--overwrite").status == 0
    one = ["reset", ("evaluate", True), ("compute_sizes", False)]
    assert [c for c in compiled if c[0] != "train"] == 3 * one


def test_other_inputs_and_versions_are_refused(here, calls, capsys, monkeypatch):
    assert collect(capsys, three()).status == 0
    content = three()  # writes the same content anew: other time, same weights
    assert collect(capsys, content).status == 0
    weights = Path("given.pth")
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    size = weights.stat().st_size
    write_given(2.0)
    assert weights.stat().st_size == size  # as many bytes
    os.utime(weights, ns=times)
    done = collect(capsys, content)
    assert done.status == 1
    assert "given: the weights given.pth are other bytes than those that were used" in done.err
    weights.unlink()  # scored before they went
    other = {**content, "experiments": content["experiments"][:1]}
    del other["grid"]
    assert collect(capsys, other).out.count("kept") == 1
    with monkeypatch.context() as patch:
        patch.setattr(resume, "__version__", "99.0")
        assert "given: written by cba_fast 0" in collect(capsys, other).err
    lists = Path("cub/bounding_boxes.txt")
    before = lists.read_text()
    edit_lines(lists, lambda lines: [*lines[:-1], "5 5 5 20 20"])
    assert "given: the boxes are not those that were used\n" in collect(capsys, other).err
    lists.write_text(before)
    for image in Path("cub").rglob("*.jpg"):
        os.utime(image)
    assert "given: the images are not those that were used" in collect(capsys, other).err


def test_results_of_an_earlier_version_are_refused_or_redone(here, calls, capsys):
    assert collect(capsys, three()).status == 0
    path = Path("erf_wsol/given.json")
    result = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in result.items() if k not in ("format", "inputs")}))
    Path("erf_wsol/mine.txt").write_text("mine")
    left = Path("erf_wsol/.tmp-" + "0" * 32 + "-given.json")
    left.touch()
    done = collect(capsys, three())
    assert "given: written by an earlier version of cba_fast" in done.err
    assert collect(capsys, three(), "--overwrite").out.count("kept") == 2
    assert json.loads(path.read_text())["inputs"] == result["inputs"]
    assert Path("erf_wsol/mine.txt").exists()
    assert not left.exists()


def test_a_row_of_the_users_is_not_replaced(here, calls, capsys):
    append_points("erf_wsol_points.csv", [Point("given", "mine", "x.npy", 0.5)])
    done = collect(capsys, three())
    assert (done.status, calls) == (1, [])
    assert "given: erf_wsol_points.csv has a row of this name" in done.err


def test_a_failure_is_recorded_and_does_not_end_the_rest(here, calls, capsys, monkeypatch):
    good = study.compute_sizes

    def failing(*args, **kwargs):
        if "given" in str(args[6]):
            raise RuntimeError("out of memory")
        return good(*args, **kwargs)

    monkeypatch.setattr(study, "compute_sizes", failing)
    done = collect(capsys, three())
    assert done.status == 1
    assert "1 of 3 failed" in done.err
    assert "given: RuntimeError: out of memory" in done.out
    record = Path("erf_wsol/given.error.txt").read_text()
    assert record.startswith("RuntimeError: out of memory\n")
    assert "Traceback" in record
    assert [r.model_name for r in read_points("erf_wsol_points.csv")] == THREE[1:]
    monkeypatch.setattr(study, "compute_sizes", good)
    calls.clear()
    done = collect(capsys, three())
    assert done.status == 0
    assert [what for what, _ in calls] == ["evaluate", "erf"]
    assert not Path("erf_wsol/given.error.txt").exists()
    assert [r.model_name for r in read_points("erf_wsol_points.csv")] == THREE


def test_scores_without_many_of_the_images_are_no_result(here, calls, capsys, monkeypatch):
    good = study.evaluate

    def vanished(model, *args, **options):
        found = good(model, *args, **options)
        found.unreadable = {"a/1.jpg": "cannot read image"}
        return found

    with monkeypatch.context() as patch:
        patch.setattr(study, "evaluate", vanished)
        done = collect(capsys, three())
    assert done.status == 1
    told = "1 of 4 images could not be used, more than 5%; a/1.jpg: cannot read image"
    assert told in Path("erf_wsol/given.error.txt").read_text()
    assert not Path("erf_wsol/given.json").exists()
    assert collect(capsys, three()).status == 0


def test_a_failed_training_fails_once_for_all_that_share_it(here, calls, capsys, monkeypatch):
    def failing(model, config, run, **kwargs):
        calls.append(("train", config.exp_name))
        raise InputError("the loss is nan")

    monkeypatch.setattr(study, "train", failing)
    done = collect(capsys, three())
    assert done.status == 1
    assert len(trainings(calls)) == 1
    assert "the loss is nan" in Path("erf_wsol/replknet_cam.error.txt").read_text()
    assert "failed before: InputError: the loss is nan" in done.out
    assert [r.model_name for r in read_points("erf_wsol_points.csv")] == ["given"]


def test_an_interrupt_tells_how_to_go_on(here, calls, capsys, monkeypatch):
    good = study.train

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "train", interrupted)
    done = collect(capsys, three())
    assert done.status == 130
    assert "Interrupted after 1 of 3 experiments: the same command goes on" in done.err
    monkeypatch.setattr(study, "train", good)
    assert collect(capsys, three()).status == 0
    assert not list(Path("erf_wsol").glob("*.error.txt"))


def test_dry_run_tells_what_would_happen_and_changes_nothing(here, calls, capsys):
    content = three()
    before = sorted(Path().rglob("*"))
    done = collect(capsys, content, "--dry_run")
    assert done.status == 0, done.err
    assert re.search(
        r"replknet_cam .* train replknet_r64_e2_lr0.0001_auglight_\S+ \(2 epochs\), score", done.out
    )
    assert re.search(r"replknet_pc1 .* weights that replknet_cam trains", done.out)
    assert re.search(r"given .* score given.pth", done.out)
    assert sorted({*Path().rglob("*")} - {Path("e.yaml")}) == before
    assert calls == []
    assert collect(capsys, content).status == 0
    assert collect(capsys, content, "--dry_run").out.count("nothing: done") == 3


def test_trainings_are_continued_and_found_weights_used(here, calls, capsys):
    plan = load(three())
    settings = plan.experiments[1].settings
    best = train_config.best_path(settings.model_of(None), settings.training())
    last = train_config.last_path(settings.model_of(None), settings.training())
    best.parent.mkdir()
    for epoch, text in ((1, "(1 epoch), score"), (2, "score weights")):
        torch.save(state_after(epoch), last)
        best.write_text("w")
        assert text in collect(capsys, three(), "--dry_run").out
    last.unlink()
    done = collect(capsys, three())
    assert done.status == 0
    assert trainings(calls) == []
    assert "used as it is" in done.out
    assert best.read_text() == "w"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_root": "none"}, "replknet_cam: data_root: no folder none/train"),
        ({"init_weights": "none.pth"}, "replknet_cam: init_weights: no file none.pth"),
        ({"test_dataset": "none"}, "given: test_dataset: no data set 'none'"),
        ({"test_dataset": "folders"}, "has no boxes; give cub_root or metadata_root"),
        ({"cub_root": "none"}, "given: cub_root: no folder none"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_missing_files_are_told_before_anything_runs(here, calls, capsys, change, message):
    (here / "folders" / "a").mkdir(parents=True)
    (here / "folders" / "a" / "1.jpg").write_bytes(b"")
    done = collect(capsys, three(**change))
    assert (done.status, calls) == (1, [])
    assert message in done.err
    content = three()
    Path("given.pth").unlink()
    assert "given: weight_path: no file given.pth" in collect(capsys, content).err


def test_a_cub_folder_is_data_to_train_on(here, calls, capsys):
    done = collect(capsys, three(data_root="cub"))
    assert done.status == 0, done.err
    assert len(trainings(calls)) == 1


def test_a_file_that_is_no_result_is_named(here, calls, capsys):
    files.write_text("erf_wsol/given.json", "{}")
    done = collect(capsys, three())
    assert done.status == 1
    assert "erf_wsol/given.json: not a result of collect-erf-wsol" in done.err


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_training_of_other_images_is_replaced_on_request(here, capsys, monkeypatch, overwrite):
    calls = []

    def train(*args, **options):
        calls.append(options.get("overwrite", False))
        if not calls[-1]:
            raise resume.OtherRunError("x_last.pth", ["the images are not those that were used"])
        raise InputError("begun anew")

    monkeypatch.setattr(study, "train", train)
    cub_folder(here / "cub", CUB_IMAGES)
    for split in ("train", "test"):
        (here / "split" / split).mkdir(parents=True)
    plan = load({"defaults": DEFAULTS, "experiments": [{"name": "one", **NANO}]})
    (found,) = study.collect(plan, find_steps(plan), overwrite=overwrite, log=lambda text: None)
    assert calls == ([False, True] if overwrite else [False])
    assert ("begun anew" if overwrite else "the images are not") in found.error
