"""``demo``: the whole study on generated images, in one folder, without download or GPU."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cba_fast import data as cba_data
from cba_fast import files
from cba_fast.data import load_boxes, open_image_set
from cba_fast.wsol.baselines import Baselines, fixed_box_baselines

from .analysis import fit_models, report_lines, score_points
from .config import BoxConfig, DataConfig, MapConfig, ModelConfig, RunConfig
from .erf_runs import ErfMapConfig, SizeConfig, compute_map, compute_sizes
from .evaluate import EvaluateResult, evaluate
from .generate import generate_heatmaps
from .inference import load_model, open_images
from .plots import plot_erf_map, plot_points, save_figure
from .points import Point, append_points, read_points
from .score import versions
from .train import TrainConfig, train

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
    lr: float
    alpha: float | None = None
    beta: float | None = None

    def config(self, weights: Path | None = None) -> ModelConfig:
        """Return the settings of the model with `weights`."""
        return ModelConfig(
            self.family, weights, self.name, alpha=self.alpha, beta=self.beta, output_stride=16
        )


@dataclass(frozen=True)
class DemoScale:
    """How large the demo is."""

    classes: int
    train_per_class: int
    test_per_class: int
    epochs: float  # factor of the models' epochs
    gallery_per_class: int = 2
    erf_samples: int = 50
    erf_map_images: int = 20


FULL = DemoScale(classes=10, train_per_class=40, test_per_class=20, epochs=1.0)
QUICK = DemoScale(4, train_per_class=40, test_per_class=10, epochs=0.5, erf_samples=20)

MODELS = (
    DemoModel("ConvNeXt", "convnext", "convnext", "test_convnext", 40, 3e-3),
    DemoModel("RepLKNet", "replknet", "replknet", "replknet_nano", 30, 3e-3),
    DemoModel("SLaK-Flex (1, 0)", "slak_flex_1_0", "slak_flex", "slak_flex_nano", 40, 3e-3, 1, 0),
    DemoModel(
        "SLaK-Flex (.5, .5)", "slak_flex_5_5", "slak_flex", "slak_flex_nano", 40, 3e-3, 0.5, 0.5
    ),
)


@dataclass
class DemoRow:
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


@dataclass
class DemoResult:
    """All results of the demo."""

    rows: list[DemoRow]
    baselines: Baselines
    analysis: list[str]


def run_demo(
    root: Path,
    *,
    seed: int = 0,
    scale: DemoScale = FULL,
    step: Callable[[str], None] = lambda text: None,
    progress: Callable[[str], Callable | None] = lambda title: None,
) -> DemoResult:
    """Draw images, train small models, then heatmaps, MaxBoxAcc, ERF and the scatter.

    Args:
        root: the folder that everything is written to; an earlier demo there is replaced.
        seed: of the images and of the training.
        scale: how many images and epochs.
        step: called with a line before each step.
        progress: called with a title, gives the progress bar of a training or None.

    Raises:
        InputError: `root` holds files that no demo wrote where the results go.
    """
    per_class = scale.train_per_class + scale.test_per_class
    step(f"drawing {scale.classes * per_class} images")
    cub = cba_data.generate(
        root / f"data_{scale.classes}x{per_class}_seed{seed}" / "CUB_200_2011",
        classes=scale.classes,
        images_per_class=per_class,
        test_per_class=scale.test_per_class,
        size=128,
        seed=seed,
    )
    cba_data.prepare_cub(cub, cub.parent)
    gallery = _gallery(cub, root / "gallery", scale.gallery_per_class)
    csv = root / "erf_wsol_points.csv"
    csv.unlink(missing_ok=True)
    rows = []
    for model in MODELS:
        step(f"{model.title}: training")
        weights, seconds = _train(model, cub, root, seed, scale, progress(model.title))
        step(f"{model.title}: heatmaps, scores, ERF")
        rows.append(_measure(model, weights, seconds, cub, gallery, root, seed, scale, csv))
    baselines = fixed_box_baselines(load_boxes(cub_root=cub))
    models = score_points(read_points(csv))
    save_figure(plot_points(models), root / "erf_vs_wsol.png")
    analysis = report_lines(models, fit_models(models))
    results = {"models": [asdict(r) for r in rows], "baselines": asdict(baselines)}
    settings = {"seed": seed, "scale": asdict(scale), "versions": versions()}
    files.write_json(root / "results.json", results | settings)
    return DemoResult(rows, baselines, analysis)


def _gallery(cub: Path, folder: Path, per_class: int) -> Path:
    """Copy the first test images of each class: the demo stores heatmaps of these alone."""
    shutil.rmtree(folder, ignore_errors=True)
    counts: dict[int, int] = {}
    for record in open_image_set(cub).records:
        counts[record.label] = counts.get(record.label, 0) + 1
        if counts[record.label] <= per_class:
            target = folder / record.image_id
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record.path, target)
    return folder


def _train(
    model: DemoModel,
    cub: Path,
    root: Path,
    seed: int,
    scale: DemoScale,
    progress: Callable | None,
) -> tuple[Path, float]:
    config = TrainConfig(
        cub / "images_splitted",
        epochs=max(2, round(model.epochs * scale.epochs)),
        lr=model.lr,
        weight_decay=0.05,
        batch_size=8,
        input_size=INPUT_SIZE,
        save_dir=root / "weights",
        exp_name=model.slug,
        schedule="onecycle",
        ls_init=None if model.family == "replknet" else 1.0,
        drop_path=0.0,
        seed=seed,
        cache_images=True,
    )
    log = root / "weights" / f"{model.slug}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as f:
        result = train(
            model.config(),
            config,
            RunConfig(num_workers=0, device="cpu"),
            progress=progress,
            log=lambda line: print(line, file=f),
        )
    return result.best_path, result.seconds


def _measure(
    model: DemoModel,
    weights: Path,
    seconds: float,
    cub: Path,
    gallery: Path,
    root: Path,
    seed: int,
    scale: DemoScale,
    csv: Path,
) -> DemoRow:
    config = model.config(weights)
    run = RunConfig(num_workers=0, device="cpu", batch_size=20)
    data = DataConfig(str(cub), input_size=INPUT_SIZE)
    shown = DataConfig(str(gallery), input_size=INPUT_SIZE)
    scores: dict[str, EvaluateResult] = {}
    for method in METHODS:
        maps = MapConfig(method=method, map_size=INPUT_SIZE)
        scores[method] = evaluate(config, data, run, maps, BoxConfig(), num_samples=0)
        generate_heatmaps(config, shown, run, maps, root / f"heatmap_{model.slug}_{method}")
    built, images = load_model(config, run), open_images(data)
    common = (built, images, config, data, RunConfig(num_workers=0, device="cpu", batch_size=10))
    sizes = SizeConfig(num_samples=scale.erf_samples, seed=seed)
    erf_path = root / f"erf_sizes_{model.slug}.npy"
    (stats,) = compute_sizes(*common, sizes, erf_path, resume=False).stats.values()
    erf_map = compute_map(
        *common,
        ErfMapConfig(scale.erf_map_images, 2 * INPUT_SIZE),
        root / f"erf_map_{model.slug}.npy",
        resume=False,
    )
    save_figure(plot_erf_map(erf_map.erf.map, erf_map.ratios), root / f"erf_map_{model.slug}.png")
    accuracy = {m: scores[m].result.max_box_acc for m in METHODS}
    point = Point(model.title, model.family, os.fspath(erf_path), accuracy["cam"] / 100)
    append_points(csv, [point])
    return DemoRow(
        model.title,
        scores["cam"].classification["top1"],
        accuracy,
        {m: scores[m].result.max_box_acc_v2 for m in METHODS},
        stats.mean,
        stats.std,
        next(r.ratio for r in erf_map.ratios if r.threshold == 0.5),
        seconds,
    )
