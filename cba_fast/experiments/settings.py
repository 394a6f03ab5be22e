"""One experiment's settings: types, which of them mean something, and the configs they make."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Strict,
)

import cba_fast.models  # noqa: F401 (registers the families with timm)

from ..errors import InputError
from ..runs.erf import SizeConfig
from ..runs.settings import BoxConfig, DataConfig, MapConfig, ModelConfig, RunConfig
from ..shapes import map_shape, shape_text
from ..training.config import TrainConfig, check_config, exp_name

# Settings of the training alone; the model's and `input_size` count for training and scores.
TRAINING = (
    *("data_root", "epochs", "lr", "weight_decay", "batch_size", "aug_mode", "save_dir"),
    *("schedule", "ls_init", "drop_path", "study_softmax", "pretrained", "init_weights", "seed"),
    *("cache_images", "checkpoint", "micro_batch"),
)
# Settings that say how and where to compute, not what: they may change once a result is there.
HOW = ("device", "num_workers", "strict", "cache_images", "checkpoint", "save_dir")

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
PathText = Annotated[Path, Strict(False)]
_Share = Annotated[float, Field(gt=0, le=1)]


def _checked_size(size: object) -> int | str:
    shape = map_shape(size, 1)
    return size if size == "input" or isinstance(size, int) else shape_text(shape)


class Settings(BaseModel):
    """One experiment, completely: the defaults are those of the single commands."""

    model_config = STRICT

    model_family: Literal["convnext", "replknet", "slak", "slak_flex"]
    model: str | None = None
    alpha: FiniteFloat | None = None
    beta: FiniteFloat | None = None
    input_size: PositiveInt = 384
    num_classes: PositiveInt | None = None
    output_stride: Literal[32, 16] = 32
    weight_path: PathText | None = None

    epochs: PositiveInt = 100
    lr: Annotated[PositiveFloat, Field(allow_inf_nan=False)] = 1e-4
    aug_mode: Literal["light", "strong"] = "light"
    batch_size: PositiveInt = 32
    weight_decay: Annotated[NonNegativeFloat, Field(allow_inf_nan=False)] = 1e-4
    schedule: Literal["constant", "onecycle", "cosine"] = "constant"
    ls_init: FiniteFloat | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    study_softmax: bool = False
    pretrained: bool = False
    init_weights: PathText | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data_root: PathText = Path("datasets/cub-200-2011/CUB_200_2011/images_splitted")
    save_dir: PathText = Path("weights")
    cache_images: bool = False
    checkpoint: Literal["auto", "none", "block", "stage"] = "auto"
    micro_batch: PositiveInt | None = None

    localization_method: Literal["cam", "pc1"] = "cam"
    pc1_range: Literal["wrap", "clip", "minmax"] = "wrap"
    target: Literal["predicted", "label"] | NonNegativeInt = "predicted"
    map_size: Annotated[Any, AfterValidator(_checked_size)] = "input"
    test_dataset: str = "cub-200-2011/CUB_200_2011"
    split: str | None = None
    classes: PathText | None = None
    cub_root: PathText | None = None
    metadata_root: PathText | None = None
    dataset_name: str | None = None
    cam_curve_interval: _Share = 0.01
    num_samples: PositiveInt = 200
    p: _Share = 0.2
    erf_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    eval_batch_size: PositiveInt = 8
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    device: str | None = None
    num_workers: NonNegativeInt = 2
    strict: bool = False

    def unused(self) -> dict[str, str]:
        """Return the keys that mean nothing beside the others, and why."""
        found = {}
        if self.weight_path is not None:
            found |= dict.fromkeys(TRAINING, "nothing is trained where weight_path is given")
        if self.model_family != "slak_flex":
            reason = f"belongs to slak_flex, not to {self.model_family}"
            found |= dict.fromkeys(("alpha", "beta"), reason)
        if self.model_family == "replknet":
            found["ls_init"] = "replknet has no layer scale"
        if self.model_family not in ("convnext", "slak_flex"):
            found["study_softmax"] = "belongs to convnext and slak_flex"
        if self.model_family != "convnext":
            found["pretrained"] = "belongs to convnext; other families take init_weights"
        if self.localization_method == "cam":
            found["pc1_range"] = "belongs to localization_method pc1, not to cam"
        if self.metadata_root is None:
            found["dataset_name"] = "belongs to metadata_root, which is not given"
        return found

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield the keys whose values cannot stand beside the others, and why."""
        if self.model is not None:
            known = timm.list_models(module=self.model_family)
            if self.model.split(".", 1)[0] not in known:
                yield "model", f"{self.model!r} is no model of {self.model_family}"
        if self.weight_path is None:
            try:
                check_config(self.model_of(None), self.training())
            except InputError as e:
                yield "training", str(e).replace("`", "")  # keys of a file, not flags
        if self.cub_root is not None and self.metadata_root is not None:
            yield "cub_root", "cannot be combined with metadata_root"
        side = -(-self.input_size // self.output_stride)
        if self.localization_method == "pc1" and side < 4:
            yield (
                "localization_method",
                f"pc1 needs feature maps of 4x4; input_size {self.input_size} gives {side}x{side}"
                f" at output_stride {self.output_stride}",
            )

    def described(self) -> dict:
        """Return what a result depends on, as JSON values: unused keys and `HOW` left out."""
        return self.model_dump(mode="json", exclude={*self.unused(), *HOW})

    def model_of(self, weights: Path | None) -> ModelConfig:
        """Return the model with these weights; None for a model to be trained."""
        return ModelConfig(
            self.model_family,
            weights,
            self.model,
            self.num_classes,
            self.alpha,
            self.beta,
            self.output_stride,
        )

    def training(self) -> TrainConfig:
        """Return how the weights are trained, under a name that these settings alone decide."""
        names = [f.name for f in fields(TrainConfig) if f.name != "exp_name"]
        config = TrainConfig(**{name: getattr(self, name) for name in names})
        return replace(config, exp_name=self._training_name(config))

    def data(self) -> DataConfig:
        """Return the images that are scored."""
        return DataConfig(
            self.test_dataset,
            self.split,
            self.metadata_root,
            self.dataset_name,
            self.input_size,
            self.classes,
        )

    def run(self) -> RunConfig:
        """Return how to compute."""
        return RunConfig(
            self.eval_batch_size,
            self.num_workers,
            self.device,
            self.precision,
            self.channels_last,
            self.strict,
            self.compile,
        )

    def maps(self) -> MapConfig:
        """Return the maps that are scored."""
        return MapConfig(self.localization_method, str(self.target), self.map_size, self.pc1_range)

    def map_shape(self) -> tuple[int, int]:
        """Return (H, W) of the maps."""
        return map_shape(self.map_size, self.input_size)

    def boxes(self) -> BoxConfig:
        """Return the ground truth and the protocol: MaxBoxAcc at IoU 0.5, largest contour."""
        return BoxConfig(
            cub_root=self.cub_root,
            metadata_root=self.metadata_root,
            dataset_name=self.dataset_name,
            split=self.split,
            cam_curve_interval=self.cam_curve_interval,
        )

    def sizes(self) -> SizeConfig:
        """Return the measurement of the ERF size."""
        return SizeConfig(self.num_samples, (self.p,), self.erf_seed)

    def _training_name(self, config: TrainConfig) -> str:
        """Return a name that two trainings share only if all their settings are equal.

        It is the study's (family, size, epochs, lr, aug_mode), then the model and the mixture, if
        given, then a digest of whatever else differs from the defaults. So it does not depend on
        what else a file of experiments holds.
        """
        parts = [exp_name(self.model_of(None), config)]
        parts += [self.model] if self.model else []
        parts += [f"{k}{v!r}" for k in ("alpha", "beta") if (v := getattr(self, k)) is not None]
        others = {
            key: value
            for key, value in self.described().items()
            if key in _IN_DIGEST and value != json_default(key)
        }
        if others:
            text = json.dumps(others, sort_keys=True)
            parts.append(hashlib.sha256(text.encode()).hexdigest()[:8])
        return "_".join(parts)


# What decides the weights and is not legible in a training's name.
_IN_DIGEST = {*TRAINING, "num_classes", "output_stride", "precision", "channels_last"}
_IN_DIGEST -= {"epochs", "lr", "aug_mode", *HOW}


def json_default(key: str) -> object:
    """Return the default of a setting as a JSON value."""
    value = Settings.model_fields[key].default
    return str(value) if isinstance(value, Path) else value
