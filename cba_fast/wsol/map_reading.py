"""Find stored score maps and read them with several threads, ahead of their use."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..data.records import map_name
from ..data.score_store import ScoreStore, is_store
from ..data.textlines import counted, some
from ..errors import InputError, ScoreMapError
from ..npy import NPY_ERRORS, is_plain_shape
from ..shapes import Size, map_shape, pair
from ..stages import stage
from ..threads import prefetch
from .score_maps import (
    DTYPES,
    MapFolder,
    as_bytes,
    check_score_map,
    check_score_maps,
    fitted,
    read_score_map,
)

# Number of maps that a thread reads at once. A call of `quantize` costs 55 microseconds before its
# first value, so a 224x224 map takes 22 microseconds among 16 and 78 alone.
GROUP = 16
CHUNK_BYTES = 16 << 20  # most bytes of the maps yielded at once: 334 of uint8 at 224x224
HEADER = 128  # bytes of the header of a two-dimensional .npy file as NumPy writes it

MapSource = MapFolder | ScoreStore
Found = Mapping[str, Path] | Mapping[str, int]
Run = tuple[list[str], np.ndarray]


def open_maps(root: str | os.PathLike) -> MapSource:
    """Return the score maps of `root`: a store (see `ScoreStore`) or a folder of ``.npy`` files.

    Raises:
        ScoreMapError: no such folder, or a store whose files do not fit together.

    Example:
        >>> from cba_fast.wsol import open_maps
        >>> type(open_maps("maps")).__name__, type(open_maps("maps_store")).__name__
        ('MapFolder', 'ScoreStore')
    """
    return ScoreStore(root) if is_store(root) else MapFolder(root)


def _other_files(root: Path) -> str:
    """Tell the kinds of the first files of a folder of maps if none of them is a ``.npy`` file."""
    files = (Path(name) for _, _, names in os.walk(root) for name in sorted(names))
    kinds = {file.suffix.lower() for file in islice(files, 1000)} - {""}
    if not kinds or ".npy" in kinds:
        return ""
    return (
        f"; its files end in {', '.join(sorted(kinds)[:5])}, and only .npy is read: save each map"
        " with numpy.save, or give arrays to `BoxEvaluator.update`"
    )


def find_maps(source: MapSource, image_ids: Sequence[str]) -> Found:
    """Return the place of each image's map: a path, or a row of a store; no map serves two images.

    Images without a map are left out.

    Raises:
        InputError: no image has a map, two images share one, or an id is no plain relative path.

    Example:
        >>> from cba_fast.data import load_boxes
        >>> from cba_fast.wsol import find_maps, open_maps
        >>> boxes = load_boxes(cub_root="CUB_200_2011")
        >>> found = find_maps(open_maps("maps"), boxes.image_ids)
        >>> len(found), found[boxes.image_ids[0]].as_posix()
        (6, 'maps/001.Violet_spotted_head_Bird/Violet_spotted_head_Bird_0004.npy')
    """
    # A path in a folder, a row of a store.
    found: dict[str, Any] = {i: key for i in image_ids if (key := source.find(i)) is not None}
    if not found:
        raise InputError(
            f"{source.root} holds no map of the {len(image_ids)} images of the ground truth "
            f"(for the first one, neither {image_ids[0]}.npy nor {map_name(image_ids[0])})"
            + _other_files(Path(source.root))
        )
    owner: dict = {}
    for image_id, key in found.items():
        first = owner.setdefault(key, image_id)
        if first != image_id:
            raise InputError(
                f"{source.describe(key)} could be the map of {first} and of {image_id}: name the "
                "maps <image_id>.npy"
            )
    return found


def ambiguous_lines(source: MapSource) -> list[str]:
    """Return a note on the images for which `find_maps` found two maps, if there are any."""
    if not source.ambiguous:
        return []
    return [
        f"two maps of {counted(len(source.ambiguous), 'image')}; <image_id>.npy was taken: "
        f"{some(source.ambiguous, 5)}"
    ]


@dataclass(frozen=True)
class MapReading:
    """How stored maps are read.

    Attributes:
        eval_size: the side or (H, W) that a map must have; None accepts any size.
        resize: resize maps of other sizes to `eval_size`, bilinearly.
        as_bytes: return u = uint8(255 * m), quantized in the precision of the map. Otherwise the
            scores are returned as they are stored, and must be floating.
        workers: number of threads that read.
        clip: see `check_score_map`.
    """

    eval_size: Size = None
    resize: bool = False
    as_bytes: bool = True
    workers: int = 2
    clip: float = 0.0

    @property
    def shape(self) -> tuple[int, int] | None:
        """The (H, W) that a map must have, or None."""
        return None if self.eval_size is None else map_shape(self.eval_size, name="eval_size")


def read_maps(
    source: MapSource,
    found: Found,
    reading: MapReading,
    progress: Callable | None = None,
) -> Iterator[Run]:
    """Read maps in the order of `found`, several threads ahead.

    Args:
        source: from `open_maps`.
        found: from `find_maps`.
        reading: how to read them.
        progress: called with an iterable and its length, returns an iterable.

    Yields:
        (ids, maps): n ids and their maps (n, H, W), which have one shape and dtype and at most
        `CHUNK_BYTES` bytes, unless a single map has more.

    Raises:
        ScoreMapError: a map cannot be read, is not valid or has another size; the message names the
            first such map.

    Example:
        >>> from cba_fast.data import load_boxes
        >>> from cba_fast.wsol import MapReading, find_maps, open_maps, read_maps
        >>> source = open_maps("maps")
        >>> found = find_maps(source, load_boxes(cub_root="CUB_200_2011").image_ids)
        >>> for image_ids, maps in read_maps(source, found, MapReading()):
        ...     print(len(image_ids), maps.shape, maps.dtype)
        6 (6, 64, 64) uint8
    """
    ids = list(found)
    size = GROUP
    if ids:
        size = max(1, min(GROUP, CHUNK_BYTES // _map_bytes(source, found[ids[0]], reading)))
    groups = [ids[i : i + size] for i in range(0, len(ids), size)]

    def read(group: list[str]) -> list[Run]:
        with stage("read"):
            return list(_read_group(source, group, [found[i] for i in group], reading))

    read_groups: Iterable = prefetch(read, groups, reading.workers)
    if progress:
        read_groups = progress(read_groups, len(groups))
    yield from chunked(run for runs in read_groups for run in runs)


def chunked(runs: Iterable[Run]) -> Iterator[Run]:
    """Join runs of equal shape and dtype up to `CHUNK_BYTES`, and split larger ones."""
    ids: list[str] = []
    parts: list[np.ndarray] = []
    for new_ids, maps in runs:
        limit = _room(CHUNK_BYTES, maps[0].nbytes)
        if parts and (maps.shape[1:], maps.dtype) != (parts[0].shape[1:], parts[0].dtype):
            yield ids, np.concatenate(parts)
            ids, parts = [], []
        while len(maps):
            room = limit - len(ids)
            ids, parts = [*ids, *new_ids[:room]], [*parts, maps[:room]]
            new_ids, maps = new_ids[room:], maps[room:]
            if len(ids) == limit:
                yield ids, np.concatenate(parts)
                ids, parts = [], []
    if parts:
        yield ids, np.concatenate(parts)


def _map_bytes(source: MapSource, key: Any, reading: MapReading) -> int:
    """Return about how many bytes the map at `key` takes in memory.

    Large maps are read in smaller groups, so that what is read ahead stays bounded.
    """
    if isinstance(source, ScoreStore):
        return max(1, math.prod(source.shape))
    try:
        stored = key.stat().st_size
    except OSError:  # reading the file later tells what is wrong with it
        stored = 1
    resized = 8 * math.prod(reading.shape) if reading.shape and reading.resize else 0
    return max(1, stored, resized)


def _read_group(
    source: MapSource, ids: list[str], keys: list, reading: MapReading
) -> Iterator[Run]:
    if isinstance(source, ScoreStore):
        yield ids, _read_stored(source, keys, reading)
        return
    start = 0
    for maps in _read_files(keys, reading):
        names = [str(path) for path in keys[start : start + len(maps)]]
        if reading.as_bytes:
            maps = as_bytes(maps, names, reading.clip).numpy()
        else:
            if maps.dtype == np.uint8:
                raise ScoreMapError(
                    f"{names[0]}: uint8; PxAP needs the scores themselves, floating"
                )
            maps = check_score_maps(maps, names, reading.clip)
        yield ids[start : start + len(maps)], maps
        start += len(maps)


def _read_stored(store: ScoreStore, rows: list[int], reading: MapReading) -> np.ndarray:
    if not reading.as_bytes:
        raise ScoreMapError(
            f"{store.root} holds bytes, 255 * m truncated; what is asked for needs the maps "
            "themselves (.npy files)"
        )
    if reading.shape not in (None, store.shape):
        raise ScoreMapError(
            f"{store.root}: the maps are {store.shape}, but {reading.shape} is asked for (resize "
            "maps before they are stored: bytes are not resized)"
        )
    return store.read(rows)


def _read_files(paths: Sequence[Path], reading: MapReading) -> Iterator[np.ndarray]:
    """Yield the maps of `paths` in runs (n, H, W) of one shape and dtype, not checked yet."""
    while paths:
        run = _read_alike(paths)
        if run is None:
            run = read_score_map(paths[0], clip=reading.clip)[None]
        if reading.shape not in (None, run.shape[1:]):
            run = np.stack([_resized(m, path, reading) for m, path in zip(run, paths)])
        paths = paths[len(run) :]
        yield run


def _resized(scoremap: np.ndarray, path: Path, reading: MapReading) -> np.ndarray:
    scoremap = check_score_map(scoremap, str(path), reading.clip)
    return fitted(scoremap, str(path), reading.eval_size, reading.resize)


def _read_alike(paths: Sequence[Path]) -> np.ndarray | None:
    """Read the first maps of `paths` that have one shape and dtype into one array (n, H, W).

    Equal headers are parsed once, because parsing one takes 80 microseconds, longer than reading
    the values of a 224x224 map; and the values are read into the array itself. The result is None
    if the first file is not plainly a map; `read_score_map` then finds out what it is.
    """
    out: np.ndarray | None = None
    count = 0
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as f:
                layout = _layout(f.read(HEADER))
                if layout is None:
                    break
                if out is None:
                    size = math.prod(layout[0]) * layout[1].itemsize
                    if os.fstat(f.fileno()).st_size < HEADER + size:
                        break
                    out = np.empty((_room(len(paths), size), *layout[0]), layout[1])
                if count == len(out) or (out.shape[1:], out.dtype) != layout:
                    break
                if f.readinto(out[count].data.cast("B")) != out[count].nbytes:
                    break
        except OSError:
            break
        count += 1
    return None if out is None or count == 0 else out[:count]


def _room(wanted: int, nbytes: int) -> int:
    """Return how many maps of `nbytes`, at most `wanted`, fit into `CHUNK_BYTES`; at least 1."""
    return max(1, min(wanted, CHUNK_BYTES // nbytes))


@lru_cache(maxsize=64)
def _layout(header: bytes) -> tuple[tuple[int, int], np.dtype] | None:
    """Return shape and dtype of a map from the first bytes of its file, or None if unusual."""
    f = BytesIO(header)
    try:
        if np.lib.format.read_magic(f) != (1, 0):
            return None
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(f)
    except NPY_ERRORS:
        return None
    plain = f.tell() == HEADER and not fortran and len(shape) == 2 and is_plain_shape(shape)
    return (pair(shape), dtype) if plain and dtype in DTYPES else None
