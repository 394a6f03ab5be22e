"""The command ``collect-erf-wsol``: train, score and measure the ERF of many experiments."""

import functools
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import files, resume
from ..analysis.points import put_points
from ..errors import ImageError, InputError
from ..runs.erf.sizes import compute_sizes
from ..runs.evaluate import EvaluateResult, evaluate
from ..runs.inference import load_model, open_images
from ..runs.resolve import resolve
from ..runs.runtime import Runtime
from ..runs.scoring.boxes import versions
from ..short import Short
from ..training.data import MOST_UNREADABLE
from ..training.loggers import open_tracker, sending
from ..training.train import train
from .plan import Experiment, Plan
from .progress import (
    DONE,
    RUN,
    Step,
    erf_path,
    error_path,
    point_of,
    record_of,
    result_path,
    weights_are_given,
    weights_of,
)
from .settings import Settings

Bar = Callable[[str], Callable[[Iterable, int], Iterator]]


@dataclass(repr=False)
class Outcome(Short):
    """How an experiment ended.

    Attributes:
        experiment: the experiment.
        status: "done" now, "kept" from an earlier run, or "failed".
        result: what its JSON file holds; None if it failed.
        error: why it failed, in one line.
    """

    experiment: Experiment
    status: str
    result: dict | None = None
    error: str = ""


@dataclass(repr=False)
class Collecting(Short):
    """One run over a plan file.

    Attributes:
        plan: the experiments and where results go.
        overwrite: replace trainings of the same name that differ from those asked for.
        log: gets lines.
        bar: returns the progress function for a description.
        trained: by name, the summary of each training of this run or the reason why it failed.
    """

    plan: Plan
    overwrite: bool
    log: Callable[[str], None]
    bar: Bar = lambda text: lambda items, total: iter(items)
    trained: dict[str, dict | str] = field(default_factory=dict)


Engine = Callable[[Collecting, Sequence[Step]], Iterator[tuple[Step, Outcome]]]


def collect(
    plan: Plan,
    steps: Sequence[Step],
    *,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
    bar: Bar | None = None,
    engine: Engine | None = None,
) -> Iterator[Outcome]:
    """Run what the experiments need, and yield how each ended as soon as it has.

    For each experiment: train (or continue a training) unless its weights exist, score all images
    that have boxes, measure the ERF sizes, write ``erf_<name>.npy``, then ``<name>.json``, then its
    row of the CSV. A run that is killed anywhere and started again ends with the files of an
    uninterrupted one. An experiment that fails leaves ``<name>.error.txt``, and the others go on.
    Experiments that need the same training share it, also if it fails.

    Args:
        plan: from `load_experiments`.
        steps: from `find_steps`, checked by `check_inputs` and, without `overwrite`, by
            `refuse_changes`.
        overwrite: replace results and trainings of the same names that belong to other settings,
            images or versions.
        log: gets a line before each part and the lines of the training.
        bar: ``bar(description)`` returns a ``progress(iterable, total)``.
        engine: runs the steps and yields each with its outcome; None for `one_by_one`, in this
            process. `cba_fast.experiments.cluster` has another.
    """
    run = Collecting(plan, overwrite, log, *([bar] if bar else []))  # type: ignore[arg-type]
    order = [e.name for e in plan.experiments]
    written = (result_path, erf_path, error_path)
    files.remove_leftovers([plan.csv, *(path(plan, name) for path in written for name in order)])
    for step, outcome in (engine or one_by_one)(run, steps):
        name = step.experiment.name
        if outcome.result is not None:
            if step.need != DONE:
                _track(run, step.experiment, outcome.result)
                put_points(plan.csv, [point_of(plan, step.experiment, outcome.result)], order)
            error_path(plan, name).unlink(missing_ok=True)
        yield outcome


def one_by_one(run: Collecting, steps: Sequence[Step]) -> Iterator[tuple[Step, Outcome]]:
    """The engine of this process: experiments run in the order of the plan."""
    for number, step in enumerate(steps, 1):
        if step.need == RUN:
            run.log(f"[{number}/{len(steps)}] {step.experiment.name}")
            yield step, run_step(run, step)
        else:
            yield step, kept(step)


def kept(step: Step) -> Outcome:
    """Return the outcome of a step that runs nothing."""
    return Outcome(step.experiment, "kept", step.result)


def run_step(run: Collecting, step: Step) -> Outcome:
    """Remove what belongs to other settings, run the experiment, and write its result or error."""
    plan, name = run.plan, step.experiment.name
    if step.change:
        # The old sizes go first, because the result lists them as its own. The row goes
        # before the result, because a row without a result would be taken for the user's.
        # All go before new sizes are written, to which the old result does not belong.
        if result_path(plan, name).exists():
            erf_path(plan, name).unlink(missing_ok=True)
        put_points(plan.csv, [], [e.name for e in plan.experiments], remove={name})
        result_path(plan, name).unlink(missing_ok=True)
    try:
        result = _run(run, step.experiment)
    except Exception as e:  # any error ends this experiment only
        reason = f"{type(e).__name__}: {e}" if not isinstance(e, InputError) else str(e)
        return failed(run, step, reason, traceback.format_exc())
    files.write_json(result_path(plan, name), result)
    return Outcome(step.experiment, "done", result)


def failed(run: Collecting, step: Step, reason: str, more: str = "") -> Outcome:
    """Note why an experiment failed, in its file and in the log."""
    files.write_text(error_path(run.plan, step.experiment.name), f"{reason}\n\n{more}")
    run.log(f"failed: {reason}")
    return Outcome(step.experiment, "failed", error=reason)


def _run(run: Collecting, experiment: Experiment) -> dict:
    settings = experiment.settings
    training = _train(run, settings) if settings.weight_path is None else None
    weights = weights_of(settings)
    images = open_images(settings.data()).records
    listed = resume.list_fingerprint((r.image_id, r.path) for r in images)
    record = record_of(run.plan, experiment, listed)
    run.log(resolve(settings.model_of(weights), settings.data()).line)
    if settings.compile:
        # PyTorch compiles eight forms of a class of models and runs any later one uncompiled, so
        # results would depend on earlier experiments.
        torch.compiler.reset()
    started = time.perf_counter()
    found = evaluate(
        settings.model_of(weights),
        settings.data(),
        settings.run(),
        settings.maps(),
        settings.boxes(),
        num_samples=0,
        progress=run.bar("evaluating"),
    )
    _refuse_lost(found)
    evaluated = time.perf_counter()
    erf, notes = _measure(run, experiment, weights)
    seconds = {"evaluate": evaluated - started, "erf": time.perf_counter() - evaluated}
    for note in found.notes + notes:
        run.log(f"Warning: {note}")
    return {
        "name": experiment.name,
        **record,
        "weights": record["inputs"]["weights"],
        "training": training,
        **_scores(found),
        "erf": erf,
        "seconds": seconds,
        "notes": found.notes + notes,
        "versions": versions(),
    }


def _refuse_lost(found: EvaluateResult) -> None:
    """Refuse scores without many of the images: a folder that vanished would give a result.

    Raises:
        ImageError: more of them than a training goes on without could not be used.
    """
    lost, count = found.unreadable, len(found.unreadable) + found.result.num_images
    if len(lost) > MOST_UNREADABLE * count:
        name, reason = next(iter(lost.items()))
        raise ImageError(
            f"{len(lost)} of {count} images could not be used, more than {MOST_UNREADABLE:.0%}; "
            f"{name}: {reason}"
        )


def _train(run: Collecting, settings: Settings) -> dict | None:
    """Make sure that the experiment's weights exist; return the summary of their training."""
    config = settings.training()
    name = config.exp_name
    if name not in run.trained:
        if weights_are_given(settings):
            run.log(f"{weights_of(settings)}: used as it is (no training state beside it)")
            return None
        run.log(f"training {name}")
        try:
            training = functools.partial(
                train,
                settings.model_of(None),
                config,
                settings.run(),
                progress=run.bar("training"),
                log=run.log,
            )
            ended = resume.continue_or_replace(training) if run.overwrite else training()
        except Exception as e:
            run.trained[name] = f"{type(e).__name__}: {e}"
            raise
        run.trained[name] = {
            "name": name,
            "best_top1": ended.best_top1,
            "best_epoch": ended.best_epoch,
            "epochs": ended.epochs,
            "seconds": ended.seconds,
        }
        for note in ended.notes:
            run.log(f"Warning: {note}")
    summary = run.trained[name]
    if isinstance(summary, str):
        raise InputError(f"its training {name} failed before: {summary}")
    return summary


def _measure(run: Collecting, experiment: Experiment, weights: Path) -> tuple[dict, list[str]]:
    """Measure the ERF sizes as ``erf-compute`` does by default: one image at a time, in float32."""
    settings = experiment.settings
    model, data = settings.model_of(weights), settings.data()
    how = Runtime.of(settings.run().for_erf())
    # There is no result to which sizes of other settings could belong, so they may be replaced.
    measure = functools.partial(
        compute_sizes,
        load_model(model, how, data.input_size),
        open_images(data),
        model,
        data,
        how,
        settings.sizes(),
        erf_path(run.plan, experiment.name),
        progress=run.bar("ERF sizes"),
    )
    sizes = resume.continue_or_replace(measure)
    for line in sizes.history:
        run.log(f"Warning: {line}")
    (stats,) = sizes.stats.values()
    erf = {
        "num_samples": stats.count,
        "p": settings.p,
        "seed": settings.erf_seed,
        "mean": stats.mean,
        "std": stats.std,
    }
    return erf, sizes.notes


def _track(run: Collecting, experiment: Experiment, result: dict) -> None:
    """Give the scores of an experiment to its tracker, as a run of its own."""
    tracker, folder = experiment.settings.tracker, run.plan.output_dir
    if tracker is None:
        return
    said = json.dumps([result["name"], result["settings"], result["inputs"]], sort_keys=True)
    run_id = hashlib.sha256(said.encode()).hexdigest()[:32]
    scalars = {key: result[key] for key in ("max_box_acc", "max_box_acc_v2", "optimal_threshold")}
    scalars |= {f"erf/{key}": result["erf"][key] for key in ("mean", "std")}
    try:
        logger = open_tracker(tracker, result["name"], run_id, result["settings"], folder)
    except InputError as e:  # the results are in their files
        run.log(f"Warning: {str(e).replace('`', '')}")
        return
    with sending([logger], run.log) as send:
        send([{"epoch": 1, "time": time.time(), "scalars": scalars}])


def _scores(found: EvaluateResult) -> dict:
    result = found.result
    at_half = result.iou_thresholds.index(0.5)
    return {
        "max_box_acc": result.max_box_acc,
        "max_box_acc_v2": result.max_box_acc_v2,
        "optimal_threshold": result.modes["largest"].optimal_threshold[at_half],
        "num_images": result.num_images,
        "classification": found.classification,
    }
