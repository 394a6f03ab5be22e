"""Overlapped loops end as the plain loop does: same order, same result, same first error."""

import threading
import time

import pytest

from cba_fast.runs.overlap import ahead, in_background, one_by_one

LOOPS = [one_by_one, in_background]


class MadeError(ValueError):
    """Raised where items are made."""


class WorkError(ValueError):
    """Raised where items are worked on."""


def items(count, fails_at=None, error=MadeError):
    for i in range(count):
        if i == fails_at:
            raise error(f"item {i}")
        yield i


def outcome(loop, made, bad_work=()):
    """Return what the loop worked on up to its first error, and that error."""
    seen = []

    def work(item):
        if item in bad_work:
            raise WorkError(f"work {item}")
        time.sleep(0.001)  # the items get ahead
        seen.append(item)

    try:
        loop(made, work)
    except (MadeError, WorkError) as e:
        return seen, type(e), str(e)
    return seen, None, None


@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
def test_all_items_in_order(count):
    for loop in LOOPS:
        assert outcome(loop, items(count)) == (list(range(count)), None, None)


@pytest.mark.parametrize("fails_at", [0, 1, 5])
def test_an_error_in_the_making_comes_after_the_work_before_it(fails_at):
    want = (list(range(fails_at)), MadeError, f"item {fails_at}")
    for loop in LOOPS:
        assert outcome(loop, items(9, fails_at)) == want


@pytest.mark.parametrize("bad", [{0}, {3}, {8}, {3, 4}])
@pytest.mark.parametrize("fails_at", [None, 4, 5])
def test_the_first_error_counts_wherever_it_is(bad, fails_at):
    if fails_at is not None and fails_at <= min(bad):
        bad = {2}
    for loop in LOOPS:
        seen, error, text = outcome(loop, items(9, fails_at), bad)
        assert seen[: min(bad)] == list(range(min(bad)))
        assert (error, text) == (WorkError, f"work {min(bad)}")


def test_items_stay_within_the_depth():
    finished, made, most = [], [], []

    def source():
        for i in range(12):
            most.append(len(made) - len(finished))
            made.append(i)
            yield i

    def work(item):
        time.sleep(0.002)
        finished.append(item)

    in_background(source(), work, depth=2)
    # when an item is asked for, at most one before it waits or is worked on
    assert max(most) == 1
    assert finished == made


def test_work_and_making_happen_at_once():
    entered = threading.Event()

    def source():
        yield 1
        assert entered.wait(20), "the work on the first item did not begin"
        yield 2

    workers = set()

    def work(item):
        entered.set()
        workers.add(threading.current_thread())

    in_background(source(), work)
    assert len(workers) == 1
    assert threading.current_thread() not in workers


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_ends_it_after_the_running_call(interrupt):
    running, done = threading.Event(), []

    def source():
        yield 1
        yield 2
        assert running.wait(20)
        raise interrupt

    def work(item):
        running.set()
        time.sleep(0.05)
        done.append(item)

    before = threading.active_count()
    with pytest.raises(interrupt):
        in_background(source(), work, depth=3)
    assert done == [1]
    assert threading.active_count() == before


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_ahead_makes_items_early_and_keeps_their_order(depth):
    made = []

    def source():
        for i in range(6):
            made.append(i)
            yield i

    seen = []
    for item in ahead(source(), depth):
        seen.append(item)
        assert len(made) == min(6, len(seen) + depth)
    assert seen == list(range(6))


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("fails_at", [0, 1, 4])
def test_ahead_gives_what_came_before_an_error(depth, fails_at):
    seen, source = [], ahead(items(6, fails_at), depth)
    with pytest.raises(MadeError, match=f"item {fails_at}"):
        one_by_one(source, seen.append)
    assert seen == list(range(fails_at))
