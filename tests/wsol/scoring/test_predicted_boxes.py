"""Predicted boxes are those that the evaluator counts; accuracies at one threshold."""

import csv
import json

import cv2
import numpy as np
import pytest
from cli_runner import run_cli
from data_factory import metadata_folder, write_image

from cba_fast import files
from cba_fast.data import load_boxes
from cba_fast.errors import InputError
from cba_fast.reference.box_sweep import box_sweep
from cba_fast.runs.boxes import predict_boxes, threshold_rule
from cba_fast.runs.settings import BoxConfig
from cba_fast.wsol import BoxEvaluator

IDS = [f"{'auk' if n % 2 else 'jay'}/{n:02d}.v1.jpg" for n in range(24)]
SIDE, IMAGE = (30, 40), (90, 61)  # (H, W) of the maps; (width, height) of the images
META = ["--metadata_root", "meta"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    boxes = {i: [(5, 10, 50, 45), (30, 20, 80, 60)][: 1 + n % 2] for n, i in enumerate(IDS)}
    metadata_folder(tmp_path / "meta", boxes, dict.fromkeys(IDS, IMAGE), dict.fromkeys(IDS, 0))
    for image_id in IDS:
        m = cv2.resize(rng.random((6, 6)) ** 2, SIDE[::-1])
        files.write_npy(tmp_path / "maps" / f"{image_id}.npy", (m - m.min()) / np.ptp(m))
    return tmp_path


def maps_of(here):
    return np.stack([np.load(here / "maps" / f"{i}.npy") for i in IDS])


def boxes(capsys, *args):
    done = run_cli(capsys, "boxes", "--np_root", "maps", "--output", "b.csv", *args)
    assert done.status == 0, done.err
    with open("b.csv", newline="") as f:
        return done, list(csv.DictReader(f))


def by_image(rows):
    """Return the boxes (M, 4) of each image in pixels of its map, and its threshold."""
    out = {}
    for row in rows:
        scale = [SIDE[1] / float(row["width"]), SIDE[0] / float(row["height"])] * 2
        box = np.array([float(row[k]) for k in ("x0", "y0", "x1", "y1")]) * scale
        np.testing.assert_allclose(box, np.round(box), atol=1e-9)
        out.setdefault(row["image_id"], ([], float(row["threshold"])))[0].append(np.round(box))
    return {i: (np.array(b, int), t) for i, (b, t) in out.items()}


def accuracy(rows, iou):
    """Score written boxes by the definition, apart from the package's own code."""
    hits, truth = 0, load_boxes(metadata_root="meta")
    for image_id, (found, _) in by_image(rows).items():
        best = 0.0
        for a in found:
            for b in truth.scaled(image_id, SIDE[::-1]):
                side = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1
                inter = float(np.prod(np.maximum(side, 0)))
                areas = sum(float(np.prod(c[2:] - c[:2] + 1)) for c in (a, b))
                best = max(best, inter / (areas - inter))
        hits += best >= iou
    return 100.0 * hits / len(IDS)


@pytest.mark.parametrize("contours", ["largest", "all"])
@pytest.mark.parametrize("threshold", [0.0, 0.15, 0.47])
def test_the_written_boxes_have_the_accuracy_at_the_threshold(here, capsys, contours, threshold):
    args = [*META, "--contours", contours, "--threshold", threshold]
    done, rows = boxes(capsys, *args)
    assert "of the images" in done.out
    scored = run_cli(capsys, "wsol-eval", "--np_root", "maps", *args, "--json", "r.json")
    found = json.loads((here / "r.json").read_text())
    assert [r["iou"] for r in found["fixed_threshold"]] == [0.3, 0.5, 0.7]
    for r in found["fixed_threshold"]:
        assert (r["contours"], r["threshold"]) == (contours, threshold)
        assert r["box_acc"] == accuracy(rows, r["iou"])
    line = f"  {contours:7} IoU 0.5: {found['fixed_threshold'][1]['box_acc']:.2f}% at {threshold:g}"
    assert line in scored.out


def test_one_threshold_has_no_say_in_the_best(here, capsys):
    args = ["wsol-eval", "--np_root", "maps", *META, "--json", "r.json"]
    args += ["--cam_curve_interval", 1]  # the threshold 0 alone
    assert run_cli(capsys, *args).status == 0
    plain = json.loads((here / "r.json").read_text())
    assert run_cli(capsys, *args, "--threshold", 0.45).status == 0
    found = json.loads((here / "r.json").read_text())
    assert found["thresholds"] == plain["thresholds"] == [0.0]
    assert found["largest"] == plain["largest"]
    assert any(r["box_acc"] > r["max_box_acc"] for r in found["fixed_threshold"])
    done = run_cli(capsys, "wsol-eval", "--mask_root", "m", *META, "--threshold", 0.5)
    assert "No such option" in done.err


@pytest.mark.parametrize("contours", ["largest", "all"])
def test_the_optimal_threshold_reaches_the_best_accuracy(here, capsys, contours):
    done, rows = boxes(capsys, *META, "--threshold", "optimal", "--contours", contours)
    evaluator = BoxEvaluator(load_boxes(metadata_root="meta"))
    evaluator.update(maps_of(here), IDS)
    result = evaluator.compute()
    assert accuracy(rows, 0.5) == result.accuracy(contours, 0.5)
    best = result.modes[contours].optimal_threshold[1]
    assert {float(r["threshold"]) for r in rows} == {best}
    assert f"threshold  : optimal ({best:g})" in done.out


@pytest.mark.parametrize("rule", ["otsu", "percentile:90", "percentile:0", "percentile:100"])
def test_thresholds_of_each_map(here, capsys, rule):
    files.write_npy(here / "maps" / f"{IDS[0]}.npy", np.zeros(SIDE))
    files.write_npy(here / "maps" / f"{IDS[1]}.npy", np.ones(SIDE))
    done, rows = boxes(capsys, *META, "--threshold", rule)
    assert "Warning: 1 map without a pixel above the threshold: the box is 0, 0, 0, 0" in done.err
    for m, (found, t) in zip(maps_of(here), by_image(rows).values(), strict=True):
        u = (255 * m).astype(np.uint8)
        if rule == "otsu":
            mask = cv2.threshold(u, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
        else:
            mask = u > np.percentile(u, float(rule[11:]))
        if not mask.any():  # the brightest pixels stay
            mask = (u == u.max()) & (u > 0)
        np.testing.assert_array_equal(u > int(t * int(u.max())), mask > 0)
        np.testing.assert_array_equal(found, box_sweep(u[None], np.array([t]))[0])


def test_coco_has_what_its_readers_need(here, capsys):
    _, rows = boxes(capsys, *META, "--output", "b.json", "--contours", "all")
    found = json.loads((here / "b.json").read_text())
    assert found["info"]["pixels"] == "image"
    assert found["info"]["settings"]["threshold"] == "0.15"
    names = {i["id"]: i for i in found["images"]}
    assert [i["file_name"] for i in found["images"]] == IDS
    assert {(i["width"], i["height"]) for i in found["images"]} == {IMAGE}
    assert len({a["id"] for a in found["annotations"]}) == len(rows)
    for row, a in zip(rows, found["annotations"], strict=True):
        x0, y0, x1, y1 = (float(row[k]) for k in ("x0", "y0", "x1", "y1"))
        assert a["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])
        assert a["area"] == pytest.approx((x1 - x0) * (y1 - y0))
        assert names[a["image_id"]]["file_name"] == row["image_id"]
        assert (a["iscrowd"], a["category_id"]) == (0, found["categories"][0]["id"])


def test_coco_has_the_types_that_its_readers_need(here, capsys):
    """What pycocotools' COCO and loadRes, and FiftyOne's importer, index by and compute with."""
    boxes(capsys, *META, "--output", "b.json", "--contours", "all")
    found = json.loads((here / "b.json").read_text())
    assert {"info", "images", "annotations", "categories"} == set(found)
    assert isinstance(found["info"], dict)
    whole = {"images": ("id", "width", "height"), "categories": ("id",)}
    whole["annotations"] = ("id", "image_id", "category_id", "iscrowd")
    for kind, keys in whole.items():
        assert all(type(one[key]) is int for one in found[kind] for key in keys)
        ids = [one["id"] for one in found[kind]]
        assert sorted(ids) == list(range(1, len(ids) + 1))  # 0 would count as no match in COCOeval
    assert all(isinstance(c["name"], str) for c in found["categories"])
    sizes = {i["id"]: (i["width"], i["height"]) for i in found["images"]}
    for a in found["annotations"]:
        x, y, w, h = a["bbox"]
        width, height = sizes[a["image_id"]]  # each annotation has its image
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
        assert 0 <= a["score"] <= 1


def test_ids_and_sizes_come_from_the_ground_truth_the_images_or_the_files(here, capsys):
    _, want = boxes(capsys, *META)
    done, rows = boxes(capsys)
    assert "pixels     : of the maps" in done.out
    assert [r["image_id"] for r in rows] == sorted(IDS)
    assert {(r["width"], r["height"]) for r in rows} == {("40", "30")}
    same, found = by_image(want), by_image(rows)
    assert all((same[i][0] == found[i][0]).all() for i in IDS)
    _, maps = boxes(capsys, *META, "--pixels", "map")
    assert sorted(map(str, maps)) == sorted(map(str, rows))
    for image_id in IDS:
        write_image(here / "images" / image_id, IMAGE)
    assert sorted(map(str, boxes(capsys, "--test_dataset", "images")[1])) == sorted(map(str, want))
    assert run_cli(capsys, "pack-maps", "--np_root", "maps", "--store", "store").status == 0
    for more in ([], META):
        rows = boxes(capsys, *more)[1]
        assert boxes(capsys, *more, "--np_root", "store")[1] == rows


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--threshold", "1"], "--threshold must be a number in [0, 1), optimal, percentile:Q"),
        (["--threshold", "percentile:101"], "got 'percentile:101'"),
        (["--threshold", "nan"], "got 'nan'"),
        (["--threshold", "optimal"], "the optimal --threshold needs ground truth"),
        (["--pixels", "image"], "give --cub_root, --metadata_root or --test_dataset"),
        ([*META, "--test_dataset", "images"], "either --test_dataset or the ground truth"),
        (["--output", "b.txt"], "b.txt: boxes are written as .csv or, for COCO, as .json"),
        (["--np_root", "nowhere"], "nowhere: no such folder"),
        (["--np_root", "meta"], "meta holds no score maps"),
    ],
)
def test_bad_use_is_refused(here, capsys, args, message):
    done = run_cli(capsys, "boxes", "--np_root", "maps", *args)
    assert done.status == 1
    assert message in done.err
    assert not (here / "boxes.csv").exists()


def test_python_names_arguments(here):
    with pytest.raises(InputError, match="`threshold` must be .* got '2'"):
        threshold_rule("2")
    with pytest.raises(InputError, match="`contours` must be largest or all, got 'both'"):
        predict_boxes(here / "maps", threshold_rule("otsu"), BoxConfig(contours="both"))
