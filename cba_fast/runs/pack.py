"""The command ``pack-maps``: put a folder of ``.npy`` score maps into a store."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import locks, resume
from ..choices import READERS
from ..data.score_store import StoreWriter, is_store
from ..errors import InputError, ScoreMapError
from ..shapes import Size
from ..wsol import MapFolder, MapReading, read_maps, read_score_map
from .outputs import StoreFolder
from .settings import BoxConfig


@dataclass
class PackResult:
    """How many maps were stored now and were there before; (H, W) of a map; bytes of the array."""

    stored: int
    kept: int
    shape: tuple[int, int]
    nbytes: int


@locks.released()
def pack_maps(
    np_root: Path,
    store: Path,
    *,
    eval_size: Size = None,
    resize: bool = False,
    overwrite: bool = False,
    clip: float = BoxConfig.clip,
    num_workers: int = READERS,
    progress: Callable | None = None,
) -> PackResult:
    """Store the bytes of all maps below a folder, under the names of their files.

    ``wsol-eval`` finds the same maps in the store as in the folder, and gives the same counts.

    Args:
        np_root: the folder; all ``*.npy`` below it are maps, also in linked folders.
        store: the folder of the store.
        eval_size: the side or (H, W) that the maps must have; None for that of the first map.
        resize: resize maps of other sizes to `eval_size`, before they are quantized.
        overwrite: start anew and replace what an earlier run wrote. Otherwise a run over the same
            files is continued, and any other is refused.
        clip: see `check_score_map`.
        num_workers: number of threads that read.
        progress: called with an iterable and its length, returns an iterable.

    Raises:
        ScoreMapError: a map that is not valid, or not of the size of the first one; the message
            names it.
        InputError: no maps, or a store that cannot be replaced or continued.
    """
    source = MapFolder(np_root)
    if is_store(np_root):
        raise InputError(f"{np_root} is a store already")
    if store.resolve().is_relative_to(np_root.resolve()):
        raise InputError(f"{store} lies inside of {np_root}, the folder of the maps")
    names = map_files(np_root)
    if not names:
        raise InputError(f"{np_root} holds no .npy files")
    first = read_score_map(np_root / names[0], eval_size, resize, clip)
    settings = {"np_root": str(np_root), "eval_size": eval_size, "resize": resize, "clip": clip}
    inputs = {"maps": resume.list_fingerprint((name, np_root / name) for name in names)}
    folder = StoreFolder(store, names, resume.describe(settings, inputs), first.shape)
    present = folder.prepare(overwrite)
    todo = {name: np_root / name for name in names if name not in present}
    rows = {name: row for row, name in enumerate(names)}
    reading = MapReading(eval_size, resize, workers=num_workers, clip=clip)
    with StoreWriter(store) as writer:
        for ids, maps in read_maps(source, todo, reading, progress):
            if maps.shape[1:] != first.shape:
                raise ScoreMapError(
                    f"{np_root / ids[0]}: shape {maps.shape[1:]}, but the maps before it are "
                    f"{first.shape} (a store holds maps of one size: give one to resize them to)"
                )
            for name, u in zip(ids, maps, strict=True):
                writer.write(rows[name], u)
    nbytes = len(names) * first.shape[0] * first.shape[1]
    return PackResult(len(todo), len(present), first.shape, nbytes)


def map_files(root: Path) -> list[str]:
    """Return the ``.npy`` files below a folder: sorted paths relative to it, with "/"."""
    paths = (p for p in _files(root, ()) if p.suffix == ".npy" and not p.name.startswith(".tmp-"))
    return sorted(p.relative_to(root).as_posix() for p in paths)


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files below a folder, including those in linked folders, as `MapFolder` does.

    A link to a folder above itself is left out, because following it would never end.
    """
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, (*above, real))
        elif path.is_file():  # a pipe or a device is left out: reading it might never end
            yield path
