"""``demo``: the whole chain on generated images, in one folder, without download or GPU."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cba_fast import data as cba_data
from cba_fast import files
from cba_fast.models import build_model, save_state_dict_file
from cba_fast.wsol.baselines import Baselines, fixed_box_baselines

from .analysis import fit_models, report_lines, score_points
from .config import BoxConfig, DataConfig, MapConfig, ModelConfig, RunConfig
from .erf_runs import SizeConfig, compute_sizes
from .generate import generate_heatmaps, map_folder
from .inference import load_model, open_images
from .plots import plot_points, save_figure
from .points import Point, append_points, read_points
from .score import open_boxes, score_folder, versions

CLASSES = 5
PER_CLASS = 8
IMAGE_SIZE = 192
INPUT_SIZE = 160  # 5x5 feature maps at stride 32; PC1 needs 4x4
METHODS = ("cam", "pc1")

# A layer scale of 1e-6, the default of these families, would hide the blocks of a random model.
LAYER_SCALE = {
    "convnext": {"ls_init_value": 1.0},
    "replknet": {},
    "slak": {"layer_scale_init_value": 1.0},
    "slak_flex": {"layer_scale_init_value": 1.0},
}


@dataclass(frozen=True)
class DemoModel:
    """A small model of one of the study's families."""

    title: str
    slug: str
    family: str
    name: str
    alpha: float | None = None
    beta: float | None = None


MODELS = (
    DemoModel("ConvNeXt", "convnext", "convnext", "convnext_atto"),
    DemoModel("RepLKNet", "replknet", "replknet", "replknet_nano"),
    DemoModel("SLaK", "slak", "slak", "slak_nano"),
    DemoModel("SLaK-Flex (1, 0)", "slak_flex_1_0", "slak_flex", "slak_flex_nano", 1.0, 0.0),
    DemoModel("SLaK-Flex (.5, .5)", "slak_flex_5_5", "slak_flex", "slak_flex_nano", 0.5, 0.5),
)


@dataclass
class DemoRow:
    """The results of one model. `max_box_acc` and `max_box_acc_v2`: percent by method."""

    title: str
    max_box_acc: dict[str, float]
    max_box_acc_v2: dict[str, float]
    erf_mean: float
    erf_std: float


@dataclass
class DemoResult:
    """All results of the demo."""

    rows: list[DemoRow]
    baselines: Baselines
    analysis: list[str]


def run_demo(
    root: Path, *, seed: int = 0, step: Callable[[str], None] = lambda text: None
) -> DemoResult:
    """Draw images, then heatmaps, MaxBoxAcc, ERF and the scatter for small random models.

    Args:
        root: the folder that everything is written to; an earlier demo there is replaced.
        seed: of the images and of the weights.
        step: called with a line before each step.

    Raises:
        InputError: `root` holds files that no demo wrote where the results go.
    """
    step(f"drawing {CLASSES * PER_CLASS} images")
    cub = cba_data.generate(
        root / "data" / "CUB_200_2011",
        classes=CLASSES,
        images_per_class=PER_CLASS,
        test_per_class=PER_CLASS // 2,
        size=IMAGE_SIZE,
        seed=seed,
    )
    data = DataConfig(str(cub), input_size=INPUT_SIZE)
    run = RunConfig(num_workers=0, device="cpu")
    boxes = BoxConfig(cub_root=cub, contours="both")
    csv = root / "erf_wsol_points.csv"
    csv.unlink(missing_ok=True)
    rows = []
    for model in MODELS:
        step(f"{model.title}: heatmaps, scores, ERF")
        rows.append(_run_model(model, root, data, run, boxes, csv, seed))
    baselines = fixed_box_baselines(open_boxes(boxes))
    models = score_points(read_points(csv))
    save_figure(plot_points(models), root / "erf_vs_wsol.png")
    analysis = report_lines(models, fit_models(models))
    files.write_json(
        root / "results.json",
        {
            "models": [asdict(row) for row in rows],
            "baselines": asdict(baselines),
            "seed": seed,
            "random_weights": True,
            "versions": versions(),
        },
    )
    return DemoResult(rows, baselines, analysis)


def _run_model(
    model: DemoModel,
    root: Path,
    data: DataConfig,
    run: RunConfig,
    boxes: BoxConfig,
    csv: Path,
    seed: int,
) -> DemoRow:
    weights = root / "weights" / f"{model.slug}.pth"
    torch.manual_seed(seed)
    options = LAYER_SCALE[model.family]
    built = build_model(model.family, model=model.name, num_classes=CLASSES, **options)
    save_state_dict_file(built.state_dict(), weights)
    config = ModelConfig(model.family, weights, model.name, alpha=model.alpha, beta=model.beta)
    accuracy, accuracy_v2 = {}, {}
    for method in METHODS:
        maps = MapConfig(method=method, map_size=INPUT_SIZE)
        output = root / f"heatmap_{model.slug}_{method}"
        generate_heatmaps(config, data, run, maps, output)
        result = score_folder(map_folder(output), boxes).result
        accuracy[method], accuracy_v2[method] = result.max_box_acc, result.max_box_acc_v2
    erf_path = root / f"erf_sizes_{model.slug}.npy"
    sizes = compute_sizes(
        load_model(config, run),
        open_images(data),
        config,
        data,
        run,
        SizeConfig(num_samples=20, seed=seed),
        erf_path,
        resume=False,
    )
    (stats,) = sizes.stats.values()
    append_points(csv, [Point(model.title, model.family, str(erf_path), accuracy["cam"] / 100)])
    return DemoRow(model.title, accuracy, accuracy_v2, stats.mean, stats.std)
