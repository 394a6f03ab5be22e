"""Runs functions on the machines of a Ray cluster, again if a worker dies, and brings their lines.

Ray decides where and when a function runs. All machines see the same folders at the same paths and
have the same version of this package.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from ... import __version__, process
from ...errors import CbaError, InputError, first_line, short_error
from ..settings import ClusterConfig

Log = Callable[[str], None]

_LOOK_S = 0.2  # seconds between two looks for lines of the workers
_PATIENCE_S = 30.0  # seconds to wait for lines, which their machine may have lost
_REACH_S = 10.0  # seconds for a connection to the cluster
_SAY_S = 30.0  # seconds between two lines on how far a loop of a worker is
# For Ray's copies of results. A local cluster would take a third of the memory, in which images and
# models shall fit; more results than this go to the disk.
_STORE_BYTES = 256 << 20
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to Ray's makers
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # no lines of Ray's own, such as ten on each dead worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a task without a GPU sees none; without a warning
}


class ClusterError(CbaError):
    """What was to run on a cluster has no result: its worker died too often, for example."""


@dataclass(frozen=True)
class Needs:
    """What a function needs while it runs: processor cores, which are its threads, and GPUs."""

    cpus: int
    gpus: float

    def places(self, machine: dict) -> int:
        """Return how many such functions a machine of `ray.nodes` can run at once."""
        has = machine["Resources"] if machine["Alive"] else {}
        places = has.get("CPU", 0) // self.cpus
        return int(min(places, has.get("GPU", 0) // self.gpus) if self.gpus else places)


class Pool:
    """A connection to a Ray cluster, from :func:`connected`."""

    def __init__(self, ray: Any, config: ClusterConfig, log: Log):
        self._ray, self._config, self._log = ray, config, log
        self._lines = ray.remote(num_cpus=0, max_restarts=-1)(_Lines).remote()
        self._begun: Counter[str] = Counter()

    def needs(self, cpus: int | None, gpus: float | None, device: str | None) -> Needs:
        """Return the needs of a function from its own settings, those of the run, and defaults."""
        cpus = cpus or self._config.cpus or 1
        gpus = self._config.gpus if gpus is None else gpus
        if gpus is None:
            gpus = float(device != "cpu" and self._ray.cluster_resources().get("GPU", 0) > 0)
        if gpus > 1 and gpus % 1:
            raise InputError(f"`gpus` above 1 must be a whole number, got {gpus:g}")
        return Needs(cpus, gpus)

    def places(self, needs: Needs) -> int:
        """Return how many functions with these needs the cluster can run at once."""
        return sum(map(needs.places, self._ray.nodes()))

    def start(self, name: str, needs: Needs, function: Callable, *args: Any) -> Any:
        """Let a worker call ``function(*args, log=...)`` as soon as its needs are met.

        Args:
            name: what its lines begin with.
            needs: what it takes.
            function: at the top of a module of this package.
            args: its arguments. For a reference that this method returned the function gets what
                that function returned, and waits for it.

        Returns:
            A reference for :meth:`finished`.
        """
        if not self.places(needs):
            text = f"{needs.cpus} CPUs and {needs.gpus:g} GPUs"
            if not self._config.address:
                raise InputError(f"{name}: this machine has not {text} (`cpus`, `gpus`)")
            self._log(f"{name}: waiting for a machine with {text}, the cluster has none now")
        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus}
        task = self._ray.remote(**options, max_retries=self._config.retries)(_on_worker)
        place = (__version__, os.getcwd(), needs.cpus)
        return task.remote(name, place, self._lines, function, *args)

    def finished(self, references: Iterable) -> Iterator[tuple]:
        """Yield each reference with what its function returned, or with its error, as they end.

        Meanwhile the lines of the workers are logged. What is left when the caller leaves is ended.
        """
        left = list(references)
        try:
            while left:
                done, left = self._ray.wait(left, timeout=_LOOK_S)
                self._pass_on()
                for reference in done:
                    yield reference, self._result(reference)
            self._pass_on()
        finally:
            for reference in left:
                self._ray.cancel(reference, force=True)

    def _result(self, reference) -> object:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as e:
            # The error of the function itself, or of that which it waited for.
            cause = getattr(e, "cause", None) or e
            if isinstance(cause, CbaError):
                return cause
            died = isinstance(cause, self._ray.exceptions.RayError)
            reason = short_error(cause)
            return ClusterError(f"its worker died at every try ({reason})" if died else reason)

    def _pass_on(self) -> None:
        with suppress(self._ray.exceptions.RayError):  # its machine died; it starts anew elsewhere
            for name, text, begins in self._ray.get(self._lines.take.remote(), timeout=_PATIENCE_S):
                again = "its worker died; again " if begins and self._begun[name] else ""
                self._begun[name] += begins
                self._log(f"{name}: {again}{text}")


@contextmanager
def connected(config: ClusterConfig, log: Log) -> Iterator[Pool]:
    """Connect to the cluster of `config`, or start one on this machine; leave it afterwards.

    A connection that the process has already is used as it is, and stays.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    # Ray counts workers apart that were killed for memory, and by default never gives up on them.
    for name, value in {**_QUIET, "RAY_task_oom_retries": str(config.retries)}.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as e:
        raise InputError(f'`engine` ray needs Ray ({e}): pip install "cba_fast[ray]"') from e
    if ray.is_initialized():
        yield Pool(ray, config, log)
        return
    own = {"address": "local", "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    where = {"address": config.address} if config.address else own
    try:
        _reach(config.address or "")
        with _own_signals():
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as e:
        reason = f"no Ray cluster answers: {first_line(e)}"
        raise InputError(f"`address` {config.address}: {reason}") from e
    try:
        yield Pool(ray, config, log)
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise an `OSError` at once where nothing listens; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what this process does at SIGTERM, which Ray would change."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


class _Lines:
    """Keeps the lines of the workers, as an actor, until the run takes them."""

    def __init__(self):
        self._lines: list[tuple] = []

    def add(self, name: str, text: str, begins: bool = False) -> None:
        self._lines.append((name, text, begins))

    def take(self) -> list[tuple]:
        lines, self._lines = self._lines, []
        return lines


def _on_worker(name: str, place: tuple, lines, function: Callable, *args) -> object:
    """Call a function as `Pool.start` says, in the folder and with the threads of the run."""
    version, folder, threads = place
    host = socket.gethostname()
    lines.add.remote(name, f"on {host}, process {os.getpid()}", begins=True)
    if version != __version__:
        raise InputError(f"{host} has cba_fast {__version__}, and the run began with {version}")
    try:
        os.chdir(folder)
    except OSError as e:
        reason = "all machines must see the same folders"
        raise InputError(f"{host} has no folder {folder}: {reason}") from e
    torch.set_num_threads(threads)
    process.keep_freed_memory()
    return function(*args, log=lambda text: lines.add.remote(name, text))


def spoken(log: Log) -> Callable:
    """Return a ``bar(description)`` that now and then logs how far it is; no one sees a bar."""

    def bar(description: str) -> Callable[[Iterable, int], Iterator]:
        def progress(items: Iterable, total: int) -> Iterator:
            said = time.monotonic()
            for n, item in enumerate(items, 1):
                yield item
                if time.monotonic() - said >= _SAY_S:
                    said = time.monotonic()
                    log(f"{description}: {100 * n // total} %")

        return progress

    return bar
