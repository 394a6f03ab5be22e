"""Which method is fastest for which kind of convolution on this GPU: makes the table of the choice.

    python benchmarks/gpu_choice.py --write            # measure, and write dwconv_gpu_table.json
    python benchmarks/gpu_choice.py --records FILE ... # of records that are there, print the table

A method enters the table for a bucket (`cba_fast.ops.dwconv_gpu.bucket`) if in every case of it
that was measured its result was right and its 80th percentile below the 20th of PyTorch's
convolution on both memory formats. A bucket that time did not suffice for stays PyTorch's.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import torch
from gpu_measure import BACKENDS, CL, compared

from cba_fast.ops import dwconv_gpu
from cba_fast.study.dwconv_contest import DIRECTIONS, Case

# One map per step of `dwconv_gpu.MAP_SIDES`: those of the study's networks, else the step itself.
MAPS = (24, 96, 48, 12, 7, 192)
# Kernels by how much they matter: RepLKNet's and SLaK's, then the others.
KERNELS = [
    *((31, 31), (13, 13), (51, 5), (5, 51), (7, 7)),
    *((13, 5), (5, 13), (21, 21), (51, 51), (9, 9), (5, 5), (3, 3), (63, 63)),
]
DTYPES = (torch.bfloat16, torch.float32)
TINY = [Case(2, 6, 5, 9, 9, 1)]  # of a dry run


def cases() -> Iterator[tuple[Case, torch.dtype, str]]:
    """Yield what is measured, the most important first: half types, many images, large kernels."""
    images, channels = dwconv_gpu.IMAGES[::-1], dwconv_gpu.CHANNELS[::-1]
    for dtype, n, kernel, side, c, direction in product(
        DTYPES, images, KERNELS, MAPS, channels, DIRECTIONS
    ):
        if side < 192 or n * c <= 1024:  # larger ones take seconds in PyTorch's weight gradient
            yield Case(c, side, side, *kernel, n), dtype, direction


def choice(device: str, seconds: float = 1e9) -> Iterator[dict]:
    """Measure case after case until the time is used up."""
    end = time.monotonic() + seconds
    todo = cases() if device == "cuda" else product(TINY, DTYPES, DIRECTIONS)
    for case, dtype, direction in todo:
        if time.monotonic() > end:
            return
        yield compared(case, dtype, direction, device, seconds=0.01, compiler=None)


def methods(records: Iterable[dict]) -> dict[str, str]:
    """Return the method of each bucket in which one of ours won every case."""
    winners: dict[str, set[str]] = {}
    for record in records:
        case, dtype = Case.parse(record["case"]), getattr(torch, record["dtype"])
        size, kernel = (case.batch, case.channels, case.height, case.width), (case.kh, case.kw)
        for suffix, memory_format in (("", torch.contiguous_format), ("_channels_last", CL)):
            image = torch.empty(size, dtype=dtype, device="meta", memory_format=memory_format)
            key = dwconv_gpu.bucket(record["direction"], image, kernel)
            if key is not None:
                winners.setdefault(key, set()).add(_winner(record["timings"], suffix))
    return {key: min(w) for key, w in sorted(winners.items()) if len(w) == 1 and w != {"torch"}}


def _winner(timings: dict[str, dict], suffix: str) -> str:
    rivals = [timings[name]["p20_ms"] for name in ("nchw", "channels_last") if name in timings]
    ours = {b: timings[b + suffix] for b in BACKENDS if b + suffix in timings}
    if not ours or not rivals:
        return "torch"
    best = min(ours, key=lambda backend: ours[backend]["median_ms"])
    return best if ours[best]["p80_ms"] < min(rivals) else "torch"


def read(paths: Iterable[Path]) -> list[dict]:
    """Return the records of files of JSON lines, those that are convolutions."""
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return [record for record in map(json.loads, lines) if "direction" in record]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="Write the package's table.")
    parser.add_argument("--records", type=Path, nargs="+", help="Do not measure, read these.")
    parser.add_argument("--seconds", type=float, default=500)
    args = parser.parse_args()
    records = read(args.records) if args.records else list(choice("cuda", args.seconds))
    entry = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cases": len(records),
        "methods": methods(records),
    }
    table = dwconv_gpu.measured() | {dwconv_gpu.arch_of(torch.device("cuda", 0)): entry}
    text = json.dumps(table, indent=1, sort_keys=True) + "\n"
    if args.write:
        dwconv_gpu.TABLE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
