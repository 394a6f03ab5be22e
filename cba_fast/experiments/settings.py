"""One experiment's settings: types, which of them mean something, and the configs they make."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import timm
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    Strict,
    create_model,
)

from ..choices import INPUT_SIZE
from ..data.preprocessing import Preprocessing
from ..errors import InputError
from ..models import FAMILIES
from ..runs.declare import Declared, Range, declared
from ..runs.resolve import preprocessing_of
from ..runs.settings import (
    BoxConfig,
    ClusterConfig,
    DataConfig,
    MapConfig,
    ModelConfig,
    RunConfig,
    SizeConfig,
)
from ..shapes import MOST, map_shape, size_word
from ..training.config import LAYER_SCALE, TrainConfig, check_config, exp_name

# The fields of the config classes that a file of experiments may set, in the order of its keys.
_FIELDS = (
    (ModelConfig, "family name factory alpha beta"),
    (DataConfig, "input_size preprocess"),
    (ModelConfig, "num_classes output_stride weights pretrained"),
    (TrainConfig, "epochs lr aug_mode batch_size weight_decay schedule ls_init drop_path"),
    (TrainConfig, "study_softmax init_weights seed data_root save_dir cache_images"),
    (TrainConfig, "checkpoint micro_batch tracker"),
    (MapConfig, "method layer pc1_range target map_size"),
    (DataConfig, "test_dataset split classes follow_links"),
    (BoxConfig, "cub_root"),
    (DataConfig, "metadata_root dataset_name"),
    (BoxConfig, "cam_curve_interval"),
    (SizeConfig, "num_samples shares seed"),
    (RunConfig, "batch_size precision channels_last compile device num_workers strict"),
    (ClusterConfig, "cpus gpus"),
)
# Keys that are called otherwise than the options of the commands: there each is in its command.
_OTHER_NAMES = {
    (MapConfig, "method"): "localization_method",
    (ModelConfig, "weights"): "weight_path",
    (SizeConfig, "seed"): "erf_seed",
    (RunConfig, "batch_size"): "eval_batch_size",
}
_KEYS = {
    _OTHER_NAMES.get((config, name), declared(config)[name].option): (config, name)
    for config, names in _FIELDS
    for name in names.split()
}
# Settings of the training alone; the model's and the images' count for training and scores.
TRAINING = tuple(
    key for key, (config, _) in _KEYS.items() if config is TrainConfig and key != "tracker"
)
TRAINING += ("pretrained",)
# Settings that say how and where to compute, not what: they may change once a result is there.
HOW = (
    *("device", "num_workers", "strict", "cache_images", "checkpoint", "save_dir"),
    *("cpus", "gpus", "tracker"),
)

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
PathText = Annotated[Path, Strict(False)]


def _checked_size(size: Any) -> int | str:
    return size if size == "input" else size_word(size)


def _typed(found: Declared) -> tuple[Any, Any]:
    """Return the type and the default that pydantic takes for a declared setting."""
    kind = Literal[found.choices] if found.choices else found.kind
    if kind is Path:
        kind = PathText
    if kind is float:
        kind = Annotated[float, Field(allow_inf_nan=False)]
    if (limits := found.range) is not None:
        ends: dict[str, Any] = {("gt" if limits.min_open else "ge"): limits.min}
        ends |= {("lt" if limits.max_open else "le"): limits.max}
        kind = Annotated[kind, Field(**{k: v for k, v in ends.items() if v is not None})]
    return (kind | None if found.optional else kind), found.default


# Where keys differ from what is declared: a model to be trained has no checkpoint that says more.
_CHANGED: dict[str, dict] = {
    "model_family": {"optional": False, "default": ...},
    "input_size": {
        **{"kind": int, "marks": (Range(1, MOST),)},
        **{"optional": False, "default": INPUT_SIZE},
    },
    "output_stride": {"optional": False, "default": 32},
    "test_dataset": {"default": "cub-200-2011/CUB_200_2011"},
    "p": {"default": SizeConfig.shares[0]},
}


def _fields() -> dict[str, tuple[Any, Any]]:
    """Return the type and the default of each key of an experiment."""
    found = {
        key: _typed(replace(declared(config)[name], **_CHANGED.get(key, {})))
        for key, (config, name) in _KEYS.items()
    }
    # YAML has numbers where a command gets text.
    found["target"] = (Literal["predicted", "label"] | NonNegativeInt, MapConfig.target)
    found["model_family"] = (str, ...)  # the plan fills it where a model is named
    found["map_size"] = (Annotated[Any, AfterValidator(_checked_size)], MapConfig.map_size)
    return found


class _Experiment(BaseModel):
    """What the settings of an experiment mean together, and the configs that they make."""

    model_config = STRICT

    if TYPE_CHECKING:  # the fields are those of `Settings`

        def __getattr__(self, name: str) -> Any: ...

    def unused(self) -> dict[str, str]:
        """Return the keys that mean nothing beside the others, and why."""
        found: dict[str, str] = {}
        if self.weight_path is not None:
            found |= dict.fromkeys(TRAINING, "nothing is trained where weight_path is given")
        if self.model_family != "slak_flex":
            reason = f"belongs to slak_flex, not to {self.model_family}"
            found |= dict.fromkeys(("alpha", "beta"), reason)
        if self.model_family not in LAYER_SCALE:
            found["ls_init"] = f"{self.model_family} has no layer scale to set"
        if self.model_family not in ("convnext", "slak_flex"):
            found["study_softmax"] = "belongs to convnext and slak_flex"
        if self.model_family in FAMILIES and self.model_family != "convnext":
            found["pretrained"] = "belongs to convnext and timm's; other models take init_weights"
        if self.localization_method != "pc1":
            reason = f"belongs to localization_method pc1, not to {self.localization_method}"
            found["pc1_range"] = reason
        if self.metadata_root is None:
            found["dataset_name"] = "belongs to metadata_root, which is not given"
        return found

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield the keys whose values cannot stand beside the others, and why."""
        if self.model_family not in FAMILIES and not (self.model or self.model_factory):
            yield "model_family", f"must be {' or '.join(FAMILIES)}, got {self.model_family!r}"
        elif self.model is not None:
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
        if self.localization_method == "pc1" and side < 4 and self.model_family in FAMILIES:
            yield (
                "localization_method",
                f"pc1 needs feature maps of 4x4; input_size {self.input_size} gives {side}x{side}"
                f" at output_stride {self.output_stride}",
            )

    def described(self) -> dict:
        """Return what a result depends on, as JSON values: unused keys and `HOW` left out."""
        return self.model_dump(mode="json", exclude={*self.unused(), *HOW})

    def _config(self, config: type, **values: Any) -> Any:
        """Return the config of the keys that are its fields, and of other values."""
        own = {name: getattr(self, key) for key, (c, name) in _KEYS.items() if c is config}
        return config(**{**own, **values})

    def model_of(self, weights: Path | None) -> ModelConfig:
        """Return the model with these weights; None for a model to be trained."""
        name = self.model_factory or self.model
        pretrained = self.pretrained and weights is None
        return self._config(ModelConfig, weights=weights, name=name, pretrained=pretrained)

    def preprocessing(self) -> Preprocessing:
        """Return what `preprocess` means for the model."""
        return preprocessing_of(self.preprocess, self.model_family, self.model)

    def training(self) -> TrainConfig:
        """Return how the weights are trained, under a name that these settings alone decide."""
        images = {name: getattr(self, name) for name in ("input_size", "preprocess")}
        config = self._config(TrainConfig, **images)
        return replace(config, exp_name=self._training_name(config))

    def data(self) -> DataConfig:
        """Return the images that are scored."""
        return self._config(DataConfig, preprocessing=self.preprocessing())

    def run(self) -> RunConfig:
        """Return how to compute."""
        return self._config(RunConfig)

    def maps(self) -> MapConfig:
        """Return the maps that are scored."""
        return self._config(MapConfig, target=str(self.target))

    def map_shape(self) -> tuple[int, int]:
        """Return (H, W) of the maps."""
        return map_shape(self.map_size, self.input_size)

    def boxes(self) -> BoxConfig:
        """Return the ground truth and the protocol: MaxBoxAcc at IoU 0.5, largest contour."""
        shared = ("metadata_root", "dataset_name", "split")
        return self._config(BoxConfig, **{name: getattr(self, name) for name in shared})

    def sizes(self) -> SizeConfig:
        """Return the measurement of the ERF size."""
        return self._config(SizeConfig, shares=(self.p,))

    def _training_name(self, config: TrainConfig) -> str:
        """Return a name that two trainings share only if all their settings are equal.

        It is the study's (family, size, epochs, lr, aug_mode), then the model and the mixture, if
        given, then a digest of whatever else differs from the defaults. So it does not depend on
        what else a file of experiments holds.
        """
        parts = [exp_name(self.model_of(None), config)]
        parts += [self.model] if self.model and self.model_family in FAMILIES else []
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


# pydantic's types know of fields that are written out alone.
Settings = create_model(  # type: ignore[call-overload]
    "Settings",
    __base__=_Experiment,
    __module__=__name__,
    __doc__="One experiment, completely: the defaults are those of the single commands.",
    **_fields(),
)

# What decides the weights and is not legible in a training's name.
_IN_DIGEST = {*TRAINING, "preprocess", "model_factory", "num_classes", "output_stride"}
_IN_DIGEST |= {"precision", "channels_last"}
_IN_DIGEST -= {"epochs", "lr", "aug_mode", *HOW}


def json_default(key: str) -> object:
    """Return the default of a setting as a JSON value."""
    value = Settings.model_fields[key].default
    return str(value) if isinstance(value, Path) else value
