"""Walk through a data set in batches: unreadable images set aside, killed runs continued."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from cba_fast.erf.gradients import finite_images
from cba_fast.erf.partial import Partial
from cba_fast.errors import ImageError

State = dict[str, Tensor]


@dataclass
class Report:
    """The images of a run that gave no value, or were not whole.

    Attributes:
        failed: (data set index, reason) of each image without a value, in the run's order.
        truncated: data set indices of images that were decoded as far as they go.
        strict: raise at the first failed image instead of noting it.
        name: gives the image's name in the message of a strict run.
    """

    failed: list[tuple[int, str]] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    strict: bool = False
    name: Callable[[int], str] = str

    def fail(self, index: int, reason: str) -> None:
        """Note that the image gave no value; raises `ImageError` in a strict run."""
        if self.strict:
            raise ImageError(f"{self.name(index)}: {reason}")
        self.failed.append((index, reason))

    def finite(self, grad: Tensor, indices: Sequence[int]) -> list[int]:
        """Return which images of a batch have a finite gradient (N,C,H,W); note the others."""
        good = []
        for i, (index, ok) in enumerate(zip(indices, finite_images(grad).tolist(), strict=True)):
            if ok:
                good.append(i)
            else:
                self.fail(index, "its input gradient is not finite")
        return good

    def dumps(self) -> str:
        """Return the report as JSON, for :meth:`loads`."""
        return json.dumps({"failed": self.failed, "truncated": self.truncated})

    def loads(self, text: str) -> None:
        """Take over the report that :meth:`dumps` made of an earlier part of the run."""
        stored = json.loads(text)
        self.failed = [(index, reason) for index, reason in stored["failed"]]
        self.truncated = stored["truncated"]


@dataclass
class Walk:
    """How a run reads its images.

    Attributes:
        dataset: items are dicts with ``image`` (3,H,W), ``truncated`` (bool) and ``error`` ("", or
            the reason why the image cannot be read), as :class:`cba_fast.data.ImageDataset` gives.
        indices: which of them to visit, in order.
        batch_size: images per step. Batches are cut before unreadable images are set aside, so that
            a continued run sees the batches of an uninterrupted one.
        num_workers: processes that read images; 0 reads in this one.
        device: where the images go.
        memory_format: of the image batches.
        partial: keeps the finished part and is read at the start. Its removal, after the result is
            written, is the caller's part. None keeps nothing.
        progress: called with the iterable of steps and how many are expected, returns an iterable.
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
        """Return the state after the last image, or after the first step that satisfies `until`.

        Args:
            step: (state, images (N,3,H,W), their N data set indices) -> the next state. It must not
                change the old one, which is kept if the run dies meanwhile. Skipped where no image
                of a batch is readable.
            state: the first state.
            until: whether to stop early.
            expected: how many images a run that stops early will visit, for `progress`.

        Raises:
            ImageError: a failed image in a strict run.
        """
        position, state = self._resume(state)
        self.resumed = position
        kept = self._snapshot(position, state)
        if until(state):
            return state
        left = min(len(self.indices), expected or len(self.indices)) - position
        steps = -(-max(left, 0) // self.batch_size)
        try:
            for images, indices, visited in self.progress(self._batches(position), steps):
                if images is not None:
                    state = step(state, images, indices)
                kept = self._snapshot(visited, state)
                if self.partial:
                    self.partial.save(kept)
                if until(state):
                    break
        except BaseException:
            if self.partial:
                self.partial.save(kept, force=True)
            raise
        return state

    def _resume(self, state: State) -> tuple[int, State]:
        stored = self.partial.load() if self.partial else None
        if stored is None:
            return 0, state
        self.report.loads(str(stored["report"]))
        resumed = {k: torch.from_numpy(stored[k]).to(v.device) for k, v in state.items()}
        return int(stored["position"]), resumed

    def _snapshot(self, position: int, state: State) -> Callable[[], dict[str, np.ndarray]]:
        # Called only when written: a map on a GPU is then not copied at every step.
        report = self.report.dumps()

        def arrays() -> dict[str, np.ndarray]:
            numbers = {k: v.cpu().numpy() for k, v in state.items()}
            return {**numbers, "position": np.array(position), "report": np.array(report)}

        return arrays

    def _batches(self, start: int) -> Iterator[tuple[Tensor | None, list[int], int]]:
        todo = [int(i) for i in self.indices[start:]]
        loader = DataLoader(
            Subset(self.dataset, todo),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=list,
        )
        done = 0
        for items in loader:
            images, indices = [], []
            for index, item in zip(todo[done : done + len(items)], items, strict=True):
                if item["error"]:
                    self.report.fail(index, item["error"])
                    continue
                if item["truncated"]:
                    self.report.truncated.append(index)
                images.append(item["image"])
                indices.append(index)
            done += len(items)
            batch = None
            if images:
                batch = torch.stack(images).to(self.device, memory_format=self.memory_format)
            yield batch, indices, start + done
