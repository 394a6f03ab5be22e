"""The description of a model that a checkpoint carries beside its weights.

Weights do not tell the input size, the output stride or the class names; with wrong ones they give
wrong results instead of an error.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeGuard, get_args

from ..choices import Preprocess
from ..errors import CheckpointError
from ..short import Short

# Where the description lies: in the state dict's ``_metadata`` and in the header of safetensors.
KEY = "cba_fast"
# The family of a network that a user's own function makes.
FACTORY = "factory"
LARGEST_INPUT = 8192


@dataclass(frozen=True, repr=False)
class ModelDescription(Short):
    """The model that weights belong to, and the images that it was trained on.

    None means that a value is unknown.

    Attributes:
        family, model: as `build_model` takes them; of networks outside of the study the name of
            timm's module, such as "resnet", or `FACTORY` and where its function is.
        num_classes: number of rows of the classifier.
        class_names: the class of each row.
        output_stride: 32 or 16.
        input_size: side of the images in pixels; text such as "256x384" (height x width) if they
            are not square, which no file records.
        preprocessing: "study", see `cba_fast.data.study_transform`, or "model", timm's for it.
        alpha, beta: the mixture of slak_flex; None where it is merged into the weights.
    """

    family: str
    model: str
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    output_stride: Literal[32, 16] | None = None
    input_size: int | str | None = None
    preprocessing: Preprocess | None = None
    alpha: float | None = None
    beta: float | None = None

    def as_json(self) -> dict[str, object]:
        """Return the known values as JSON values."""
        values = {k: v for k, v in vars(self).items() if v is not None}
        if self.class_names is not None:
            values["class_names"] = list(self.class_names)
        return values

    @classmethod
    def from_json(cls, value: object, source: object) -> "ModelDescription":
        """Read what `as_json` gives; unknown keys, as a later version may write, are ignored.

        Args:
            value: the JSON values.
            source: the file, for the message.

        Raises:
            CheckpointError: `value` is no dict, "family" or "model" is missing, or this version
                cannot use a value.
        """
        if not isinstance(value, dict):
            raise CheckpointError(f"{source}: its description is a {type(value).__name__}, no dict")
        values: dict[str, Any] = {f.name: value.get(f.name) for f in fields(cls)}
        for key, (is_right, want) in _RULES.items():
            found = values[key]
            if found is None and key in ("family", "model"):
                raise CheckpointError(f"{source}: its description lacks {key!r}")
            if found is not None and not is_right(found):
                shown = repr(found)[:80]
                raise CheckpointError(f"{source}: its description's {key!r} is {shown}, not {want}")
        names, count = values["class_names"], values["num_classes"]
        if names is not None:
            values["class_names"] = tuple(names)
            if len(set(names)) != len(names) or count not in (None, len(names)):
                raise CheckpointError(
                    f"{source}: its description names {len(set(names))} classes in {len(names)} "
                    f"entries of 'class_names' and has 'num_classes' {count}"
                )
        return cls(**values)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 1


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


_RULES = {
    "family": (_is_text, "text"),
    "model": (_is_text, "text"),
    "num_classes": (_is_count, "a whole number of at least 1"),
    "class_names": (
        lambda v: isinstance(v, list | tuple) and all(map(_is_text, v)),
        "a list of names",
    ),
    "output_stride": (lambda v: _is_count(v) and v in (16, 32), "16 or 32"),
    "input_size": (
        lambda v: _is_count(v) and v <= LARGEST_INPUT,
        f"a whole number from 1 to {LARGEST_INPUT}",
    ),
    "preprocessing": (lambda v: v in get_args(Preprocess), "'study' or 'model'"),
    "alpha": (_is_finite, "a finite number"),
    "beta": (_is_finite, "a finite number"),
}
