"""Sums up benchmark records in two short tables for each machine, losses included."""

from collections.abc import Iterable, Iterator

from . import model_contest as forms
from .dwconv_contest import CL, OURS, OURS_CL
from .tables import geometric_mean, ratios

_DIRECTIONS = {
    "forward": "forward",
    "grad_x": "input gradient",
    "grad_weight": "weight gradient",
}
_TORCH = "PyTorch's fastest way"


def summary(records: Iterable[dict]) -> str:
    """Return the Markdown of what records of several benchmarks say, machine by machine.

    Ratios are times of the rival over ours (of memory: its peak over ours): below 1 ours is slower.
    Records that have no rival, such as shares of a bandwidth, are left out.
    """
    machines: dict[tuple, list[dict]] = {}
    for record in records:
        where = record["machine"]
        key = (where["cpu"], where["isa"], where["versions"]["torch"])
        machines.setdefault(key, []).append(record)
    parts = [_machine(key, group) for key, group in machines.items()]
    return "\n".join(part for part in parts if part)


def _machine(key: tuple, records: list[dict]) -> str:
    cpu, isa, torch = key
    found: dict[tuple[str, str], list[float]] = {}
    networks = [row for record in records for row in _network_rows(record)]
    for what, rival, ratio in (row for record in records for row in _rows(record)):
        found.setdefault((what, rival), []).append(ratio)
    if not found and not networks:
        return ""
    lines = [f"**{cpu}, {isa}, PyTorch {torch}**", ""]
    if found:
        head = ["what", "against", "cases", "ratio: mean (lowest to highest)", "worse in"]
        lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [_row(*what, values) for what, values in found.items()]
        lines.append("")
    if networks:
        head = ["network", *_FORMS, "cba_fast", "ratio to the best"]
        lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *networks, ""]
    return "\n".join(lines)


def _row(what: str, rival: str, values: list[float]) -> str:
    mean = _number(geometric_mean(values))
    if len(values) > 1:
        mean += f" ({_number(min(values))} to {_number(max(values))})"
    slower = sum(value < 1 for value in values)
    return f"| {what} | {rival} | {len(values)} | {mean} | {slower or 'none'} |"


def _number(ratio: float) -> str:
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def _rows(record: dict) -> Iterator[tuple[str, str, float]]:
    """Yield what was measured, its rival and the ratio, for each comparison of a record."""
    threads = record["machine"]["threads"]
    bench, direction = record["bench"], record.get("direction", "")
    where = f"{threads} thread{'s' * (threads > 1)}"
    if bench == "box_sweep" and "official_ms" in record:
        contours = "largest contour" if direction == "largest" else "all contours"
        what = f"MaxBoxAcc of a map, all thresholds, {contours}, {where}"
        yield what, "official algorithm, OpenCV", record["speedup"]
    elif bench == "dwconv":
        what = f"depthwise convolution, {_DIRECTIONS[direction]}, {record['dtype']}, {where}"
        found = ratios(record)  # both layouts are cases
        yield from ((what, _TORCH, found[n]) for n in ("best", "best_channels_last") if n in found)
    elif bench == "memory":
        kib = record["kib"]
        what = "peak memory of the convolution, all directions"
        yield what, "`torch.nn.Conv2d`, channels_last", kib[CL] / kib[OURS_CL]
    elif bench == "erf" and "torch, sorted" in record.get("speedup", {}):
        ratio = record["speedup"]["torch, sorted"]
        yield f"ERF size of given gradients, {where}", "`torch.sort`", ratio
    elif bench == "methods":
        what = f"{direction} maps of {record['case']}, {where}"
        yield what, "pytorch-grad-cam", record["speedup"]["ours"]
    elif bench == "throughput" and "times_as_fast" in record:
        name = record["case"].partition(" ")[0]
        command = {"maps": "generate-heatmap"}.get(name, name)
        what = f"`cba-fast {command}`, {record['model']}, {record['precision']}, {where}"
        yield what, "the study's scripts", record["times_as_fast"]


_FORMS = {
    "contiguous": forms.DEFAULT,
    "channels_last": forms.CHANNELS_LAST,
    "merged": forms.MERGED,
    "`torch.compile`": forms.COMPILED,
}


def _network_rows(record: dict) -> Iterator[str]:
    if record["bench"] != "models":
        return
    for dtype, suffix in (("float32", ""), ("bfloat16", "_bf16")):
        ms = {
            name.removesuffix(suffix): timing["median_ms"]
            for name, timing in record["timings"].items()
            if name.endswith("_bf16") == bool(suffix)
        }
        if OURS not in ms:
            continue
        rivals = [ms[form] for form in _FORMS.values() if form in ms]
        ratio = min(rivals) / ms[OURS]
        name, _, shape = record["case"].partition(" ")
        what = f"{name.split('.')[0]} {shape}".strip()  # without the tag of timm's weights
        cells = [f"{what}, {record['direction']}, {dtype}"]
        cells += [f"{ms[form] / 1e3:.2f} s" if form in ms else "" for form in _FORMS.values()]
        cells += [f"{ms[OURS] / 1e3:.2f} s", f"{ratio:.2f}" + (" (loss)" if ratio < 1 else "")]
        yield f"| {' | '.join(cells)} |"
