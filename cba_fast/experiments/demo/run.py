"""``demo``: the whole study on generated images, in one folder, without download or GPU."""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ... import files, locks, resume
from ...analysis.models import score_points
from ...analysis.plots import plot_points, save_figure
from ...analysis.points import Point, append_points, read_points
from ...data import load_boxes, open_image_set
from ...datasets.prepare import prepare_cub
from ...datasets.synth import generate
from ...errors import InputError
from ...resume import Outputs
from ...runs.scoring.boxes import versions
from ...short import Short
from ..baselines import Baselines, fixed_box_baselines
from .answer import analysis_lines, learned, marked, report_models
from .measure import begin_worker, run_model
from .parts import FULL, IMAGE_SIZE, MODELS, DemoRow, DemoScale, DemoTask


@dataclass(repr=False)
class DemoResult(Short):
    """All results of the demo."""

    rows: list[DemoRow]
    baselines: Baselines
    analysis: list[str]
    report: Path
    sheets: Path


@locks.released()
def run_demo(
    root: Path,
    *,
    seed: int = 0,
    scale: DemoScale = FULL,
    overwrite: bool = False,
    step: Callable[[str], None] = lambda text: None,
) -> DemoResult:
    """Draw images, train small models, then heatmaps, MaxBoxAcc, ERF, the scatter and a report.

    Each model runs in a process of its own with one thread: small layers gain nothing from more.

    Args:
        root: the folder that everything is written to.
        seed: of the images and of the training.
        scale: how many images and epochs.
        overwrite: start anew and replace what an earlier demo wrote; else the same one goes on and
            any other is refused.
        step: called with a line for each step.

    Raises:
        InputError: `root` is neither empty nor the folder of an earlier demo.
        OtherRunError: a demo of another seed, scale or version.
    """
    _outputs(root, seed, scale).prepare(overwrite)
    per_class = scale.train_per_class + scale.test_per_class
    data = root / f"data_{scale.classes}x{per_class}_seed{seed}"
    task = DemoTask(root, data / "CUB_200_2011", root / "images", seed, scale, overwrite)
    step(f"drawing {scale.classes * per_class} images")
    cub = task.part(
        generate,
        task.cub,
        classes=scale.classes,
        images_per_class=per_class,
        test_per_class=scale.test_per_class,
        size=IMAGE_SIZE,
        seed=seed,
    )
    prepare_cub(cub, cub.parent)
    _copy_shown(task)
    rows = _run_models(task, step)
    csv = root / "erf_wsol_points.csv"
    csv.unlink(missing_ok=True)
    for model, row in zip(MODELS, rows, strict=True):
        erf_path = os.fspath(root / f"erf_sizes_{model.slug}.npy")
        accuracy = row.max_box_acc["cam"] / 100
        append_points(csv, [Point(model.title, model.family, erf_path, accuracy)])
    baselines = fixed_box_baselines(load_boxes(cub_root=cub))
    titles, points = learned(rows, scale.classes), score_points(read_points(csv))
    save_figure(plot_points([marked(p, titles) for p in points]), root / "erf_vs_wsol.png")
    results = {"models": [asdict(r) for r in rows], "baselines": asdict(baselines)}
    settings = {"seed": seed, "scale": asdict(scale), "versions": versions()}
    files.write_json(root / "results.json", results | settings)
    step("writing the report")
    report, sheets = root / "report.html", root / "gallery"
    report_models(task, titles, report, sheets)
    return DemoResult(rows, baselines, analysis_lines(points, titles), report, sheets)


def _outputs(root: Path, seed: int, scale: DemoScale) -> Outputs:
    """Return the demo's own files; what its parts write has records of its own."""
    names = ["results.json", "erf_wsol_points.csv", "erf_vs_wsol.png", "report.html"]
    for model in MODELS:
        names += [f"{model.slug}.json", f"erf_map_{model.slug}.png"]
        names += [f"weights/{model.slug}_init.pth"]
    described = resume.describe({"seed": seed, "scale": asdict(scale)}, torch=torch.__version__)
    return Outputs(root / "cba_fast_demo.json", names, described, owns_folder="new")


def _copy_shown(task: DemoTask) -> None:
    """Copy the first test images of each class: the demo stores heatmaps of these alone."""
    counts: dict[int, int] = {}
    chosen: dict[str, Path] = {}
    for record in open_image_set(task.cub).records:
        counts[record.label] = counts.get(record.label, 0) + 1
        if counts[record.label] <= task.scale.shown_per_class:
            chosen[f"{task.shown.name}/{record.image_id}"] = record.path
    described = resume.describe({}, {"images": resume.list_fingerprint(chosen.items())})
    outputs = Outputs(task.root / ".images.run.json", chosen, described, owns_folder=False)
    kept = task.part(outputs.prepare)
    for name in chosen.keys() - kept:
        files.write_bytes(task.root / name, chosen[name].read_bytes())


def _run_models(task: DemoTask, step: Callable[[str], None]) -> list[DemoRow]:
    """Train and measure all models, as many at a time as there are cores; tell what they say."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit this process's threads
    workers = min(len(MODELS), os.cpu_count() or 1)
    said = context.SimpleQueue()
    # The end of a pipe needs no answer. An `Event` waits for one from each worker, also from those
    # that the signal has ended already, as batch systems and `timeout` tell all processes.
    until, stop = context.Pipe(duplex=False)
    with ProcessPoolExecutor(workers, context, begin_worker, (said, until)) as pool:
        try:
            futures = [pool.submit(run_model, model, task) for model in MODELS]
            while not all(f.done() for f in futures) or not said.empty():
                if any(f.done() and f.exception() is not None for f in futures):
                    pool.shutdown(cancel_futures=True)
                    break
                if said.empty():
                    time.sleep(0.1)
                else:
                    step(said.get())
            return [f.result() for f in futures]
        except BrokenProcessPool:
            reason = "a process that trained a model was ended, perhaps for lack of memory"
            raise InputError(f"{reason}; the same command goes on") from None
        except KeyboardInterrupt:
            stop.close()  # else the block would wait until the models are trained
            raise
