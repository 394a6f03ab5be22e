"""Find out how much memory is free, and whether activations must be recomputed to fit into it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from ..choices import Checkpoint
from .recompute import LEVELS, kept_bytes, parts_of

CHECKPOINTS = get_args(Checkpoint)

# What autograd keeps may take this share of the free memory. The rest is for results of single
# layers (up to a few tens of MiB per image), images read ahead, and other processes.
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

    Recomputing costs one more forward pass, about a third of the time, so it is done only if memory
    is short. If nothing fits, the level that keeps least is returned.

    Args:
        model, shape, run: see :func:`cba_fast.erf.kept_bytes`.
        device: the device whose memory counts.
        limit: most bytes that activations may take; None for half of what is free now.

    Returns:
        One of `LEVELS`; ``none`` for models without blocks that are known here.

    Example:
        >>> import timm
        >>> from cba_fast.erf import choose_checkpoint
        >>> model = timm.create_model("test_convnext", num_classes=10)
        >>> choose_checkpoint(model, (8, 3, 64, 64), limit=2**30)
        'none'
    """
    try:
        parts_of(model, "block")
    except ValueError:  # nothing could be recomputed, so nothing needs to be estimated
        return "none"
    if limit is None:
        free = free_bytes(device)
        if free is None:
            return "none"
        limit = int(SHARE_OF_FREE * free)
    needed: dict[str, int] = {}
    for level in LEVELS:
        needed[level] = kept_bytes(model, shape, level, run=run)
        if needed[level] <= limit:
            return level
    return min(needed, key=needed.__getitem__)


def free_bytes(device: torch.device | str = "cpu") -> int | None:
    """Return how many bytes of a device's memory are free; None if the system does not tell.

    On CPUs this is what Linux reports as available, or less in a control group with a limit. On
    GPUs it includes memory that PyTorch has reserved and does not use.
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


# Folder, limit and usage of a control group, as a container sees its own; versions 2 and 1.
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def _group_limits() -> list[int]:
    """Return how many bytes are left below the limit of this process's control group, if any.

    A group counts cached pages of files as used, although they are given up on demand; inactive
    ones count as free here.
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
