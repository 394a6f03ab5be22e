"""Prints benchmark records as Markdown tables, losses included."""

import math
from collections.abc import Callable, Iterable
from functools import partial

from . import model_contest as forms
from .dwconv_contest import CL, FFT, NCHW, OURS, OURS_CL, RIVALS


def tables(records: list[dict]) -> str:
    """Return the tables of records, which may come from several benchmarks and machines.

    Times are medians in milliseconds with the 20th and 80th percentiles. A ratio below 1 is marked
    as a loss. A wrong result shows its relative error in place of a time.
    """
    parts = []
    for where, of_machine in _groups(records, _machine).items():
        # The peak was measured with each record; the largest one is nearest to the truth.
        peaks = [r["machine"].get("fma_peak_gflops") for r in of_machine]
        peak = max((p for p in peaks if p), default=None)
        parts.append(f"# {where}{f', FMA peak {peak:.0f} GFLOP/s' if peak else ''}\n\n")
        for bench, of_bench in _groups(of_machine, lambda r: r["bench"]).items():
            parts.append(_TABLES[bench](of_bench))
    return "".join(parts)


def _groups(records: list[dict], key) -> dict:
    groups: dict = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _machine(record: dict) -> str:
    where = record["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
    isa = where["isa"] or "no compiled core"
    return f"{where['cpu']}, {isa}, {where['threads']} threads ({versions})"


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers, or NaN if there are none."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def ratios(record: dict) -> dict[str, float]:
    """Return how many times as fast as PyTorch our op is.

    Returns:
        ``best`` and ``best_channels_last``: the time of PyTorch's fastest way over ours on
        contiguous and on channels_last tensors. ``nchw``: the time of PyTorch's convolution over
        ours, both on contiguous tensors. Ratios of what was not timed are left out.
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


def dwconv_table(records: list[dict]) -> str:
    """Return records of `DwconvContest` as a table for each direction, dtype and algorithm.

    GFLOP/s are the operations of a direct convolution over the time of our faster layout; the last
    column is their share of the machine's measured peak. A transform needs fewer operations, so
    that it can exceed 100 %.
    """
    parts = []
    groups = _groups(records, lambda r: (r["direction"], r["dtype"], r["algorithm"]))
    for (direction, dtype, algorithm), group in groups.items():
        parts.append(
            f"## {direction}, {dtype}, algorithm={algorithm}\n\n"
            "| case | NCHW | channels_last | torch.fft | ours | ours, channels_last | vs best "
            "| vs best, channels_last | vs NCHW | GFLOP/s | % of peak |\n"
            f"|{'---|' * 11}\n"
        )
        parts.extend(_dwconv_row(record) for record in group)
        parts.append(_means(group) + "\n")
    return "".join(parts)


# The columns of `models_table` and the ways that they show. Rows in bfloat16 have the same columns.
_MODEL_COLUMNS = {
    "default": forms.DEFAULT,
    "channels_last": forms.CHANNELS_LAST,
    "merged": forms.MERGED,
    "compiled": forms.COMPILED,
    "ours": forms.OURS,
}


def models_table(records: list[dict]) -> str:
    """Return records of `ModelContest` as a table for each kind of run, with a row for each dtype.

    ``vs best`` compares with the fastest of PyTorch's ways in that dtype, compiled or not.
    ``compiling`` is the time of the first call of the compiled form.
    """
    parts = []
    for kind, group in _groups(records, lambda r: r["direction"]).items():
        columns = ["network", "dtype", *_MODEL_COLUMNS, "compiling", "vs default", "vs best"]
        parts.append(f"## Whole networks, {kind}\n\n| {' | '.join(columns)} |\n")
        parts.append(f"|{'---|' * len(columns)}\n")
        for record in group:
            parts.extend(_model_row(record, dtype) for dtype in ("float32", "bfloat16"))
        parts.append("\n")
    return "".join(parts)


def _model_row(record: dict, dtype: str) -> str:
    names = {c: n if dtype == "float32" else f"{n}_bf16" for c, n in _MODEL_COLUMNS.items()}
    ms = {c: record["timings"][n]["median_ms"] for c, n in names.items() if n in record["timings"]}
    ours = ms.pop("ours", None)
    if ours is None:
        return ""
    first = record.get("first_call_s", {}).get(names["compiled"])
    default = record["timings"].get(forms.DEFAULT)
    cells = [record["case"], dtype, *(_time(record, n) for n in names.values())]
    cells.append(f"{first:.0f} s" if first else "")
    cells.append(_ratio(default["median_ms"] / ours if default else None))
    cells.append(_ratio(min(ms.values()) / ours if ms else None))
    return f"| {' | '.join(cells)} |\n"


def memory_table(records: list[dict]) -> str:
    """Return peaks of memory in MiB as a table for each direction; more than a tenth is a loss."""
    parts = []
    for direction, group in _groups(records, lambda r: r["direction"]).items():
        parts.append(
            f"## Peak memory, {direction}, MiB\n\n| case | channels_last | ours, channels_last "
            f"| ours over channels_last |\n|{'---|' * 4}\n"
        )
        for record in group:
            theirs, ours = (record["kib"][n] / 1024 for n in (CL, OURS_CL))
            ratio = f"{ours / theirs:.2f}" + (" (loss)" if ours > 1.1 * theirs else "")
            cells = [record["case"], f"{theirs:.1f}", f"{ours:.1f}", ratio]
            parts.append(f"| {' | '.join(cells)} |\n")
        parts.append("\n")
    return "".join(parts)


def op_table(records: list[dict], title: str) -> str:
    """Return records of ``bench_erf.py`` or ``bench_methods.py`` as one table."""
    names = list(dict.fromkeys(name for r in records for name in r["timings"]))
    columns = ["op", "case", "layout", *names, "result"]
    lines = [
        f"## {title}\n\n| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for r in records:
        cells = [r["direction"], r["case"], r["algorithm"], *(_time(r, n) for n in names)]
        if "share" in r:
            cells.append(f"{100 * r['share']:.0f} % of the read bandwidth")
        else:
            cells.append(", ".join(f"{v:.1f}x {name}" for name, v in r["speedup"].items()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def box_sweep_table(records: list[dict]) -> str:
    """Return records of ``benchmarks/bench_box_sweep.py`` as one table; times of one map in ms.

    ``ours_ms`` is the time of repeated calls, ``ours_cold_ms`` of one right after OpenCV's.
    """
    names = (
        "ours_ms",
        "ours_cold_ms",
        "official_ms",
        "remembering_ms",
        "union_find_ms",
        "one_thread_ms",
    )
    columns = ("case", "contours", *names, "speedup")
    lines = [f"## Box sweep\n\n| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for r in records:
        cells = [r["case"], r["direction"], *(f"{r[n]:.4g}" if n in r else "" for n in names)]
        lines.append(f"| {' | '.join([*cells, _ratio(r['speedup'])])} |")
    return "\n".join(lines) + "\n\n"


def facts_table(records: list[dict], title: str) -> str:
    """Return what records of whole commands found, a line for each fact."""
    lines = [f"## {title}\n\n| case | | |\n|---|---|---|"]
    for r in records:
        facts = {k: v for k, v in r.items() if k not in ("bench", "case", "machine")}
        for name, value in facts.items():
            many = value.items() if isinstance(value, dict) else ()
            text = ", ".join(f"{k}: {v}" for k, v in many) if many else value
            lines.append(f"| {r['case']} | {name} | {text} |")
    return "\n".join(lines) + "\n\n"


_TABLES: dict[str, Callable[[list[dict]], str]] = {
    "dwconv": dwconv_table,
    "models": models_table,
    "memory": memory_table,
    "erf": partial(op_table, title="Effective receptive field"),
    "methods": partial(op_table, title="Localization methods"),
    "box_sweep": box_sweep_table,
    "throughput": partial(facts_table, title="Whole commands"),
    "scale": partial(facts_table, title="wsol-eval on many maps"),
}


def _dwconv_row(record: dict) -> str:
    found = ratios(record)
    cells = [record["case"], *(_time(record, n) for n in (NCHW, CL, FFT, OURS, OURS_CL))]
    cells += [_ratio(found.get(n)) for n in ("best", "best_channels_last", "nchw")]
    ms = [record["timings"][n]["median_ms"] for n in (OURS, OURS_CL) if n in record["timings"]]
    rate = record["gflop"] / (1e-3 * min(ms)) if ms else None
    peak = record["machine"].get("fma_peak_gflops")
    cells.append(f"{rate:.0f}" if rate else "")
    cells.append(f"{100 * rate / peak:.0f}" if rate and peak else "")
    return f"| {' | '.join(cells)} |\n"


def _time(record: dict, name: str) -> str:
    if name not in record["timings"]:
        wrong = record.get("errors", {})
        return f"wrong ({wrong[name]:.1g})" if name in wrong else ""
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
