"""The processes that ``torchrun`` starts for one run, and how they share its batches.

Every process cuts the images into the same batches and computes each N-th of them. What the
processes found is merged in the order of the images. So the number of processes changes neither the
images of a batch, on which the last bits of a map can depend, nor what is written.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from ..errors import CbaError

Value = TypeVar("Value")

# A process may wait for one that has more work; `torchrun` ends all of them when one has died.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """One of the `count` processes of a run, number `rank` from 0; by default the only one."""

    rank: int = 0
    count: int = 1

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
            CbaError: a process has ended before it came here; the message has its rank where it is
                known.
        """
        if self.count == 1:
            return [value]
        values = [None] * self.count
        try:
            distributed.monitored_barrier(timeout=_PATIENCE)
            distributed.all_gather_object(values, value)
        except RuntimeError as e:
            raise CbaError(f"a process of this run has ended: {str(e).splitlines()[0]}") from e
        return values


ALONE = Ranks()


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
