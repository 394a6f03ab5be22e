"""Modes of commands that became commands of their own: the earlier spelling, for one release."""

import shlex
from dataclasses import dataclass, field

import click


@dataclass(frozen=True)
class _Moved:
    """A command's earlier mode, and the command that does its work now.

    Attributes:
        mode: the arguments that chose the mode.
        command: the command that it became.
        kept: what stands in the place of `mode` there.
        renamed: options that have another name there.
    """

    mode: tuple[str, ...]
    command: str
    kept: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)


_ERF_MAP = {
    "--num_samples": "--num_images",
    "--save_map": "--output",
    "--map": "--output",
    "--map_fig": "--save_fig",
}
_MOVED = {
    "erf-compute": (
        _Moved(("--definition", "replknet"), "erf-map", renamed=_ERF_MAP),
        _Moved(("--definition", "study"), "erf-compute"),
    ),
    "wsol-eval": (_Moved(("--mask_root",), "pixel-eval", ("--mask_root",)),),
    "analysis-erf-vs-wsol": (_Moved(("--per_image",), "analysis-per-image"),),
}


def of_today(line: list[str]) -> list[str]:
    """Return the command line, a command and its arguments, that does what an earlier one did.

    What replaces the earlier mode is printed. Lines without such a mode are returned as they are.

    Raises:
        click.UsageError: two earlier options name what is one option now.
    """
    command, *args = line
    split = [part for arg in args for part in _option(arg)]
    for moved in _MOVED.get(command, ()):
        size = len(moved.mode)
        for at in range(len(split)):
            if tuple(split[at : at + size]) == moved.mode:
                split[at : at + size] = moved.kept
                found = [moved.command, *(moved.renamed.get(arg, arg) for arg in split)]
                earlier = f"{command} {' '.join(moved.mode)}"
                for name in set(moved.renamed.values()):
                    if found.count(name) > 1:
                        raise click.UsageError(f"{earlier}: give {name} once")
                click.echo(f"Warning: {earlier} is now: cba-fast {shlex.join(found)}", err=True)
                return found
    return line


def _option(arg: str) -> list[str]:
    """Return an option with underscores and apart from its "=value"; others as they are."""
    if not arg.startswith("--"):
        return [arg]
    name, *value = arg.split("=", 1)
    return [name.replace("-", "_").replace("__", "--", 1), *value]
