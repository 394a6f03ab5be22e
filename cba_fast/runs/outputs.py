"""Where score maps go: a folder of ``.npy`` files or a store, each with the record of its run."""

import contextlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from .. import files, resume
from ..data import ImageRecord
from ..data.score_store import STORE_FILES, ScoreStore, StoreWriter, create_store
from ..errors import InputError
from ..npy import NPY_ERRORS
from ..ops import quantize
from ..resume import MANIFEST, Outputs


def describe_run(settings: dict, weights: Path | None, records: Iterable[ImageRecord]) -> dict:
    """Return the record of a run of these settings and weights over these images.

    A setting ``classes`` is a file, which counts by what it holds.
    """
    inputs = {
        "weights": resume.file_fingerprint(weights),
        "classes": resume.file_fingerprint(settings.get("classes")),
        "images": resume.list_fingerprint((r.image_id, r.path) for r in records),
    }
    return resume.describe(settings, inputs, torch=torch.__version__)


def write_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Write named arrays to an ``.npz`` file in one step."""
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]  # none is named `allow_pickle`
    files.write_bytes(path, data.getvalue())


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return what :func:`write_arrays` wrote.

    Raises:
        InputError: the file cannot be read as such.
    """
    try:
        with files.open_regular(path) as f, np.load(f, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (*NPY_ERRORS, zipfile.BadZipFile) as e:
        raise InputError(f"{path}: not what its run wrote ({e}); `overwrite` starts anew") from e


_PNG_END = bytes.fromhex("00000000 49454e44 ae426082")  # the chunk IEND


class NpyFolder(Outputs):
    """A folder of score maps (H, W), one ``.npy`` file each; arguments as for `StoreFolder`."""

    def __init__(
        self,
        root: str | os.PathLike,
        names: Iterable[str],
        description: dict,
        shape: tuple[int, int],
    ):
        super().__init__(Path(root) / MANIFEST, names, description)
        data = io.BytesIO()
        np.save(data, np.empty(shape))
        self._size = len(data.getvalue())

    def is_whole(self, name: str) -> bool:
        return (self.root / name).stat().st_size == self._size

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[int, np.ndarray], None]]:
        """Yield a function that writes the map (H, W) of the name of a given index."""
        yield lambda index, score_map: files.write_npy(
            self.root / self.names[index], score_map, durable=False
        )


class OverlayFolder(Outputs):
    """A folder of pictures; arguments as for `resume.Outputs`."""

    def is_whole(self, name: str) -> bool:
        with open(self.root / name, "rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(max(size - len(_PNG_END), 0))
            return f.read() == _PNG_END


class StoreFolder:
    """A store of score maps as an output: `names` are the files that a `NpyFolder` would hold.

    Args:
        root: the folder of the store.
        names: the map files, relative, with "/" and ``.npy``.
        description: as for `resume.Outputs`.
        shape: (H, W) of every map.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        names: Iterable[str],
        description: dict,
        shape: tuple[int, int],
    ):
        self._folder = Outputs(Path(root) / MANIFEST, STORE_FILES, description)
        self.root, self.names, self.shape = self._folder.root, list(names), shape
        self._stored = [name.removesuffix(".npy") for name in self.names]

    def hold(self) -> None:
        """Lock the store for this run; see `resume.Outputs.hold`."""
        self._folder.hold()

    def check(self, overwrite: bool = False) -> set[str]:
        """Refuse the folder where it cannot be used; return the maps that are already there.

        Raises:
            InputError: as `resume.Outputs.check`; also for a store of other names.
        """
        if self._folder.check(overwrite) != set(STORE_FILES):
            return set()
        store = ScoreStore(self.root)
        if store.names != tuple(self._stored) or store.shape != self.shape:
            raise InputError(f"{self.root}: its record is of other maps than its files")
        return {name for name, there in zip(self.names, store.present, strict=True) if there}

    def prepare(self, overwrite: bool = False) -> set[str]:
        """Check, then make an empty store, or keep that of an earlier run, without `overwrite`."""
        kept = self.check(overwrite)
        if self._folder.prepare(overwrite) != set(STORE_FILES):
            create_store(self.root, self._stored, self.shape)
        return kept

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[int, np.ndarray], None]]:
        """Yield a function that stores the map (H, W) of the name of a given index, quantized."""
        with StoreWriter(self.root) as writer:
            yield lambda index, score_map: writer.write(index, quantize(score_map[None]).numpy()[0])
