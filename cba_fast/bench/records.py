"""Files of benchmark records: a JSON line for each measured case, with the machine it ran on."""

import json
import os
import re
from pathlib import Path

import torch

from .. import files
from ..errors import InputError
from ..kernels import native
from ..ops.places import cpu_name
from ..runs.scoring.boxes import versions

KEY = ("bench", "case", "direction", "dtype", "algorithm")


def machine() -> dict:
    """Return what a time depends on: processor, instruction set, threads and versions."""
    reason = native.unavailable()
    return {
        "cpu": cpu_name(),
        "isa": None if reason else native.build_info()["isa"],
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "versions": {k: v for k, v in versions().items() if k in ("cba_fast", "python", "torch")},
    }


def device_slug() -> str:
    """Return processor, instruction set and threads as a part of a file name."""
    info = machine()
    name = re.sub(r"[^a-z0-9]+", "-", info["cpu"].lower()).strip("-")
    return f"{name}_{info['isa'] or 'torch'}_{info['threads']}t"


def read_records(path: str | os.PathLike) -> list[dict]:
    """Read the records of a file; a missing file has none.

    Raises:
        InputError: a line is no JSON object; the message names the file and the line.
    """
    path = Path(path)
    records = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise InputError(f"{path}: line {number} is no JSON: {e}") from e
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number} is no JSON object")
        records.append(record)
    return records


def add_record(path: str | os.PathLike, record: dict) -> None:
    """Write a record to a file, in place of an older one of the same case."""
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
