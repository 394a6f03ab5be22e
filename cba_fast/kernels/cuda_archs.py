"""Reads the list of CUDA architectures of a build, which is written as in CMake."""

import re

Capability = tuple[int, int]
_OLDEST, _LATEST = (0, 0), (1000, 0)


def capabilities(archs: str) -> tuple[tuple[Capability, Capability], ...]:
    """Return the first and last compute capability that each of ``80-real;90`` runs on.

    Machine code ("-real") runs on the same major version and later minor ones. An entry that ends
    in "-virtual", or has no ending, holds code that the driver compiles for all later GPUs. The
    letter "a" restricts both to one capability, "f" to one major version. "native" and "all" do not
    name capabilities and count as all: a launch shows whether the code runs.

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
