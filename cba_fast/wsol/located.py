"""The maps of a batch: on their device, on their way to the host, and there."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.transfer import Arriving
from ..errors import InputError
from .heatmap import normalize, score_levels


@dataclass
class Localization:
    """The maps of a batch and what the classifier said.

    Attributes:
        maps: (N, S, S) float64 NumPy array in [0, 1], as ``generate-heatmap`` stores them.
        constant: (N,) bool, which maps came out constant and were replaced by zeros.
        targets: (N,) int64, the class each map explains.
        top5: (N, min(5, classes)) int64, the predicted classes, best first.
    """

    maps: np.ndarray
    constant: np.ndarray
    targets: np.ndarray
    top5: np.ndarray


@dataclass
class Levels:
    """A `Localization` with bytes in place of maps.

    Attributes:
        u: (N, S, S) uint8.
        constant, targets, top5: as of `Localization`.
    """

    u: np.ndarray
    constant: np.ndarray
    targets: np.ndarray
    top5: np.ndarray

    def localization(self) -> Localization:
        """Return the maps of bytes that are not `scored`."""
        maps = normalize(torch.from_numpy(self.u)).numpy()
        return Localization(maps, self.constant, self.targets, self.top5)


@dataclass
class Located:
    """A batch on its device; the host has waited for nothing and checked nothing yet.

    Attributes:
        u: (N, S, S) uint8, quantized maps.
        facts: (N, 4 + K) int64: whether the features and the small map are finite, whether the map
            is constant, the target, the K best classes. One tensor, as each copy has its price.
        num_classes: of the model.
    """

    u: Tensor
    facts: Tensor
    num_classes: int

    def check(self, facts: np.ndarray) -> None:
        """Refuse what `facts`, on the host, tell.

        Raises:
            InputError: features that are not finite.
            ValueError: a target that the model does not have, or a map that is not finite.
        """
        finite, finite_maps, _, targets = facts.T[:4]
        if not finite.all():
            n = int(np.argmin(finite))
            raise InputError(
                f"the feature maps of image {n} of the batch hold NaN or infinite values"
            )
        bad = targets[(targets < 0) | (targets >= self.num_classes)]
        if len(bad):
            raise ValueError(f"target {bad[0]} is outside the model's {self.num_classes} classes")
        if not finite_maps.all():
            n = int(np.argmin(finite_maps))
            raise ValueError(f"maps[{n}] holds NaN or infinite values")

    def send(self, scored: bool = False) -> Callable[[], Levels]:
        """Send the batch to the host; the host goes on.

        Args:
            scored: send the bytes that the evaluator scores (`score_levels`) instead of those of
                which maps are made.

        Returns:
            A function that waits for the batch and returns it, in any thread. It raises what
            :meth:`check` does.
        """
        arriving = Arriving(score_levels(self.u) if scored else self.u, self.facts)

        def read() -> Levels:
            u, facts = arriving.wait()
            facts = facts.copy()  # who keeps a class of it need not keep pinned memory
            self.check(facts)
            return Levels(u, facts[:, 2].astype(bool), facts[:, 3], facts[:, 4:])

        return read
