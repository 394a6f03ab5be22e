"""Says whether a network is faster compiled, where ``cba-fast bench --what model`` has timed it."""

from pathlib import Path

import torch

from ..errors import InputError
from ..ops.choice_table import user_path
from ..ops.places import place_of
from ..runs.settings import DataConfig, ModelConfig, RunConfig
from ..shapes import map_shape
from .model_contest import OURS, OURS_COMPILED
from .records import add_record, machine, read_records

CLEAR = 1.03  # times as fast; less can be noise


def timed_here() -> Path:
    """Return the file of the networks that were timed on this machine, in the cache folder."""
    return user_path(place_of(torch.device("cpu"))).with_name("models.jsonl")


def keep(record: dict) -> None:
    """Keep the record of a network for :func:`advice`, if the compiler took part."""
    if OURS_COMPILED in record["timings"]:
        add_record(timed_here(), record)


def advice(model: ModelConfig, data: DataConfig, run: RunConfig) -> str | None:
    """Return what was measured with and without ``--compile``, or None.

    None is the answer unless just this network, size, batch and precision was timed on a CPU by
    this machine with the same threads and versions, with a clear difference.
    """
    height, width = map_shape(data.input_size, name="input_size")
    case = f"{model.name} {run.batch_size}x3x{height}x{width}"
    half = "_bf16" if run.precision == "bf16" else ""
    try:
        records = read_records(timed_here())
    except (InputError, OSError):  # an unreadable file of hints is no reason to end a run
        return None
    for record in records:
        timings = record.get("timings", {})
        both = [timings.get(f"{name}{half}") for name in (OURS, OURS_COMPILED)]
        measured = (record.get("case"), record.get("machine"))
        if measured != (case, machine()) or None in both:
            continue
        plain, compiled = (t["median_ms"] for t in both)
        if max(plain, compiled) < CLEAR * min(plain, compiled):
            return None
        return (
            f"measured here by `cba-fast bench`, a batch takes {plain:.4g} ms, and"
            f" {compiled:.4g} ms with `compile`: {'with' if compiled < plain else 'without'} it is"
            " faster"
        )
    return None
