"""Stored score maps: names, and what is refused."""

import numpy as np
import pytest
from broken_npy import BROKEN

from cba_fast.errors import InputError, ScoreMapError
from cba_fast.wsol import MapFolder, check_score_map, read_score_map


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
    assert folder.find("a/b/x.y.jpg") == study
    save(official.with_name("x.y.jpg.npy"), np.zeros((2, 2)))
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
        (np.array([[0.5, np.nan]]), "1 NaN"),
        (np.array([[0.0, 1.5]]), r"\[0, 1.5\] leave"),
        (np.array([[-0.1, 1.0]]), r"\[-0.1, 1\] leave"),
        (np.array([[0.0, np.inf]]), "leave"),
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
