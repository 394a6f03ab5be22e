"""The finished part of a long run, kept beside its output until the run ends."""

import json
import logging
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..files import atomic_path

log = logging.getLogger("cba_fast")


class Partial:
    """Arrays of a run that has not ended, with the settings that they belong to.

    A run that is started again with equal settings goes on from them and, since its remaining
    steps are the same, ends with the file that one uninterrupted run would have written.

    Args:
        output: the file the run will write; the arrays live in ``.<name>.partial.npz`` beside it.
        settings: JSON-able; everything that the numbers depend on.
        interval_s: least time between two writes (:meth:`save` with ``force`` writes at once).
    """

    def __init__(self, output: str | os.PathLike, settings: dict, *, interval_s: float = 5.0):
        output = Path(output)
        self.path = output.parent / f".{output.name}.partial.npz"
        self.settings = json.dumps(settings, sort_keys=True)
        self.interval_s = interval_s
        self._last = time.monotonic()

    def load(self) -> dict[str, np.ndarray] | None:
        """Return the stored arrays, or None (and say why) if there are none of these settings."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
            log.warning("%s cannot be read (%s): starting from the beginning", self.path, e)
            return None
        if str(arrays.pop("settings", "")) != self.settings:
            log.warning("%s is of other settings: starting from the beginning", self.path)
            return None
        return arrays

    def save(self, arrays: Callable[[], dict[str, np.ndarray]], *, force: bool = False) -> None:
        """Store what `arrays` returns, unless the last write was less than `interval_s` ago."""
        if not force and time.monotonic() - self._last < self.interval_s:
            return
        with atomic_path(self.path) as tmp:
            np.savez(tmp, settings=np.array(self.settings), **arrays())
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the stored arrays, if any: the run has ended."""
        self.path.unlink(missing_ok=True)
