"""``demo``: the whole study on generated images, in one folder, without download or GPU."""

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from .. import files, locks, resume
from ..analysis.models import fit_models, report_lines, score_points
from ..analysis.plots import plot_points, save_figure
from ..analysis.plots_erf import plot_erf_map
from ..analysis.points import Point, append_points, read_points
from ..data import load_boxes, open_image_set
from ..datasets.prepare import prepare_cub
from ..datasets.synth import generate
from ..models import save_state_dict_file
from ..resume import Outputs
from ..runs.erf.maps import compute_map
from ..runs.erf.sizes import compute_sizes
from ..runs.evaluate import EvaluateResult, evaluate
from ..runs.generate import generate_heatmaps
from ..runs.inference import load_model, open_images
from ..runs.scoring.boxes import versions
from ..runs.settings import (
    BoxConfig,
    DataConfig,
    ErfMapConfig,
    MapConfig,
    ModelConfig,
    RunConfig,
    SizeConfig,
)
from ..short import Short
from ..training.config import LAYER_SCALE
from ..training.train import TrainConfig, train
from .baselines import Baselines, fixed_box_baselines

IMAGE_SIZE = 128
INPUT_SIZE = 96  # 6x6 feature maps at output stride 16
METHODS = ("cam", "pc1")


@dataclass(frozen=True)
class DemoModel:
    """A small model of one of the study's families, and its training."""

    title: str
    slug: str
    family: str
    name: str
    epochs: int
    quick_epochs: int
    alpha: float | None = None
    beta: float | None = None

    def config(self, weights: Path | None = None) -> ModelConfig:
        """Return the settings of the model with `weights`."""
        return ModelConfig(
            self.family, weights, self.name, alpha=self.alpha, beta=self.beta, output_stride=16
        )


@dataclass(frozen=True)
class DemoScale:
    """How large the demo is.

    `quick` trains the models for their `quick_epochs`: RepLKNet and SLaK-Flex (1, 0) still learn,
    the others only run. `most_epochs` limits either.
    """

    classes: int
    train_per_class: int
    test_per_class: int
    quick: bool = False
    most_epochs: int | None = None
    gallery_per_class: int = 2
    erf_samples: int = 50
    erf_map_images: int = 20


FULL = DemoScale(10, 40, 20)
QUICK = DemoScale(10, 40, 20, quick=True, erf_samples=20, erf_map_images=5)

MODELS = (
    DemoModel("ConvNeXt", "convnext", "convnext", "test_convnext3", 50, 4),
    DemoModel("RepLKNet", "replknet", "replknet", "replknet_nano", 25, 12),
    DemoModel("SLaK-Flex (1, 0)", "slak_flex_1_0", "slak_flex", "slak_flex_nano", 40, 20, 1, 0),
    DemoModel(
        "SLaK-Flex (.5, .5)", "slak_flex_5_5", "slak_flex", "slak_flex_nano", 60, 4, 0.5, 0.5
    ),
)


@dataclass(repr=False)
class DemoRow(Short):
    """The results of one model.

    Attributes:
        top1: of the best epoch on the test images, percent.
        max_box_acc, max_box_acc_v2: percent, by localization method.
        erf_mean, erf_std: ERF size in pixels of the input.
        erf_area: side of the central square with 50 % of the ERF map, as a share of the image area.
        seconds: of the training.
    """

    title: str
    top1: float
    max_box_acc: dict[str, float]
    max_box_acc_v2: dict[str, float]
    erf_mean: float
    erf_std: float
    erf_area: float | None
    seconds: float


@dataclass(repr=False)
class DemoResult(Short):
    """All results of the demo."""

    rows: list[DemoRow]
    baselines: Baselines
    analysis: list[str]


@dataclass(frozen=True)
class DemoTask:
    """What the models of a demo share: folders, seed and scale."""

    root: Path
    cub: Path
    gallery: Path
    seed: int
    scale: DemoScale
    overwrite: bool

    def part(self, run: Callable, *args, **options):
        """Run a part of the demo, which goes on where it was; the demo's record speaks for it."""
        call = functools.partial(run, *args, **options)
        return call(overwrite=True) if self.overwrite else resume.continue_or_replace(call)


@locks.released()
def run_demo(
    root: Path,
    *,
    seed: int = 0,
    scale: DemoScale = FULL,
    overwrite: bool = False,
    step: Callable[[str], None] = lambda text: None,
) -> DemoResult:
    """Draw images, train small models, then heatmaps, MaxBoxAcc, ERF and the scatter.

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
    task = DemoTask(root, data / "CUB_200_2011", root / "gallery", seed, scale, overwrite)
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
    _copy_gallery(task)
    rows = _run_models(task, step)
    csv = root / "erf_wsol_points.csv"
    csv.unlink(missing_ok=True)
    for model, row in zip(MODELS, rows, strict=True):
        erf_path = os.fspath(root / f"erf_sizes_{model.slug}.npy")
        accuracy = row.max_box_acc["cam"] / 100
        append_points(csv, [Point(model.title, model.family, erf_path, accuracy)])
    baselines = fixed_box_baselines(load_boxes(cub_root=cub))
    models = score_points(read_points(csv))
    save_figure(plot_points(models), root / "erf_vs_wsol.png")
    analysis = report_lines(models, fit_models(models))
    results = {"models": [asdict(r) for r in rows], "baselines": asdict(baselines)}
    settings = {"seed": seed, "scale": asdict(scale), "versions": versions()}
    files.write_json(root / "results.json", results | settings)
    return DemoResult(rows, baselines, analysis)


def _outputs(root: Path, seed: int, scale: DemoScale) -> Outputs:
    """Return the demo's own files; what its parts write has records of its own."""
    names = ["results.json", "erf_wsol_points.csv", "erf_vs_wsol.png"]
    for model in MODELS:
        names += [f"{model.slug}.json", f"erf_map_{model.slug}.png"]
        names += [f"weights/{model.slug}_init.pth"]
    described = resume.describe({"seed": seed, "scale": asdict(scale)}, torch=torch.__version__)
    return Outputs(root / "cba_fast_demo.json", names, described, owns_folder="new")


def _copy_gallery(task: DemoTask) -> None:
    """Copy the first test images of each class: the demo stores heatmaps of these alone."""
    counts: dict[int, int] = {}
    chosen: dict[str, Path] = {}
    for record in open_image_set(task.cub).records:
        counts[record.label] = counts.get(record.label, 0) + 1
        if counts[record.label] <= task.scale.gallery_per_class:
            chosen[f"{task.gallery.name}/{record.image_id}"] = record.path
    described = resume.describe({}, {"images": resume.list_fingerprint(chosen.items())})
    outputs = Outputs(task.root / ".gallery.run.json", chosen, described, owns_folder=False)
    kept = task.part(outputs.prepare)
    for name in chosen.keys() - kept:
        files.write_bytes(task.root / name, chosen[name].read_bytes())


def _run_models(task: DemoTask, step: Callable[[str], None]) -> list[DemoRow]:
    """Train and measure all models, as many at a time as there are cores; tell what they say."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit this process's threads
    workers = min(len(MODELS), os.cpu_count() or 1)
    said, stop = context.SimpleQueue(), context.Event()
    with ProcessPoolExecutor(workers, context, _begin_worker, (said, stop)) as pool:
        try:
            futures = [pool.submit(_run_model, model, task) for model in MODELS]
            while not all(f.done() for f in futures) or not said.empty():
                if any(f.done() and f.exception() is not None for f in futures):
                    pool.shutdown(cancel_futures=True)
                    break
                if said.empty():
                    time.sleep(0.1)
                else:
                    step(said.get())
            return [f.result() for f in futures]
        except KeyboardInterrupt:
            stop.set()  # else the block would wait until the models are trained
            raise


_said = None  # takes the lines of this process, if it runs a model for a demo


def _begin_worker(said, stop) -> None:
    """Keep where lines go; end this process when it is told to, or its parent has ended."""
    global _said
    _said = said

    def watch() -> None:
        parent = multiprocessing.parent_process()
        while not stop.wait(0.5) and parent.is_alive():
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_model(model: DemoModel, task: DemoTask) -> DemoRow:
    """Train and measure one model; runs in a process of its own."""
    said = _said
    done = task.root / f"{model.slug}.json"
    if done.exists():
        said.put(f"{model.title}: done before")
        return DemoRow(**files.read_json(done))
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


def _measure(model: DemoModel, weights: Path, seconds: float, task: DemoTask) -> DemoRow:
    root, scale = task.root, task.scale
    config = model.config(weights)
    run = RunConfig(num_workers=0, device="cpu", batch_size=20)
    data = DataConfig(str(task.cub), input_size=INPUT_SIZE)
    shown = DataConfig(str(task.gallery), input_size=INPUT_SIZE)
    scores: dict[str, EvaluateResult] = {}
    for method in METHODS:
        maps = MapConfig(method=method)
        scores[method] = evaluate(config, data, run, maps, BoxConfig(), num_samples=0)
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
    return DemoRow(
        model.title,
        scores["cam"].classification["top1"],
        {m: scores[m].result.max_box_acc for m in METHODS},
        {m: scores[m].result.max_box_acc_v2 for m in METHODS},
        stats.mean,
        stats.std,
        next(r.ratio for r in erf_map.ratios if r.threshold == 0.5),
        seconds,
    )
