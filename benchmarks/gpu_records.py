"""Writes and summarizes the records of `gpu_run`."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

_BAD = ("========= Invalid", "========= ERROR SUMMARY", "========= Error: Race")
_START = 12  # seconds to start Python and PyTorch, and to end the last case
_MOST_LOSSES = 3  # of a way, which is then left out of all later cases


def measure(name: str, out: Path, dry: bool, seconds: float) -> int:
    """Run one measurement and append its records to its file, each as soon as it is made.

    Goes on behind the records that are already there. If a kernel ends the use of the GPU, the
    process ends with 3.

    Args:
        name: a function of `gpu_measure` or `gpu_networks`, or "launch_" and one of `LAUNCHES`.
        out: the folder of the results.
        dry: whether to measure tiny shapes on the CPU.
        seconds: the time for everything.
    """
    import gpu_measure

    path = out / f"{name}.jsonl"
    where = _where(dry)
    before = read(path)
    with path.open("a", encoding="utf-8") as file:
        try:
            for record in _records(name, path, before, dry, seconds - _START):
                file.write(json.dumps({"bench": f"gpu_{name}", **record, **where}) + "\n")
                file.flush()
                _attempt(path).unlink(missing_ok=True)
                print(json.dumps(record), flush=True)
        except gpu_measure.DeviceLost:
            os._exit(3)  # with a broken CUDA context the interpreter may not end
    return 0


def _records(
    name: str, path: Path, before: list[dict], dry: bool, seconds: float
) -> Iterator[dict]:
    import gpu_measure
    import gpu_networks

    device = "cpu" if dry else "cuda"
    if name.startswith("launch_"):
        return gpu_measure.launch(device, name.removeprefix("launch_"))
    if name != "convolutions":
        module = gpu_measure if hasattr(gpu_measure, name) else gpu_networks
        return getattr(module, name)(device)
    done = sum("lost" not in record for record in before)

    def trying(index: int, way: str) -> None:
        _attempt(path).write_text(json.dumps({"lost": way, "index": index}))
        print(f"case {index}: {way}", flush=True)

    return gpu_measure.convolutions(
        device, seconds, done=done, without=partial(left_out, before), trying=trying
    )


def left_out(records: list[dict], index: int) -> set[str]:
    """Return the ways that were lost in a case, and those lost so often that they are given up."""
    lost = [(record["lost"], record["index"]) for record in records if "lost" in record]
    counts = Counter(way for way, _ in lost)
    often = {way for way, count in counts.items() if count >= _MOST_LOSSES}
    return often | {way for way, at in lost if at == index}


def note_lost(records: Path, code: int | None) -> bool:
    """Note the way that was being tried when a process ended; say whether there was one."""
    attempt = _attempt(records)
    if not attempt.exists():
        return False
    lost = json.loads(attempt.read_text())
    attempt.unlink()
    how = "hung" if code is None else f"the process ended with {code}"
    with records.open("a", encoding="utf-8") as file:
        file.write(json.dumps(lost | {"how": how}) + "\n")
    return True


def _attempt(records: Path) -> Path:
    return records.with_suffix(".trying")


def _where(dry: bool) -> dict[str, str]:
    if dry:
        return {}
    import torch

    from cba_fast.ops.places import arch_of

    here = torch.device("cuda", torch.cuda.current_device())
    return {
        "device": torch.cuda.get_device_name(here),
        "arch": arch_of(here),
        "torch": torch.__version__,
    }


def report(out: Path) -> list[str]:
    """Return lines that summarize the records and logs of a folder."""
    lines = []
    for log in sorted(out.glob("*check_0.log")):
        found = log.read_text(errors="replace").splitlines()
        lines += [line[:300] for line in found if line.startswith(_BAD)][:30]
    for record in read(out / "convolutions.jsonl"):
        if "lost" in record:
            lines.append(f"lost: {record['lost']} of case {record['index']}: {record['how']}")
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
