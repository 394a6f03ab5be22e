"""Reads the CUDA architectures of a build as CMake writes them."""

import re

Capability = tuple[int, int]
_OLDEST, _LATEST = (0, 0), (1000, 0)


def capabilities(archs: str) -> tuple[tuple[Capability, Capability], ...]:
    """Return the first and last compute capabilities that code for ``80-real;90`` runs on.

    Machine code ("-real") runs on the same major version and later minor ones. A "-virtual" entry,
    or one without ending, leaves code that the driver compiles for all later GPUs. An "a" binds
    both to one capability, an "f" to a major version. "native" and "all" say nothing: what they run
    on shows in a launch.

    Source: NVIDIA's CUDA C++ programming guide, "Compute capabilities" and "Feature set compiler
    targets".
    """
    return tuple(_range(arch) for arch in archs.split(";"))


def _range(arch: str) -> tuple[Capability, Capability]:
    match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual|)", arch)
    if match is None:
        return _OLDEST, _LATEST
    major, minor, bound, kind = int(match[1]), int(match[2]), match[3], match[4]
    if bound == "a":
        return (major, minor), (major, minor)
    if bound == "f" or kind == "-real":
        return (major, minor), (major, 9)
    return (major, minor), _LATEST
