"""Keep the finished part of a long run beside its output until the run ends."""

import logging
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data.reading import Report
from ..files import atomic_path, open_regular
from ..npy import NPY_ERRORS
from ..resume import partial_path, parts_of_ranks

log = logging.getLogger("cba_fast")


class Partial:
    """The arrays of a run that has not ended, in a file beside its output.

    A run that is started again goes on from them. Its remaining steps are the same, so it ends
    with the file of an uninterrupted run. The record beside `output` says which run the arrays
    belong to; see `cba_fast.resume`.

    Args:
        output: the file that the run will write; the arrays are in ``.<name>.partial.npz`` beside
            it, those of the further processes of a run in ``.<name>.partial.rank<n>.npz``.
        rank: number of this process among those of the run.
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

    def __init__(self, output: str | os.PathLike, rank: int = 0, *, interval_s: float = 5.0):
        self.output, self.path = output, partial_path(output, rank)
        self.interval_s = interval_s
        self._last = time.monotonic()

    def load(self) -> dict[str, np.ndarray] | None:
        """Return the stored arrays; None if there are none or, with a warning, if damaged."""
        return self._read(self.path)

    def gather(self) -> dict[str, np.ndarray] | None:
        """Take over what further processes of an earlier run left; return :meth:`load` with it.

        Only the first process of a run may do so, before any of the others stores a part.
        """
        arrays, parts = self.load(), parts_of_ranks(self.output)
        for part in filter(None, map(self._read, parts)):
            arrays = part if arrays is None else _joined(arrays, part)
        if parts:
            if arrays is not None:
                self.save(lambda: arrays, force=True)
            for path in parts:
                path.unlink()
        return arrays

    def _read(self, path: Path) -> dict[str, np.ndarray] | None:
        if not path.exists():
            return None
        try:
            with open_regular(path) as f, np.load(f, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (*NPY_ERRORS, zipfile.BadZipFile) as e:
            log.warning("%s cannot be read (%s): starting from the beginning", path, e)
            return None

    def save(self, arrays: Callable[[], dict[str, np.ndarray]], *, force: bool = False) -> None:
        """Store what `arrays` returns, unless the last write was less than `interval_s` ago."""
        if not force and time.monotonic() - self._last < self.interval_s:
            return
        named: dict[str, Any] = arrays()
        with atomic_path(self.path) as tmp:
            np.savez(tmp, **named)
        self._last = time.monotonic()


def _joined(first: dict[str, np.ndarray], then: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of two processes as one, row by row.

    A run that was killed while it joined them has joined some already: a process visits whole
    batches that no other one visits, so its first image tells.
    """
    if not len(then["visited"]) or then["visited"][0] in first["visited"]:
        return first
    report = Report()
    report.loads(str(first["report"]), str(then["report"]))
    rows = {k: np.concatenate([v, then[k]]) for k, v in first.items() if k != "report"}
    return {**rows, "report": np.array(report.dumps())}
