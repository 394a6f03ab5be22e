"""Loops whose steps overlap: results as those of the plain loop, in the same order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def one_by_one(items: Iterable[Item], work: Callable[[Item], None]) -> None:
    """Call `work` with each item before the next one is asked for."""
    for item in items:
        work(item)


def in_background(items: Iterable[Item], work: Callable[[Item], None], depth: int = 2) -> None:
    """Call `work` with each item, in order, in one thread, while the next ones are made here.

    Ends as `one_by_one` does: with the error of the first item that has one, whether it was met in
    its making or in `work`; `work` then may have been called with `depth` later items. An interrupt
    ends the loop once the running call has returned.

    Args:
        items: made in the calling thread, at most `depth` ahead of what `work` has finished.
        work: what to do with an item.
        depth: how many items may wait or be worked on.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="cba-fast") as pool:
        waiting: deque[Future] = deque()
        try:
            for item in _errors_last(items, waiting):
                waiting.append(pool.submit(work, item))
                if len(waiting) >= depth:
                    waiting.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the block waits for the running call
            raise


def _errors_last(items: Iterable[Item], waiting: deque[Future]) -> Iterator[Item]:
    """Yield the items; when they end, by an error or not, wait for what is under way first."""
    try:
        yield from items
    except Exception:
        _finish(waiting)
        raise
    _finish(waiting)


def _finish(waiting: deque[Future]) -> None:
    while waiting:
        waiting.popleft().result()


def ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """Yield the items in order, each after the `depth` ones behind it have been made.

    An error in the making of one is raised after the items before it have been yielded.
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
