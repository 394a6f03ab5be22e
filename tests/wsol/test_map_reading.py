"""Reading maps ahead: the same maps in the same order, whatever the files and the threads."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from broken_npy import BROKEN
from hypothesis import given, settings
from hypothesis import strategies as st

from cba_fast.data.score_store import ScoreStore, StoreWriter, create_store
from cba_fast.errors import InputError, ScoreMapError
from cba_fast.ops import quantize
from cba_fast.threads import prefetch
from cba_fast.wsol import MapReading, find_maps, map_reading, open_maps, read_maps, read_score_map
from cba_fast.wsol.map_reading import chunked


def save(root, image_id, array):
    path = root / f"{image_id}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def read_all(root, ids, reading=MapReading(), **kwargs):  # noqa: B008  (frozen)
    source = open_maps(root)
    found = {}
    for run_ids, maps in read_maps(source, find_maps(source, ids), reading, **kwargs):
        assert len(run_ids) == len(maps)
        found.update(zip(run_ids, maps))
    return found


def as_bytes(m):
    return quantize(torch.from_numpy(np.ascontiguousarray(m))[None]).numpy()[0]


@pytest.mark.parametrize("workers", [1, 3])
def test_files_of_every_kind_come_in_order(tmp_path, workers):
    rng = np.random.default_rng(0)
    kinds = [
        lambda m: m,
        lambda m: m.astype(np.float32),
        lambda m: m.astype(np.float16),
        lambda m: (255 * m).astype(np.uint8),
        np.asfortranarray,
    ]
    ids, arrays = [], {}
    for n in range(75):
        shape = (6, 8) if n % 20 else (9, 4)
        image_id = f"c/{n:03d}.jpg"
        arrays[image_id] = kinds[(n // 3) % len(kinds)](rng.random(shape))
        save(tmp_path, image_id, arrays[image_id])
        ids.append(image_id)
    with open(tmp_path / "c" / "007.jpg.npy", "wb") as f:
        np.lib.format.write_array(f, arrays["c/007.jpg"], version=(2, 0))
    found = read_all(tmp_path, ids, MapReading(workers=workers))
    assert list(found) == ids
    for image_id, m in arrays.items():
        np.testing.assert_array_equal(found[image_id], as_bytes(m))
    floating = {i: m for i, m in arrays.items() if m.dtype != np.uint8}
    found = read_all(tmp_path, list(floating), MapReading(workers=workers, as_bytes=False))
    for image_id, m in floating.items():
        assert found[image_id].dtype == m.dtype
        np.testing.assert_array_equal(found[image_id], m)
    first = next(i for i in ids if i not in floating)
    with pytest.raises(ScoreMapError, match=rf"{first}\.npy: uint8; PxAP needs the scores"):
        read_all(tmp_path, ids, MapReading(workers=workers, as_bytes=False))


def test_float32_maps_have_the_bytes_of_their_float64_copies():
    """255 * m in float32 reaches no integer that it does not reach in float64.

    Between two integers both products truncate alike, so the last float32 below k / 255 and the
    first one not below it decide for all: the official evaluator, which takes every map in float64,
    and the store, which takes it as it is, agree.
    """
    k = np.arange(1, 256)
    above = (k / 255).astype(np.float32)
    above = np.where(above.astype(np.float64) * 255 < k, np.nextafter(above, 2), above)
    below = np.nextafter(above, np.float32(0))
    for m, level in ((above, k), (below, k - 1)):
        np.testing.assert_array_equal((m.astype(np.float64) * 255).astype(np.uint8), level)
        np.testing.assert_array_equal(as_bytes(m[None].astype(np.float32))[0], level)


def test_the_store_gives_what_the_files_give(tmp_path):
    rng = np.random.default_rng(1)
    ids = [f"c/{n}.jpg" for n in range(40)]
    create_store(tmp_path / "store", ids, (11, 13))
    with StoreWriter(tmp_path / "store") as writer:
        for row, image_id in enumerate(ids):
            m = rng.random((11, 13))
            save(tmp_path / "npy", image_id, m)
            writer.write(row, as_bytes(m))
    assert isinstance(open_maps(tmp_path / "store"), ScoreStore)
    order = [ids[i] for i in rng.permutation(40)]
    one, two = (read_all(tmp_path / name, order) for name in ("npy", "store"))
    assert list(one) == list(two) == order
    for image_id in ids:
        np.testing.assert_array_equal(one[image_id], two[image_id])
    with pytest.raises(ScoreMapError, match=r"store holds bytes"):
        read_all(tmp_path / "store", ids, MapReading(as_bytes=False))
    with pytest.raises(ScoreMapError, match=r"the maps are \(11, 13\), but \(5, 5\)"):
        read_all(tmp_path / "store", ids, MapReading(5, resize=True))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.5, np.nan]]), "1 NaN"),
        (np.array([[0.0, 1.5]]), "value 1.5 > 1 by 0.5"),
        (np.zeros((1, 2), np.int64), "int64"),
        (np.zeros((1, 2, 1)), r"\(1, 2, 1\)"),
        (np.zeros((0, 2)), r"\(0, 2\)"),
    ],
)
@pytest.mark.parametrize("reading", [MapReading(), MapReading(as_bytes=False), MapReading(2, True)])
def test_the_first_bad_map_is_named(tmp_path, array, message, reading):
    ids = [f"c/{n:02d}.jpg" for n in range(40)]
    for image_id in ids:
        save(tmp_path, image_id, np.full((1, 2), 0.5))
    save(tmp_path, ids[21], array)
    save(tmp_path, ids[35], array)
    with pytest.raises(ScoreMapError, match=message) as e:
        read_all(tmp_path, ids, reading)
    assert f"{ids[21]}.npy" in str(e.value)


@pytest.mark.parametrize("keep", [0, 5, 100, 130])
def test_cut_files_are_named(tmp_path, keep):
    path = save(tmp_path, "m", np.zeros((4, 4)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ScoreMapError, match=r"m\.npy: not a readable score map"):
        read_all(tmp_path, ["m"])


@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_files_are_named(tmp_path, kind):
    for n in range(3):
        save(tmp_path, f"m{n}", np.zeros((2, 5)))
    (tmp_path / "m1.npy").write_bytes(BROKEN[kind])
    with pytest.raises(ScoreMapError, match=r"m1\.npy: not a readable score map: ."):
        read_all(tmp_path, ["m0", "m1", "m2"])


def test_maps_are_demanded_or_resized(tmp_path):
    rng = np.random.default_rng(2)
    ids = [f"{n}.jpg" for n in range(20)]
    paths = [save(tmp_path, i, rng.random((6, 6 + (n > 9)))) for n, i in enumerate(ids)]
    with pytest.raises(ScoreMapError, match=r"10\.jpg\.npy: shape \(6, 7\), but \(6, 6\)"):
        read_all(tmp_path, ids, MapReading(6))
    found = read_all(tmp_path, ids, MapReading(6, resize=True))
    for image_id, path in zip(ids, paths):
        want = as_bytes(read_score_map(path, 6, resize=True))
        np.testing.assert_array_equal(found[image_id], want)


def test_two_images_do_not_share_a_map(tmp_path):
    save(tmp_path, "auk/1", np.zeros((2, 2)))
    source = open_maps(tmp_path)
    with pytest.raises(InputError, match=r"1\.npy could be the map of x/auk/1\.jpg and of y/auk"):
        find_maps(source, ["x/auk/1.jpg", "y/auk/1.jpg"])
    with pytest.raises(
        InputError, match=r"of the 1 images .*neither a/nobody.x.jpg.npy nor a/nobody.npy"
    ):
        find_maps(source, ["a/nobody.x.jpg"])
    (tmp_path / "others" / "a").mkdir(parents=True)
    for name in ("1.PNG", "1.jpg.npz", "README"):
        (tmp_path / "others" / "a" / name).touch()
    with pytest.raises(
        InputError, match=r"; its files end in \.npz, \.png, and only \.npy is read"
    ):
        find_maps(open_maps(tmp_path / "others"), ["a/1.jpg"])


def test_progress_sees_every_group(tmp_path):
    ids = [f"{n}.jpg" for n in range(40)]
    for image_id in ids:
        save(tmp_path, image_id, np.zeros((2, 2)))
    seen = []

    def progress(items, total):
        for item in items:
            seen.append(total)
            yield item

    assert len(read_all(tmp_path, ids, progress=progress)) == 40
    assert seen == [3, 3, 3]


@pytest.mark.parametrize("stored", [False, True])
def test_large_maps_are_read_ahead_in_smaller_groups(tmp_path, monkeypatch, stored):
    ids = [f"{n}.jpg" for n in range(40)]
    if stored:
        create_store(tmp_path, ids, (32, 32))
        with StoreWriter(tmp_path) as writer:
            for row in range(40):
                writer.write(row, np.zeros((32, 32), np.uint8))
    else:
        for image_id in ids:
            save(tmp_path, image_id, np.zeros((32, 32), np.uint8))
    totals = []

    def progress(items, total):
        totals.append(total)
        return items

    # with the header of a file five of them do not fit
    for limit, reading in (
        (5 * 1024, MapReading()),
        (5 * 8 * 64 * 64, MapReading(64, resize=True)),
        (1, MapReading()),
    ):
        if not (stored and reading.resize):
            monkeypatch.setattr(map_reading, "CHUNK_BYTES", limit)
            assert len(read_all(tmp_path, ids, reading, progress=progress)) == 40
    assert totals == ([8, 40] if stored else [10, 8, 40])


def test_prefetch_keeps_order_and_stays_a_few_items_ahead():
    started, lock = [], threading.Lock()

    def work(n):
        with lock:
            started.append(n)
        time.sleep(0.001 * (n % 3))
        return n

    results = prefetch(work, range(100), 2)
    for n in range(10):
        assert next(results) == n
        assert max(started) <= n + 2 * 2
    results.close()
    assert len(started) <= 15
    assert not [t for t in threading.enumerate() if t.name.startswith("cba-read")]


def test_prefetch_raises_in_order_and_ends_its_threads():
    def work(n):
        if n == 5:
            raise ValueError("five")
        return n

    seen = []
    results = prefetch(work, range(100), 3)
    with pytest.raises(ValueError, match="five"):
        seen.extend(results)
    assert seen == [0, 1, 2, 3, 4]
    assert not [t for t in threading.enumerate() if t.name.startswith("cba-read")]


@given(
    runs=st.lists(st.tuples(st.integers(1, 9), st.sampled_from([(2, 3), (3, 2)])), max_size=8),
    limit=st.sampled_from([1, 6, 20, 1000]),
)
@settings(max_examples=60)
def test_chunks_hold_what_the_runs_held(runs, limit):
    items, n = [], 0
    for count, shape in runs:
        ids = [str(n + i) for i in range(count)]
        items.append((ids, np.stack([np.full(shape, n + i, np.uint8) for i in range(count)])))
        n += count
    before = map_reading.CHUNK_BYTES
    map_reading.CHUNK_BYTES = limit
    try:
        chunks = list(chunked(items))
    finally:
        map_reading.CHUNK_BYTES = before
    assert [i for ids, _ in chunks for i in ids] == [str(i) for i in range(n)]
    for ids, maps in chunks:
        assert len(maps) <= max(1, limit // 6)
        np.testing.assert_array_equal(maps[:, 0, 0], [int(i) for i in ids])
    for (_, one), (_, two) in pairwise(chunks):
        assert one.shape[1:] != two.shape[1:] or len(one) == max(1, limit // 6)
