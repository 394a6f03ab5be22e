"""Threads beside a run: some make its next items ahead, others finish what it leaves to them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from .stages import stage

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Yield ``function(item)`` in order, computed by threads at most 2 * `workers` items ahead.

    An error is raised when its item's turn comes. Then, or when the caller stops, the remaining
    calls are cancelled.
    """
    waiting: deque = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="cba-read") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Crew:
    """Threads that do work beside the run, such as drawing and writing files.

    At the end of its block all work is done. The first error of the work is raised there or by an
    earlier :meth:`catch_up`; work that has not begun is then left out, as if the block fails.

    Args:
        threads: how many; the calls begin in the order in which they were given.
    """

    def __init__(self, threads: int):
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cba-crew")
        self._waiting: deque[Future] = deque()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, kind, *exception) -> None:
        try:
            if kind is None:
                self.catch_up()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def give(self, work: Callable, *args: Any) -> None:
        """Let a thread call ``work(*args)``."""
        self._waiting.append(self._pool.submit(work, *args))

    def catch_up(self, behind: int = 0) -> None:
        """Wait until at most `behind` calls, the last ones, are unfinished."""
        while len(self._waiting) > behind:
            with stage("waiting for results"):
                self._waiting.popleft().result()
