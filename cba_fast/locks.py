"""Keeps two runs from writing the same outputs: a lock file that says which process holds it.

The lock is the kernel's (``flock``), not the file's existence. So it ends with its process however
that dies, and a file that a killed process left blocks nobody. Linux passes these locks on to NFS
servers, where they hold between machines; a file system without locks (Lustre mounted without
``flock``, for example) gives a warning, and then nothing keeps two runs apart.
"""

import contextlib
import errno
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from .errors import BusyError, CbaWarning
from .files import check_replaceable, fitting_name
from .process import started

try:
    import fcntl
except ImportError:  # a platform without such locks
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_descriptors: set[int] = set()


class _Scope(contextlib.ExitStack):
    """The locks that one call has taken, and their paths."""

    def __init__(self):
        super().__init__()
        self.paths: set[Path] = set()


_scope: ContextVar[_Scope | None] = ContextVar("scope", default=None)


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Release the locks that :func:`hold` took, at the end of the block or decorated function."""
    with _Scope() as scope:
        token = _scope.set(scope)
        try:
            yield
        finally:
            _scope.reset(token)


def hold(path: str | os.PathLike, what: str | os.PathLike | None = None) -> None:
    """Lock an output until the innermost :func:`released` around this call ends.

    Without one, and in all processes of ``torchrun`` but the first, nothing is locked.

    Args:
        path: the output, or a file that stands for it; the lock lies beside it.
        what: what to call the output in messages; None for `path`.

    Raises:
        BusyError: another run holds it; the message names its process.
        OSError: the lock cannot be made, or the output is a device, for example.
    """
    scope, lock = _scope.get(), lock_path(path)
    if scope is None or lock in scope.paths or started()[0] > 0:
        return
    check_replaceable(path)
    scope.enter_context(_held(lock, what or path))
    scope.paths.add(lock)


@contextlib.contextmanager
def waiting(path: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of an output during the block, after waiting for whoever holds it."""
    with _held(lock_path(path), None):
        yield


@contextlib.contextmanager
def exclusive(descriptor: int) -> Iterator[None]:
    """Let no other process that does the same write an open file during the block.

    NFS reads a file anew when its lock is taken, and sends what was written before it is released.
    Without, each machine sends whole pages, with old bytes where another one has written meanwhile.
    """
    with contextlib.ExitStack() as locked:
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                locked.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        except OSError as e:
            if e.errno not in _UNSUPPORTED:
                raise
        yield


def lock_path(path: str | os.PathLike) -> Path:
    """Return the lock's file of an output: ``.<name>.lock`` beside it."""
    path = Path(path)
    return path.with_name(f".{fitting_name(path).lstrip('.')}.lock")


@contextlib.contextmanager
def _held(lock: Path, what: str | os.PathLike | None) -> Iterator[None]:
    made = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(lock, what)
    _descriptors.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _descriptors:  # not so in a forked child, whose parent holds the lock
            _descriptors.discard(descriptor)
            with contextlib.suppress(OSError):
                lock.unlink()  # while it is held, so that it is nobody else's
            os.close(descriptor)
            with contextlib.suppress(OSError):  # the run was refused and has written nothing
                for folder in made:
                    folder.rmdir()


def _take(lock: Path, what: str | os.PathLike | None) -> int:
    """Return a descriptor that holds the lock; without `what`, wait for it."""
    how = 0 if fcntl is None else fcntl.LOCK_EX | (0 if what is None else fcntl.LOCK_NB)
    while True:
        try:
            descriptor = _open(lock)
        except OSError as e:
            raise OSError(e.errno, e.strerror, os.fspath(what or lock)) from e
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, how)
            # The run that had the lock may have removed this file after it was opened.
            if _is_file_of(descriptor, lock):
                break
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            raise BusyError(
                f"{what} is being written by {holder or 'another process'}; wait until it has "
                f"ended (its lock is {lock})"
            ) from None
        except OSError as e:
            if e.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            text = f"{lock}: no locks on this file system, so start no second run that writes there"
            warnings.warn(text, CbaWarning, stacklevel=2)
            break
        os.close(descriptor)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    told = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, told.encode())
    except OSError as e:  # a full disk, which would not take the output either
        lock.unlink(missing_ok=True)
        os.close(descriptor)
        raise OSError(e.errno, e.strerror, os.fspath(what or lock)) from e
    return descriptor


def _open(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # another run has removed the folder, which it had made
        lock.parent.mkdir(parents=True, exist_ok=True)
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)


def _is_file_of(descriptor: int, lock: Path) -> bool:
    """Say whether this name leads to the open file: it may be removed at any moment."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    """Let no forked child, such as a process that reads images, outlive its parent with a lock."""
    for descriptor in _descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
