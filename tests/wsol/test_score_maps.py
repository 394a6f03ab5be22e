"""Stored score maps: names, and what is refused."""

import os

import numpy as np
import pytest
import torch
from broken_npy import BROKEN
from data_factory import metadata_folder

from cba_fast.data import load_boxes
from cba_fast.data.score_store import ScoreStore
from cba_fast.errors import InputError, ScoreMapError
from cba_fast.runs.pack import pack_maps
from cba_fast.wsol import (
    BoxEvaluator,
    MapFolder,
    MapReading,
    check_score_map,
    evaluate_wsol,
    find_maps,
    open_maps,
    read_maps,
    read_score_map,
)


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, **kwargs)
    return path


def test_the_official_name_wins_over_the_studys(tmp_path):
    study = tmp_path / "b" / "x.npy"
    official = tmp_path / "a" / "b" / "x.y.jpg.npy"
    folder = MapFolder(tmp_path)
    assert folder.find("a/b/x.y.jpg") is None
    save(study, np.zeros((2, 2)))
    folder = MapFolder(tmp_path)  # lists each of its folders once
    assert folder.find("a/b/x.y.jpg") == study
    save(official.with_name("x.y.jpg.npy"), np.zeros((2, 2)))
    folder = MapFolder(tmp_path)
    assert folder.find("a/b/x.y.jpg") == official
    assert folder.ambiguous == ["a/b/x.y.jpg"]


def test_a_flat_id_has_no_folder(tmp_path):
    save(tmp_path / "ILSVRC2012_val_00000001.npy", np.zeros((2, 2)))
    found = MapFolder(tmp_path).find("ILSVRC2012_val_00000001.JPEG")
    assert found == tmp_path / "ILSVRC2012_val_00000001.npy"


@pytest.mark.parametrize("shape", ["{}/secret", "../secret", "a/../../secret", "a/./b", "", "a\\b"])
def test_ids_that_leave_the_folder_are_refused(tmp_path, shape):
    save(tmp_path / "secret.npy", np.zeros((2, 2)))
    (tmp_path / "maps" / "a").mkdir(parents=True)
    image_id = shape.format(tmp_path)
    with pytest.raises(InputError, match="not a plain relative path") as e:
        MapFolder(tmp_path / "maps").find(image_id)
    assert repr(image_id) in str(e.value)


def test_pipes_named_as_maps_are_not_opened(tmp_path):
    save(tmp_path / "maps" / "b.npy", np.zeros((2, 2)))
    os.mkfifo(tmp_path / "maps" / "a.npy")
    assert MapFolder(tmp_path / "maps").find("a.jpg") is None
    with pytest.raises(ScoreMapError, match=r"a\.npy: not a readable score map: .*not a regular"):
        read_score_map(tmp_path / "maps" / "a.npy")
    assert pack_maps(tmp_path / "maps", tmp_path / "store").stored == 1


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(ScoreMapError, match="nowhere"):
        MapFolder(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_valid_maps_come_back_as_stored(tmp_path, dtype):
    m = (np.arange(12).reshape(3, 4) / 11).astype(dtype)
    got = read_score_map(save(tmp_path / "m.npy", m))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, m)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.5, np.nan]]), r"holds 1 NaN value, at \(0, 1\)"),
        (np.array([[0.0, 1.5]]), r"value 1.5 > 1 by 0.5 at \(0, 1\); scores must lie in \[0, 1\]$"),
        (np.array([[-0.1, 1.0]]), r"value -0.1 < 0 by 0.1 at \(0, 0\)"),
        (np.array([[-1e-9, 1.0]]), "value -1e-09 < 0 by 1e-09 at .*`clip` 1e-05 clips it"),
        (np.array([[0, 1 + 1e-6]], np.float64), "value 1.000001 > 1 by 1e-06 at .*`clip` 1e-05"),
        (np.array([[0, 1.001]], np.float16), "value 1.001 > 1 by 0.000977 at .*`clip` 0.001 clips"),
        (np.array([[0.0, np.inf]]), r"inf > 1 by inf at \(0, 1\)"),
        (np.zeros((2, 2, 3)), r"\(2, 2, 3\)"),
        (np.zeros((0, 2)), r"\(0, 2\)"),
        (np.zeros(4), r"\(4,\)"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.zeros((2, 2), bool), "bool"),
    ],
)
def test_invalid_maps_are_refused_by_name(tmp_path, array, message):
    path = save(tmp_path / "bad.npy", array)
    with pytest.raises(ScoreMapError, match=message) as e:
        read_score_map(path)
    assert str(path) in str(e.value)
    with pytest.raises(ScoreMapError, match="some id"):
        check_score_map(array, "some id")


@pytest.mark.parametrize("value", [1 + 9e-6, -9e-6])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_within_the_tolerance_are_clipped_everywhere(tmp_path, value, dtype):
    # 1.0 is the highest level, a value beyond it would wrap to 0
    m = np.full((224, 224), 0.5, dtype)
    m[3, 4], m[0, 0] = value, 1.0
    want = m.clip(0, 1)
    save(tmp_path / "maps" / "c" / "0.jpg.npy", m)
    ids, meta = ["c/0.jpg"], tmp_path / "root" / "CUB" / "test"
    metadata_folder(meta, {ids[0]: [(0, 0, 60, 70)]}, {ids[0]: (80, 90)}, {ids[0]: 0})
    boxes, root = load_boxes(metadata_root=meta), tmp_path / "root"
    official = (root, None, "CUB", "test", True, True, [30, 50, 70])
    source = open_maps(tmp_path / "maps")

    def read(clip, as_bytes):
        reading = MapReading(clip=clip, as_bytes=as_bytes)
        return next(read_maps(source, find_maps(source, ids), reading))[1][0]

    np.testing.assert_array_equal(check_score_map(m, "m", 1e-5), want)
    np.testing.assert_array_equal(read(1e-5, False), want)
    np.testing.assert_array_equal(read(1e-5, True), (255 * want).astype(np.uint8))
    pack_maps(tmp_path / "maps", tmp_path / "store", clip=1e-5)
    packed = ScoreStore(tmp_path / "store").read([0])[0]
    np.testing.assert_array_equal(packed, (255 * want).astype(np.uint8))
    resized = read_score_map(tmp_path / "maps" / "c" / "0.jpg.npy", (9, 9), True, 1e-5)
    assert resized.shape == (9, 9)
    for maps in (m[None], torch.from_numpy(m[None])):
        evaluator, other = (BoxEvaluator(boxes, clip=c) for c in (1e-5, 0))
        evaluator.update(maps, ids)
        other.update(want[None], ids)
        assert evaluator.compute() == other.compute()
        score = evaluate_wsol([(maps, ids)], *official, clip=1e-5)
        assert score == evaluate_wsol([(want[None], ids)], *official)
        with pytest.raises(ScoreMapError, match="'c/0.jpg': the value"):
            BoxEvaluator(boxes, clip=1e-6).update(maps, ids)
    assert evaluate_wsol(tmp_path / "maps", *official, clip=1e-5) == score
    for clip in (0, 1e-6):
        for refused in (lambda c: read(c, True), lambda c: read(c, False)):
            with pytest.raises(ScoreMapError, match=r"0\.jpg\.npy: the value"):
                refused(clip)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_clipped(value):
    m = np.full((4, 4), 0.5)
    m[1, 2] = value
    with pytest.raises(ScoreMapError, match="m: "):
        check_score_map(m, "m", 0.01)


@pytest.mark.parametrize("clip", [-1e-9, 0.1, np.nan])
def test_a_tolerance_outside_of_its_range_is_refused(clip):
    with pytest.raises(InputError, match="`clip` must lie in"):
        check_score_map(np.zeros((2, 2)), "m", clip)


def test_object_arrays_are_not_unpickled(tmp_path):
    path = save(tmp_path / "o.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ScoreMapError, match=r"o\.npy"):
        read_score_map(path)


@pytest.mark.parametrize("keep", [0, 5, 60, 140])
def test_cut_files_are_refused(tmp_path, keep):
    path = save(tmp_path / "cut.npy", np.zeros((4, 4)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ScoreMapError, match=r"cut\.npy"):
        read_score_map(path)


def test_npz_is_refused(tmp_path):
    path = tmp_path / "z.npz"
    np.savez(path, a=np.zeros((2, 2)))
    with pytest.raises(ScoreMapError, match="several arrays"):
        read_score_map(path)


@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_files_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "damaged.npy"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(ScoreMapError, match=r"damaged\.npy: not a readable score map: .") as e:
        read_score_map(path)
    assert "\n" not in str(e.value)


def test_eval_size_demands_or_resizes(tmp_path):
    m = np.random.default_rng(0).random((6, 8))
    path = save(tmp_path / "m.npy", m)
    with pytest.raises(ScoreMapError, match=r"\(6, 8\), but \(4, 4\)"):
        read_score_map(path, eval_size=4)
    for dtype in (np.float16, np.float32, np.float64):
        got = read_score_map(save(path, m.astype(dtype)), eval_size=4, resize=True)
        assert got.shape == (4, 4)
        check_score_map(got, "resized")
    assert read_score_map(save(path, np.ones((4, 4))), eval_size=4).shape == (4, 4)
