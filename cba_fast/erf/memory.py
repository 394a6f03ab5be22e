"""How much memory there is, and whether activations must be recomputed to stay within it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from ..choices import Checkpoint
from .recompute import LEVELS, kept_bytes

CHECKPOINTS = get_args(Checkpoint)

# Beside what autograd keeps there are the weights of other processes' models, results of single
# layers (up to a few tens of MiB per image) and images read ahead.
SHARE_OF_FREE = 0.5


def choose_checkpoint(
    model: nn.Module,
    shape: tuple[int, ...],
    *,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    run: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> str:
    """Return the first of ``none``, ``block``, ``stage`` whose activations fit into the memory.

    Recomputing costs a forward pass, about a third of the time, so it is for want of memory only.
    Where nothing fits, the level that keeps least is returned.

    Args:
        model: see :func:`cba_fast.erf.kept_bytes`, also for `shape` and `run`.
        device: whose memory counts.
        limit: bytes that activations may take; None: half of what is free now.

    Returns:
        One of `LEVELS`; ``none`` for models without blocks that are known here.
    """
    if limit is None:
        free = free_bytes(device)
        if free is None:
            return "none"
        limit = int(SHARE_OF_FREE * free)
    needed: dict[str, int] = {}
    for level in LEVELS:
        try:
            needed[level] = kept_bytes(model, shape, level, run=run)
        except ValueError:
            continue
        if needed[level] <= limit:
            return level
    return min(needed, key=needed.__getitem__)


def free_bytes(device: torch.device | str = "cpu") -> int | None:
    """Return the memory that can be had on a device now; None where the system does not tell.

    On CPUs what Linux says is available, or less within a control group with a limit; on GPUs what
    is free plus what PyTorch holds without using it.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [_available(), *_group_limits()]
    known = [n for n in found if n is not None]
    return min(known) if known else None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return _physical()
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _physical()


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


# Limit, usage and statistics of a control group as a container sees its own; versions 2 and 1.
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def _group_limits() -> list[int]:
    """Return what is left below the limit of this process's control group, if it has one.

    Pages of files count as used in a group, but are given up on demand: they count as free here.
    """
    left = []
    for folder, limit_name, usage_name in _GROUPS:
        try:
            limit = (Path(folder) / limit_name).read_text().strip()
            usage = int((Path(folder) / usage_name).read_text())
            stat = dict(
                line.split() for line in (Path(folder) / "memory.stat").read_text().splitlines()
            )
        except (OSError, ValueError):
            continue
        if limit.isdecimal():
            files = int(stat.get("inactive_file", 0))
            left.append(max(0, int(limit) - usage + files))
    return left
