"""The maps of a batch at three stages: on their device, as bytes on the host, as floats there."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..short import Short
from .heatmap import normalize, score_levels

NOT_FINITE = "its features, logits or map hold NaN or infinite values"


@dataclass(repr=False)
class Localization(Short):
    """The score maps of a batch and what the classifier predicted.

    Attributes:
        maps: (N, H, W) float64 NumPy array in [0, 1], as ``generate-heatmap`` stores them.
        constant: (N,) bool, which maps were constant and became zeros.
        targets: (N,) int64, the class each map explains.
        top5: (N, min(5, classes)) int64, the predicted classes, best first.
    """

    maps: np.ndarray
    constant: np.ndarray
    targets: np.ndarray
    top5: np.ndarray


@dataclass(repr=False)
class HostMaps(Short):
    """The checked maps of a batch as bytes on the host.

    Attributes:
        u: (N, H, W) uint8.
        constant, targets, top5: see `Localization`.
        rows: (N,) int64, positions in the batch. Images without a map are left out.
    """

    u: np.ndarray
    constant: np.ndarray
    targets: np.ndarray
    top5: np.ndarray
    rows: np.ndarray

    def localization(self) -> Localization:
        """Return the score maps, normalized from `u`; not for bytes that were sent as `scored`."""
        maps = normalize(torch.from_numpy(self.u)).numpy()
        return Localization(maps, self.constant, self.targets, self.top5)


@dataclass(repr=False)
class DeviceMaps(Short):
    """The quantized maps of a batch on their device, not checked and perhaps not computed yet.

    Attributes:
        u: (N, H, W) uint8, quantized maps.
        facts: (N, 3 + K) int64: whether features, small map and logits are finite, whether the map
            is constant, the target, and the K best classes. They are one tensor, because each copy
            to the host takes time.
        num_classes: number of classes of the model.
    """

    u: Tensor
    facts: Tensor
    num_classes: int

    def check(
        self, facts: np.ndarray, fail: Callable[[int, str], None] | None = None
    ) -> np.ndarray:
        """Return the rows of the images that have a map, (n,) int64.

        Args:
            facts: `self.facts` on the host.
            fail: called with the row of each image without a map and the reason; None to raise an
                error for the first such image.

        Raises:
            ValueError: the model does not have a target.
            InputError: an image has no map, and `fail` is None.
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

    def send(self, scored: bool = False) -> Callable[..., HostMaps]:
        """Start copying the batch to the host, without waiting for the copy.

        Args:
            scored: send the bytes that the evaluator scores (`score_levels`) instead of `u`.

        Returns:
            A function that waits for the copy, in any thread, and returns the images that have a
            map. Its argument `fail` and its errors are those of :meth:`check`.
        """
        copy = HostCopy(score_levels(self.u) if scored else self.u, self.facts)

        def wait(fail: Callable[[int, str], None] | None = None) -> HostMaps:
            u, facts = copy.wait()
            rows = self.check(facts, fail)
            u = u if len(rows) == len(u) else u[rows]
            facts = facts[rows]  # a copy, so that keeping its columns does not keep pinned memory
            return HostMaps(u, facts[:, 1].astype(bool), facts[:, 2], facts[:, 3:], rows)

        return wait


class HostCopy:
    """A copy of tensors to the host that is under way.

    Copies from a GPU into pinned memory are queued behind the work of the current stream, and the
    host goes on. :meth:`wait` may be called from another thread.

    Args:
        tensors: the tensors, all on one device.
    """

    def __init__(self, *tensors: Tensor):
        self._arrived = None
        device = tensors[0].device
        if device.type != "cuda":
            self._tensors = [t.cpu() for t in tensors]
            return
        self._tensors = [
            torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
            for t in tensors
        ]
        # A blocking event lets the waiting thread sleep; any other keeps a core busy meanwhile.
        event = torch.cuda.Event(blocking=True)
        self._arrived = torch.cuda.current_stream(device).record_event(event)

    def wait(self) -> list[np.ndarray]:
        """Wait until the copies are complete and return them as arrays."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [t.numpy() for t in self._tensors]
