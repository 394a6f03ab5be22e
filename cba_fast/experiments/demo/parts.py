"""What a demo consists of: its models, how large it is, and what is known of each model."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import resume
from ...choices import Family, Method
from ...runs.settings import ModelConfig
from ...short import Short

IMAGE_SIZE = 128
INPUT_SIZE = 96  # 6x6 feature maps at output stride 16
METHODS: tuple[Method, ...] = ("cam", "pc1")


@dataclass(frozen=True)
class DemoModel:
    """A small model of one of the study's families, and its training."""

    title: str
    slug: str
    family: Family
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
    shown_per_class: int = 2
    erf_samples: int = 50
    erf_map_images: int = 20
    pictures: int = 3


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


@dataclass(frozen=True)
class DemoTask:
    """What the models of a demo share: folders, seed and scale."""

    root: Path
    cub: Path
    shown: Path
    seed: int
    scale: DemoScale
    overwrite: bool

    def part(self, run: Callable, *args: Any, **options: Any) -> Any:
        """Run a part of the demo, which goes on where it was; the demo's record speaks for it."""
        call = functools.partial(run, *args, **options)
        return call(overwrite=True) if self.overwrite else resume.continue_or_replace(call)

    def maps_of(self, model: DemoModel) -> Path:
        """Return the folder of the CAMs of a model on all test images."""
        return self.root / "maps" / model.slug
