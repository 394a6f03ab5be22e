"""What `gpu_run --faults` puts in: a test that hangs, one that fails, one that passes, and a way.

The hanging ones block all signals, as a process does that waits for a GPU.
"""

import signal
import time


def hang() -> None:
    """Never return, and answer no signal but a kill."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(3600)


def test_hangs():
    hang()


def test_fails():
    assert 1 + 1 == 3


def test_passes():
    pass


def put_in(ways: dict) -> dict:
    """Return ways to compute a case with one more, which hangs."""
    return {"cuda_faulty": hang, **ways}
