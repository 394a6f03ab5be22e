"""Chooses the backend that computes an op.

Each op has a :class:`BackendTable`: its backends in order of preference. A backend's predicate
``refuses(*args)`` returns the reason why it cannot run for these arguments, or None if it can.
``backend=None`` takes the first backend that can run and need not be named; a named backend that
cannot run raises a `ValueError` with the reason. ``cba-fast info`` prints the tables.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

log = logging.getLogger("cba_fast")

NAMES = ("reference", "torch", "cpp", "triton", "cuda")

# Some kernels were only emulated and compiled. Nobody knows whether they are right and fast on a
# GPU, so ``backend=None`` must not take them. docs/gpu-status.md lists them.
UNPROVEN = "it has not run on a GPU yet; only naming it takes it"


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: one of `NAMES`.
        refuses: a function of the op's tensors that returns why this backend cannot run for them,
            or None.
        unavailable: a function that returns why the backend never runs here (not built, no
            compiler, no GPU), or None.
        on_request: why ``backend=None`` never takes this backend although it can run, or None.
    """

    name: str
    refuses: Callable[..., str | None]
    unavailable: Callable[[], str | None] = lambda: None
    on_request: str | None = None

    def reason(self, *args) -> str | None:
        """Return why this backend cannot run for `args`, or None."""
        return self.unavailable() or self.refuses(*args)

    def reason_unless_named(self, *args) -> str | None:
        """Return why ``backend=None`` does not take this backend for `args`, or None."""
        return self.reason(*args) or self.on_request


class BackendTable:
    """The backends of one op, best first."""

    registry: dict[str, "BackendTable"] = {}  # noqa: RUF012

    def __init__(self, op: str, backends: list[Backend]):
        self.op = op
        self.backends = {b.name: b for b in backends}
        self._logged: set[tuple[str, str]] = set()
        BackendTable.registry[op] = self

    def resolve(self, requested: str | None, *args) -> str:
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
        for name, backend in self.backends.items():
            reason = backend.reason_unless_named(*args)
            if reason is None:
                return name
            reasons.append(f"{name}: {reason}")
            if not torch.compiler.is_compiling() and (name, reason) not in self._logged:
                self._logged.add((name, reason))
                log.info("%s: backend %r not used: %s", self.op, name, reason)
        raise ValueError(f"{self.op}: no backend can run: " + "; ".join(reasons))
