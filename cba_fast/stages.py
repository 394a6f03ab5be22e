"""Measures where the time of a run goes, by the stages that it is in; shown by ``--profile``.

Code names what it does, ``with stage("model"): ...``, wherever it runs. Without an open `Profile`
this does nothing.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

OTHER = "other"
WAITING = "waiting for data"
_open: "Profile | None" = None


class Profile:
    """The seconds of a run by stage.

    The thread that opened the profile is in one stage at a time: a stage inside of another one
    interrupts it, and what belongs to none is ``other``. So these seconds add up to the whole. What
    other threads and processes do meanwhile is added up apart.

    Attributes:
        seconds: of the thread that opened the profile, by stage, up to its last change of stage.
        beside: of all other threads and processes, by stage.
    """

    def __init__(self):
        self.seconds: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._stack = [OTHER]
        self._since = time.perf_counter()

    def _turn(self) -> None:
        """Give the time since the last change of stage to the stage that the run is in."""
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._since  # type: ignore[assignment]
        self._since = now

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Count the block as a stage."""
        if os.getpid() != self._process or threading.get_ident() != self._thread:
            start = time.perf_counter()
            try:
                yield
            finally:
                self.add_beside(name, time.perf_counter() - start)
            return
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def add_beside(self, name: str, seconds: float) -> None:
        """Add what another thread or process spent in a stage."""
        with self._lock:
            self.beside[name] += seconds  # type: ignore[assignment]

    def to_json(self) -> dict:
        """Return ``seconds``, the whole, and those of the stages, the longest first."""
        self._turn()
        mine, others = (
            {name: round(s, 6) for name, s in part.most_common()}
            for part in (self.seconds, self.beside)
        )
        return {"seconds": round(self.seconds.total(), 6), "stages": mine, "beside": others}

    def lines(self) -> list[str]:
        """Return the lines to print at the end of a run."""
        found = self.to_json()
        total = found["seconds"]
        shares = [f"{name} {s / max(total, 1e-9):.1%}" for name, s in found["stages"].items()]
        lines = [f"Time         : {total:.2f} s: {', '.join(shares)}"]
        if found["beside"]:
            beside = [f"{name} {s:.2f} s" for name, s in found["beside"].items()]
            lines.append(f"  meanwhile  : {', '.join(beside)} (other threads and processes)")
        return lines


def open_profile() -> Profile | None:
    """Return the profile that is open, or None."""
    return _open


@contextmanager
def profiled() -> Iterator[Profile]:
    """Open a profile of the block."""
    global _open
    before, _open = _open, Profile()
    try:
        yield _open
    finally:
        _open = before


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the block as a stage of the profile that is open, if there is one."""
    if _open is None:
        yield
        return
    with _open.during(name):
        yield


def beside(name: str, seconds: float) -> None:
    """Add what another process spent in a stage to the profile that is open, if there is one."""
    if _open is not None:
        _open.add_beside(name, seconds)


def staged(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; making each of them counts as a stage."""
    source, end = iter(items), object()
    while True:
        with stage(name):
            item = next(source, end)
        if item is end:
            return
        yield item  # type: ignore[misc]
