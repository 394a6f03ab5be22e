"""Measures which method computes depthwise convolutions fastest here, and keeps it in a table.

The table is written after each job (`tune_measure`), so that an interrupted run goes on where it
was.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from .. import locks
from ..errors import CbaWarning, InputError
from ..ops import choice_table
from ..ops.choice_table import METHODS, Table
from ..ops.dwconv_checks import check_kernel_size
from ..ops.places import place_of
from .dwconv_contest import DIRECTIONS, DTYPES, Case
from .tune_ahead import compiled_ahead
from .tune_measure import (
    AUTOMATIC,
    EACH,
    LAYOUTS,
    DeviceLost,
    Job,
    measure,
    way_of,
    without_hopeless,
)

STUDY = ("replknet_31b", "convnext_base", "slak_tiny", "slak_flex_base")
INPUT_SIZES, BATCH_SIZES = (384, 224), (1, 8, 64)
SECONDS_PER_MODEL = 60.0
Models = str | nn.Module | Sequence[str | nn.Module] | None
LOST = "lost"  # the reason of a kernel that ended the use of the GPU


class Tuned(NamedTuple):
    """What `tune` did: the table, the jobs that it holds, and how many are still to be measured."""

    table: Table
    jobs: list[Job]
    left: int


@locks.released()
def tune(
    models: Models = None,
    *,
    cases: Sequence[Case | str] = (),
    input_sizes: Sequence[int] = INPUT_SIZES,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    directions: Sequence[str] = DIRECTIONS,
    dtypes: Sequence[str] = tuple(DTYPES),
    device: str | torch.device | None = None,
    seconds: float | None = None,
    path: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[Iterable, int], Iterable] = lambda jobs, total: jobs,
) -> Tuned:
    """Measure depthwise convolutions on a device, and let the automatic choice follow the results.

    Args:
        models: models whose convolutions are measured, or their names in timm or the study; None
            for the four families of the study, unless `cases` are given.
        cases: convolutions, such as ``"1x128x96x96_k31x31"``, besides those of the models.
        input_sizes, batch_sizes: of the models' images.
        directions: of "forward", "grad_x" and "grad_weight".
        dtypes: of "float32" and "bfloat16"; on GPUs float16 follows the latter.
        device: "cpu" or a CUDA device; None for the GPU if there is one.
        seconds: the time after which no case is begun; None for a minute for each model, and for as
            long as `cases` take. The next call goes on.
        path: the file of the table; None for that of the user, which the automatic choice reads.
        overwrite: measure again what the table holds.
        progress: is given the jobs and their number, such as to show a bar.

    Returns:
        The table, the jobs in it and the number of jobs that were not begun.

    Raises:
        InputError: timm knows no such model, a case or the device cannot be used, or a kernel ended
            the use of the GPU.
        BusyError: another run adds to the same table.

    Example:
        >>> from pathlib import Path
        >>> import cba_fast
        >>> how = {"directions": ["forward"], "dtypes": ["float32"], "device": "cpu"}
        >>> tuned = cba_fast.tune(cases=["1x16x14x14_k7x7"], **how, path=Path("table.json"))
        >>> tuned.left
        0
    """
    device = device_of(device)
    wanted = jobs(models, cases, input_sizes, batch_sizes, directions, dtypes)
    table = _open(path, device, overwrite)
    todo = [j for j in wanted if str(j.call("contiguous")) not in table.cases]
    left = len(todo)
    begun = in_time(compiled_ahead(todo, device), seconds_for(models, cases, seconds))
    try:
        for job in progress(begun, len(todo)):
            _measure_into(table, job, device)
            left -= 1
    finally:
        choice_table.forget()
    return Tuned(table, [j for j in wanted if str(j.call("contiguous")) in table.cases], left)


def _models(models: Models, cases: Sequence) -> Sequence[str | nn.Module]:
    if models is None:
        return () if cases else STUDY
    return [models] if isinstance(models, str | nn.Module) else models


def seconds_for(models: Models, cases: Sequence, seconds: float | None) -> float:
    """Return the time for these models and cases (see `tune`)."""
    return seconds or SECONDS_PER_MODEL * len(_models(models, cases)) or math.inf


def in_time(some: Iterable[Job], seconds: float) -> Iterator[Job]:
    """Yield jobs until the time is over."""
    end = time.monotonic() + seconds
    for job in some:
        if time.monotonic() > end:
            return
        yield job


def jobs(
    models: Models,
    cases: Sequence[Case | str] = (),
    input_sizes: Sequence[int] = INPUT_SIZES,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    directions: Sequence[str] = DIRECTIONS,
    dtypes: Sequence[str] = tuple(DTYPES),
) -> list[Job]:
    """Return the jobs of `tune`, in its order: those with few images first."""
    found = [Case.parse(c) if isinstance(c, str) else c for c in cases]
    if names := _models(models, cases):
        from .layers_and_models import layer_cases  # loads timm
        from .model_contest import create

        for model in names:
            if isinstance(model, str):
                name, network = model, create(model)
            else:
                name, network = type(model).__name__, model
            for size in input_sizes:
                one = layer_cases(name, network, size, 1)
                found += [replace(case, batch=batch) for batch, case in product(batch_sizes, one)]
    found = list(dict.fromkeys(found))
    for case in found:
        try:
            check_kernel_size((case.kh, case.kw))
        except ValueError as e:
            raise InputError(f"{case}: {e}") from e
    groups = product(sorted({c.batch for c in found}), dtypes)
    return [
        Job(case, direction, dtype)
        for batch, dtype in groups
        for case in found
        if case.batch == batch
        for direction in directions
    ]


def device_of(device: str | torch.device | None) -> torch.device:
    """Return a device that can be measured on; None is the GPU if there is one."""
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as e:
        raise InputError(f"`device` must be such as cpu or cuda:0, got {device!r}") from e
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("`device` is a GPU, but PyTorch sees none here")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"`device` must be a CPU or an NVIDIA GPU, got {device}")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _open(path: Path | None, device: torch.device, overwrite: bool) -> Table:
    """Return the table that a run adds to: the one in the file if it was measured here."""
    place = place_of(device)
    path = path or choice_table.user_path(place)
    locks.hold(path)
    if not overwrite:
        try:
            table = choice_table.read(path)
            reason = choice_table.difference(table, place)
        except FileNotFoundError:
            reason = None
        except InputError as e:
            reason = str(e)
        else:
            if reason is None:
                return table
        if reason is not None:
            warnings.warn(f"{path} is replaced: {reason}", CbaWarning, stacklevel=4)
    return Table(place, path=path)


def _measure_into(table: Table, job: Job, device: torch.device) -> None:
    lost = {m for found in table.wrong.values() for m, why in found.items() if why == LOST}
    try:
        times, wrong = measure(job, device, without=lost | slow(table, job))
    except DeviceLost as e:
        table.wrong.setdefault(str(job.call("contiguous")), {})[e.method] = LOST
        table.write()
        raise
    except torch.OutOfMemoryError:
        times = {layout: {} for layout in LAYOUTS}
        wrong = {layout: {"all": "the GPU's memory is too small"} for layout in LAYOUTS}
    for layout in LAYOUTS:
        table.cases[str(job.call(layout))] = times[layout]
        if wrong[layout]:
            table.wrong[str(job.call(layout))] = wrong[layout]
    table.write()


def slow(table: Table, job: Job, seconds: float = EACH) -> set[str]:
    """Return the ways that are hopeless by the results for fewer images (`without_hopeless`)."""
    times: dict[str, float] = {}
    for layout in LAYOUTS:
        call = job.call(layout)
        fewer = [call._replace(batch=n) for n in range(call.batch - 1, 0, -1)]
        before = next((c for c in fewer if table.cases.get(str(c))), None)
        if before is not None:
            more = 1e-3 * call.batch / before.batch
            found = table.cases[str(before)].items()
            times |= {way_of(n, layout): ms * more for n, ms in found}
    return times.keys() - without_hopeless(times, seconds)


def verify(
    job: Job, device: torch.device, seconds: float, share: float, tries: int = 3
) -> dict[str, tuple[float, dict[str, float]]]:
    """Measure whether the automatic choice is as fast as the best method.

    Args:
        job: what is measured.
        device: where.
        seconds: the time for each way.
        share: what is asked for; below it the job is measured again, `tries` times in all, each
            time twice as long, because a busy machine makes single figures wrong.
        tries: see `share`.

    Returns:
        For each layout the time of the best method over that of the automatic choice, and the
        milliseconds of all ways.
    """
    best: dict[str, tuple[float, dict]] = {}
    for attempt in range(tries):
        times, _ = measure(job, device, seconds * 2**attempt, automatic=True)
        for layout, ms in times.items():
            ratio = min(v for n, v in ms.items() if n in METHODS) / ms[AUTOMATIC]
            if ratio > best.get(layout, (0,))[0]:
                best[layout] = ratio, ms
        if all(ratio >= share for ratio, _ in best.values()):
            break
    return best
