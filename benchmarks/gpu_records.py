"""Writes and summarizes the records of `gpu_run`."""

import json
import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path

LOST = 3  # exit code of a process whose GPU no longer answers
_BAD = ("FAILED", "ERROR", "========= Invalid", "========= ERROR SUMMARY")
_START = 12  # seconds to start Python and PyTorch, and to end the last case


def measure(name: str, out: Path, dry: bool, seconds: float, without: Collection[str]) -> int:
    """Run one measurement and append its records to its file, each as soon as it is made.

    Continues after the records that are already there. If a kernel ends the use of the GPU, the
    last record is ``{"lost": backend}`` and the process ends with the exit code `LOST`.

    Args:
        name: a function of `gpu_measure` or `gpu_networks`.
        out: the folder of the results.
        dry: whether to measure tiny shapes on the CPU.
        seconds: the time for everything.
        without: backends that are left out.
    """
    import gpu_measure

    path = out / f"{name}.jsonl"
    skip = len(path.read_text().splitlines()) if path.exists() else 0
    where = _where(dry)
    with path.open("a", encoding="utf-8") as file:

        def write(record: dict) -> None:
            file.write(json.dumps({"bench": f"gpu_{name}", **record, **where}) + "\n")
            file.flush()
            print(json.dumps(record), flush=True)

        try:
            for record in _records(name, out, dry, seconds - _START, without, skip):
                write(record)
        except gpu_measure.DeviceLost as e:
            write({"lost": str(e).split("_")[0]})
            os._exit(LOST)  # with a broken CUDA context the interpreter may not end
    return 0


def _records(
    name: str, out: Path, dry: bool, seconds: float, without: Collection[str], skip: int
) -> Iterator[dict]:
    import gpu_measure
    import gpu_networks

    device = "cpu" if dry else "cuda"
    if name == "convolutions":
        return gpu_measure.convolutions(device, seconds, without=without, skip=skip)
    if name == "tune":
        return gpu_measure.tune(device, seconds)
    module = gpu_measure if hasattr(gpu_measure, name) else gpu_networks
    return getattr(module, name)(device)


def _where(dry: bool) -> dict[str, str]:
    import torch

    from cba_fast.ops.places import arch_of

    if dry:
        return {}
    here = torch.device("cuda", torch.cuda.current_device())
    return {
        "device": torch.cuda.get_device_name(here),
        "arch": arch_of(here),
        "torch": torch.__version__,
    }


def report(out: Path) -> list[str]:
    """Return lines that summarize the records and logs of a folder."""
    lines = []
    for log in sorted(out.glob("tests*.log")) + sorted(out.glob("sanitizer*.log")):
        found = log.read_text(errors="replace").splitlines()
        lines += [line[:300] for line in found if line.startswith(_BAD)][:30]
    for record in read(out / "convolutions.jsonl"):
        if "lost" in record:
            lines.append(f"lost: {record['lost']}")
            continue
        times = {n: t["median_ms"] for n, t in record["timings"].items()}
        ours = {n: t for n, t in times.items() if n.startswith(("triton", "cuda"))}
        theirs = {n: t for n, t in times.items() if n not in ours}
        wrong = sorted(set(record["errors"]) - set(times))
        lines.append(
            f"{record['case']} {record['direction']} {record['dtype']}: ours {_best(ours)},"
            f" torch {_best(theirs)}, {_ratio(ours, theirs):.2f} times"
            + (f", wrong: {', '.join(wrong)}" if wrong else "")
            + (f", failed: {', '.join(record['failed'])}" if record["failed"] else "")
        )
    for name in ("rates", "erf_ops", "network", "compiled_network", "receptive_field"):
        lines += [f"{name}: {json.dumps(record)[:700]}" for record in read(out / f"{name}.jsonl")]
    lines += [f"evaluation: {record['images_per_s']}" for record in read(out / "evaluation.jsonl")]
    return lines


def read(path: Path) -> list[dict]:
    """Return the records of a file; a missing file has none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _best(times: dict[str, float]) -> str:
    if not times:
        return "none"
    name = min(times, key=times.__getitem__)
    return f"{times[name]:.4f} ms ({name})"


def _ratio(ours: dict[str, float], theirs: dict[str, float]) -> float:
    return min(theirs.values()) / min(ours.values()) if ours and theirs else math.nan
