"""Chooses the backend that computes an op.

Each op has a :class:`BackendTable`: its backends in order of preference. A backend's predicate
``refuses(*args)`` returns the reason why it cannot run for these arguments, or None if it can.
``backend=None`` takes the first backend that can run; a named backend that cannot run raises a
`ValueError` with the reason. ``cba-fast info`` prints the tables.

GPU kernels have been compiled and emulated for many architectures, but have run on few. So such a
backend has a self-check: before ``backend=None`` takes it, it computes a small fixed case on that
device, once per process, and must agree with the reference. A named backend is not checked.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CbaWarning

log = logging.getLogger("cba_fast")

NAMES = ("reference", "torch", "conv2d", "cpp", "triton", "cuda", "cuda_strip")


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: one of `NAMES`.
        refuses: a function of the op's tensors that returns why this backend cannot run for them,
            or None.
        unavailable: a function that returns why the backend never runs here (not built, no
            compiler, no GPU), or None.
        self_check: a function that computes a small case on a device with this backend, and raises
            an exception if it does not agree with the reference (`expect`); None for backends that
            need no check.
    """

    name: str
    refuses: Callable[..., str | None]
    unavailable: Callable[[], str | None] = lambda: None
    self_check: Callable[[torch.device], None] | None = None

    def reason(self, *args: Any) -> str | None:
        """Return why this backend cannot run for `args`, or None."""
        return self.unavailable() or self.refuses(*args)


def expect(result: Tensor, expected: Tensor, tolerance: float = 0.0) -> None:
    """Raise an `ArithmeticError` unless a result is the expected one.

    Args:
        result: the tensor of a kernel, on any device.
        expected: the right one, on the CPU, of the same shape.
        tolerance: the largest allowed relative L2 error.
    """
    result, expected = result.cpu().double(), expected.double()
    error = ((result - expected).norm() / expected.norm()).item()
    if not error <= tolerance:
        raise ArithmeticError(f"its result has a relative error of {error:.2g}")


class BackendTable:
    """The backends of one op, best first."""

    registry: dict[str, "BackendTable"] = {}  # noqa: RUF012

    def __init__(self, op: str, backends: list[Backend]):
        self.op = op
        self.backends = {b.name: b for b in backends}
        self._logged: set[tuple[str, str]] = set()
        self._checked: dict[tuple[str, torch.device], str | None] = {}
        BackendTable.registry[op] = self

    def resolve(self, requested: str | None, *args: Any) -> str:
        """Return the name of the backend to run.

        Args:
            requested: a backend's name, or None for the best one that can run.
            *args: the op's tensors, handed to the predicates.

        Raises:
            ValueError: `requested` is unknown, the op does not have it, or it cannot run for `args`
                (with the reason).
        """
        if requested is not None:
            if requested not in NAMES:
                raise ValueError(f"backend must be None or one of {NAMES}, got {requested!r}")
            if requested not in self.backends:
                raise ValueError(
                    f"{self.op} has no backend {requested!r}; it has {', '.join(self.backends)}"
                )
            reason = self.backends[requested].reason(*args)
            if reason is not None:
                raise ValueError(f"{self.op}: backend {requested!r} cannot run: {reason}")
            return requested
        reasons = []
        for name in self.backends:
            reason = self.reason_unless_named(name, *args)
            if reason is None:
                return name
            reasons.append(f"{name}: {reason}")
            if not torch.compiler.is_compiling() and (name, reason) not in self._logged:
                self._logged.add((name, reason))
                log.info("%s: backend %r not used: %s", self.op, name, reason)
        raise ValueError(f"{self.op}: no backend can run: " + "; ".join(reasons))

    def reason_unless_named(self, name: str, *args: Any) -> str | None:
        """Return why ``backend=None`` does not take the backend `name` for `args`, or None."""
        backend = self.backends[name]
        reason = backend.reason(*args)
        if reason is not None or backend.self_check is None:
            return reason
        return self._failure(name, backend.self_check, args[0].device)

    def _failure(
        self, name: str, check: Callable[[torch.device], None], device: torch.device
    ) -> str | None:
        """Run the self-check of a backend on a device, if it has not run; return why it failed."""
        key = (name, device)
        if key not in self._checked:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return "its self-check cannot run while a CUDA graph is captured"
            try:
                check(device)
                self._checked[key] = None
            except Exception as e:  # whatever is wrong there, another backend can compute
                where = torch.cuda.get_device_name(device) if device.type == "cuda" else device
                failure = f"its self-check failed on {where}: {type(e).__name__}: {e}"
                self._checked[key] = failure
                warnings.warn(
                    f"{self.op}: backend {name!r} is not used: {failure}",
                    CbaWarning,
                    stacklevel=2,
                )
        return self._checked[key]
