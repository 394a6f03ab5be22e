"""What the measurements of sizes and of maps share: their images, their records, their files."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from ... import resume
from ...data import ImageDataset, ImageRecord
from ...data.reading import cut
from ...data.textlines import counted
from ...erf import Partial, Walk, choose_checkpoint
from ...erf.report import json_beside
from ...erf.walk import left_of
from ...errors import ImageError, InputError
from ...npy import read_npy
from ...resume import Outputs
from ...shapes import Size, map_shape
from ..inference import report_on
from ..outputs import describe_run
from ..ranks import Ranks
from ..runtime import Runtime
from ..settings import DataConfig, ModelConfig, RunConfig, settings


def check_precision(run: RunConfig) -> None:
    """Refuse a precision whose input gradients mean nothing.

    Raises:
        InputError: fp16, in which gradients of probabilities become zero, because they are often
            below its smallest normal number, 6e-5.
    """
    if run.precision == "fp16":
        raise InputError("precision fp16: input gradients underflow; use fp32 or bf16")


def one_layer(text: str | None, model: nn.Module) -> str | int | None:
    """Return the layer that a setting names: digits are the number of a map, unless a name."""
    if text and text.isdecimal() and text not in dict(model.named_children()):
        return int(text)
    return text


def checkpoint_level(
    checkpoint: str, model: nn.Module, input_size: Size, run: Runtime, *, features: bool = False
) -> str:
    """Return the level of recomputing: `checkpoint`, or what ``auto`` means in this run.

    With `features` the run computes the model's features only.
    """
    if checkpoint != "auto":
        return checkpoint
    has = features and hasattr(model, "forward_features")
    return choose_checkpoint(
        model,
        (run.config.batch_size, 3, *map_shape(input_size)),
        device=run.device,
        run=(lambda m, x: m.forward_features(x)) if has else None,
    )


def walk_over(
    records: Sequence[ImageRecord],
    input_size: Size,
    pixels: Callable,
    indices: Sequence[int],
    run: Runtime,
    progress: Callable,
) -> Walk:
    return Walk(
        ImageDataset(records, input_size=input_size, transform=pixels),
        indices,
        batch_size=run.config.batch_size,
        num_workers=run.config.num_workers,
        device=run.device,
        memory_format=run.memory_format,
        progress=progress,
        report=report_on(records, run.config.strict),
    )


def deal(walk: Walk, partial: Partial | None, ranks: Ranks) -> None:
    """Give a walk the images of this process: of the batches left to do, each N-th.

    The first process goes on from what all processes of an earlier run have kept. So a run may go
    on with another number of processes.

    Args:
        walk: over all images of the run.
        partial: keeps this process's part; None keeps nothing.
        ranks: the processes.
    """

    def visited(partial: Partial) -> list[int]:
        kept = partial.gather()
        return kept["visited"].tolist() if kept else []

    walk.partial = partial
    done = [] if partial is None else ranks.from_first(functools.partial(visited, partial))
    todo = left_of(cut(walk.indices, walk.batch_size), done)
    # Only the last batch may be short, so the walk will cut these images into the same batches.
    walk.indices = [i for batch in ranks.mine(todo) for i in batch]


def run_description(
    model: ModelConfig,
    data: DataConfig,
    run: Runtime,
    records: Sequence[ImageRecord],
    more: dict,
) -> dict:
    """Return the record of everything that the numbers depend on, which includes `more`.

    The number of workers and strictness are not part of it.
    """
    how = replace(run.config, device=str(run.device), num_workers=0, strict=False)
    return describe_run({**settings(model, data, how), **more}, model.weights, records)


def as_json(described: dict) -> dict:
    """Return the part of a :func:`run_description` that a JSON file of results repeats."""
    inputs, versions = described["inputs"], described["versions"]
    return {**described["settings"], "inputs": inputs, "versions": versions}


def map_outputs(path: str | os.PathLike, described: dict) -> Outputs:
    return resume.beside(path, described, json_beside(path).name)


def claim(outputs: Sequence[Outputs], overwrite: bool, run: Runtime) -> dict | None:
    """Take the outputs for this run; return the notes of its end if it has ended before."""
    ended = resume.claim(outputs, overwrite)
    if ended and ended["failed"] and run.config.strict:
        raise ImageError(ended["failed"])  # the run that has ended was not strict
    return ended


def read_array(path: str | os.PathLike) -> np.ndarray:
    try:
        return read_npy(path)
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: not what its run wrote ({e}); `overwrite` starts anew") from e


def kept_note(output: str | os.PathLike) -> str:
    return f"{output} was there: the same run has ended before"


def continued_note(images: int) -> list[str]:
    return [f"continued after {counted(images, 'image')}"] if images else []
