"""Make the table from which the fastest convolution on a GPU is chosen, from measurements.

    python benchmarks/gpu_run.py --out OUT --only build --only choice --only table  # measures
    python benchmarks/gpu_choice.py --records convolutions.jsonl choice.jsonl    # writes, anywhere

A kind of call (`cba_fast.ops.dwconv_gpu.bucket`) gets one of our methods if in every measured case
of that kind the result was right and the method was faster than PyTorch's convolution on both
memory formats: its 80th percentile must be below their 20th. The time of a call is that of the GPU
or that of the host, whichever is longer. Our methods take as long for the smallest kernel of a kind
as for the measured one, PyTorch does not: its time is scaled down by the ratio of their taps. Kinds
that were not measured in time stay with PyTorch.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Collection, Iterable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import torch
from gpu_measure import BACKENDS, CL, compared, inputs_on, ours

from cba_fast.bench.dwconv_contest import DIRECTIONS, Case
from cba_fast.ops import dwconv_gpu

# The stages of the study's networks (RepLKNet, SLaK and slak_flex, ConvNeXt) at 384 and 224 pixels:
# sides of the map, numbers of channels, kernels.
_LARGE = ((31, 31), (51, 5), (5, 51), (51, 1), (1, 51), (7, 7), (5, 5))
_SMALL = ((13, 13), (13, 5), (5, 13), (13, 1), (1, 13), (7, 7), (5, 5))
STAGES = [
    ((24, 14), (512, 128), _LARGE),
    ((96, 56), (128, 32), _LARGE),
    ((48, 28), (128,), _LARGE),
    ((12, 7), (512,), _SMALL),
]
# All other kinds: a map for each of `dwconv_gpu.MAP_SIDES` and each alignment that is likely.
MAPS = (24, 96, 48, 12, 28, 14, 7, 192)
KERNELS = [*_LARGE, *_SMALL[:3], (21, 21), (51, 51), (9, 9), (3, 3), (63, 63)]
DTYPES = (torch.bfloat16, torch.float32)
TINY = [Case(2, 6, 5, 9, 9, 1)]  # for dry runs
CHUNK = 24  # groups whose kernels are compiled together before they are measured
LONGEST_COMPILATION = 120  # seconds for the kernels of a chunk


class Group(NamedTuple):
    """Cases that need the same kernels."""

    dtype: torch.dtype
    kernel: tuple[int, int]
    side: int
    channels: int


def groups() -> Iterator[Group]:
    """Yield all groups, the most important first: those of the networks, and half types."""
    networks = [
        (kernel, side, c)
        for sides, channels, kernels in STAGES
        for side, c, kernel in product(sides, channels, kernels)
    ]
    others = [k for k in product(KERNELS, MAPS, dwconv_gpu.CHANNELS[::-1]) if k not in networks]
    for some, dtype in product((networks, others), DTYPES):
        for rest in some:
            yield Group(dtype, *rest)


def cases() -> Iterator[tuple[Case, torch.dtype, str]]:
    """Yield the cases of all groups, those with many images first."""
    for group in groups():
        yield from _cases_of(group)


def _cases_of(group: Group) -> Iterator[tuple[Case, torch.dtype, str]]:
    for n, direction in product(dwconv_gpu.IMAGES[::-1], DIRECTIONS):
        # PyTorch's weight gradient would take seconds for the others.
        if group.side < 192 or n * group.channels <= 1024:
            case = Case(group.channels, group.side, group.side, *group.kernel, n)
            yield case, group.dtype, direction


def choice(
    device: str, seconds: float = 1e9, *, without: Collection[str] = (), skip: int = 0
) -> Iterator[dict]:
    """Measure case after case until the time is used up.

    Args:
        device: "cuda" or "cpu".
        seconds: the time after which no case is begun.
        without: backends that are left out.
        skip: how many of the first cases are left out.
    """
    end = time.monotonic() + seconds
    todo = _compiled(without) if device == "cuda" else product(TINY, DTYPES, DIRECTIONS)
    for case, dtype, direction in islice(todo, skip, None):
        if time.monotonic() > end:
            return
        yield compared(case, dtype, direction, device, 0.01, None, without)


def _compiled(without: Collection[str]) -> Iterator[tuple[Case, torch.dtype, str]]:
    """Yield the cases after other processes have compiled their kernels.

    A kernel takes a second or two, so that compiling them one after another would take most of the
    time. Triton keeps compiled kernels on the disk for all processes.
    """
    todo = groups()
    with multiprocessing.get_context("spawn").Pool(_processes()) as pool:
        helps = True
        while chunk := list(islice(todo, CHUNK)):
            if helps:
                jobs = [(group, tuple(without)) for group in chunk]
                compiling = pool.map_async(_compile, jobs, chunksize=1)
                compiling.wait(LONGEST_COMPILATION)
                if not compiling.ready():  # a process hangs, or died with its job
                    pool.terminate()
                    helps = False
            for group in chunk:
                yield from _cases_of(group)


def _processes() -> int:
    return max(1, min(12, (os.cpu_count() or 1) - 2))


def _compile(job: tuple[Group, tuple[str, ...]]) -> None:
    """Compile our kernels for the cases of a group, by running them once."""
    group, without = job
    for case, dtype, direction in _cases_of(group):
        inputs = inputs_on("cuda", case, direction, dtype)
        for function in ours(case, direction, inputs, without).values():
            with contextlib.suppress(Exception):  # the measurement will report it
                function()
    with contextlib.suppress(RuntimeError):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def methods(records: Iterable[dict]) -> dict[str, str]:
    """Return the method of each bucket in which one of our methods won every case."""
    winners: dict[str, set[str]] = {}
    for record in records:
        case, dtype = Case.parse(record["case"]), getattr(torch, record["dtype"])
        size, kernel = (case.batch, case.channels, case.height, case.width), (case.kh, case.kw)
        share = dwconv_gpu.smallest_share(kernel)
        for suffix, memory_format in (("", torch.contiguous_format), ("_channels_last", CL)):
            image = torch.empty(size, dtype=dtype, device="meta", memory_format=memory_format)
            key = dwconv_gpu.bucket(record["direction"], image, kernel)
            if key is not None:
                winners.setdefault(key, set()).add(_winner(record["timings"], suffix, share))
    return {key: min(w) for key, w in sorted(winners.items()) if len(w) == 1 and w != {"torch"}}


def _winner(timings: dict[str, dict], suffix: str, share: float) -> str:
    rivals = [
        max(share * timings[name]["p20_ms"], timings[name]["host_ms"])
        for name in ("nchw", "channels_last")
        if name in timings
    ]
    costs = {b: max(t["p80_ms"], t["host_ms"]) for b in BACKENDS if (t := timings.get(b + suffix))}
    if not costs or not rivals:
        return "torch"
    best = min(costs, key=costs.__getitem__)
    return best if costs[best] < min(rivals) else "torch"


def read(paths: Iterable[Path]) -> list[dict]:
    """Return the records of convolutions in files of JSON lines."""
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return [record for record in map(json.loads, lines) if "direction" in record]


def entries(records: Iterable[dict]) -> dict[str, dict]:
    """Return the table's entries by architecture, from records that name the architecture."""
    by_arch: dict[str, list[dict]] = {}
    for record in records:
        if "arch" in record:
            by_arch.setdefault(record["arch"], []).append(record)
    return {
        arch: {
            "device": found[0]["device"],
            "torch": found[0]["torch"],
            "cases": len(found),
            "methods": methods(found),
        }
        for arch, found in by_arch.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, nargs="+", required=True, help="From gpu_run.py.")
    parser.add_argument("--table", type=Path, default=dwconv_gpu.TABLE, help="The table to write.")
    args = parser.parse_args()
    found = dwconv_gpu.measured() | entries(read(args.records))
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    args.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
