"""evaluate_wsol against the official algorithm, from files, from a store and from memory."""

import cv2
import numpy as np
import pytest
import torch
from data_factory import metadata_folder
from mask_factory import mask_dataset, official_pxap
from test_box_evaluator import official_counts

from cba_fast.data import load_boxes
from cba_fast.errors import InputError, ScoreMapError
from cba_fast.runs.pack import pack_maps
from cba_fast.wsol import evaluate_wsol

N, INTERVAL = 6, 0.02


def make_maps(n, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    maps = [cv2.resize(rng.random((6, 6)) ** 2, (224, 224)) for _ in range(n)]
    return np.stack([m / m.max() for m in maps]).astype(dtype)


@pytest.fixture
def birds(tmp_path):
    """Metadata below <root>/CUB/val, as the official layout has it; the ids in file order."""
    rng = np.random.default_rng(1)
    ids = [f"00{i % 2}.bird/{i}.jpg" for i in range(N)]
    boxes = {}
    for i in ids:
        x, y = rng.integers(0, 150, 2).tolist()
        boxes[i] = [(x, y, x + 120, y + 90), (0, 0, 40, 60)][: 1 + len(boxes) % 2]
    metadata_folder(
        tmp_path / "metadata" / "CUB" / "val",
        boxes,
        dict.fromkeys(ids, (300, 250)),
        dict.fromkeys(ids, 0),
    )
    return tmp_path / "metadata", ids


def save(root, ids, maps):
    for image_id, m in zip(ids, maps):
        (root / image_id).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / f"{image_id}.npy", m)
    return root


def want(birds, maps, multi_contour, percent, multi_iou):
    metadata_root, ids = birds
    boxes = load_boxes(metadata_root=metadata_root / "CUB" / "val")
    ious = [p / 100 for p in percent]
    counts = official_counts(
        maps.astype(np.float64), boxes, ids, np.arange(0, 1, INTERVAL), ious, multi_contour
    )
    best = [max(row) * 100.0 / len(ids) for row in counts]
    return np.average(best) if multi_iou else best[percent.index(50)]


@pytest.mark.parametrize(
    ("multi_contour", "multi_iou", "percent"),
    [
        (False, False, [50]),
        (True, True, [30, 50, 70]),
        (True, False, [70, 50]),
        (False, True, [62]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_boxes_score_as_the_official_function_does(
    birds, tmp_path, multi_contour, multi_iou, percent, dtype
):
    metadata_root, ids = birds
    maps = make_maps(N, dtype)
    args = (metadata_root, None, "CUB", "val", multi_contour, multi_iou, percent, INTERVAL)
    found = evaluate_wsol(save(tmp_path / "maps", ids, maps), *args)
    assert found == want(birds, maps, multi_contour, percent, multi_iou)
    assert evaluate_wsol(dict(zip(ids, maps)), *args) == found
    assert evaluate_wsol(dict(zip(ids, torch.from_numpy(maps))), *args) == found
    batches = [(maps[:4], ids[:4]), (list(torch.from_numpy(maps[4:])), ids[4:])]
    assert evaluate_wsol(iter(batches), *args) == found
    if dtype == np.float64:
        pack_maps(tmp_path / "maps", tmp_path / "store")
        assert evaluate_wsol(tmp_path / "store", *args) == found


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_masks_score_as_the_official_function_does(tmp_path, dtype):
    meta, masks, ids = mask_dataset(tmp_path / "data", 5)
    root = tmp_path / "metadata"
    (root / "OpenImages").mkdir(parents=True)
    meta.rename(root / "OpenImages" / "test")
    (tmp_path / "dataset").mkdir()
    masks.rename(tmp_path / "dataset" / "OpenImages")
    maps = make_maps(5, dtype)
    args = (root, tmp_path / "dataset", "OpenImages", "test", False, False, [50])
    found = evaluate_wsol(save(tmp_path / "maps", ids, maps), *args)
    meta, masks = root / "OpenImages" / "test", tmp_path / "dataset" / "OpenImages"
    assert found == official_pxap(maps, ids, meta, masks, 0.001)
    assert evaluate_wsol([(torch.from_numpy(maps), ids)], *args) == found
    save(tmp_path / "maps", ids[3:4], [(255 * maps[3]).astype(np.uint8)])
    with pytest.raises(ScoreMapError, match=r"003\.jpg\.npy: uint8; PxAP needs the scores"):
        evaluate_wsol(tmp_path / "maps", *args)
    with pytest.raises(InputError, match="give mask_root"):
        evaluate_wsol(tmp_path / "maps", root, None, *args[2:])


def test_bad_use_is_refused(birds, tmp_path):
    metadata_root, ids = birds
    maps = make_maps(N)
    memory = dict(zip(ids, maps))

    def call(scoremaps=memory, name="CUB", split="val", multi_iou=False, percent=(50,)):
        return evaluate_wsol(
            scoremaps, metadata_root, None, name, split, False, multi_iou, list(percent), INTERVAL
        )

    with pytest.raises(InputError, match="dataset_name must be one of .*'ImageNet'"):
        call(name="ImageNet")
    with pytest.raises(InputError, match="must hold 50, got \\[30\\]"):
        call(percent=[30])
    for bad in (0, 0.5, 101):
        with pytest.raises(InputError, match=f"percent, 1 to 100, got {bad}"):
            call(percent=[bad, 50])
    with pytest.raises(InputError, match="is empty"):
        call(multi_iou=True, percent=[])
    with pytest.raises(InputError, match=r"no image_ids\.txt"):
        call(split="train")
    with pytest.raises(ScoreMapError, match=r"no score map of 1 image, such as '000\.bird/0"):
        call(dict(list(memory.items())[1:]))
    with pytest.raises(ScoreMapError, match=r"224x224 pixels, got \(112, 112\)"):
        call([(maps[:, ::2, ::2], ids)])
    save(tmp_path / "small", ids, maps[:, ::2, ::2])
    with pytest.raises(ScoreMapError, match=r"\(112, 112\), but \(224, 224\)"):
        call(tmp_path / "small")
    with pytest.raises(ScoreMapError, match=r"image '001\.bird/3\.jpg': the value 2.0 > 1 by 1 at"):
        call(memory | {ids[3]: maps[3] * 2})


def test_two_maps_of_an_image_are_logged(birds, tmp_path, caplog):
    metadata_root, ids = birds
    maps = make_maps(N)
    root = save(tmp_path / "maps", ids, maps)
    np.save(root / "000.bird" / "0.npy", maps[1])  # the study's name of the first image
    args = (metadata_root, None, "CUB", "val", False, False, [50], INTERVAL)
    found = evaluate_wsol(root, *args)
    assert f"{root}: two maps of 1 image" in caplog.text
    assert found == evaluate_wsol([(maps, ids)], *args)
