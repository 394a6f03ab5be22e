"""Output folders that a run owns: listed in a manifest, replaced or continued, never emptied."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from .. import files
from ..data.score_store import STORE_FILES, ScoreStore, StoreWriter, create_store
from ..errors import InputError
from ..ops import quantize

MANIFEST = "manifest.json"


class OutputFolder:
    """A folder of results with a manifest of the files that a run writes and of its settings.

    The manifest is written before the first file, so that whatever a killed run left is listed. A
    folder that holds a file which no manifest lists is refused.

    Args:
        root: the folder; it need not exist.
        names: the files that this run will write, relative to `root`, with "/".
        settings: JSON values that must be equal for a run to be continued.
    """

    def __init__(self, root: str | os.PathLike, names: Iterable[str], settings: dict):
        self.root = Path(root)
        self.names = list(names)
        self.settings = settings

    def check(self, resume: bool) -> set[str]:
        """Refuse the folder where it cannot be used; change nothing.

        Returns:
            The files of this run that are already there: empty without `resume`.

        Raises:
            InputError: files that no manifest lists, an unreadable manifest, or, with `resume`,
                a manifest with other settings or files (the differing keys are named).
        """
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root} exists and is not a folder")
        present = self._present()
        old = self._manifest()
        known = set(old["files"]) if old else set()
        foreign = sorted(n for n in present if n not in known and not _is_own(n))
        if foreign:
            raise InputError(
                f"{self.root} holds {len(foreign)} files that no earlier run wrote "
                f"(such as {foreign[0]}); choose another folder or move them away"
            )
        if not resume or old is None:
            return set()
        self._check_same(old)
        return present & set(self.names)

    def prepare(self, resume: bool) -> set[str]:
        """Check, then clear what an earlier run wrote (or keep it, with `resume`).

        Returns:
            As :meth:`check`.

        Raises:
            InputError: as :meth:`check`.
            OSError: the folder cannot be written.
        """
        kept = self.check(resume)
        old = self._manifest()
        for name in self._present():
            if _is_temporary(name) or (old and not resume and name in old["files"]):
                (self.root / name).unlink()
        if not resume or old is None:
            self._remove_empty_folders()
            files.write_json(
                self.root / MANIFEST,
                {"written_by": "cba_fast", "settings": self.settings, "files": self.names},
            )
        return kept

    def discard(self) -> None:
        """Remove what an earlier run wrote, its manifest and, if then empty, the folder.

        For a run that writes nothing here but replaces the rest of the earlier one. Files that no
        manifest lists stay, and so does all of a folder whose manifest is not of this package.

        Raises:
            OSError: a file cannot be removed.
        """
        try:
            old = self._manifest()
        except InputError:
            return
        if old is None:
            return
        for name in self._present():
            if name in old["files"] or _is_temporary(name):
                (self.root / name).unlink()
        (self.root / MANIFEST).unlink()  # last: a killed removal is still listed
        self._remove_empty_folders()
        if not os.listdir(self.root):
            self.root.rmdir()

    def _check_same(self, old: dict) -> None:
        new = json.loads(json.dumps(self.settings))
        keys = {*old["settings"], *new}
        differs = [k for k in sorted(keys) if old["settings"].get(k) != new.get(k)]
        if differs:
            was = ", ".join(f"{k}={old['settings'].get(k)!r} (now {new.get(k)!r})" for k in differs)
            raise InputError(f"{self.root}: cannot resume a run with other settings: {was}")
        if old["files"] != self.names:
            raise InputError(f"{self.root}: cannot resume: the list of images has changed")

    def _present(self) -> set[str]:
        return {
            (Path(folder) / name).relative_to(self.root).as_posix()
            for folder, _, names in os.walk(self.root)
            for name in names
        }

    def _manifest(self) -> dict | None:
        path = self.root / MANIFEST
        if not path.is_file():
            return None
        try:
            manifest = json.loads(path.read_text())
        except ValueError as e:
            raise InputError(f"{path}: not a manifest of cba_fast: {e}") from e
        if not _is_manifest(manifest):
            raise InputError(f"{path}: not a manifest of cba_fast")
        return manifest

    def _remove_empty_folders(self) -> None:
        for folder, _, _ in os.walk(self.root, topdown=False):
            if Path(folder) != self.root and not os.listdir(folder):
                os.rmdir(folder)


class NpyFolder(OutputFolder):
    """An output folder of score maps, one ``.npy`` file each."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[int, np.ndarray], None]]:
        """Yield a function that writes the map (H, W) of the name of a given index."""
        yield lambda index, score_map: files.write_npy(self.root / self.names[index], score_map)


class StoreFolder:
    """A store of score maps as an output: `names` are the files that a `NpyFolder` would hold.

    Args:
        root: the folder of the store.
        names: the map files, relative, with "/" and ``.npy``.
        settings: as for `OutputFolder`.
        shape: (H, W) of every map.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        names: Iterable[str],
        settings: dict,
        shape: tuple[int, int],
    ):
        self._folder = OutputFolder(root, STORE_FILES, settings)
        self.root, self.names, self.shape = self._folder.root, list(names), shape
        self._stored = [name.removesuffix(".npy") for name in self.names]

    def check(self, resume: bool) -> set[str]:
        """Refuse the folder where it cannot be used; return the maps that are already there.

        Raises:
            InputError: as `OutputFolder.check`; also, with `resume`, for other names.
        """
        if self._folder.check(resume) != set(STORE_FILES):
            return set()
        store = ScoreStore(self.root)
        if store.names != tuple(self._stored) or store.shape != self.shape:
            raise InputError(f"{self.root}: cannot resume: the list of maps or their size changed")
        return {name for name, there in zip(self.names, store.present, strict=True) if there}

    def prepare(self, resume: bool) -> set[str]:
        """Check, then make an empty store (or keep that of the earlier run, with `resume`)."""
        kept = self.check(resume)
        if self._folder.prepare(resume) != set(STORE_FILES):
            create_store(self.root, self._stored, self.shape)
        return kept

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[int, np.ndarray], None]]:
        """Yield a function that stores the map (H, W) of the name of a given index, quantized."""
        with StoreWriter(self.root) as writer:
            yield lambda index, score_map: writer.write(index, quantize(score_map[None]).numpy()[0])


def _is_manifest(value: object) -> bool:
    if not isinstance(value, dict) or value.get("written_by") != "cba_fast":
        return False
    names = value.get("files")
    return (
        isinstance(value.get("settings"), dict)
        and isinstance(names, list)
        and all(isinstance(name, str) and _is_inside(name) for name in names)
    )


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _is_temporary(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".tmp-")


def _is_own(name: str) -> bool:
    return name == MANIFEST or _is_temporary(name)
