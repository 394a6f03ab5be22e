"""The compact store: what it holds, how it is filled and continued, what is refused."""

import errno
import os
import threading

import numpy as np
import pytest
from broken_npy import BROKEN

from cba_fast import files, locks
from cba_fast.data import score_store
from cba_fast.data.score_store import (
    MAPS,
    NAMES,
    PRESENT,
    ScoreStore,
    StoreWriter,
    create_store,
    is_store,
)
from cba_fast.errors import InputError, ScoreMapError
from cba_fast.wsol import MapFolder

IDS = ["a/1.v1.jpg", "a/2.jpg", "b/1.jpg", "deep/c/9.jpg"]


def make_maps(n, shape=(5, 7), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def fill(root, names, maps, rows=None):
    create_store(root, names, maps.shape[1:])
    with StoreWriter(root) as writer:
        for row in range(len(names)) if rows is None else rows:
            writer.write(row, maps[row])


def test_maps_come_back_in_any_order(tmp_path):
    maps = make_maps(4)
    assert not is_store(tmp_path)
    fill(tmp_path, IDS, maps)
    assert is_store(tmp_path)
    store = ScoreStore(tmp_path)
    assert (store.shape, store.names) == ((5, 7), tuple(IDS))
    for rows in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 0, 2], [2], []):
        np.testing.assert_array_equal(store.read(rows), maps[rows])


def test_numpy_alone_reads_the_files(tmp_path):
    maps = make_maps(4)
    fill(tmp_path, IDS, maps)
    np.testing.assert_array_equal(np.load(tmp_path / MAPS, mmap_mode="r"), maps)
    assert (tmp_path / NAMES).read_text().splitlines() == IDS
    assert np.load(tmp_path / PRESENT).tolist() == [1, 1, 1, 1]


def test_missing_maps_are_not_found_and_a_later_writer_goes_on(tmp_path):
    maps = make_maps(4)
    fill(tmp_path / "whole", IDS, maps)
    fill(tmp_path / "cut", IDS, maps, rows=[2, 0])
    store = ScoreStore(tmp_path / "cut")
    assert [store.find(i) for i in IDS] == [0, None, 2, None]
    with StoreWriter(tmp_path / "cut") as writer:
        for row in np.flatnonzero(~store.present):
            writer.write(int(row), maps[row])
    for name in (MAPS, NAMES, PRESENT):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_maps_count_when_they_are_on_the_disk(tmp_path, monkeypatch):
    maps, synced = make_maps(4), []
    create_store(tmp_path, IDS, maps.shape[1:])
    present = ScoreStore(tmp_path).read_present
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(present().sum()))
    with StoreWriter(tmp_path) as writer:
        writer.write(0, maps[0])
        assert (present().sum(), synced) == (0, [])
        monkeypatch.setattr(score_store, "_COUNT_EVERY_S", 0)
        writer.write(1, maps[1])
        assert (present().sum(), synced) == (2, [0])
        monkeypatch.setattr(score_store, "_COUNT_EVERY_S", 60)
        writer.write(2, maps[2])
        assert present().sum() == 2
    assert (present().sum(), synced) == (3, [0, 2])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_map_counts_only_when_all_of_it_is_written(tmp_path, error):
    maps = make_maps(4)
    create_store(tmp_path, IDS, maps.shape[1:])
    with StoreWriter(tmp_path) as writer:
        real, calls = writer._maps, []

        class Cut:
            name, seek, close, fileno = real.name, real.seek, real.close, real.fileno

            def write(self, view):
                calls.append(len(view))
                if len(calls) == 2:
                    raise error
                return real.write(view[:10])  # part of it, as a signal or a full disk does

        writer._maps = Cut()
        with pytest.raises((KeyboardInterrupt, OSError)) as e:
            writer.write(1, maps[1])
        if isinstance(error, OSError):
            assert str(tmp_path / MAPS) in str(e.value)
        writer._maps = real
    assert not ScoreStore(tmp_path).present.any()


@pytest.mark.parametrize("name", [MAPS, PRESENT])
def test_writers_of_one_store_write_one_after_the_other(tmp_path, name):
    """As NFS needs it, which sends whole pages of a file that is not locked."""
    create_store(tmp_path, IDS, (5, 7))
    writer = threading.Thread(target=fill_row, args=(tmp_path,))
    with open(tmp_path / name, "r+b") as other:
        with locks.exclusive(other.fileno()):
            writer.start()
            writer.join(0.2)
            assert writer.is_alive()
            assert not ScoreStore(tmp_path).present.any()
        writer.join(10)
    assert ScoreStore(tmp_path).present.tolist() == [False, True, False, False]


def fill_row(root):
    with StoreWriter(root) as writer:
        writer.write(1, make_maps(2)[1])


def test_a_store_without_locks_is_written(tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    fill(tmp_path, IDS, make_maps(4))
    assert ScoreStore(tmp_path).present.all()


def test_names_are_found_as_files_are(tmp_path):
    """A store finds what a folder with the same names finds, ambiguous ids included."""
    names = ["a/b/x.y.jpg", "b/x", "b/z", "flat", "other/b/z.jpg"]
    maps = make_maps(len(names))
    fill(tmp_path / "store", names, maps)
    for name, m in zip(names, maps):
        path = tmp_path / "npy" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, m)
    store, folder = ScoreStore(tmp_path / "store"), MapFolder(tmp_path / "npy")
    ids = ["a/b/x.y.jpg", "b/x.jpg", "c/b/z.jpg", "other/b/z.jpg", "flat.png", "flat", "no/no.jpg"]
    for image_id in ids:
        row, path = store.find(image_id), folder.find(image_id)
        assert (row is None) == (path is None), image_id
        if row is not None:
            assert path == tmp_path / "npy" / f"{names[row]}.npy"
    assert store.ambiguous == folder.ambiguous == ["a/b/x.y.jpg", "other/b/z.jpg"]
    with pytest.raises(InputError, match="not a plain relative path"):
        store.find("../x.jpg")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], "two maps have the name 'a'"),
        (["../a"], "not a plain relative path"),
        (["a\nb"], "does not fit into one line"),
        ([" a"], "does not fit into one line"),
        ([], "no maps"),
    ],
)
def test_names_that_cannot_be_stored_are_refused(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        create_store(tmp_path / "s", names, (2, 2))
    assert not (tmp_path / "s").exists()


def test_stores_that_do_not_fit_together_are_refused(tmp_path):
    maps = make_maps(4)

    def refused(match, name, data):
        fill(tmp_path, IDS, maps)
        if isinstance(data, bytes):
            (tmp_path / name).write_bytes(data)
        else:
            np.save(tmp_path / name, data)
        with pytest.raises((ScoreMapError, InputError), match=match) as e:
            ScoreStore(tmp_path)
        assert str(tmp_path / name) in str(e.value)

    refused(r"\(4, 5, 7\) float64", MAPS, maps.astype(float))
    refused(r"\(5, 7\) uint8", MAPS, maps[0])
    refused("C order", MAPS, np.asfortranarray(maps))
    refused("has 3 maps", MAPS, maps[:3])
    refused("not a readable array", MAPS, b"PK")
    refused("not a readable array", MAPS, b"")
    refused(r"must be \(4,\) uint8", PRESENT, np.ones(3, np.uint8))
    refused(r"must be \(4,\) uint8", PRESENT, np.ones(4))
    refused("line 2: duplicate id 'x'", NAMES, b"x\nx\ny\nz\n")
    refused("names no map", NAMES, b"\n")
    fill(tmp_path, IDS, maps)
    store = ScoreStore(tmp_path)
    whole = (tmp_path / MAPS).read_bytes()
    (tmp_path / MAPS).write_bytes(whole[:-1])
    with pytest.raises(ScoreMapError, match="is cut"):
        store.read([3])
    np.testing.assert_array_equal(store.read([0, 1]), maps[:2])


@pytest.mark.parametrize("name", [MAPS, PRESENT])
@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_arrays_are_refused_by_name(tmp_path, kind, name):
    fill(tmp_path, IDS, make_maps(4))
    (tmp_path / name).write_bytes(BROKEN[kind])
    with pytest.raises(ScoreMapError, match=rf"{name}: not a readable array: ."):
        ScoreStore(tmp_path)


@pytest.mark.parametrize("row", [-1, 4, 10**12])
def test_a_row_that_is_not_there_is_not_written(tmp_path, row):
    create_store(tmp_path, IDS, (5, 7))
    before = {name: (tmp_path / name).read_bytes() for name in (MAPS, NAMES, PRESENT)}
    match = rf"{MAPS}: no row {row} among 4 maps"
    with StoreWriter(tmp_path) as writer, pytest.raises(ScoreMapError, match=match):
        writer.write(row, np.ones((5, 7), np.uint8))
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_a_map_of_another_kind_is_not_written(tmp_path):
    create_store(tmp_path, IDS, (5, 7))
    with StoreWriter(tmp_path) as writer:
        for bad in (np.zeros((7, 5), np.uint8), np.zeros((5, 7)), np.zeros((1, 5, 7), np.uint8)):
            with pytest.raises(ScoreMapError, match=r"'a/2.jpg': the store holds \(5, 7\) uint8"):
                writer.write(1, bad)
    assert not ScoreStore(tmp_path).present.any()


def test_a_new_store_replaces_the_old_one(tmp_path):
    fill(tmp_path, IDS, make_maps(4))
    create_store(tmp_path, ["other"], (3, 3))
    store = ScoreStore(tmp_path)
    assert store.names == ("other",)
    assert not store.present.any()


@pytest.mark.parametrize("at", [MAPS, PRESENT, NAMES])
def test_a_half_made_store_is_none(tmp_path, monkeypatch, at):
    """Killed at any file, a new store of the same number and size has not the old one's names."""
    fill(tmp_path, IDS, make_maps(4))
    real = files.atomic_path

    def killed(path, **how):
        if path.name == at:
            raise KeyboardInterrupt
        return real(path, **how)

    monkeypatch.setattr(files, "atomic_path", killed)
    with pytest.raises(KeyboardInterrupt):
        create_store(tmp_path, [f"new/{i}" for i in IDS], (5, 7))
    assert not is_store(tmp_path)
