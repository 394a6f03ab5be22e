"""The maps of a batch: on their device, on their way to the host, and there."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.transfer import Arriving
from ..errors import InputError
from ..short import Short
from .heatmap import normalize, score_levels

NOT_FINITE = "its features, logits or map hold NaN or infinite values"


@dataclass(repr=False)
class Localization(Short):
    """The maps of a batch and what the classifier said.

    Attributes:
        maps: (N, H, W) float64 NumPy array in [0, 1], as ``generate-heatmap`` stores them.
        constant: (N,) bool, which maps came out constant and were replaced by zeros.
        targets: (N,) int64, the class each map explains.
        top5: (N, min(5, classes)) int64, the predicted classes, best first.
    """

    maps: np.ndarray
    constant: np.ndarray
    targets: np.ndarray
    top5: np.ndarray


@dataclass(repr=False)
class Levels(Short):
    """A `Localization` with bytes in place of maps.

    Attributes:
        u: (N, H, W) uint8.
        constant, targets, top5: as of `Localization`.
        rows: (N,) int64, the positions in the batch; some are left out where a run goes on without
            the images that have no map.
    """

    u: np.ndarray
    constant: np.ndarray
    targets: np.ndarray
    top5: np.ndarray
    rows: np.ndarray

    def localization(self) -> Localization:
        """Return the maps of bytes that are not `scored`."""
        maps = normalize(torch.from_numpy(self.u)).numpy()
        return Localization(maps, self.constant, self.targets, self.top5)


@dataclass(repr=False)
class Located(Short):
    """A batch on its device; the host has waited for nothing and checked nothing yet.

    Attributes:
        u: (N, H, W) uint8, quantized maps.
        facts: (N, 3 + K) int64: whether features, small map and logits are finite, whether the map
            is constant, the target, the K best classes. One tensor, as each copy has its price.
        num_classes: of the model.
    """

    u: Tensor
    facts: Tensor
    num_classes: int

    def check(
        self, facts: np.ndarray, fail: Callable[[int, str], None] | None = None
    ) -> np.ndarray:
        """Return the rows (n,) int64 of the images that have a map, by `facts` on the host.

        Args:
            facts: the facts.
            fail: called with the row of each other image and the reason; None raises for the first.

        Raises:
            ValueError: a target that the model does not have.
            InputError: an image without a map, if `fail` is None.
        """
        finite, _, targets = facts.T[:3]
        for row in np.flatnonzero(finite == 0).tolist():
            if fail is None:
                raise InputError(f"image {row} of the batch: {NOT_FINITE}")
            fail(row, NOT_FINITE)
        bad = targets[(targets < 0) | (targets >= self.num_classes)]
        if len(bad):
            raise ValueError(f"target {bad[0]} is outside the model's {self.num_classes} classes")
        return np.flatnonzero(finite)

    def send(self, scored: bool = False) -> Callable[..., Levels]:
        """Send the batch to the host; the host goes on.

        Args:
            scored: send the bytes that the evaluator scores (`score_levels`) instead of those of
                which maps are made.

        Returns:
            A function that waits for the batch and returns the images that have a map, in any
            thread. Its argument `fail` and what it raises are those of :meth:`check`.
        """
        arriving = Arriving(score_levels(self.u) if scored else self.u, self.facts)

        def read(fail: Callable[[int, str], None] | None = None) -> Levels:
            u, facts = arriving.wait()
            rows = self.check(facts, fail)
            u = u if len(rows) == len(u) else u[rows]
            facts = facts[rows]  # a copy: who keeps a class of it need not keep pinned memory
            return Levels(u, facts[:, 1].astype(bool), facts[:, 2], facts[:, 3:], rows)

        return read
