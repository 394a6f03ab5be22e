"""Runs a command with a time limit, after which it ends together with all processes it started."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

START = 60  # the most seconds until the file grows first, after imports


def run_limited(
    arguments: list,
    log: Path,
    limit: float,
    *,
    env: dict[str, str],
    cwd: Path,
    alarm: float | None = None,
    watched: Path | None = None,
) -> int | None:
    """Run a command with its output behind that in `log`; return its exit code, None if it hangs.

    Processes that the command started, such as workers of a data loader, end with it: one that
    hangs on the GPU would disturb the next measurement. They are killed, because a process that
    waits for a GPU takes no other signal.

    Args:
        arguments: the command; its parts are converted to strings.
        log: the file for the output.
        limit: the most seconds that the command may take.
        env, cwd: the environment and the working folder of the process.
        alarm: the most seconds without growth of `watched`; None for no such limit.
        watched: the file that the command appends to; None for `log`.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            [str(a) for a in arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            preexec_fn=os.setpgrp,
        )
        try:
            start = heard = time.monotonic()
            watched = watched or log
            before = size = watched.stat().st_size
            while (now := time.monotonic()) < start + limit:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(0.1)
                if (written := watched.stat().st_size) != size:
                    size, heard = written, now
                elif alarm is not None and now - heard > max(alarm, START if size == before else 0):
                    break
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
