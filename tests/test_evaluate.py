"""evaluate and wsol-eval: equal counts by both ways, protocol options, bad input."""

import json

import numpy as np
import pytest
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from cli_runner import run_cli
from data_factory import edit_lines, metadata_folder, write_file, write_image

IDS = [f"{c}/{c}_{i}.v1.jpg" for c in ("auk", "jay", "owl") for i in range(3)]
SIZES = {i: (40 + n, 60 - 2 * n) for n, i in enumerate(IDS)}
BOXES = {i: [(3 + n, 5, 20 + 2 * n, 30 + n)] for n, i in enumerate(IDS)}
LABELS = {i: ("auk", "jay", "owl").index(i.split("/")[0]) for i in IDS}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "r.pth"
    return make_checkpoint(path, "replknet", SMALL_MODELS["replknet"], num_classes=3)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Images of seven of the nine ids, and metadata of all in an order that is not sorted."""
    monkeypatch.chdir(tmp_path)
    order = [IDS[i] for i in (4, 1, 8, 0, 6, 2, 7, 3, 5)]
    for seed, image_id in enumerate(IDS[:7]):
        write_image(tmp_path / "images" / image_id, SIZES[image_id], seed)
    metadata_folder(tmp_path / "meta", {i: BOXES[i] for i in order}, SIZES, LABELS)
    return tmp_path


def model_arguments(weights):
    return [
        *("--model_family", "replknet", "--model", SMALL_MODELS["replknet"]),
        *("--fine_tuned_weight_name", weights, "--test_dataset", "images"),
        *("--input_size", 128, "--map_size", 48, "--batch_size", 3, "--num_workers", 0),
    ]


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("method", ["cam", "pc1"])
def test_both_ways_count_the_same(here, weights, capsys, method):
    common = [*model_arguments(weights), "--localization_method", method]
    done = run_cli(capsys, "generate-heatmap", *common, "--no_overlay")
    assert done.status == 0, done.err
    boxes = ["--metadata_root", "meta", "--cam_curve_interval", 0.05, "--iou_thr", 0.4]
    done = run_cli(capsys, "wsol-eval", *boxes, "--contours", "both", "--json", "two.json")
    assert done.status == 0, done.err
    assert done.out.startswith("MaxBoxAcc    : ")
    more = ["--num_samples", 2, "--json", "one.json"]
    done = run_cli(capsys, "evaluate", *common, *boxes, *more)
    assert done.status == 0, done.err
    one, two = read(here / "one.json"), read(here / "two.json")
    assert one["largest"] == two["largest"]
    assert one["all"] == two["all"]
    assert one["num_images"] == two["num_images"] == 7
    assert sorted(one["missing"]) == sorted(two["missing"]) == IDS[7:]
    assert one["iou_thresholds"] == [0.3, 0.5, 0.7, 0.4]
    assert len(one["largest"]["num_correct"]) == 4
    assert len(one["largest"]["num_correct"][0]) == len(one["thresholds"]) == 20
    assert one["max_box_acc"] == one["largest"]["max_box_acc"][1]
    assert one["max_box_acc_v2"] == pytest.approx(np.mean(one["all"]["max_box_acc"][:3]))
    assert one["erf"]["num_samples"] == 2
    assert 1 <= one["erf"]["mean"] <= 128 * 128


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
    assert "2 images have no ground truth" in done.err
    assert read(here / "r.json")["num_images"] == 7


def save_maps(root, ids, side=30, official=False):
    for seed, image_id in enumerate(ids):
        m = np.random.default_rng(seed).random((side, side))
        folder, name = image_id.split("/")
        path = root / folder / (f"{name}.npy" if official else f"{name.split('.')[0]}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, m)


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
    assert "9 images have two maps; <image_id>.npy was taken" in done.err
    assert read(here / "r.json")["largest"] == alone["largest"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((30, 30), np.nan), "900 NaN"),
        (np.full((30, 30), 2.0), "leave"),
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
    for text, message in (("{", "JSON"), ("[]", "object"), ("{}", "not a result")):
        write_file(here / "bad.json", text)
        done = run_cli(capsys, *args, "--threshold_from", "bad.json")
        assert done.status == 1
        assert "bad.json" in done.err
        assert message in done.err
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
    for line, message in ((IDS[4], "duplicate"), ("../secret.jpg", "not a plain relative path")):
        (here / "meta" / "image_ids.txt").write_text(f"{ids}{line}\n")
        done = run_cli(capsys, *args)
        assert done.status == 1
        assert "image_ids.txt, line 10" in done.err
        assert message in done.err


def test_eval_size_of_evaluate(here, weights, capsys):
    args = [*model_arguments(weights), "--metadata_root", "meta", "--num_samples", 0]
    done = run_cli(capsys, "evaluate", *args, "--eval_size", 24)
    assert done.status == 1
    assert "48x48" in done.err
    assert run_cli(capsys, "evaluate", *args, "--eval_size", 24, "--resize_maps").status == 0


def test_bf16_runs(here, weights, capsys):
    args = [*model_arguments(weights), "--metadata_root", "meta", "--num_samples", 1]
    done = run_cli(capsys, "evaluate", *args, "--precision", "bf16")
    assert done.status == 0, done.err
