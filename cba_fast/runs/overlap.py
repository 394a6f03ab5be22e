"""Loops that make the next items while earlier ones are processed, with the same results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ..stages import stage

Item = TypeVar("Item")


def one_by_one(items: Iterable[Item], work: Callable[[Item], None]) -> None:
    """Call `work` with each item before the next one is asked for."""
    for item in items:
        work(item)


def in_background(items: Iterable[Item], work: Callable[[Item], None], depth: int = 2) -> None:
    """Call `work` with each item, in order, in a second thread, while the next items are made.

    As with `one_by_one`, the first error is raised, whether it occurs while an item is made or in
    `work`; by then `work` may have been called with up to `depth` later items. An interrupt ends
    the loop once the running call has returned.

    Args:
        items: made in the calling thread, at most `depth` ahead of what `work` has finished.
        work: function to call with an item.
        depth: how many items may wait or be in work.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="cba-fast") as pool:
        waiting: deque[Future] = deque()
        try:
            for item in _errors_last(items, waiting):
                waiting.append(pool.submit(work, item))
                if len(waiting) >= depth:
                    _wait_for_first(waiting)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the block waits for the running call
            raise


def _errors_last(items: Iterable[Item], waiting: deque[Future]) -> Iterator[Item]:
    """Yield the items; at their end, even by an error, first wait for the calls under way."""
    try:
        yield from items
    except Exception:
        _finish(waiting)
        raise
    _finish(waiting)


def _finish(waiting: deque[Future]) -> None:
    while waiting:
        _wait_for_first(waiting)


def _wait_for_first(waiting: deque[Future]) -> None:
    with stage("waiting for results"):
        waiting.popleft().result()


def ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """Yield the items in order, each one after `depth` further ones have been made.

    An error in making an item is raised after all items before it have been yielded.
    """
    made: deque[Item] = deque()
    source = iter(items)
    while True:
        try:
            made.append(next(source))
        except StopIteration:
            break
        except Exception:
            yield from made
            raise
        if len(made) > depth:
            yield made.popleft()
    yield from made
