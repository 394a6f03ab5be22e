"""Trains and measures one model of the demo."""

import contextlib
import os
import threading
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import files, resume
from ...analysis.plots import save_figure
from ...analysis.plots_erf import plot_erf_map
from ...data import load_boxes
from ...models import save_state_dict_file
from ...report.keep import MapWriter
from ...resume import Outputs
from ...runs.erf.maps import compute_map
from ...runs.erf.sizes import compute_sizes
from ...runs.evaluate import EvaluateResult, evaluate
from ...runs.generate import generate_heatmaps
from ...runs.inference import load_model, open_images
from ...runs.settings import (
    BoxConfig,
    DataConfig,
    ErfMapConfig,
    MapConfig,
    RunConfig,
    SizeConfig,
)
from ...training.config import LAYER_SCALE
from ...training.train import TrainConfig, train
from .parts import INPUT_SIZE, METHODS, DemoModel, DemoRow, DemoTask

_said: Any = None  # takes the lines of this process, if it runs a model for a demo


def begin_worker(said: Any, until: Connection) -> None:
    """Keep where lines go; end this process when its parent closes a pipe, or has ended itself."""
    global _said
    _said = said

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            until.recv_bytes()  # nothing comes
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_model(model: DemoModel, task: DemoTask) -> DemoRow:
    """Train and measure one model; runs in a process of its own."""
    said = _said
    done = task.root / f"{model.slug}.json"
    if done.exists():
        said.put(f"{model.title}: done before")
        row: Any = files.read_json(done)
        return DemoRow(**row)
    torch.set_num_threads(1)
    weights, seconds = _train(model, task, said)
    row = _measure(model, weights, seconds, task)
    files.write_json(done, asdict(row))
    said.put(f"{model.title}: CAM {row.max_box_acc['cam']:.1f} %, ERF {row.erf_mean:.0f} pixels")
    return row


def _train(model: DemoModel, task: DemoTask, said) -> tuple[Path, float]:
    epochs = model.quick_epochs if task.scale.quick else model.epochs
    config = TrainConfig(
        task.cub / "images_splitted",
        epochs=min(epochs, task.scale.most_epochs or epochs),
        lr=3e-3,
        weight_decay=0.05,
        batch_size=8,
        input_size=INPUT_SIZE,
        save_dir=task.root / "weights",
        exp_name=model.slug,
        schedule="onecycle",
        ls_init=None if model.family == "replknet" else 1.0,
        drop_path=0.1,  # without it the networks with layer norm overfit 400 images
        init_weights=_initial_weights(model, task),
        seed=task.seed,
        cache_images=True,
    )

    def log(line: str) -> None:
        # one line in ten epochs; all of them are in the TensorBoard log
        if any(line.startswith(f"epoch {e}/") for e in range(0, config.epochs, 10)):
            said.put(f"{model.title}: {line}")

    run = RunConfig(num_workers=0, device="cpu")
    result = task.part(train, model.config(), config, run, log=log)
    said.put(
        f"{model.title}: trained in {result.seconds:.0f} s, test top-1 {result.best_top1:.1f} %"
    )
    return result.best_path, result.seconds


def _initial_weights(model: DemoModel, task: DemoTask) -> Path:
    """Write random weights of variance 1 / fan-in: narrow models start too small otherwise."""
    torch.manual_seed(task.seed)
    scale = {} if model.family == "replknet" else {LAYER_SCALE[model.family]: 1.0}
    built = model.config().build(num_classes=task.scale.classes, **scale)
    for module in built.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    path = task.root / "weights" / f"{model.slug}_init.pth"
    save_state_dict_file(built.state_dict(), path, built.description)
    return path


def _keeper(model: DemoModel, task: DemoTask) -> MapWriter:
    """Return what keeps the model's maps for the report; its record lists them."""
    folder = task.maps_of(model)
    names = [f"{i}.npy" for i in load_boxes(cub_root=task.cub).image_ids]
    described = resume.describe({"scale": asdict(task.scale), "seed": task.seed})
    task.part(Outputs(folder / ".maps.run.json", names, described).prepare)
    return MapWriter(folder)


def _measure(model: DemoModel, weights: Path, seconds: float, task: DemoTask) -> DemoRow:
    root, scale = task.root, task.scale
    config = model.config(weights)
    run = RunConfig(num_workers=0, device="cpu", batch_size=20)
    data = DataConfig(str(task.cub), input_size=INPUT_SIZE)
    shown = DataConfig(str(task.shown), input_size=INPUT_SIZE)
    scores: dict[str, EvaluateResult] = {}
    for method in METHODS:
        maps = MapConfig(method=method)
        keeper = _keeper(model, task) if method == METHODS[0] else None
        scores[method] = evaluate(
            config, data, run, maps, BoxConfig(), num_samples=0, keeper=keeper
        )
        heatmaps = root / f"heatmap_{model.slug}_{method}"
        task.part(generate_heatmaps, config, shown, run, maps, heatmaps)
    common = (load_model(config, run), open_images(data), config, data, run)
    sizes = SizeConfig(num_samples=scale.erf_samples, seed=task.seed)
    output = root / f"erf_sizes_{model.slug}.npy"
    (stats,) = task.part(compute_sizes, *common, sizes, output).stats.values()
    erf_map = task.part(
        compute_map,
        *common,
        ErfMapConfig(scale.erf_map_images, 2 * INPUT_SIZE),
        root / f"erf_map_{model.slug}.npy",
    )
    figure = plot_erf_map(erf_map.erf.map, erf_map.ratios, title=model.title)
    save_figure(figure, root / f"erf_map_{model.slug}.png")
    labels = scores["cam"].classification
    assert labels is not None  # the images have labels
    return DemoRow(
        model.title,
        labels["top1"],
        {m: scores[m].result.max_box_acc for m in METHODS},
        {m: scores[m].result.max_box_acc_v2 for m in METHODS},
        stats.mean,
        stats.std,
        next(r.ratio for r in erf_map.ratios if r.threshold == 0.5),
        seconds,
    )
