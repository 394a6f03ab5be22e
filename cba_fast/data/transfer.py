"""Copies between the host and a GPU for which neither of the two has to wait."""

import numpy as np
import torch
from torch import Tensor


def to_device(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Return a host tensor on `device`, without waiting for a copy to a GPU.

    Such a copy goes through pinned memory, which PyTorch keeps until the GPU has read it.
    """
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


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
