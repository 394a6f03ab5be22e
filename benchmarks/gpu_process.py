"""Runs a command with a time limit, after which it ends together with all processes it started."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path


def run_limited(
    arguments: list, log: Path, limit: float, *, env: dict[str, str], cwd: Path
) -> int | None:
    """Run a command with its output in `log`; return its exit code, None if it took too long.

    Processes that the command started, such as workers of a data loader or of pytest, end with it:
    one that hangs on the GPU would disturb the next measurement.

    Args:
        arguments: the command; its parts are converted to strings.
        log: the file for the output, which is overwritten.
        limit: the most seconds that the command may take.
        env, cwd: the environment and the working folder of the process.
    """
    with log.open("w") as file:
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
            return process.wait(max(limit, 0.1))
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
