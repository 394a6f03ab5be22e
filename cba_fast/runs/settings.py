"""The settings that the commands share. Plain data; every check that needs files happens later."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..data.records import DEFAULT_SPLIT
from ..shapes import Size


@dataclass(frozen=True)
class ModelConfig:
    """Which model. `weights` None means random weights, None elsewhere what the checkpoint says.

    `output_stride` 16 keeps the last feature maps at 1/16 of the input, for small inputs.
    """

    family: str | None = None
    weights: Path | None = None
    name: str | None = None
    num_classes: int | None = None
    alpha: float | None = None
    beta: float | None = None
    output_stride: int | None = None


@dataclass(frozen=True)
class DataConfig:
    """Which images: a name below ``datasets/`` or a folder, and how it is read.

    `input_size` None is the checkpoint's (see `cba_fast.runs.resolve`). `classes` is a file that
    names the model's classes in the order of their labels, one per line.
    """

    test_dataset: str
    split: str | None = None
    metadata_root: Path | None = None
    dataset_name: str | None = None
    input_size: int | None = None
    classes: Path | None = None


@dataclass(frozen=True)
class RunConfig:
    """How to compute. `device` None takes CUDA where it is available.

    `compile` is for the maps' features alone; see `cba_fast.runs.compiled`.
    """

    batch_size: int = 8
    num_workers: int = 2
    device: str | None = None
    precision: str = "fp32"
    channels_last: bool = True
    strict: bool = False
    compile: bool = False


@dataclass(frozen=True)
class MapConfig:
    """Which map of which class.

    `target` is ``predicted``, ``label`` or a class index; `map_size` a side, (H, W), "HxW", or
    "input" (or None) for the size of the network's input; `map_names` a rule of
    :func:`cba_fast.data.map_names`.
    """

    method: str = "cam"
    target: str = "predicted"
    map_size: Size = "input"
    pc1_range: str = "wrap"
    map_names: str | None = None

    def at(self, input_size: int) -> "MapConfig":
        """Return these settings with the size of the maps written out."""
        return replace(self, map_size=input_size) if self.map_size in (None, "input") else self


@dataclass(frozen=True)
class BoxConfig:
    """Which ground truth, and the protocol of the score.

    `threshold` is one at which the accuracy is wanted beside the best one.
    """

    cub_root: Path | None = None
    metadata_root: Path | None = None
    dataset_name: str | None = None
    split: str | None = None
    iou_thr: float = 0.5
    cam_curve_interval: float = 0.01
    contours: str = "largest"
    eval_size: Size = None
    resize_maps: bool = False
    missing_as_miss: bool = False
    clip: float = 0.0
    allow_beyond: bool = False
    threshold: float | None = None


def settings(*configs) -> dict:
    """Return the fields of the configs in one dict of JSON values, for manifests and results."""
    merged = {k: v for config in configs for k, v in asdict(config).items()}
    if "split" in merged and merged["split"] is None:
        merged["split"] = DEFAULT_SPLIT
    return {k: str(v) if isinstance(v, Path) else v for k, v in merged.items()}
