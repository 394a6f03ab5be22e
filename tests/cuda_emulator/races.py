"""Describes races of emulated kernels, with lines of the sources; races.h says what a race is."""

import functools
import re
import shutil
import subprocess
from typing import NamedTuple

from . import ROOT, compiler


class Line(NamedTuple):
    """A line of a source.

    Attributes:
        file: the path from the root of the project.
        number: the number of the line, from 1 on.
        function: the function that it belongs to, or empty if that does not matter.
    """

    file: str
    number: int
    function: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" + f" ({self.function})" * bool(self.function)

    def text(self) -> str:
        """Return the text of the line."""
        return (ROOT / self.file).read_text().splitlines()[self.number - 1].strip()


class Race(NamedTuple):
    """Two accesses that nothing orders, described in words, with the lines that make them."""

    kernel: str
    text: str
    lines: tuple[Line, Line]

    def __str__(self) -> str:
        return self.text


def unavailable() -> str | None:
    """Return the reason why kernels cannot be searched for races here, or None."""
    if (command := compiler()) is None or shutil.which("addr2line") is None:
        return "no C++ compiler, or no addr2line, to search CUDA kernels for races with"
    version = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    if "Free Software Foundation" not in version:
        return "the search for races in CUDA kernels needs GCC"
    return None


def found(module) -> list[Race]:
    """Return the races that were found since the last call."""
    return [_race(module, *race) for race in module.found_races()]


def ordering_lines(module) -> dict[Line, list[int]]:
    """Return the lines that ordered accesses since the last call, with their places in the code.

    These are barriers, fences and waits for copies. A line of a template has several places.
    """
    lines = {}
    for site in module.ordering_sites():
        lines.setdefault(_line(module, site)._replace(function=""), []).append(site)
    return lines


def _race(module, kernel: int, shared: bool, before: tuple, after: tuple) -> Race:
    name = _frames(module.__file__, kernel + 1)[0].function
    lines = _line(module, before[2]), _line(module, after[2])
    space = "shared" if shared else "global"
    accesses = [_in_words(*access, line) for access, line in zip((before, after), lines)]
    text = f"{name}: race in {space} memory: {accesses[0]}, and {accesses[1]}"
    return Race(name, text, lines)


def _in_words(kind: str, under_way: bool, site: int, block: int, thread: int, line: Line) -> str:
    how = " by a copy that is not waited for" if under_way else ""
    return f"{kind}{how} in block {block}, thread {thread} at {line}"


def _line(module, site: int) -> Line:
    """Return the kernel's line that a call returns to, not one of the emulator."""
    frames = _frames(module.__file__, site)
    return next((f for f in frames if re.search(r"^csrc/|selftest\.cpp$", f.file)), frames[0])


@functools.cache
def _frames(module: str, site: int) -> list[Line]:
    """Return the function of a site, and the functions that it is inlined into."""
    command = ["addr2line", "-Cfie", module, hex(site - 1)]  # the call lies before the site
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    frames = []
    for function, place in zip(printed[::2], printed[1::2]):
        file, _, number = place.partition(" ")[0].rpartition(":")
        file = file.removeprefix(f"{ROOT}/")
        function = re.sub(r"\(anonymous namespace\)::|^void |\(.*", "", function)
        frames.append(Line(file, int(number) if number.isdigit() else 0, function))
    return frames
