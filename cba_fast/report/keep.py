"""Keeps the maps that a run makes, for its report."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .. import files


class MapWriter:
    """Writes maps as files, beside the evaluators of `cba_fast.runs.evaluate.evaluate`.

    Args:
        root: the folder, in which the maps lie under the ids of their images.
    """

    def __init__(self, root: Path):
        self.root = root

    def update(self, scoremaps: Tensor | np.ndarray, image_ids: Sequence[str]) -> None:
        """Keep the maps (N, H, W) of a batch under the ids of their images."""
        for image_id, scoremap in zip(image_ids, np.asarray(scoremaps), strict=True):
            files.write_npy(self.root / f"{image_id}.npy", scoremap, durable=False)


class MapKeeper(MapWriter):
    """Writes maps into a folder beside a report, which is removed at the end of the ``with`` block.

    Args:
        output: the report's file.

    Example:
        >>> import torch
        >>> from cba_fast.report import MapKeeper
        >>> with MapKeeper("report.html") as keeper:
        ...     keeper.update(torch.rand(2, 8, 8), ["a/1.jpg", "a/2.jpg"])
        ...     print(sorted(p.name for p in keeper.root.rglob("*.npy")))
        ['1.jpg.npy', '2.jpg.npy']
        >>> keeper.root.exists()
        False
    """

    def __init__(self, output: str | os.PathLike):
        output = Path(output)
        self._maps = output.with_name(f"{output.name}.maps")

    def __enter__(self) -> "MapKeeper":
        files.remove_leftovers([self._maps])
        super().__init__(files.temporary_path(self._maps))
        self.root.mkdir(parents=True)
        return self

    def __exit__(self, *exception) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
