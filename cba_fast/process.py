"""The process of a command: how it ends, also with the one that started it; the memory it frees."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from .errors import CbaError, InputError

# Ctrl-C; `kill`, `timeout` and batch systems; a terminal that closes.
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
_LOOK_S = 0.5  # seconds between two looks whether the parent is there
_GRACE_S = 20.0  # seconds for an orphan to end by itself
# The parameters of glibc's mallopt, and what each is set to: nothing is given back, and only blocks
# of a GiB are mapped one by one.
_MALLOC = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_THRESHOLD": (-3, 1 << 30)}


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does: its parts are saved and workers end.

    The last line on stderr names the signal, and the exit status is 128 and its number, as a shell
    shows it. Signals that are ignored, as under ``nohup``, stay so.
    """
    received: list[int] = []
    own = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() != own:  # a process that reads images, which a terminal's Ctrl-C reaches
            os._exit(0)
        received.append(number)
        # A batch system tells the workers, too. Their end is no error of the run then.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise KeyboardInterrupt

    old = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in _ENDING if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                old[number] = signal.signal(number, end)
    try:
        yield
    except BaseException as e:
        if isinstance(e, SystemExit) or not (received or isinstance(e, KeyboardInterrupt)):
            raise
        if isinstance(e, CbaError | OSError):  # the finished part could not be saved, for example
            print(f"Error: {e}", file=sys.stderr)
        number = signal.Signals(received[0] if received else signal.SIGINT)
        print(
            f"Ended by {number.name}: every file is whole; start the same command again to finish.",
            file=sys.stderr,
        )
        raise SystemExit(128 + number) from e
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def started() -> tuple[int, int]:
    """Return this process's number and the count of those that ``torchrun`` started for one run.

    Raises:
        InputError: the environment tells of several processes, but not as ``torchrun`` does.
    """
    count = os.environ.get("WORLD_SIZE") or "1"
    if count == "1":
        return 0, 1
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    rank = os.environ.get("RANK", "")
    if missing or not (count + rank).isdecimal() or int(rank) >= int(count):
        what = f"{missing[0]} is not set" if missing else f"RANK is {rank!r}"
        raise InputError(
            f"the environment has WORLD_SIZE {count!r}, and {what}: several processes are started "
            "with torchrun; for a single one, unset WORLD_SIZE"
        )
    return int(rank), int(count)


def end_with_parent() -> None:
    """End this process soon after the one that started it, so that no worker is left behind.

    That is its parent, and in a process of multiprocessing the one that asked for it: from Python
    3.14 on a server is the parent, which lives as long as its processes.
    """
    parent, asker = os.getppid(), multiprocessing.parent_process()

    def watch() -> None:
        while os.getppid() == parent and (asker is None or asker.is_alive()):
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="cba-parent").start()


def end_worker_with_parent(number: int) -> None:
    """Do :func:`end_with_parent` in a worker of a DataLoader, as its ``worker_init_fn``.

    PyTorch's workers look for their parent, too. But one that still has a batch to hand over then
    waits for ever, because nobody empties its pipe.
    """
    end_with_parent()


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next large arrays.

    glibc gives blocks above 32 MiB back to the system at once, and every new one begins with page
    faults: 240,000 in a batch of 8 images through RepLKNet-31B at 384 pixels, 7 % of the time.
    Nothing is done where the environment sets malloc's parameters, or where the library has none.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for number, value in _MALLOC.values():
            mallopt(number, value)
