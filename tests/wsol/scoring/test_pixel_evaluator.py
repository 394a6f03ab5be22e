"""PxAP against the official algorithm, to the last bit; its metadata and masks; the command."""

import json

import cv2
import numpy as np
import pytest
import torch
from cli_runner import run_cli
from data_factory import edit_lines, metadata_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_factory import mask_dataset, official_pxap, write_mask

from cba_fast.data import load_boxes, load_masks
from cba_fast.data.masks import FOREGROUND, IGNORED, Masks
from cba_fast.errors import ImageError, InputError, ScoreMapError
from cba_fast.wsol import PixelEvaluator


def make_maps(n, size=224, seed=0):
    """Return smooth maps with values on and beside the thresholds, 0 and 1 among them."""
    rng = np.random.default_rng(seed)
    maps = np.stack([cv2.resize(rng.random((5, 5)), (size, size)) for _ in range(n)])
    maps = (maps - maps.min()) / (maps.max() - maps.min())
    maps[:, ::3] = np.round(maps[:, ::3], 2)
    return maps


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("interval", [0.01, 0.001, 0.3])
def test_the_score_equals_the_official_one(tmp_path, dtype, interval):
    meta, root, ids = mask_dataset(tmp_path, 7)
    maps = make_maps(7).astype(dtype)
    evaluator = PixelEvaluator(load_masks(meta, root), cam_curve_interval=interval)
    evaluator.update(maps[:3], ids[:3])
    evaluator.update(torch.from_numpy(maps[3:]), ids[3:])
    result = evaluator.compute()
    assert result.px_ap == official_pxap(maps, ids, meta, root, interval)
    assert 0 < result.px_ap < 100
    assert result.num_images == 7
    assert result.thresholds[:2] == [2.0, 1.0]
    assert result.thresholds[-1] == 0.0
    assert len(result.thresholds) == len(result.precision) == len(result.recall)
    assert (result.precision[0], result.recall[0], result.recall[-1]) == (None, 0, 1)
    json.dumps(result.to_json(), allow_nan=False)


@given(
    interval=st.one_of(
        st.sampled_from([0.001, 0.01, 0.1, 0.3, 1.0]), st.floats(1e-3, 1, exclude_min=True)
    ),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=80)
def test_bins_are_those_of_numpy(interval, seed):
    masks = Masks(None, (), {}, 16)
    evaluator = PixelEvaluator(masks, cam_curve_interval=interval)
    rng = np.random.default_rng(seed)
    inner = evaluator.edges[evaluator.edges <= 1]
    near = np.concatenate([inner, np.nextafter(inner, 0), np.nextafter(inner, 2), rng.random(50)])
    m = rng.choice(near.clip(0, 1), (16, 16))
    mask = rng.integers(0, 3, (16, 16)).astype(np.uint8)
    found = evaluator._histograms(m, mask)
    for kind in (0, FOREGROUND):
        want, _ = np.histogram(m[mask == kind], bins=evaluator.edges)
        np.testing.assert_array_equal(found[kind], want)


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 6))
@settings(max_examples=8)
def test_any_order_and_any_split_give_the_same(tmp_path_factory, seed, cut):
    meta, root, ids = mask_dataset(tmp_path_factory.mktemp("m"), 6, seed)
    masks = load_masks(meta, root, size=20)
    maps = make_maps(6, 20, seed)
    order = np.random.default_rng(seed).permutation(6)
    whole, *parts = (PixelEvaluator(masks) for _ in range(3))
    whole.update(maps, ids)
    for part, chosen in zip(parts, (order[:cut], order[cut:])):
        part.update(list(maps[chosen]), [ids[i] for i in chosen])
    restored = PixelEvaluator(masks)
    restored.load_state_dict(parts[0].state_dict())
    restored.merge(parts[1])
    assert restored.compute() == whole.compute()


def test_masks_are_unions_and_ignored_only_outside_of_objects(tmp_path):
    meta, root, ids = mask_dataset(tmp_path, 3)
    one, two, ignore = (np.zeros((224, 224), np.uint8) for _ in range(3))
    one[:10, :10], two[5:20, 5:20], ignore[:, :30] = 1, 255, 7
    for name, mask in (("objects/2_0", one), ("objects/2_1", two), ("objects/2_2", two)):
        write_mask(root / f"{name}.png", mask)
    write_mask(root / "ignore/2.png", ignore)
    mask = load_masks(meta, root).read(ids[2])
    foreground = (one > 0) | (two > 0)
    np.testing.assert_array_equal(mask == FOREGROUND, foreground)
    np.testing.assert_array_equal(mask == IGNORED, (ignore > 0) & ~foreground)


def test_masks_and_maps_need_not_be_square(tmp_path):
    meta, root, ids = mask_dataset(tmp_path, 3)
    masks, square = load_masks(meta, root, size=(20, 30)), load_masks(meta, root, size=30)
    assert masks.read(ids[0]).shape == (20, 30)
    maps = make_maps(3, 30)
    evaluator = PixelEvaluator(masks)
    with pytest.raises(ValueError, match=r"must be \(20, 30\), got \(30, 30\)"):
        evaluator.update(maps, ids)
    # of sets that repeat the same row, the shares of the pixels do not depend on the height
    other, rows = PixelEvaluator(square), [square.read(i)[15:16] for i in ids]
    for each, height in ((evaluator, 20), (other, 30)):
        each.update(maps[:, :1].repeat(height, 1), ids, [row.repeat(height, 0) for row in rows])
    assert evaluator.compute().px_ap == pytest.approx(other.compute().px_ap)


def test_bad_use_is_refused_and_adds_nothing(tmp_path):
    meta, root, ids = mask_dataset(tmp_path, 4)
    masks = load_masks(meta, root, size=20)
    evaluator, maps = PixelEvaluator(masks), make_maps(4, 20)
    with pytest.raises(InputError, match="no image was evaluated"):
        evaluator.compute()
    bad = maps.copy()
    bad[2, 3, 4] = np.nan
    cases = [
        (ScoreMapError, r"image 'c/002\.jpg': holds 1 NaN", bad, ids),
        (InputError, "'nobody' is not in the ground truth", maps, [*ids[:3], "nobody"]),
        (InputError, r"'c/000\.jpg' was already added", maps[:2], [ids[0], ids[0]]),
        (ValueError, "4 score maps but 3", maps, ids[:3]),
        (ValueError, r"must be \(20, 20\), got \(20, 19\)", maps[:, :, 1:], ids),
        (TypeError, "floating; got uint8", (255 * maps).astype(np.uint8), ids),
    ]
    for error, message, wrong, wrong_ids in cases:
        with pytest.raises(error, match=message):
            evaluator.update(wrong, wrong_ids)
        assert len(evaluator) == 0
        assert not evaluator.histograms.any()
    evaluator.update(maps[:2], ids[:2])
    other = PixelEvaluator(masks)
    other.update(maps[1:], ids[1:])
    with pytest.raises(InputError, match=r"'c/001\.jpg' was already added"):
        evaluator.merge(other)
    with pytest.raises(InputError, match="different settings"):
        evaluator.merge(PixelEvaluator(masks, cam_curve_interval=0.1))
    state = other.state_dict()
    with pytest.raises(InputError, match=r"histograms must be .* got \(2, 3\)"):
        evaluator.load_state_dict({**state, "histograms": state["histograms"][:, :3]})
    changed = dict(masks.paths) | {ids[1]: masks.paths[ids[3]]}
    with pytest.raises(InputError, match=r"different masks of 'c/001\.jpg'"):
        PixelEvaluator(Masks(root, masks.image_ids, changed, 20)).merge(other)
    with pytest.raises(InputError, match="cam_curve_interval"):
        PixelEvaluator(masks, cam_curve_interval=0)
    (root / "objects" / "3_0.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"3_0\.png: not a readable image"):
        evaluator.update(maps[3:], ids[3:])
    (root / "objects" / "3_0.png").unlink()
    with pytest.raises(ImageError, match=r"3_0\.png: cannot be read"):
        evaluator.update(maps[3:], ids[3:])
    assert len(evaluator) == 2


def test_a_missing_map_is_one_of_zeros_if_asked(tmp_path):
    meta, root, ids = mask_dataset(tmp_path, 4)
    maps = make_maps(4, 20)
    masks = load_masks(meta, root, size=20)
    evaluator = PixelEvaluator(masks)
    evaluator.update(maps[:3], ids[:3])
    maps[3] = 0
    kept, counted = evaluator.compute(), evaluator.compute(missing_as_miss=True)
    assert kept.missing == counted.missing == ids[3:]
    assert (kept.num_images, counted.num_images) == (3, 4)
    assert kept.px_ap == official_pxap(maps[:3], ids[:3], meta, root, 0.01, 20)
    assert counted.px_ap == official_pxap(maps, ids, meta, root, 0.01, 20)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c/000.jpg,1,2,3,4", "describes a box|expected"),
        ("c/000.jpg,1,2", "describes a box"),
        ("c/000.jpg", "<id>,<mask path>,<ignore path>"),
        ("c/000.jpg,,i.png", "<id>,<mask path>,<ignore path>"),
        ("c/000.jpg,../m.png,", "'../m.png' is not a plain relative path"),
        ("c/000.jpg,m.png,/i.png", "'/i.png' is not a plain relative path"),
        ("c/000.jpg,m.png,i.png", "on the first line of an image only"),
    ],
)
def test_bad_metadata_is_named(tmp_path, line, message):
    meta, root, _ = mask_dataset(tmp_path, 2)
    edit_lines(meta / "localization.txt", lambda lines: [lines[0], line, *lines[1:]])
    with pytest.raises(InputError, match=message) as e:
        load_masks(meta, root)
    assert "localization.txt, line 2" in str(e.value)


def test_boxes_and_masks_are_told_apart(tmp_path):
    meta, root, ids = mask_dataset(tmp_path, 2)
    with pytest.raises(InputError, match="describes a mask"):
        load_boxes(metadata_root=meta)
    with pytest.raises(InputError, match="nowhere: no such folder of masks"):
        load_masks(meta, tmp_path / "nowhere")
    with pytest.raises(InputError, match="'nobody' has no mask"):
        load_masks(meta, root, image_ids=[ids[0], "nobody"])
    assert load_masks(meta, root, image_ids=ids[1:]).image_ids == (ids[1],)


def save_maps(root, ids, maps):
    for image_id, m in zip(ids, maps):
        path = root / f"{image_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, m)


def test_the_command_scores_masks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    meta, root, ids = mask_dataset(tmp_path, 20)
    maps = make_maps(20).astype(np.float32)
    save_maps(tmp_path / "maps", ids[:19], maps)
    args = ["pixel-eval", "--np_root", "maps", "--metadata_root", "meta", "--mask_root", "masks"]
    done = run_cli(capsys, *args, "--json", "r.json", "--cam_curve_interval", 0.005)
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "r.json").read_text())
    want = official_pxap(maps[:19], ids[:19], meta, root, 0.005)
    assert found["px_ap"] == want
    assert found["missing"] == ids[19:]
    assert found["settings"]["mask_root"] == "masks"
    assert done.out.startswith(
        f"PxAP         : {want:.2f}%\nImages       : 19 counted, 1 missing\n"
    )
    done = run_cli(capsys, *args, "--json", "r.json", "--missing_as_miss")
    maps[19] = 0
    want = official_pxap(maps, ids, meta, root, 0.01)
    assert json.loads((tmp_path / "r.json").read_text())["px_ap"] == want
    assert run_cli(capsys, *args, "--eval_size", 100).status == 1
    assert run_cli(capsys, *args, "--eval_size", 100, "--resize_maps").status == 0


def test_the_command_prints_a_score_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, _, ids = mask_dataset(tmp_path, 2)
    save_maps(tmp_path / "maps", ids, make_maps(2))
    (tmp_path / "file").touch()
    args = ["pixel-eval", "--np_root", "maps", "--metadata_root", "meta", "--mask_root", "masks"]
    done = run_cli(capsys, *args, "--json", "file/r.json")
    assert done.status == 1
    assert done.out.startswith("PxAP         : ")
    assert "Error: file" in done.err


def test_the_command_names_a_map_of_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, _, ids = mask_dataset(tmp_path, 3)
    maps = make_maps(3)
    save_maps(tmp_path / "maps", ids[:2], maps)
    save_maps(tmp_path / "maps", ids[2:], (255 * maps[2:]).astype(np.uint8))
    args = ["pixel-eval", "--np_root", "maps", "--metadata_root", "meta", "--mask_root", "masks"]
    done = run_cli(capsys, *args)
    assert done.status == 1
    assert f"{ids[2]}.npy: uint8; PxAP needs the scores themselves, floating" in done.err
    assert "Traceback" not in done.err


def test_the_command_refuses_what_is_about_boxes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, _, ids = mask_dataset(tmp_path, 2)
    save_maps(tmp_path / "maps", ids, make_maps(2))
    args = ["pixel-eval", "--np_root", "maps", "--metadata_root", "meta", "--mask_root", "masks"]
    for option in (["--bootstrap", 5], ["--contours", "all"], ["--per_class"], ["--iou_thr", 0.5]):
        done = run_cli(capsys, *args, *option)
        assert done.status == 2
        assert "No such option" in done.err
    assert "Missing option '--metadata_root'" in run_cli(capsys, *args[:3], *args[5:]).err
    assert "--resize_maps needs --eval_size" in run_cli(capsys, *args, "--resize_maps").err
    done = run_cli(capsys, "wsol-eval", *args[1:])
    assert done.status == 0
    assert f"wsol-eval --mask_root is now: cba-fast {' '.join(args)}" in done.err
    assert done.out == run_cli(capsys, *args).out
    assert run_cli(capsys, "pack-maps", "--np_root", "maps", "--store", "s").status == 0
    args[2] = "s"
    done = run_cli(capsys, *args)
    assert done.status == 1
    assert "s holds bytes" in done.err
    args[2] = "maps"
    metadata_folder(tmp_path / "meta", {i: [(0, 0, 1, 1)] for i in ids}, {}, dict.fromkeys(ids, 0))
    done = run_cli(capsys, *args)
    assert done.status == 1
    assert "expected <id>,<mask path>" in done.err or "describes a box" in done.err
