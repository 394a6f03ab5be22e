"""wsol-eval with stores, predictions, intervals, comparisons and classes; pack-maps."""

import json

import cv2
import numpy as np
import pytest
from cli_runner import run_cli
from data_factory import edit_lines, metadata_folder, write_file

from cba_fast import files
from cba_fast.data import ScoreStore, load_boxes, write_predictions
from cba_fast.data import score_store as store_module
from cba_fast.wsol import BoxEvaluator

IDS = [f"{c}/{c}_{i:02d}.v1.jpg" for c in ("auk", "jay", "owl") for i in range(15)]
LABELS = {i: ("auk", "jay", "owl").index(i.split("/")[0]) for i in IDS}


def make_maps(seed, side=32, noise=0.5):
    """Return CAM-like maps: a blob near the box of each image and smooth noise."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[0:8, 0:8]
    maps = {}
    for n, image_id in enumerate(IDS):
        cx, cy = 2 + n % 4 + rng.normal(0, 0.5), 3 + rng.normal(0, 0.5)
        m = np.exp(-((xx - cx) ** 2 + (yy - cy) ** 2) / 4) + noise * rng.random((8, 8))
        m = cv2.resize(m, (side, side))
        maps[image_id] = (m - m.min()) / (m.max() - m.min())
    return maps


def save(root, maps):
    for image_id, m in maps.items():
        folder, name = image_id.split("/")
        files.write_npy(root / folder / f"{name.split('.')[0]}.npy", m)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    boxes = {i: [(5 + 6 * (n % 4), 10, 35 + 6 * (n % 4), 40)] for n, i in enumerate(IDS)}
    metadata_folder(tmp_path / "meta", boxes, dict.fromkeys(IDS, (64, 64)), LABELS)
    save(tmp_path / "maps", make_maps(0))
    return tmp_path


def evaluate(capsys, np_root, *more, name="r.json"):
    args = ["wsol-eval", "--np_root", np_root, "--metadata_root", "meta", "--contours", "both"]
    done = run_cli(capsys, *args, "--json", name, *more)
    assert done.status == 0, done.err
    with open(name) as f:
        return done, json.load(f)


def scores(found):
    return {k: v for k, v in found.items() if k not in ("settings", "versions")}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.uint8])
def test_a_store_scores_as_the_files_it_was_made_of(here, capsys, dtype):
    """uint8(255 * m) is all that MaxBoxAcc sees of a map: nothing is lost in the store."""
    maps = {i: m if dtype != np.uint8 else 255 * m for i, m in make_maps(1).items()}
    save(here / "kind", {i: m.astype(dtype) for i, m in maps.items()})
    _, want = evaluate(capsys, "kind", "--cam_curve_interval", 0.001)
    done = run_cli(capsys, "pack-maps", "--np_root", "kind", "--store", "store")
    assert done.status == 0, done.err
    assert "45 packed (32x32, 0.0 MB)" in done.out
    _, found = evaluate(capsys, "store", "--cam_curve_interval", 0.001)
    assert scores(found) == scores(want)
    assert want["max_box_acc"] > 20
    _, found = evaluate(capsys, "store", "--cam_curve_interval", 0.001, "--num_workers", 1)
    assert scores(found) == scores(want)


def test_packing_is_resumed_to_the_same_files(here, capsys, monkeypatch):
    def snapshot(root):
        names = (*store_module.STORE_FILES, "manifest.json")
        return [(here / root / name).read_bytes() for name in names]

    assert run_cli(capsys, "pack-maps", "--np_root", "maps", "--store", "whole").status == 0
    real, written = store_module.StoreWriter.write, []

    def write(self, row, u):
        if len(written) == 20:
            raise KeyboardInterrupt
        written.append(row)
        real(self, row, u)

    monkeypatch.setattr(store_module.StoreWriter, "write", write)
    args = ["pack-maps", "--np_root", "maps", "--store", "cut"]
    done = run_cli(capsys, *args)
    assert done.status == 130
    assert "the same command goes on" in done.err
    _, found = evaluate(capsys, "cut")
    assert (found["num_images"], len(found["missing"])) == (20, 25)
    monkeypatch.setattr(store_module.StoreWriter, "write", real)
    done = run_cli(capsys, *args)
    assert "25 packed, 20 were there" in done.out
    assert snapshot("cut") == snapshot("whole")
    assert "0 packed, 45 were there" in run_cli(capsys, *args, "--resume").out
    (here / "maps" / "auk" / "auk_00.npy").unlink()
    done = run_cli(capsys, *args)
    assert done.status == 1
    assert "the maps are not those that were used" in done.err
    assert run_cli(capsys, *args, "--overwrite").status == 0
    assert len(ScoreStore(here / "cut").names) == 44


def test_packing_follows_links_but_not_in_circles(here, capsys):
    (here / "maps" / "owl").rename(here / "owls")
    (here / "maps" / "owl").symlink_to(here / "owls")
    (here / "maps" / "ern").symlink_to(here / "owls")  # a second name of the same maps
    (here / "maps" / "jay" / "up").symlink_to(here / "maps")
    _, want = evaluate(capsys, "maps")
    done = run_cli(capsys, "pack-maps", "--np_root", "maps", "--store", "store")
    assert done.status == 0, done.err
    names = ScoreStore(here / "store").names
    assert len(names) == 60
    assert {n.split("/")[0] for n in names} == {"auk", "ern", "jay", "owl"}
    _, found = evaluate(capsys, "store")
    assert scores(found) == scores(want)


def test_packing_refuses_what_it_cannot_store(here, capsys):
    def refused(*args, np_root="maps", store="s"):
        done = run_cli(capsys, "pack-maps", "--np_root", np_root, "--store", store, *args)
        assert done.status in (1, 2)
        assert "Traceback" not in done.err
        return done.err

    assert "nowhere: no such folder" in refused(np_root="nowhere")
    assert "meta holds no .npy files" in refused(np_root="meta")
    assert "lies inside of maps" in refused(store="maps/s")
    assert "--resize_maps needs --eval_size" in refused("--resize_maps")
    assert "(32, 32), but (9, 9) is asked for" in refused("--eval_size", 9)
    write_file(here / "thesis" / "a.txt", "years of work")
    assert "thesis holds files that no earlier run wrote" in refused(store="thesis")
    files.write_npy(here / "maps" / "jay" / "jay_03.npy", np.zeros((9, 9)))
    assert "jay_03.npy: shape (9, 9), but the maps before it are (32, 32)" in refused()
    files.write_npy(here / "maps" / "jay" / "jay_03.npy", np.full((32, 32), 2.0))
    assert "jay_03.npy: the value 2.0 > 1 by 1 at (0, 0)" in refused("--overwrite")
    files.write_npy(here / "maps" / "jay" / "jay_03.npy", np.zeros((16, 16)))
    args = ["pack-maps", "--np_root", "maps", "--store", "s", "--eval_size", 16, "--resize_maps"]
    assert run_cli(capsys, *args, "--overwrite").status == 0
    assert ScoreStore(here / "s").shape == (16, 16)
    assert "s is a store already" in refused(np_root="s", store="t")
    _, want = evaluate(capsys, "maps", "--eval_size", 16, "--resize_maps")
    _, found = evaluate(capsys, "s")
    assert scores(found) == scores(want)


def test_predictions_add_top1_and_top5(here, capsys):
    rng = np.random.default_rng(3)
    ranked = {i: rng.permutation(3).tolist() for i in IDS}
    write_predictions("p.csv", ranked | {"zebra/z.jpg": [0, 1, 2]})
    done, found = evaluate(capsys, "maps", "--predictions", "p.csv")
    evaluator = BoxEvaluator(load_boxes(metadata_root="meta"))
    for image_id, m in make_maps(0).items():
        evaluator.update(m[None], [image_id])
    at = evaluator.compute().modes["largest"].optimal_threshold[1]
    localized = evaluator.localized("largest", 0.5, at)
    right = {i: ranked[i][0] == LABELS[i] for i in IDS}
    top1 = 100 * sum(right.values()) / 45
    both = 100 * sum(right[i] and localized[i] for i in IDS) / 45
    assert found["classification"] == pytest.approx(
        {
            "top1": top1,
            "top1_localization": both,
            "top5": 100,
            "top5_localization": found["max_box_acc"],
        }
    )
    assert f"Localization : top-1 {both:.2f}%, top-5 {found['max_box_acc']:.2f}%" in done.out
    assert "1 predictions have no score map: zebra/z.jpg" in done.err
    write_predictions("one.json", {i: r[:1] for i, r in ranked.items()})
    done, found = evaluate(capsys, "maps", "--predictions", "one.json")
    assert found["classification"]["top5"] is None
    assert f"Top-1        : {top1:.2f}% (top-5 unknown)" in done.out


def test_bad_predictions_are_named(here, capsys):
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "meta", "--predictions", "p.csv"]
    assert "no file p.csv" in run_cli(capsys, *args).err
    write_predictions("p.csv", {i: [0] for i in IDS[1:]})
    done = run_cli(capsys, *args, "--json", "r.json")
    assert done.status == 1
    assert f"p.csv: image '{IDS[0]}' has a score map but no prediction" in done.err
    assert not (here / "r.json").exists()
    write_predictions("p.csv", {i: [0] for i in IDS})
    assert "contour mode 'largest'" in run_cli(capsys, *args, "--contours", "all").err
    (here / "meta" / "class_labels.txt").unlink()
    assert "no class labels" in run_cli(capsys, *args).err
    assert "no class labels" in run_cli(capsys, *args[:-2], "--per_class", "--json", "r").err


def test_intervals_in_output_and_json(here, capsys):
    write_predictions("p.json", {i: [LABELS[i], 0, 1] for i in IDS})
    more = ["--bootstrap", 200, "--confidence", 0.9, "--seed", 4, "--predictions", "p.json"]
    done, found = evaluate(capsys, "maps", *more)
    rows = {(r["metric"], r["contours"], r["iou"]): r for r in found["bootstrap"]["intervals"]}
    assert len(rows) == 2 * 3 + 3
    row = rows["box_acc", "largest", 0.5]
    assert row["estimate"] == found["max_box_acc"]
    assert row["low"] < found["max_box_acc"] < row["high"]
    assert rows["max_box_acc_v2", None, None]["estimate"] == pytest.approx(found["max_box_acc_v2"])
    top1 = rows["top1_localization", None, None]
    assert top1["estimate"] == found["classification"]["top1_localization"]
    lines = done.out.splitlines()
    assert lines[1] == f"  interval   : {row['low']:.2f}% to {row['high']:.2f}%"
    assert f"  interval   : top-1 {top1['low']:.2f}% to {top1['high']:.2f}%" in lines
    assert "Intervals    : 90%, 200 bootstrap resamples of the images, seed 4" in lines
    assert found["settings"]["num_resamples"] == 200
    _, again = evaluate(capsys, "maps", *more)
    assert again["bootstrap"] == found["bootstrap"]
    _, alone = evaluate(capsys, "maps")
    assert "bootstrap" not in alone
    assert alone["largest"] == found["largest"]


def test_a_comparison_with_another_run(here, capsys):
    save(here / "worse", make_maps(0, noise=1.4))
    assert run_cli(capsys, "pack-maps", "--np_root", "worse", "--store", "s").status == 0
    write_predictions("p.csv", {i: [LABELS[i], 0, 1] for i in IDS})
    write_predictions("q.csv", {i: [0, 1, LABELS[i]] for i in IDS})
    top = ["--predictions", "p.csv", "--compare_predictions", "q.csv", "--bootstrap", 300]
    done, found = evaluate(capsys, "maps", "--compare", "s", *top)
    _, other = evaluate(capsys, "s", "--predictions", "q.csv")
    comparison = found["comparison"]
    rows = {(r["metric"], r["contours"], r["iou"]): r for r in comparison["intervals"]}
    row = rows["box_acc", "largest", 0.5]
    assert (row["a"], row["b"]) == (found["max_box_acc"], other["max_box_acc"])
    assert row["estimate"] == row["a"] - row["b"] > 0
    assert row["low"] <= row["estimate"] <= row["high"]
    top1 = rows["top1_localization", None, None]
    assert top1["b"] == other["classification"]["top1_localization"]
    assert "Compared with s on the same resamples" in done.out
    assert f"p = {row['p_value']:.2g}" in done.out
    _, found = evaluate(capsys, "maps", "--compare", "s")  # 1000 resamples, also of the intervals
    assert found["comparison"]["num_resamples"] == found["bootstrap"]["num_resamples"] == 1000
    (here / "worse" / "owl" / "owl_00.npy").unlink()
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "meta", "--compare", "worse"]
    done = run_cli(capsys, *args)
    assert done.status == 1
    assert "1 are in one of them only, such as 'owl/owl_00.v1.jpg'" in done.err


def test_a_comparison_counts_what_only_one_run_holds_as_a_miss(here, capsys):
    save(here / "other", make_maps(0, noise=1.4))
    for name in ("other/owl/owl_00.npy", "maps/jay/jay_03.npy", "other/auk/auk_01.npy"):
        (here / name).unlink()
    for n in range(2):
        ranked = {i: [(LABELS[i] + (k % 3 == n)) % 3, 0] for k, i in enumerate(IDS)}
        write_predictions(f"{n}.csv", ranked)
    top = ["--predictions", "0.csv", "--compare_predictions", "1.csv", "--missing_as_miss"]
    _, found = evaluate(capsys, "maps", "--compare", "other", *top)
    _, other = evaluate(capsys, "other", "--predictions", "1.csv", "--missing_as_miss")
    comparison = found["comparison"]
    assert comparison["num_images"] == 45
    rows = {(r["metric"], r["contours"], r["iou"]): r for r in comparison["intervals"]}
    for run, side in ((found, "a"), (other, "b")):
        for mode in ("largest", "all"):
            for iou, score in zip(run["iou_thresholds"], run[mode]["max_box_acc"]):
                assert rows["box_acc", mode, iou][side] == pytest.approx(score)
        top1 = run["classification"]["top1_localization"]
        assert rows["top1_localization", None, None][side] == pytest.approx(top1)


def test_a_comparison_without_all_predictions_says_so(here, capsys):
    write_predictions("p.csv", {i: [LABELS[i], 0] for i in IDS})
    for given, needed in (
        ("--predictions", "--compare_predictions"),
        ("--compare_predictions", "--predictions"),
    ):
        done, found = evaluate(capsys, "maps", "--compare", "maps", given, "p.csv")
        assert f"top-1 and top-5 localization are not compared: no {needed}\n" in done.err
        assert {r["metric"] for r in found["comparison"]["intervals"]} == {
            "box_acc",
            "max_box_acc_v2",
        }


def test_scores_are_printed_though_they_cannot_be_written(here, capsys):
    write_file(here / "file", "")
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "meta"]
    want = run_cli(capsys, *args, "--compare", "maps").out
    done = run_cli(capsys, *args, "--compare", "maps", "--json", "file/r.json")
    assert done.status == 1
    assert done.out == want
    assert "Error: file" in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--compare_predictions", "p.csv"], "--compare_predictions needs --compare"),
        (["--compare", "x", "--bootstrap", 0], "--compare needs resamples"),
        (["--bootstrap", 1], "at least 2"),
        (["--per_class"], "--per_class needs --json"),
        (["--bootstrap", -3], "-3"),
        (["--confidence", 1], "1"),
        (["--confidence", "nan"], "'nan' is not a number"),
        (["--num_workers", 0], "0"),
    ],
)
def test_options_that_do_not_fit_are_refused(capsys, args, message):
    done = run_cli(capsys, "wsol-eval", *args)
    assert done.status == 2
    assert message in done.err


def test_figures_of_the_classes(here, capsys):
    for image_id in IDS[40:]:
        (here / "maps" / f"{image_id.split('.')[0]}.npy").unlink()
    edit_lines(here / "meta" / "class_labels.txt", lambda lines: [
        f"{line.rsplit(',', 1)[0]},{3 * int(line.rsplit(',', 1)[1])}" for line in lines
    ])  # fmt: skip
    for more, counted in (([], [15, 15, 10]), (["--missing_as_miss"], [15, 15, 15])):
        _, found = evaluate(capsys, "maps", "--per_class", *more)
        rows = found["per_class"]
        assert [r["label"] for r in rows] == [0, 3, 6]
        assert [r["num_images"] for r in rows] == counted
        for mode in ("largest", "all"):
            for k in range(3):
                mean = sum(r["num_images"] * r["box_acc"][mode][k] for r in rows) / sum(counted)
                assert mean == pytest.approx(found[mode]["max_box_acc"][k])
