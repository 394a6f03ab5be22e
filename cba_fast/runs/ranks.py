"""The processes that ``torchrun`` starts for one run, and how they share its batches.

Every process cuts the images into the same batches and computes each N-th of them. What the
processes found is merged in the order of the images. So the number of processes changes neither the
images of a batch, on which the last bits of a map can depend, nor what is written.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import ClassVar, TypeVar

import torch
from torch import distributed

from ..data.reading import Report
from ..errors import CbaError

Value = TypeVar("Value")

# A process may wait for one that has more work; `torchrun` ends all of them when one has died.
_PATIENCE = timedelta(days=7)


class RankError(CbaError):
    """Another process of the run has ended early, so that the run cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """One of the `count` processes of a run, number `rank` from 0; by default the only one."""

    rank: int = 0
    count: int = 1

    # Whether `share` returns what all processes found. Without it no score can be computed.
    whole: ClassVar[bool] = True

    @property
    def alone(self) -> bool:
        """Whether this process computes the whole run."""
        return self.count == 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes what belongs to the whole run."""
        return self.rank == 0

    def mine(self, batches: Sequence[Value]) -> Sequence[Value]:
        """Return the batches that this process computes: every `count`-th, in order."""
        return batches[self.rank :: self.count]

    def share(self, value: Value) -> list[Value]:
        """Wait for all processes; return the values that they gave, by rank.

        Raises:
            RankError: a process has ended before it came here; the message has its rank.
        """
        values = [value, *[None] * (self.count - 1)]
        if self.leads:
            for rank in range(1, self.count):
                with _reaching(rank):
                    received = [None]
                    distributed.recv_object_list(received, rank)
                    values[rank] = received[0]
        else:
            with _reaching(0):
                distributed.send_object_list([value], 0)
        if self.count > 1:
            with _reaching(0):
                distributed.broadcast_object_list(values, 0)
        return values

    def merged(self, report: Report) -> Report:
        """Wait for all processes; return their reports as one, in the order of the images."""
        found = replace(report)
        found.loads(*self.share(report.dumps()))
        found.failed.sort()
        found.truncated.sort()
        return found


ALONE = Ranks()


@contextmanager
def _reaching(rank: int) -> Iterator[None]:
    """Name the process with which the block speaks, where that fails."""
    try:
        yield
    except RuntimeError as e:
        raise RankError(f"rank {rank} of this run has ended early") from e


def join() -> Ranks:
    """Return this process's place among those of ``torchrun``, each with its own GPU if it has one.

    The results travel through the hosts' memory (gloo), so that no GPU takes part in it.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local % torch.cuda.device_count())
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    return Ranks(distributed.get_rank(), count)
