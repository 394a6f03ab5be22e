"""Run the command line inside the test process, with its exit status and output."""

from dataclasses import dataclass

from cba_fast.cli.main import main


@dataclass
class Finished:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


def run_cli(capsys, *args) -> Finished:
    """Run ``cba-fast ARGS...``; paths and numbers are turned into strings."""
    capsys.readouterr()
    try:
        main([str(a) for a in args])
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    captured = capsys.readouterr()
    return Finished(status, captured.out, captured.err)
