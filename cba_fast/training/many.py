"""How the processes of ``torchrun`` train one model: their shares of a batch, and what they sum up.

All processes plan the same batches and compute a part of each. PyTorch's DistributedDataParallel
averages their gradients, so that each takes the step of the whole batch.
"""

import contextlib
import itertools
import warnings
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import distributed, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..erf.recompute import uses_all_weights
from ..models.anatomy.parts import logits_of
from ..runs.ranks import Ranks
from .data import cut_batches

Items = TypeVar("Items", Sequence, np.ndarray)


def shares(batch: Items, count: int) -> list[Items]:
    """Return the parts of a batch that `count` processes compute; they differ by one at most."""
    cuts = [rank * len(batch) // count for rank in range(count + 1)]
    return [batch[a:b] for a, b in itertools.pairwise(cuts)]


def parts_of_step(
    counts: Sequence[int], rank: int, micro_batch: int | None, *, join_last: bool
) -> list[np.ndarray]:
    """Return the parts in which a process computes its images of a batch, as rows of its share.

    Several processes compute equally many parts, some of which may be empty.

    Args:
        counts: number of images of each process.
        rank: the process.
        micro_batch: most images of a part; None for no limit.
        join_last: see :func:`cut_batches`.
    """
    rows, most = np.arange(counts[rank]), max(counts)
    if len(counts) == 1:
        return cut_batches(rows, micro_batch or most, join_last=join_last)
    return np.array_split(rows, -(-most // (micro_batch or most)))


def joined(model: nn.Module, size: int, device: torch.device, ranks: Ranks) -> nn.Module:
    """Return a module that computes as `model` and averages its gradients over the processes.

    On GPUs the batch norms of `model` are replaced by synchronized ones, which see the images of
    all processes. PyTorch has none for CPUs.

    Args:
        model: the network, on `device`.
        size: side of its images.
        device, ranks: where it computes, and in which processes.
    """
    if ranks.count == 1:
        return model

    # Looking for weights that a step did not use costs a pass over the graph of each.
    def logits(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return logits_of(network, network(images))

    # Synchronized norms refuse images on the CPU, where this looks, so they come later.
    some_unused = not uses_all_weights(model, (2, 3, size, size), logits)
    if synchronized(device, ranks):
        convert_sync_batchnorm(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch 2.14 renames `broadcast_buffers`
        return DistributedDataParallel(
            model, broadcast_buffers=False, find_unused_parameters=some_unused
        )


def synchronized(device: torch.device, ranks: Ranks) -> bool:
    """Say whether the batch norms see the images of all processes."""
    return ranks.count > 1 and device.type == "cuda"


def reducing(model: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Return a context in which a backward pass averages the gradients, if it is the step's last.

    Args:
        model: from :func:`joined`.
        last: whether this is the last part of the step.
    """
    alone = last or not isinstance(model, DistributedDataParallel)
    return contextlib.nullcontext() if alone else model.no_sync()


def average_norms(model: nn.Module, ranks: Ranks) -> None:
    """Set the running statistics of batch norms that are not synchronized to the processes' mean.

    So all processes test, and the first stores, the same network.
    """
    for module in model.modules() if ranks.count > 1 else ():
        if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
            for statistic in filter(torch.is_tensor, (module.running_mean, module.running_var)):
                distributed.all_reduce(statistic)
                statistic /= ranks.count
