"""Keep the finished part of a long run beside its output until the run ends."""

import logging
import os
import time
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from ..files import atomic_path, open_regular
from ..npy import NPY_ERRORS
from ..resume import partial_path

log = logging.getLogger("cba_fast")


class Partial:
    """The arrays of a run that has not ended, in a file beside its output.

    A run that is started again goes on from them. Its remaining steps are the same, so it ends
    with the file of an uninterrupted run. The record beside `output` says which run the arrays
    belong to; see `cba_fast.resume`.

    Args:
        output: the file that the run will write; the arrays are in ``.<name>.partial.npz`` beside
            it.
        interval_s: least seconds between two writes (:meth:`save` with ``force`` writes at once).

    Example:
        >>> import numpy as np
        >>> from cba_fast.erf import Partial
        >>> partial = Partial("sizes.npy")
        >>> partial.load() is None
        True
        >>> partial.save(lambda: {"sizes": np.arange(3)}, force=True)
        >>> Partial("sizes.npy").load()["sizes"]
        array([0, 1, 2])
    """

    def __init__(self, output: str | os.PathLike, *, interval_s: float = 5.0):
        self.path = partial_path(output)
        self.interval_s = interval_s
        self._last = time.monotonic()

    def load(self) -> dict[str, np.ndarray] | None:
        """Return the stored arrays; None if there are none or, with a warning, if damaged."""
        if not self.path.exists():
            return None
        try:
            with open_regular(self.path) as f, np.load(f, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (*NPY_ERRORS, zipfile.BadZipFile) as e:
            log.warning("%s cannot be read (%s): starting from the beginning", self.path, e)
            return None

    def save(self, arrays: Callable[[], dict[str, np.ndarray]], *, force: bool = False) -> None:
        """Store what `arrays` returns, unless the last write was less than `interval_s` ago."""
        if not force and time.monotonic() - self._last < self.interval_s:
            return
        named: dict[str, Any] = arrays()
        with atomic_path(self.path) as tmp:
            np.savez(tmp, **named)
        self._last = time.monotonic()
