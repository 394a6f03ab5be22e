"""evaluate and wsol-eval: equal counts by both ways, protocol options, bad input."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from cli_runner import run_cli
from data_factory import cub_folder, edit_lines, metadata_folder, write_file, write_image
from evaluate_setup import (
    BOXES,
    IDS,
    LABELS,
    SIZES,
    images_and_metadata,
    model_arguments,
    read,
    save_maps,
)

from cba_fast.wsol import BoxEvaluator, map_reading


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "r.pth"
    return make_checkpoint(path, "replknet", SMALL_MODELS["replknet"], num_classes=3)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Images of seven of the nine ids, and metadata of all in an order that is not sorted."""
    monkeypatch.chdir(tmp_path)
    return images_and_metadata(tmp_path)


@pytest.mark.parametrize(
    ("method", "size", "shape"),
    [
        (["cam"], 48, (48, 48)),
        (["pc1"], "input", (128, 128)),
        (["cam"], "40x72", (40, 72)),
        (["grad-cam++", "--layer", "stages.2"], 48, (48, 48)),
        (["cam", "--input_size", "96x160"], "input", (96, 160)),
    ],
)
def test_both_ways_count_the_same(here, weights, capsys, method, size, shape):
    common = [*model_arguments(weights), "--method", *method, "--map_size", size]
    done = run_cli(capsys, "generate-heatmap", *common, "--no_overlay")
    assert done.status == 0, done.err
    assert np.load(next((here / "np_heatmap_output").rglob("*.npy"))).shape == shape
    boxes = ["--metadata_root", "meta", "--cam_curve_interval", 0.05, "--iou_thr", 0.4]
    boxes += ["--threshold", 0.37]
    done = run_cli(capsys, "wsol-eval", *boxes, "--contours", "both", "--json", "two.json")
    assert done.status == 0, done.err
    assert done.out.startswith("MaxBoxAcc    : ")
    more = ["--num_samples", 2, "--json", "one.json"]
    done = run_cli(capsys, "evaluate", *common, *boxes, *more)
    assert done.status == 0, done.err
    one, two = read(here / "one.json"), read(here / "two.json")
    assert one["largest"] == two["largest"]
    assert one["all"] == two["all"]
    assert one["fixed_threshold"] == two["fixed_threshold"]
    assert len(one["fixed_threshold"]) == 8
    assert "At the threshold asked for:\n  largest IoU 0.3: " in done.out
    assert one["num_images"] == two["num_images"] == 7
    assert sorted(one["missing"]) == sorted(two["missing"]) == IDS[7:]
    assert one["iou_thresholds"] == [0.3, 0.5, 0.7, 0.4]
    assert len(one["largest"]["num_correct"]) == 4
    assert len(one["largest"]["num_correct"][0]) == len(one["thresholds"]) == 20
    assert one["max_box_acc"] == one["largest"]["max_box_acc"][1]
    assert one["max_box_acc_v2"] == pytest.approx(np.mean(one["all"]["max_box_acc"][:3]))
    assert one["erf"]["num_samples"] == 2
    assert 1 <= one["erf"]["mean"] <= 128 * 128


@pytest.mark.parametrize("method", ["grad-cam", "chefer"])
def test_a_network_of_timm_with_images_that_are_not_square(here, capsys, method):
    torch.manual_seed(0)
    args = ["--model", "test_vit", "--num_classes", 3, "--test_dataset", "images"]
    args += ["--input_size", "64x96", "--num_workers", 0, "--method", method]
    torch.save(timm.create_model("test_vit", num_classes=3, img_size=(64, 96)).state_dict(), "v.pt")
    boxes = ["--metadata_root", "meta", "--num_samples", 2, "--json", "r.json"]
    done = run_cli(capsys, "evaluate", *args, "--weights", "v.pt", *boxes)
    assert done.status == 0, done.err
    assert "3 classes, input 64x96" in done.err
    result = read(here / "r.json")
    used = result["settings"]["data"]
    assert (used["input_size"], used["map_size"], used["method"]) == ("64x96", "64x96", method)
    assert 1 <= result["erf"]["mean"] <= 64 * 96


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "attention-rollout"], "no layers of attention .* methods work: grad-cam, "),
        (
            ["--layer", "stages.9"],
            "Error: RepLKNet has no module named 'stages.9'; it has stages.3",
        ),
        (["--layer", "stages.2"], "no linear head after module 'stages.2': .* grad-cam\\+\\+"),
        (["--method", "grad-cam", "--layer", "head"], "must give a feature map"),
        (["--compile", "--layer", "stages.2"], "--compile cannot be combined with --layer"),
        (["--compile", "--method", "chefer"], "--compile cannot be combined with --method chefer"),
    ],
)
def test_what_a_method_cannot_explain_is_told_in_one_line(here, weights, capsys, more, message):
    args = [*model_arguments(weights), "--metadata_root", "meta", "--num_samples", 0]
    done = run_cli(capsys, "evaluate", *args, *more)
    assert done.status == 1
    line = done.err.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert re.search(message, line)


def test_classification_and_localization(here, weights, capsys):
    args = [*model_arguments(weights), "--metadata_root", "meta", "--num_samples", 0]
    done = run_cli(capsys, "evaluate", *args, "--json", "r.json")
    assert done.status == 0, done.err
    result = read(here / "r.json")
    scores = result["classification"]
    assert scores["top5"] == 100  # three classes
    assert scores["top5_localization"] == pytest.approx(result["max_box_acc"])
    assert scores["top1_localization"] <= min(scores["top1"], result["max_box_acc"])
    assert result["erf"] is None
    assert "ERF" not in done.out


def test_written_predictions_give_the_same_scores_in_two_steps(here, weights, capsys):
    common = model_arguments(weights)
    assert run_cli(capsys, "generate-heatmap", *common, "--no_overlay").status == 0
    boxes = ["--metadata_root", "meta", "--json", "r.json", "--predictions", "p.csv"]
    done = run_cli(capsys, "evaluate", *common, *boxes, "--num_samples", 0)
    assert done.status == 0, done.err
    assert "Predictions  : p.csv" in done.out
    one = read(here / "r.json")["classification"]
    assert len((here / "p.csv").read_text().splitlines()) == 1 + 7
    done = run_cli(capsys, "wsol-eval", *boxes)
    assert done.status == 0, done.err
    assert read(here / "r.json")["classification"] == one


def test_evaluate_equals_erf_compute(here, weights, capsys):
    args = [*model_arguments(weights), "--metadata_root", "meta", "--num_samples", 4, "--seed", 3]
    assert run_cli(capsys, "evaluate", *args, "--json", "r.json").status == 0
    model = [a for a in model_arguments(weights) if a not in ("--map_size", 48, "--batch_size", 3)]
    erf = ["--num_samples", 4, "--seed", 3, "--output", "e.npy"]
    done = run_cli(capsys, "erf-compute", *model, *erf)
    assert done.status == 0, done.err
    assert read(here / "r.json")["erf"]["mean"] == pytest.approx(np.load("e.npy").mean())


def test_images_without_boxes_are_left_out_with_a_note(here, weights, capsys):
    write_image(here / "images" / "zebra" / "z.jpg")
    write_image(here / "images" / "auk" / "unknown.jpg")
    args = [*model_arguments(weights), "--cub_root", "cub", "--num_samples", 0]
    rows = [f"{n} {i}" for n, i in enumerate(IDS[:7], 1)]
    write_file(here / "cub" / "images.txt", "\n".join(rows))
    files = {
        "image_class_labels.txt": [f"{n} {LABELS[i] + 1}" for n, i in enumerate(IDS[:7], 1)],
        "train_test_split.txt": [f"{n} 0" for n in range(1, 8)],
        "bounding_boxes.txt": [f"{n} 3.5 5.0 20.0 25.0" for n in range(1, 8)],
        "classes.txt": ["1 auk", "2 jay", "3 owl"],
    }
    for name, lines in files.items():
        write_file(here / "cub" / name, "\n".join(lines))
    (here / "cub" / "images").symlink_to(here / "images")
    done = run_cli(capsys, "evaluate", *args, "--json", "r.json")
    assert done.status == 0, done.err
    assert "without ground truth, left out: 2 images" in done.err
    assert read(here / "r.json")["num_images"] == 7


def test_most_maps_missing_is_a_warning(here, capsys):
    save_maps(here / "maps", IDS[:4])
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "meta"]
    for _ in range(2):  # in each run, not once in a process
        done = run_cli(capsys, *args)
        assert done.status == 0
        assert done.err.count("Warning: 5 of 9 images of the ground truth have no score map") == 1
        assert "(--missing_as_miss counts misses)" in done.err
    assert run_cli(capsys, *args, "--missing_as_miss").err == ""
    save_maps(here / "maps", IDS[:5])
    assert run_cli(capsys, *args).err == ""


def test_missing_maps_are_listed_or_misses(here, capsys):
    save_maps(here / "maps", IDS[:5])
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "meta", "--json", "r.json"]
    done = run_cli(capsys, *args)
    assert done.status == 0
    assert "5 counted, 4 missing" in done.out
    listed = read(here / "r.json")
    assert run_cli(capsys, *args, "--missing_as_miss").status == 0
    counted = read(here / "r.json")
    assert listed["missing"] == counted["missing"]
    assert sorted(listed["missing"]) == IDS[5:]
    assert listed["largest"]["num_correct"] == counted["largest"]["num_correct"]
    assert (listed["num_images"], counted["num_images"]) == (5, 9)
    done = run_cli(capsys, *args[:2], "meta", *args[3:])
    assert done.status == 1
    assert "holds no map" in done.err


def test_official_names_win_with_a_warning(here, capsys):
    save_maps(here / "maps", IDS, official=True)
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "meta", "--json", "r.json"]
    assert run_cli(capsys, *args).status == 0
    alone = read(here / "r.json")
    save_maps(here / "maps", IDS[::-1])
    done = run_cli(capsys, *args)
    assert "two maps of 9 images; <image_id>.npy was taken" in done.err
    assert read(here / "r.json")["largest"] == alone["largest"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((30, 30), np.nan), "900 NaN"),
        (np.full((30, 30), 2.0), "the value 2.0 > 1 by 1"),
        (np.zeros((30, 30, 1)), r"(30, 30, 1)"),
        (np.zeros((31, 31)), "(31, 31), but (30, 30)"),
    ],
)
def test_a_bad_map_is_named_and_nothing_is_written(here, capsys, array, message):
    save_maps(here / "maps", IDS)
    np.save(here / "maps" / "jay" / "jay_1.npy", array)
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "meta", "--json", "r.json"]
    done = run_cli(capsys, *args, "--eval_size", 30)
    assert done.status == 1
    assert "jay_1.npy" in done.err
    assert message in done.err
    assert not (here / "r.json").exists()


def test_maps_can_be_resized(here, capsys):
    save_maps(here / "maps", IDS[:4], side=30)
    save_maps(here / "maps", IDS[4:], side=41)
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "meta", "--eval_size", 30]
    assert run_cli(capsys, *args).status == 1
    assert run_cli(capsys, *args, "--resize_maps").status == 0
    assert run_cli(capsys, *args[:-2]).status == 0  # maps of several sizes, each at its own


def test_a_threshold_tuned_elsewhere(here, capsys):
    save_maps(here / "maps", IDS)
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "meta", "--contours", "both"]
    assert run_cli(capsys, *args, "--json", "val.json").status == 0
    tuned = read(here / "val.json")
    tuned["largest"]["optimal_threshold"] = [0.0, 0.25, 0.5]
    write_file(here / "val.json", json.dumps(tuned))
    done = run_cli(capsys, *args, "--threshold_from", "val.json", "--json", "test.json")
    assert done.status == 0, done.err
    result = read(here / "test.json")
    row = result["threshold_from"]["accuracies"][1]
    assert (row["contours"], row["iou"], row["threshold"]) == ("largest", 0.5, 0.25)
    at = result["thresholds"].index(0.25)
    assert row["box_acc"] == pytest.approx(100 * result["largest"]["num_correct"][1][at] / 9)
    assert row["max_box_acc"] == result["max_box_acc"]
    assert "val.json" in done.out
    for text, message in (("{", "JSON"), ("[]", "not a result"), ("{}", "not a result")):
        write_file(here / "bad.json", text)
        done = run_cli(capsys, *args, "--threshold_from", "bad.json")
        assert done.status == 1
        assert "bad.json" in done.err
        assert message in done.err
    done = run_cli(capsys, *args, "--threshold_from", "none.json")
    assert "none.json: cannot be read as JSON: No such file or directory\n" in done.err
    done = run_cli(
        capsys, *args, "--threshold_from", "val.json", "--cam_curve_interval", 0.3, "--json", "x"
    )
    assert done.status == 1
    assert "0.25" in done.err


def test_bad_ground_truth_is_named(here, capsys):
    save_maps(here / "maps", IDS)
    args = ["wsol-eval", "--np_root", "maps"]
    assert "either --cub_root or --metadata_root" in run_cli(capsys, *args).err
    args += ["--metadata_root", "meta"]
    whole = (here / "meta" / "localization.txt").read_text()
    for line, message in (("1,2,-3,4", "-3"), ("9,9,3,3", "9"), ("a,b,c,d", "line 1")):
        edit_lines(
            here / "meta" / "localization.txt",
            lambda lines, line=line: [f"{lines[0].split(',')[0]},{line}", *lines[1:]],
        )
        done = run_cli(capsys, *args)
        assert done.status == 1
        assert "localization.txt" in done.err
        assert message in done.err
        (here / "meta" / "localization.txt").write_text(whole)
    ids = (here / "meta" / "image_ids.txt").read_text()
    for line, message in (
        (IDS[4], "line 10: duplicate"),
        ("../x.jpg", "'../x.jpg' is not a plain"),
    ):
        (here / "meta" / "image_ids.txt").write_text(f"{ids}{line}\n")
        done = run_cli(capsys, *args)
        assert done.status == 1
        assert "image_ids.txt" in done.err
        assert message in done.err


def test_eval_size_of_evaluate(here, weights, capsys):
    args = [*model_arguments(weights), "--metadata_root", "meta", "--num_samples", 0]
    done = run_cli(capsys, "evaluate", *args, "--eval_size", 24)
    assert done.status == 1
    assert "48x48" in done.err
    assert run_cli(capsys, "evaluate", *args, "--eval_size", 24, "--resize_maps").status == 0


def test_options_that_cannot_fit_are_refused_before_the_work(here, weights, capsys, monkeypatch):
    save_maps(here / "np_heatmap_output", IDS)
    boxes = ["--metadata_root", "meta"]
    assert run_cli(capsys, "wsol-eval", *boxes, "--json", "val.json").status == 0
    tuned = read(here / "val.json")
    tuned["largest"]["optimal_threshold"] = [0.0, 0.25, 0.5]
    write_file(here / "val.json", json.dumps(tuned))

    def works(*args, **kwargs):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("cba_fast.runs.evaluate.load_model", works)
    monkeypatch.setattr("cba_fast.runs.scoring.boxes.read_maps", works)
    boxes += ["--threshold_from", "val.json", "--cam_curve_interval", 0.3]
    for command in (["wsol-eval"], ["evaluate", *model_arguments(weights)]):
        done = run_cli(capsys, *command, *boxes)
        assert done.status == 1
        assert "val.json: threshold 0.25 is not one of those evaluated" in done.err
    tuned["iou_thresholds"] = [0.1, 0.2, 0.4]
    write_file(here / "val.json", json.dumps(tuned))
    assert "shares no contour mode" in run_cli(capsys, "wsol-eval", *boxes).err


def test_thresholds_tuned_elsewhere_and_notes_of_evaluate(here, weights, capsys):
    args = [*model_arguments(weights), "--metadata_root", "meta", "--json", "r.json"]
    done = run_cli(capsys, "evaluate", *args, "--num_samples", 9)
    assert done.status == 0, done.err
    assert "ERF: 9 samples asked for, the set has 7" in done.err
    args[-1] = "s.json"
    more = ["--num_samples", 0, "--threshold_from", "r.json"]
    assert run_cli(capsys, "evaluate", *args, *more).status == 0
    rows = read(here / "s.json")["threshold_from"]["accuracies"]
    assert [(r["contours"], r["iou"]) for r in rows] == [
        (mode, iou) for mode in ("largest", "all") for iou in (0.3, 0.5, 0.7)
    ]
    assert all(r["box_acc"] == r["max_box_acc"] for r in rows)


def test_without_an_erf_the_scores_stand(here, weights, capsys, monkeypatch):
    args = [*model_arguments(weights), "--metadata_root", "meta", "--json", "r.json"]
    assert run_cli(capsys, "evaluate", *args, "--num_samples", 0).status == 0
    alone = read(here / "r.json")
    (here / "r.json").unlink()
    monkeypatch.setattr(
        "cba_fast.erf.sizes.input_gradient", lambda model, x, **_: torch.full_like(x, torch.nan)
    )
    done = run_cli(capsys, "evaluate", *args)
    assert done.status == 0, done.err
    assert "the ERF size could not be measured: none of the 7 images" in done.err
    assert "MaxBoxAcc" in done.out
    assert "ERF" not in done.out
    found = read(here / "r.json")
    assert found["erf"] is None
    assert found["largest"] == alone["largest"]


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_evaluation_says_what_there_is(here, weights, capsys, monkeypatch, begun):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    step = "measure_sizes" if begun else "iter_host_maps"
    monkeypatch.setattr(f"cba_fast.runs.evaluate.{step}", interrupted)
    args = [*model_arguments(weights), "--metadata_root", "meta", "--json", "r.json"]
    done = run_cli(capsys, "evaluate", *args)
    assert done.status == 130
    if begun:
        assert "r.json holds the box scores without ERF" in done.err
        assert read(here / "r.json")["max_box_acc"] is not None
    else:
        assert "nothing was written" in done.err
        assert not (here / "r.json").exists()


def test_the_target_label_is_that_of_the_ground_truth(here, weights, capsys):
    other = {i: 2 - label for i, label in LABELS.items()}  # class folders are numbered by name
    cub = here / "cub"
    rows = list(enumerate(IDS[:7], 1))
    lines = {
        "images.txt": [f"{n} {i}" for n, i in rows],
        "image_class_labels.txt": [f"{n} {other[i] + 1}" for n, i in rows],
        "train_test_split.txt": [f"{n} 0" for n, _ in rows],
        "bounding_boxes.txt": [f"{n} 3 5 20 25" for n, _ in rows],
        "classes.txt": ["1 owl", "2 jay", "3 auk"],
    }
    for name, text in lines.items():
        write_file(cub / name, "\n".join(text))
    (cub / "images").symlink_to(here / "images")
    folders = [*model_arguments(weights), "--cub_root", "cub", "--num_samples", 0]
    lists = [a if a != "images" else "cub" for a in folders]
    for name, args in (("folders", folders), ("lists", lists)):
        done = run_cli(capsys, "evaluate", *args, "--target", "label", "--json", f"{name}.json")
        assert done.status == 0, done.err
    one, two = read(here / "folders.json"), read(here / "lists.json")
    assert one["largest"] == two["largest"]
    assert one["classification"] == two["classification"]


def test_a_contradicting_split_is_refused_and_boxes_elsewhere_name_their_flag(here, capsys):
    save_maps(here / "maps", IDS)
    metadata_folder(here / "val", BOXES, SIZES, LABELS)
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "val"]
    assert run_cli(capsys, *args, "--split", "val").status == 0
    done = run_cli(capsys, *args, "--split", "test")
    assert done.status == 1
    assert "val holds image_ids.txt itself" in done.err
    assert "leave out --split" in done.err
    small = dict.fromkeys(SIZES, (4, 4))
    metadata_folder(here / "val", BOXES, small, LABELS)
    done = run_cli(capsys, *args)
    assert done.status == 1
    assert "9 of 9 boxes lie wholly outside of their images" in done.err
    assert "--allow_boxes_beyond" in done.err
    assert run_cli(capsys, *args, "--allow_boxes_beyond").status == 0


def test_results_record_the_ground_truth_that_was_read(here, weights, capsys):
    save_maps(here / "maps", IDS)
    args = ["wsol-eval", "--np_root", "maps", "--json", "r.json"]
    done = run_cli(capsys, *args, "--metadata_root", "meta")
    assert done.status == 0
    assert "Ground truth : meta\n" in done.out
    found = read(here / "r.json")["settings"]
    assert found["metadata_folder"] == "meta"
    assert (found["dataset_name"], found["split"]) == (None, None)
    metadata_folder(here / "official" / "CUB" / "val", BOXES, SIZES, LABELS)
    direct = ["--metadata_root", "official", "--dataset_name", "CUB", "--split", "val"]
    assert run_cli(capsys, *args, *direct).status == 0
    found = read(here / "r.json")["settings"]
    assert found["metadata_folder"] == "official/CUB/val"
    assert (found["dataset_name"], found["split"]) == ("CUB", "val")
    cub_folder(here / "birds")
    args = [a if a != "images" else "birds" for a in model_arguments(weights)]
    done = run_cli(capsys, "evaluate", *args, "--num_samples", 0, "--json", "r.json")
    assert done.status == 0, done.err
    assert "Images of    : birds, split test\nGround truth : birds, split test\n" in done.out
    found = read(here / "r.json")["settings"]["boxes"]
    assert found["cub_root"] == "birds"
    assert found["contours"] == "both"
    assert found["metadata_folder"] is None


@pytest.mark.parametrize("limit", [1, 3 * 30 * 30, 1 << 30])
def test_chunks_keep_below_their_bytes_and_do_not_matter(here, capsys, monkeypatch, limit):
    save_maps(here / "maps", IDS)
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "meta", "--json", "r.json"]
    assert run_cli(capsys, *args).status == 0
    whole = read(here / "r.json")["largest"]
    sizes, real = [], BoxEvaluator.update

    def update(self, maps, ids):
        sizes.append(maps.nbytes)
        real(self, maps, ids)

    monkeypatch.setattr(map_reading, "CHUNK_BYTES", limit)
    monkeypatch.setattr(BoxEvaluator, "update", update)
    assert run_cli(capsys, *args).status == 0
    one = 30 * 30  # the maps arrive as bytes
    assert sum(sizes) == 9 * one
    assert max(sizes) == min(max(limit // one, 1), 9) * one
    assert read(here / "r.json")["largest"] == whole


def test_an_unusable_instruction_set_is_one_line(here):
    save_maps(here / "maps", IDS)
    command = [sys.executable, "-m", "cba_fast", "wsol-eval", "--np_root", "maps"]
    done = subprocess.run(
        [*command, "--metadata_root", "meta"],
        env=os.environ | {"CBA_ISA": "sse9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: CBA_ISA=sse9: ")
    assert len(done.stderr.splitlines()) == 1


def test_bf16_runs(here, weights, capsys):
    args = [*model_arguments(weights), "--metadata_root", "meta", "--num_samples", 1]
    done = run_cli(capsys, "evaluate", *args, "--precision", "bf16")
    assert done.status == 0, done.err
