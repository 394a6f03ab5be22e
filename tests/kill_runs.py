"""Run a command in a process of its own, kill it at a given moment, and read what it has left."""

import contextlib
import importlib
import itertools
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MARK = "CBA_KILL_HARNESS"  # in the environment of all processes of a run
_SLOW_IMPORTS = (  # of which the commands need one or the other
    *(
        "cba_fast.experiments.demo",
        "cba_fast.experiments.collect",
        "cba_fast.experiments.per_image",
    ),
    *("cba_fast.experiments.intervene.run", "cba_fast.experiments.erf_shape", "cba_fast.report"),
    *("matplotlib.backends.backend_agg", "torch.utils.tensorboard", "scipy.stats"),
)
LONGEST = 300.0  # seconds of a run
ORPHANS_END = 15.0  # seconds; PyTorch's workers look for their parent every five


@dataclass(frozen=True)
class Case:
    """A command line; ``{in}`` stands for the folder of the inputs. `ranks` are of ``torchrun``."""

    name: str
    line: str
    ranks: int = 1


@dataclass
class Kill:
    """A signal, when it comes, and to whom.

    Attributes:
        number: the signal.
        at: seconds after the start, or the number of the event (see `count_events`) before which
            the command sends it to itself.
        group: send it to all processes of the run, as a terminal and batch systems do.
        rank: of the process that gets it, under ``torchrun``.
    """

    number: int
    at: float | int
    group: bool = False
    rank: int = 0

    def __str__(self) -> str:
        when = f"at event {self.at}" if self.by_event else f"after {self.at:.2f} s"
        return f"{signal.Signals(self.number).name}{' to all' if self.group else ''} {when}"

    @property
    def by_event(self) -> bool:
        return isinstance(self.at, int)


def count_events(kill: dict | None, told: Path) -> None:
    """Count this process's events on files of the working folder; send the signal before one."""
    here, own, seen = os.getcwd() + os.sep, os.getpid(), itertools.count(1)
    written = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event: str, args: tuple) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.link", "os.rmdir"):
            return
        path = args[0]
        if isinstance(path, int) or path is None or os.getpid() != own:
            return
        if event == "open" and not (args[2] or 0) & written:
            return
        if not os.path.abspath(os.fsdecode(path)).startswith(here):
            return
        number = next(seen)
        told.write_text(str(number))
        if kill is not None and number == kill["at"]:
            (os.killpg if kill["group"] else os.kill)(os.getpid(), kill["number"])

    sys.addaudithook(hook)


def command(case: str, args: list[str]) -> None:
    """Run a command in this process, which counts its events; the environment says when to end."""
    asked = json.loads(os.environ[MARK])
    kill, limit = asked["kill"], asked["limit"]
    if os.environ.get("RANK", "0") == str(kill["rank"] if kill else 0):
        count_events(kill, Path(asked["told"]))
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if case == "demo":
        from cba_fast.experiments import demo

        demo.QUICK = demo.DemoScale(
            *(2, 3, 2),
            most_epochs=2,
            shown_per_class=1,
            erf_samples=2,
            erf_map_images=1,
            pictures=1,
        )
    from cba_fast.cli.main import main

    main([case, *args])


@dataclass
class Ended:
    """How a run ended: exit status (negative: the signal that killed it), output, what is left."""

    status: int
    text: str
    seconds: float
    events: int
    orphans: list[str]


class Runner:
    """Runs cases in a folder: each in a new interpreter, or, faster, forked from this process.

    A process that forks must not have computed with several threads of OpenMP, for which its
    children would wait: the harness has one.
    """

    def __init__(self, root: Path, inputs: Path, *, fork: bool = False):
        self.root, self.inputs, self.fork = root, inputs, fork
        for name in _SLOW_IMPORTS if fork else ():
            importlib.import_module(name)

    def start(
        self, case: Case, folder: Path, kill: Kill | None = None, limit: int | None = None
    ) -> tuple[int, Callable[[float], int | None], str]:
        """Start a case in `folder`.

        Args:
            kill: a signal by event, or None.
            limit: most bytes of a file that it may write, as if the disk was full then.

        Returns:
            Its process; a function that waits some seconds for its exit status; its mark.
        """
        folder.mkdir(parents=True, exist_ok=True)
        mark, self.told, self.out = uuid.uuid4().hex, self.root / "events", self.root / "output"
        self.told.unlink(missing_ok=True)
        asked = {"mark": mark, "told": str(self.told), "limit": limit}
        asked["kill"] = vars(kill) if kill and kill.by_event else None
        env = os.environ | {MARK: json.dumps(asked), "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), env.get("PYTHONPATH", "")])
        args = [word.replace("{in}", str(self.inputs)) for word in case.line.split()]
        start = self._forked if self.fork and case.ranks == 1 else self._started
        return *start(case, args, folder, env, self.out), mark

    def run(
        self, case: Case, folder: Path, kill: Kill | None = None, limit: int | None = None
    ) -> Ended:
        """Run a case to its end, or until it is killed; for the arguments see :meth:`start`."""
        started = time.monotonic()
        pid, wait, mark = self.start(case, folder, kill, limit)
        told, out = self.told, self.out
        if kill is None or kill.by_event:
            status = wait(LONGEST)
        elif (status := wait(kill.at)) is None:
            self._send(case, kill, pid, mark)
            status = wait(LONGEST)
        if status is None:
            os.killpg(pid, signal.SIGKILL)
            status = wait(LONGEST)
            out.write_text(f"{out.read_text()}\nthe harness: ran for more than {LONGEST} s")
        seconds = time.monotonic() - started
        events = int(told.read_text() or 0) if told.exists() else 0
        return Ended(status, out.read_text(), seconds, events, _orphans(pid, mark))

    def _started(self, case: Case, args: list[str], folder: Path, env: dict, out: Path):
        line = [str(HERE / "kill_runs.py"), case.name, *args]
        if case.ranks > 1:
            where = ["--standalone", "--nproc_per_node", str(case.ranks)]
            line = ["-m", "torch.distributed.run", *where, *line]
        with open(out, "w") as f:
            process = subprocess.Popen(
                [sys.executable, *line],
                cwd=folder,
                env=env,
                stdout=f,
                stderr=f,
                start_new_session=True,
            )

        def wait(seconds: float) -> int | None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(seconds)

        return process.pid, wait

    def _forked(self, case: Case, args: list[str], folder: Path, env: dict, out: Path):
        def target() -> None:
            os.setsid()
            os.chdir(folder)
            os.environ.update(env)
            for number in (1, 2):
                os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))
            try:
                command(case.name, args)
            except KeyboardInterrupt:  # before the command could take it, it ends as Python does
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.raise_signal(signal.SIGINT)

        out.write_text("")
        process = multiprocessing.get_context("fork").Process(target=target)
        process.start()

        def wait(seconds: float) -> int | None:
            process.join(seconds)
            return process.exitcode

        return process.pid, wait

    def _send(self, case: Case, kill: Kill, pid: int, mark: str) -> None:
        if case.ranks > 1:
            ranks = [
                p for p, env in _environments() if mark in env and f"\0RANK={kill.rank}\0" in env
            ]
            pid = ranks[0] if ranks else pid
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if kill.group else os.kill)(pid, kill.number)


def _environments():
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(folder.name), f"\0{(folder / 'environ').read_text(errors='replace')}\0"


def left_processes(session: int, mark: str) -> list[int]:
    """Return the processes of a run: those of its session, and those with its mark."""
    found = {pid for pid, env in _environments() if mark in env}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            state, _, _, own, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(own) == session and state != "Z":
                found.add(int(folder.name))
    return sorted(found)


def _orphans(session: int, mark: str) -> list[str]:
    """Return the command lines of processes that a run has left behind, and kill them."""
    deadline = time.monotonic() + ORPHANS_END
    while (pids := left_processes(session, mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = []
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            lines.append(f"process {pid} is left: {text[:200]}")
            os.kill(pid, signal.SIGKILL)
    return lines


# Comparing the files


def same_but_times(path: Path):
    """Return what a file holds, without the fields that tell a time or a speed.

    Those are, in the state and the log of a training (``_last.pth``, ``_tb``), the wall time and
    the images per second of each epoch, and the seconds in results of collect-erf-wsol and demo.
    The demo draws its images, so the fingerprints of images in its records hold their times.
    """
    drawn = "demo" in path.parts
    if path.name.startswith(".tmp-"):
        return path.read_bytes()
    if path.name.endswith("_last.pth"):
        import torch

        state = torch.load(path, weights_only=True)
        for entry in state["progress"]["history"]:
            entry["time"] = entry["scalars"]["train/images_per_s"] = 0
        return _plain(_without(state, "images") if drawn else state)
    if path.name.startswith("events.out.tfevents"):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        log = EventAccumulator(str(path)).Reload()
        tags = [t for t in log.Tags()["scalars"] if t != "train/images_per_s"]
        return {t: [(e.step, e.value) for e in log.Scalars(t)] for t in tags}
    if path.suffix == ".json" and (drawn or b'"seconds"' in path.read_bytes()):
        return _without(json.loads(path.read_text()), "seconds", *["images"] * drawn)
    return path.read_bytes()


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "stride"):
        return (str(value.dtype), tuple(value.shape), value.stride(), value.tolist())
    return value


def _without(value, *keys: str):
    if isinstance(value, dict):
        return {k: _without(v, *keys) for k, v in value.items() if k not in keys}
    return [_without(v, *keys) for v in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict:
    """Return what all files below a folder hold, by name; a name without its time and process."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
        name = path.relative_to(folder).as_posix()
        name = name.split("tfevents")[0] if "tfevents" in name else name
        while name in found:
            name += " again"
        found[name] = same_but_times(path)
    return found


def differences(found: dict, wanted: dict) -> list[str]:
    """Return how the files of two runs differ, in words."""
    lines = [f"{name} is missing" for name in wanted if name not in found]
    lines += [f"{name} is left" for name in found if name not in wanted]
    return lines + [f"{n} differs" for n in wanted if n in found and found[n] != wanted[n]]


if __name__ == "__main__":
    command(sys.argv[1], sys.argv[2:])
