"""Times functions against each other: they take turns in one process on the same threads."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

QUICK = 0.1  # seconds; longer calls need no untimed call before, which warms the caches


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median, the 20th and the 80th percentile, and the number of calls."""

    median: float
    p20: float
    p80: float
    calls: int

    @classmethod
    def of(cls, samples: list[float]) -> "Timing":
        """Summarize samples (at least one)."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        fifths = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(statistics.median(samples), fifths[0], fifths[-1], len(samples))

    def in_ms(self) -> dict[str, float | int]:
        """Return JSON values: ``median_ms``, ``p20_ms``, ``p80_ms``, ``calls``."""
        ms = {f"{k}_ms": round(1e3 * getattr(self, k), 5) for k in ("median", "p20", "p80")}
        return {**ms, "calls": self.calls}


class Contest:
    """A contest of functions that take turns, so that a slow minute of the machine slows them all.

    A turn is an untimed call, which brings the function's data back into the caches, and a timed
    one. Functions that take more than 0.1 s have no untimed call. Each function has `seconds` in
    all: in each round, one that has used up its share so far has no turn. So the calls of slow
    functions, at least one, are spread over the contest.

    Args:
        functions: the functions by name, called without arguments.
        seconds: the time for each function.
        most: the largest number of timed calls of a function.

    Attributes:
        results: what the first call of each function returned, to be checked.
        first: the seconds of these first calls, which compile code and build plans.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[[], object]],
        seconds: float = 1.0,
        most: int = 50,
    ):
        self.functions = dict(functions)
        self.seconds, self.most = seconds, most
        self.samples: dict[str, list[float]] = {name: [] for name in self.functions}
        self.results: dict[str, Any] = {}
        self._last: dict[str, float] = {}
        for name, function in self.functions.items():
            start = time.perf_counter()
            self.results[name] = function()
            self._last[name] = time.perf_counter() - start
        self.first = dict(self._last)
        self._spent = dict.fromkeys(self.functions, 0.0)
        self._random = random.Random(0)

    def leave_out(self, name: str) -> None:
        """Take a function out, such as one whose result is wrong."""
        del self.functions[name]

    def rounds(self, name: str | None = None) -> int:
        """Return how many turns fit into the time of a function, 3 to `most`.

        Args:
            name: the function; None for the fastest.
        """
        # The first calls built plans and thread pools, so that only second calls tell the time.
        quick = [n for n in self.functions if self._last[n] < QUICK]
        names = [name] if name else quick or list(self.functions)
        seconds = min(seconds_of(self.functions[n]) for n in names)
        return max(3, min(self.most, int(self.seconds / (2 * seconds))))

    def turn(self, name: str) -> None:
        """Let one function have its turn."""
        before = time.perf_counter()
        self.warm(name)
        self._last[name] = seconds_of(self.functions[name])
        self.samples[name].append(self._last[name])
        self._spent[name] += time.perf_counter() - before

    def warm(self, name: str) -> None:
        """Call a quick function once without timing it."""
        if self._last[name] < QUICK:
            self.functions[name]()

    def round(self, share: float, without: str | None = None) -> None:
        """Give a turn to each function that has had none or less than `share` of its seconds.

        Args:
            share: 0 in the first round, rising to 1.
            without: a function that has no turn because the caller times it.
        """
        for name in self._random.sample(list(self.functions), len(self.functions)):
            behind = self._spent[name] <= share * self.seconds
            if name != without and (behind or not self.samples[name]):
                self.turn(name)

    def run(self) -> dict[str, Timing]:
        """Play all rounds; return the timings."""
        rounds = self.rounds()
        for index in range(rounds):
            self.round(index / rounds)
        return self.timings()

    def timings(self) -> dict[str, Timing]:
        """Return the timings so far, of the functions that had a turn."""
        return {name: Timing.of(samples) for name, samples in self.samples.items() if samples}


def seconds_of(function: Callable[[], object]) -> float:
    """Return the time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
