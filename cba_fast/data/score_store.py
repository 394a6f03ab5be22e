"""A compact store of score maps: one uint8 array with an index, in NumPy's own format.

A store is a folder with

- ``maps.npy``: (N, H, W) uint8, the bytes u = uint8(255 * m) that MaxBoxAcc starts from;
- ``names.txt``: N lines; line i is the name that map i would have as a file, without ``.npy``
  (an image id, or the study's ``<folder>/<stem>``);
- ``present.npy``: (N,) uint8, 1 where the map is written.

``numpy.load`` reads both arrays. A store takes an eighth of the space of float64 files and gives
the same MaxBoxAcc, which depends on a map through these bytes only. PxAP needs the scores
themselves.
"""

import os
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from .. import files, locks
from ..errors import InputError, ScoreMapError
from ..npy import NPY_ERRORS, check_npy
from .records import check_image_id, map_name
from .textlines import duplicate, read_lines

MAPS, NAMES, PRESENT = "maps.npy", "names.txt", "present.npy"
STORE_FILES = (MAPS, NAMES, PRESENT)
_COUNT_EVERY_S = 5.0  # between two waits for the disk; a killed run loses no more than that


def is_store(path: str | os.PathLike) -> bool:
    """Return whether `path` is a folder with the files of a store."""
    return all((Path(path) / name).is_file() for name in STORE_FILES)


class ScoreStore:
    """Reads the maps of a store by image id.

    Args:
        root: the folder of the store.

    Attributes:
        names: the names of the maps, in the order of their rows.
        shape: (H, W) of every map.
        ambiguous: ids for which the store has a map of either name (the official one is taken).

    Raises:
        ScoreMapError: a file of the store is missing or does not fit the others.
        InputError: a name is duplicate or not a plain relative path.

    Example:
        >>> from cba_fast.data import ScoreStore, load_boxes
        >>> store = ScoreStore("maps_store")
        >>> store.shape, len(store.names)
        ((64, 64), 6)
        >>> row = store.find(load_boxes(cub_root="CUB_200_2011").image_ids[0])
        >>> store.read([row]).dtype
        dtype('uint8')
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        self.names = _read_names(self.root / NAMES)
        maps = _open_npy(self.root / MAPS)
        if maps.ndim != 3 or maps.dtype != np.uint8 or not maps.flags.c_contiguous:
            raise ScoreMapError(
                f"{self.root / MAPS} must be (N, H, W) uint8 in C order, got {maps.shape} "
                f"{maps.dtype}"
            )
        if len(maps) != len(self.names):
            raise ScoreMapError(
                f"{self.root / MAPS} has {len(maps)} maps, {NAMES} has {len(self.names)} names"
            )
        self.shape: tuple[int, int] = maps.shape[1:]
        self._offset = maps.offset
        self.present = self.read_present()
        self.ambiguous: list[str] = []

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names) if self.present[row]}

    def read_present(self) -> np.ndarray:
        """Read which maps are written by now: (N,) bool.

        Raises:
            ScoreMapError: ``present.npy`` is not (N,) uint8.
        """
        path = self.root / PRESENT
        present = np.array(_open_npy(path))
        if present.shape != (len(self.names),) or present.dtype != np.uint8:
            raise ScoreMapError(
                f"{path} must be ({len(self.names)},) uint8, got {present.shape} {present.dtype}"
            )
        return present.astype(bool)

    def find(self, image_id: str) -> int | None:
        """Return the row of the map of `image_id`, or None if there is none.

        As in a `MapFolder`, the official name goes before the study's.

        Raises:
            InputError: the id is no plain relative path.
        """
        check_image_id(image_id, str(self.root))
        official = self._rows.get(image_id)
        study_name = map_name(image_id).removesuffix(".npy")
        study = self._rows.get(study_name)
        if official is None:
            return study
        if study is not None and study_name != image_id:
            self.ambiguous.append(image_id)
        return official

    def describe(self, row: int) -> str:
        """Return what to call the map of a row in a message."""
        return f"{self.root / MAPS}, map {self.names[row]!r}"

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Read the maps of `rows`: (len(rows), H, W) uint8.

        The file is read rather than mapped, because the pages of a mapped file count as memory of
        the process: gigabytes for a whole data set.

        Raises:
            ScoreMapError: the file ends before a map.
        """
        out = np.empty((len(rows), *self.shape), np.uint8)
        size = self.shape[0] * self.shape[1]
        # Neighbouring rows are read at once.
        ends = [i for i in range(1, len(rows) + 1) if i == len(rows) or rows[i] != rows[i - 1] + 1]
        starts = [0, *ends[:-1]]
        with open(self.root / MAPS, "rb", buffering=0) as f:
            for start, end in zip(starts, ends):
                f.seek(self._offset + int(rows[start]) * size)
                view = out[start:end].data.cast("B")
                while len(view):
                    count = f.readinto(view)
                    if not count:
                        raise ScoreMapError(f"{self.root / MAPS} is cut: it ends inside of a map")
                    view = view[count:]
        return out


class StoreWriter:
    """Writes the maps of a store, in any order and by any number of threads.

    A map counts once its byte in ``present.npy`` is set. That is done every few seconds and at the
    end, after the maps are on the disk. So a killed run, and a power failure, leaves whole maps and
    missing ones, and a later writer can add the missing ones.

    Args:
        root: the folder of a store that `create_store` has made.

    Raises:
        ScoreMapError, InputError: as :class:`ScoreStore`.
    """

    def __init__(self, root: str | os.PathLike):
        self._store = ScoreStore(root)
        self._maps = open(self._store.root / MAPS, "r+b", buffering=0)  # noqa: SIM115
        self._present = open(self._store.root / PRESENT, "r+b", buffering=0)  # noqa: SIM115
        self._present_offset = _open_npy(self._store.root / PRESENT).offset
        self._lock = threading.Lock()
        self._uncounted: list[int] = []
        self._counted_at = time.monotonic()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *exception) -> None:
        try:
            self._count()
        finally:
            self._maps.close()
            self._present.close()

    def write(self, row: int, u: np.ndarray) -> None:
        """Write the map of a row.

        Args:
            row: 0 <= row < N.
            u: (H, W) uint8, from :func:`cba_fast.ops.quantize`.

        Raises:
            ScoreMapError: no such row, or a wrong shape or dtype; nothing is written then.
            OSError: the store cannot be written; the message names its file.
        """
        store = self._store
        if not 0 <= row < len(store.names):
            raise ScoreMapError(f"{store.root / MAPS}: no row {row} among {len(store.names)} maps")
        if u.shape != store.shape or u.dtype != np.uint8:
            raise ScoreMapError(
                f"{store.describe(row)}: the store holds {store.shape} uint8, got {u.shape} "
                f"{u.dtype}"
            )
        with self._lock:
            with locks.exclusive(self._maps.fileno()):
                _put(self._maps, store._offset + row * u.size, np.ascontiguousarray(u))
            self._uncounted.append(row)
            if time.monotonic() - self._counted_at >= _COUNT_EVERY_S:
                self._count()

    def _count(self) -> None:
        """Let the maps that were written count, once they are on the disk."""
        with files.naming(self._maps.name):
            os.fsync(self._maps.fileno())
        with locks.exclusive(self._present.fileno()):
            for row in self._uncounted:
                _put(self._present, self._present_offset + row, np.ones(1, np.uint8))
        self._uncounted, self._counted_at = [], time.monotonic()


def create_store(root: str | os.PathLike, names: Sequence[str], shape: tuple[int, int]) -> None:
    """Make a store in which every map is missing. Files of an earlier store are replaced.

    Args:
        root: the folder; it need not exist.
        names: one name per map, each a plain relative path with "/".
        shape: (H, W) of every map.

    Raises:
        InputError: no names, or a name that is duplicate, not a plain relative path, or does not
            fit into one line.
        OSError: the folder cannot be written.
    """
    root = Path(root)
    if not names:
        raise InputError(f"{root}: a store of no maps cannot be made")
    seen: set[str] = set()
    for name in names:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise InputError(f"{root}: the name {name!r} does not fit into one line of {NAMES}")
        check_image_id(name, str(root))
        if name in seen:
            raise InputError(f"{root}: two maps have the name {name!r}")
        seen.add(name)
    # The names go first and come last, so that a killed run leaves no mixture of two stores.
    (root / NAMES).unlink(missing_ok=True)
    with files.atomic_path(root / MAPS) as tmp:
        # This makes a sparse file, which takes no space until the maps are written.
        np.lib.format.open_memmap(tmp, "w+", np.uint8, (len(names), *shape)).flush()
    files.write_npy(root / PRESENT, np.zeros(len(names), np.uint8))
    files.write_text(root / NAMES, "".join(f"{name}\n" for name in names))


def _read_names(path: Path) -> tuple[str, ...]:
    names: dict[str, int] = {}
    for number, name in read_lines(path):
        check_image_id(name, f"{path}, line {number}")
        if name in names:
            raise duplicate(path, number, repr(name))
        names[name] = number
    if not names:
        raise ScoreMapError(f"{path} names no map")
    return tuple(names)


def _open_npy(path: Path) -> np.memmap:
    try:
        with files.open_regular(path) as f:
            check_npy(f)
        return np.lib.format.open_memmap(path, "r")
    except NPY_ERRORS as e:
        raise ScoreMapError(f"{path}: not a readable array: {e or type(e).__name__}") from e


def _put(file, offset: int, data: np.ndarray) -> None:
    """Write all bytes of `data` at `offset`; an `OSError` names the file."""
    view = data.data.cast("B")
    with files.naming(file.name):
        file.seek(offset)
        while len(view):
            view = view[file.write(view) :]
