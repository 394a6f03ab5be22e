"""Go through a data set in batches, set unusable images aside, and continue killed runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.reading import ImageBatch, Report, cut, read_batches
from ..short import Short
from ..stages import stage
from .gradients import finite_images
from .partial import Partial

State = dict[str, Tensor]


def with_finite_gradient(report: Report, grad: Tensor, indices: Sequence[int]) -> list[int]:
    """Return the positions in a batch of images with a finite gradient; report the others.

    This waits once for a gradient on a GPU.

    Args:
        report: gets the images without a finite gradient.
        grad: (N,C,H,W).
        indices: the N data set indices.
    """
    good = []
    for i, (index, ok) in enumerate(zip(indices, finite_images(grad).tolist(), strict=True)):
        if ok:
            good.append(i)
        else:
            report.fail(index, "its input gradient is not finite")
    return good


@dataclass(repr=False)
class Walk(Short):
    """A run over the images of a data set, which can be continued after it was killed.

    Attributes:
        dataset: its items are dicts with ``image`` (3,H,W), ``truncated`` (bool) and ``error`` ("",
            or why the image cannot be read), as :class:`cba_fast.data.ImageDataset` gives them.
        indices: the items to visit, in order.
        batch_size: images per step. Batches are cut before unreadable images are set aside and
            before those that an earlier part of the run has visited, so that a continued run sees
            the batches of an uninterrupted one.
        num_workers: processes that read images; 0 reads in this process.
        device: where the images go.
        memory_format: memory format of the image batches.
        partial: keeps the finished part, from which a run continues; None keeps nothing. The caller
            removes it after the result is written.
        progress: called with the iterable of steps and their expected number, returns an iterable.
        report: gets the failed and truncated images.
        resumed: how many images an earlier part of the run had visited (set by :meth:`run`).
    """

    dataset: Dataset
    indices: Sequence[int]
    batch_size: int = 1
    num_workers: int = 0
    device: str | torch.device = "cpu"
    memory_format: torch.memory_format = torch.contiguous_format
    partial: Partial | None = None
    progress: Callable[[Iterable, int], Iterable] = lambda steps, count: steps
    report: Report = field(default_factory=Report)
    resumed: int = field(default=0, init=False)

    def run(
        self,
        step: Callable[[State, Tensor, list[int]], State],
        state: State,
        *,
        until: Callable[[State], bool] = lambda state: False,
        expected: int | None = None,
    ) -> State:
        """Apply `step` to one batch after the other and return the last state.

        Args:
            step: function (state, images (N,3,H,W), their N data set indices) -> next state. It
                must not change the old state, which is saved if the run is interrupted. A batch
                without a readable image is skipped.
            state: the first state.
            until: function that tells by the state whether to stop early.
            expected: how many images a run that stops early will visit, for `progress`.

        Raises:
            ImageError: a failed image in a strict run.
        """
        visited, state = self._resume(state)
        self.resumed = len(visited)
        kept = self._snapshot(visited, state)
        if until(state):
            return state
        todo = left_of(cut(self.indices, self.batch_size), visited)
        steps = len(todo)
        if expected is not None:
            steps = min(steps, -(-max(expected - len(visited), 0) // self.batch_size))
        try:
            for batch in self.progress(self._read(todo), steps):
                if batch.images is not None:
                    with stage("model"):
                        state = step(state, batch.images, batch.indices)
                visited += map(int, todo[batch.number])
                kept = self._snapshot(visited, state)
                if self.partial:
                    with stage("write"):
                        self.partial.save(kept)
                if until(state):
                    break
        except BaseException:
            if self.partial:
                self.partial.save(kept, force=True)
            raise
        return state

    def _resume(self, state: State) -> tuple[list[int], State]:
        stored = self.partial.load() if self.partial else None
        if stored is None:
            return [], state
        self.report.loads(str(stored["report"]))
        resumed = {k: torch.from_numpy(stored[k]).to(v.device) for k, v in state.items()}
        return stored["visited"].tolist(), resumed

    def _snapshot(self, visited: list[int], state: State) -> Callable[[], dict[str, np.ndarray]]:
        # The arrays are made only when they are written, so that a map on a GPU is not copied at
        # every step. `visited` will have grown by then.
        report, count = self.report.dumps(), len(visited)

        def arrays() -> dict[str, np.ndarray]:
            numbers = {k: v.cpu().numpy() for k, v in state.items()}
            seen = np.array(visited[:count], dtype=np.int64)
            return {**numbers, "visited": seen, "report": np.array(report)}

        return arrays

    def _read(self, batches: Sequence[Sequence[int]]) -> Iterator[ImageBatch]:
        return read_batches(
            self.dataset,
            batches,
            self.report,
            num_workers=self.num_workers,
            device=self.device,
            memory_format=self.memory_format,
        )


def left_of(batches: Sequence[Sequence[int]], visited: Iterable[int]) -> list[Sequence[int]]:
    """Return the batches that hold an image outside of `visited`, in order."""
    known = set(visited)
    return [batch for batch in batches if not known.issuperset(map(int, batch))]
