"""Stands in for the training of a model in processes that import nothing and begin at once."""

import contextlib
import os
import threading
import time

_said = None


def begin(said, until):
    """Do what `cba_fast.experiments.demo.measure.begin_worker` does, whose import takes seconds."""
    global _said
    _said = said

    def watch():
        with contextlib.suppress(EOFError, OSError):
            until.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def wait(model, task):
    _said.put(str(os.getpid()))
    time.sleep(120)
