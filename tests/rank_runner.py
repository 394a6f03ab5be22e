"""Starts several processes of one command as torchrun does, for tests."""

import multiprocessing
import os
import socket
import sys
from pathlib import Path

import torch

from cba_fast.cli.main import main

# PyTorch decides at the first gradient whether it needs threads for devices, and then no fork can
# compute any. After fake tensors, as tests of compilers use, it would believe to have a device.
torch.ones((), requires_grad=True).backward()


def run(count, *args, **more):
    """Run `count` processes of a command as torchrun starts them; return their (status, out, err).

    They are forked from this process, which has imported everything, so that a run takes a second.
    `more` are further variables of their environment.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more}
    place |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    names = [(f".{rank}.out", f".{rank}.err") for rank in range(count)]
    fork = multiprocessing.get_context("fork")
    processes = []
    for rank, texts in enumerate(names):
        env = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(fork.Process(target=_process, args=(env, texts, [str(a) for a in args])))
        processes[-1].start()
    for process in processes:
        process.join(120)
    texts = [[Path(name).read_text() for name in pair] for pair in names]
    return [(p.exitcode, *both) for p, both in zip(processes, texts, strict=True)]


def _process(env, names, args):
    os.environ.update(env)
    for number, name in zip((1, 2), names, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    main(args)


def files_of(*paths):
    """Return the bytes of files and of all files in folders, by their paths."""
    found = [f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()]
    return {str(f): f.read_bytes() for f in found}
