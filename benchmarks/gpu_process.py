"""Processes that end, and all that they started with them."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

# A group where that can be had without a session, which who ends ours would not end.
_GROUP = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


def run_limited(
    arguments: list, log: Path, limit: float, *, env: dict[str, str], cwd: Path
) -> int | None:
    """Run a command with its output in `log`; return its exit code, None if it took too long.

    What it started (workers of a pool, of a data loader, of pytest) ends with it: one that hangs on
    the GPU would disturb whatever is measured next.

    Args:
        arguments: the command; its parts become strings.
        log: written anew.
        limit: seconds.
        env, cwd: of the process.
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
