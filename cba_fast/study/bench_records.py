"""Benchmark records: the machine, JSON lines with one record per measured case, and the table."""

import json
import math
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from cba_fast import files
from cba_fast.errors import InputError
from cba_fast.kernels import native

from .dwconv_contest import CL, FFT, NCHW, OURS, OURS_CL, RIVALS
from .score import versions

KEY = ("bench", "case", "direction", "dtype", "algorithm")


def machine() -> dict:
    """Return what a time depends on: processor, instruction set, threads, versions."""
    reason = native.unavailable()
    return {
        "cpu": cpu_name(),
        "isa": None if reason else native.build_info()["isa"],
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "versions": {k: v for k, v in versions().items() if k in ("cba_fast", "python", "torch")},
    }


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def device_slug() -> str:
    """Return processor, instruction set and threads as a part of a file name."""
    info = machine()
    name = re.sub(r"[^a-z0-9]+", "-", info["cpu"].lower()).strip("-")
    return f"{name}_{info['isa'] or 'torch'}_{info['threads']}t"


def read_records(path: str | os.PathLike) -> list[dict]:
    """Read JSON lines; a missing file holds none.

    Raises:
        InputError: a line is no JSON object; the message names it.
    """
    path = Path(path)
    records = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as e:
            raise InputError(f"{path}: line {number} is no JSON: {e}") from e
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number} is no JSON object")
        records.append(record)
    return records


def add_record(path: str | os.PathLike, record: dict) -> None:
    """Put a record into a file of JSON lines, in place of an older one of the same case."""
    records = read_records(path)
    key = _key(record)
    places = [i for i, old in enumerate(records) if _key(old) == key]
    if places:
        records[places[0]] = record
    else:
        records.append(record)
    files.write_text(path, "".join(json.dumps(r, allow_nan=False) + "\n" for r in records))


def _key(record: dict) -> tuple:
    return tuple(record.get(k) for k in KEY)


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers; NaN of none."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def ratios(record: dict) -> dict[str, float]:
    """Return how many times faster ours is, per candidate of ours, than the rivals.

    Returns:
        ``best`` and ``best_channels_last``: the fastest of PyTorch's ways over ours, on contiguous
        and on channels_last tensors; ``nchw``: PyTorch's convolution on contiguous tensors over
        ours on the same. What was not timed (a wrong result) is left out.
    """
    ms = {name: t["median_ms"] for name, t in record["timings"].items()}
    rivals = [ms[n] for n in RIVALS if n in ms]
    found = {}
    if rivals and OURS in ms:
        found["best"] = min(rivals) / ms[OURS]
    if rivals and OURS_CL in ms:
        found["best_channels_last"] = min(rivals) / ms[OURS_CL]
    if NCHW in ms and OURS in ms:
        found["nchw"] = ms[NCHW] / ms[OURS]
    return found


def dwconv_table(records: list[dict], peak_gflops: float | None = None) -> str:
    """Return the records of the depthwise convolution as a Markdown table per direction and dtype.

    Times are medians in milliseconds. A ratio below 1 is a loss and is marked ``(loss)``; a
    candidate whose result was wrong shows its relative error instead of a time.

    Args:
        records: of `DwconvContest.record`.
        peak_gflops: the measured peak of multiplications and additions. With it the arithmetic
            that a direct convolution would need is also shown as its share; a transform does less
            work and can exceed 100 %.
    """
    parts = []
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        key = (record["direction"], record["dtype"], record["algorithm"])
        groups.setdefault(key, []).append(record)
    for (direction, dtype, algorithm), group in groups.items():
        parts.append(f"## {direction}, {dtype}, algorithm={algorithm}\n")
        share = " % of peak |" if peak_gflops else ""
        parts.append(
            "| case | NCHW | channels_last | torch.fft | ours | ours, channels_last | vs best "
            f"| vs best, channels_last | vs NCHW | GFLOP/s |{share}\n"
            f"|---|{'---|' * (10 if peak_gflops else 9)}\n"
        )
        parts.extend(_row(record, peak_gflops) for record in group)
        parts.append(_means(group) + "\n")
    return "".join(parts)


def _row(record: dict, peak_gflops: float | None) -> str:
    found = ratios(record)
    cells = [record["case"], *(_time(record, n) for n in (NCHW, CL, FFT, OURS, OURS_CL))]
    cells += [_ratio(found.get(n)) for n in ("best", "best_channels_last", "nchw")]
    rates = [
        record["gflop"] / (1e-3 * record["timings"][n]["median_ms"])
        for n in (OURS, OURS_CL)
        if n in record["timings"]
    ]
    cells.append(f"{max(rates):.0f}" if rates else "")
    if peak_gflops:
        cells.append(f"{100 * max(rates) / peak_gflops:.0f}" if rates else "")
    return f"| {' | '.join(cells)} |\n"


def _time(record: dict, name: str) -> str:
    if name not in record["timings"]:
        return f"wrong ({record['errors'][name]:.1g})"
    t = record["timings"][name]
    return f"{t['median_ms']:.3g} ({t['p20_ms']:.3g}-{t['p80_ms']:.3g})"


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + (" (loss)" if value < 1 else "")


def _means(group: list[dict]) -> str:
    def mean(name: str) -> str:
        values = [r[name] for r in map(ratios, group) if name in r]
        if not values:
            return "none"
        return f"{geometric_mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    return (
        f"\nGeometric means: {mean('best')} times the best of torch, "
        f"{mean('best_channels_last')} on channels_last, {mean('nchw')} times NCHW.\n"
    )
