"""The processes that ``torchrun`` starts for one run, and how they share its batches.

Every process cuts the images into the same batches and computes each N-th of them. What the
processes found is merged in the order of the images. So the number of processes changes neither the
images of a batch, on which the last bits of a map can depend, nor what is written.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from .. import __version__, process
from ..data import ImageRecord
from ..data.reading import Report
from ..errors import CbaError, InputError
from ..resume import OtherRunError, file_fingerprint, values_fingerprint

Value = TypeVar("Value")

# A process may wait for one that has more work; `torchrun` ends all of them when one has died.
_PATIENCE = timedelta(days=7)
_LOOK_S = 0.05  # seconds between two looks whether all processes are there


class Checked(Protocol):
    """Outputs of a run, such as `cba_fast.resume.Outputs`, which can be those of another one."""

    def check(self) -> object: ...


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

    @property
    def restarted(self) -> bool:
        """Whether torchrun has started these processes again, after one of them had died."""
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    def anew(self, overwrite: bool, outputs: Iterable[Checked]) -> bool:
        """Say whether a run starts anew: as asked, but not in what it wrote before a restart."""
        if overwrite and self.restarted:
            with suppress(OtherRunError):
                for each in outputs:
                    each.check()
                return False
        return overwrite

    @property
    def here(self) -> int:
        """How many of the processes are on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.count > 1 else 1

    def mine(self, batches: Sequence[Value]) -> Sequence[Value]:
        """Return the batches that this process computes: every `count`-th, in order."""
        return batches[self.rank :: self.count]

    def share(self, value: Value) -> list[Value]:
        """Wait for all processes; return the values that they gave, by rank.

        Raises:
            RankError: a process has ended before it came here; the message has its rank.
        """
        values: list = [value, *[None] * (self.count - 1)]
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

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Wait for all processes; return to each what `make` returns in the first, called there."""
        values: list = self.share(make() if self.leads else None)
        return values[0]

    def agree(self, records: Sequence[ImageRecord], weights: Path | None = None) -> None:
        """Wait for all processes; refuse a run whose images, weights or versions differ in one.

        A folder that is missing or stale on one machine would be cut into other batches there, so
        that some images would be computed twice and others by nobody.

        Args:
            records: the images of the run.
            weights: the file of the weights, if there is one.

        Raises:
            InputError: the message names the first process that differs, and its machine.
        """
        if self.alone:
            return
        listed = [(r.image_id, r.label) for r in records]
        known = file_fingerprint(weights)
        seen = {
            f"the versions {_versions()}": "",
            f"the {len(listed)} images": values_fingerprint(listed)["sha256"],
            f"the weights {weights}": known and known["sha256"],
        }
        place = f"on {socket.gethostname()}"
        for number, (where, theirs) in enumerate(self.share((place, seen)), 1):
            for (here, own), (there, other) in zip(seen.items(), theirs.items(), strict=True):
                if (here, own) != (there, other):
                    raise InputError(
                        f"{there} of process {number} of {self.count} ({where}) are not {here} of "
                        f"this one ({place}): all must be the same"
                    )

    def counts(self, own: int) -> list[int]:
        """Wait for all processes; return the numbers that they gave, by rank.

        This is :meth:`share` for every step of a training run, without its pickling.
        """
        numbers = torch.full((self.count,), own)
        for rank in range(1, self.count) if self.leads else ():
            with _reaching(rank):
                distributed.recv(numbers[rank : rank + 1], rank)
        if not self.leads:
            with _reaching(0):
                distributed.send(numbers[:1], 0)
        if self.count > 1:
            with _reaching(0):
                distributed.broadcast(numbers, 0)
        return numbers.tolist()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Say of an error in the block whether it is the end of another process.

        Raises:
            RankError: a process has ended while all computed together; which, only torchrun sees.
        """
        try:
            yield
        except RuntimeError as e:
            if self.count == 1 or not (isinstance(e, distributed.DistError) or "gloo" in str(e)):
                raise
            raise RankError(
                "another process of this run has ended early; torchrun tells below which one"
            ) from e

    def merged(self, report: Report) -> Report:
        """Wait for all processes; return their reports as one, in the order of the images."""
        found = replace(report)
        found.loads(*self.share(report.dumps()))
        found.failed.sort()
        found.truncated.sort()
        return found


ALONE = Ranks()


def _versions() -> str:
    return f"cba_fast {__version__}, PyTorch {torch.__version__}"


@contextmanager
def _reaching(rank: int) -> Iterator[None]:
    """Name the process with which the block speaks, where that fails."""
    try:
        yield
    except RuntimeError as e:
        raise RankError(f"rank {rank} of this run has ended early") from e


def join(*, gradients: bool = False) -> Ranks:
    """Return this process's place among those of ``torchrun``, each with its own GPU if it has one.

    Results travel through the hosts' memory (gloo), so that no GPU takes part in it.

    Args:
        gradients: let tensors on GPUs travel between these (NCCL), for training.
    """
    if process.started()[1] == 1:
        return ALONE
    backend, gpus = "gloo", torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % gpus)
        # NCCL refuses two processes on one GPU.
        shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > gpus
        if gradients and distributed.is_nccl_available() and not shared:
            backend = "cpu:gloo,cuda:nccl"
    store, rank, count = next(rendezvous("env://", timeout=_PATIENCE))
    store = distributed.PrefixStore(_meet(store, rank, count), store)
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE
    )
    return Ranks(rank, count)


def _meet(store: distributed.Store, rank: int, count: int) -> str:
    """Return a name that only the processes of one start have in common.

    Processes that torchrun has started again share a store with the dead ones and would wait for
    the addresses that those have left there (PyTorch 2.14). So the first process draws a name, and
    goes ahead with it when all others have answered to it. A name that a process of this rank has
    answered to before is an old one.
    """
    if rank == 0:
        name = uuid.uuid4().hex
        store.set("cba", name)
        store.wait([f"{name}/{other}" for other in range(1, count)], _PATIENCE)
        store.set(f"{name}/all", "")
        return name
    answered: dict[str, bool] = {}
    while True:
        name = store.get("cba").decode()
        if name not in answered:
            answered[name] = store.add(f"{name}/{rank}", 1) == 1
        if answered[name] and store.check([f"{name}/all"]):
            return name
        time.sleep(_LOOK_S)


def leave() -> None:
    """End what :func:`join` began, where a run ends well; NCCL warns without it."""
    if distributed.is_available() and distributed.is_initialized():
        # PyTorch 2.6 waits here for gloo's threads, and holds Python's lock, for which a thread
        # waits that still has to drop a tensor.
        time.sleep(_LOOK_S)
        distributed.destroy_process_group()
