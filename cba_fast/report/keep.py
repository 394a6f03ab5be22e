"""Keeps the maps that a run makes until its report is written."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .. import files


class MapKeeper:
    """Writes maps into a folder beside a report, which is removed at the end of the ``with`` block.

    It stands beside the evaluators of `cba_fast.runs.evaluate.evaluate`.

    Args:
        output: the report's file.
    """

    def __init__(self, output: Path):
        self._maps = output.with_name(f"{output.name}.maps")

    def __enter__(self) -> "MapKeeper":
        files.remove_leftovers([self._maps])
        self.root = files.temporary_path(self._maps)
        self.root.mkdir(parents=True)
        return self

    def __exit__(self, *exception) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def update(self, scoremaps: Tensor | np.ndarray, image_ids: Sequence[str]) -> None:
        """Keep the maps (N, H, W) of a batch under the ids of their images."""
        for image_id, scoremap in zip(image_ids, np.asarray(scoremaps), strict=True):
            files.write_npy(self.root / f"{image_id}.npy", scoremap, durable=False)
