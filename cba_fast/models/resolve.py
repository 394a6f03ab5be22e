"""Decide which model to build, from what was asked for, what its checkpoint says, and defaults."""

from dataclasses import dataclass, fields
from typing import get_args

import timm
from timm.models import is_model_in_modules

from ..choices import Family
from ..errors import CheckpointError, InputError
from ..short import Short
from .checkpoints import Checkpoint
from .description import PREPROCESSING, ModelDescription
from .layouts import Layout, detect_layout

FAMILIES = get_args(Family)

# The model of each family in the study.
DEFAULT_MODELS = {
    "convnext": "convnext_base.fb_in22k_ft_in1k_384",
    "replknet": "replknet_31b",
    "slak": "slak_base",
    "slak_flex": "slak_flex_base",
}
# A file with a larger head is damaged or hostile: ImageNet-21k has 21,841 classes.
MOST_CLASSES = 2**20


@dataclass(frozen=True, repr=False)
class Resolved(Short):
    """The complete description of a model to build, and where its values come from.

    Attributes:
        description: the description; None for values that have no meaning or no default.
        layout: that of the checkpoint's keys; None without a checkpoint.
        assumed: names of the values that were neither asked for nor recorded.
        replaced: by name, the recorded values in whose place others were asked for.
    """

    description: ModelDescription
    layout: Layout | None
    assumed: tuple[str, ...]
    replaced: dict[str, object]

    def known(self) -> ModelDescription:
        """Return the description without assumed values, to be recorded in another file."""
        values = dict(vars(self.description))
        return ModelDescription(
            **values | {k: None for k in self.assumed if k not in ("family", "model")}
        )


def resolve_description(
    checkpoint: Checkpoint | None,
    *,
    family: str | None = None,
    model: str | None = None,
    num_classes: int | None = None,
    output_stride: int | None = None,
    input_size: int | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    default_input_size: int | None = None,
) -> Resolved:
    """Complete what was asked for by what the checkpoint says, then by the study's defaults.

    None means that a value was not asked for. Family, model and number of classes must be the
    checkpoint's; other values may differ from the recorded ones, which `Resolved.replaced` lists.

    Args:
        checkpoint: from `read_checkpoint`; None for random weights.
        family, model, num_classes, output_stride, alpha, beta: see `build_model`.
        input_size: side of the images in pixels.
        default_input_size: taken if the side is neither asked for nor recorded.

    Raises:
        InputError: a value that no model has, alpha or beta where they have no meaning, or another
            number of classes than the checkpoint's.
        CheckpointError: the checkpoint belongs to another family or model or to no known one, or
            contradicts itself.
    """
    recorded = checkpoint.description if checkpoint else None
    _check_values(family, num_classes, output_stride)
    layout = detect_layout(checkpoint.state) if checkpoint else None
    known_family = _family(checkpoint, layout, family)
    name = _model(checkpoint, known_family, model)
    mixing = {k: v for k, v in (("alpha", alpha), ("beta", beta)) if v is not None}
    merged = layout is not None and layout.name == "merged"
    if mixing and known_family != "slak_flex":
        raise InputError(f"{' and '.join(mixing)} belong to slak_flex, not to {known_family}")
    if mixing and merged:
        raise InputError(
            f"{checkpoint.path}: the mixture is merged into the weights; leave alpha and beta out"
        )
    asked = {"output_stride": output_stride, "input_size": input_size}
    defaults = {"output_stride": 32, "input_size": default_input_size}
    if known_family == "slak_flex" and not merged:
        asked |= {"alpha": alpha, "beta": beta}
        defaults |= {"alpha": 1.0, "beta": 0.0}
    said = {k: getattr(recorded, k) if recorded else None for k in asked}
    values = {
        k: next((v for v in (asked[k], said[k], defaults[k]) if v is not None), None) for k in asked
    }
    unsaid = {k for k in asked if asked[k] is None and said[k] is None}
    if family is None and recorded is None and layout is None:
        unsaid.add("family")
    if model is None and recorded is None:
        unsaid.add("model")
    described = ModelDescription(
        known_family,
        name,
        num_classes if checkpoint is None else _classes(checkpoint, layout, num_classes),
        recorded.class_names if recorded else None,
        preprocessing=PREPROCESSING,
        **values,
    )
    return Resolved(
        described,
        layout,
        tuple(f.name for f in fields(described) if f.name in unsaid),
        {k: said[k] for k in asked if said[k] is not None and said[k] != values[k]},
    )


def _check_values(family: str | None, num_classes: int | None, output_stride: int | None) -> None:
    if family is not None and family not in FAMILIES:
        raise InputError(f"unknown model family {family!r}; one of {', '.join(FAMILIES)}")
    if num_classes is not None and num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")
    if output_stride not in (None, 16, 32):
        raise InputError(f"output_stride must be 16 or 32, got {output_stride}")


def _family(checkpoint: Checkpoint | None, layout: Layout | None, family: str | None) -> str:
    if checkpoint is None:
        if family is None:
            raise InputError("without a checkpoint, `model_family` must be given")
        return family
    recorded = checkpoint.description.family if checkpoint.description else None
    if layout is None:
        wanted = family or recorded
        keys = ", ".join(list(checkpoint.state)[:3])
        raise CheckpointError(
            f"{checkpoint.path}: not a checkpoint of "
            + (f"{wanted}, nor of another known family" if wanted else "a known family")
            + f" (keys: {keys}, ... {len(checkpoint.state)} in all)"
        )
    if family not in (None, layout.family):
        raise CheckpointError(
            f"{checkpoint.path}: looks like a {layout.family} checkpoint ({layout.name} layout), "
            f"not {family}"
        )
    if recorded not in (None, layout.family):
        raise CheckpointError(
            f"{checkpoint.path}: says that it is of {recorded}, and has the keys of {layout.family}"
        )
    return layout.family


def _model(checkpoint: Checkpoint | None, family: str, model: str | None) -> str:
    recorded = checkpoint.description.model if checkpoint and checkpoint.description else None
    # timm's name may carry the tag of pretrained weights, which the checkpoint's replace.
    if model and recorded and model.split(".", 1)[0] != recorded.split(".", 1)[0]:
        raise CheckpointError(
            f"{checkpoint.path}: is a {recorded}, and the model {model} was asked for"
        )
    return _checked_name(family, model or recorded)


def _checked_name(family: str, model: str | None) -> str:
    name = model or DEFAULT_MODELS[family]
    arch = name.split(".", 1)[0]
    # timm lists every model under the last part of the name of the module that registers it, and
    # the modules here are named after their families.
    if is_model_in_modules(arch, [family]):
        return name
    other = next((f for f in FAMILIES if is_model_in_modules(arch, [f])), None)
    if other is not None:
        raise InputError(f"model {name!r} belongs to the family {other}, not to {family}")
    known = timm.list_models(module=family)
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    raise InputError(f"unknown model {name!r}; {family} has {shown}")


def _classes(checkpoint: Checkpoint, layout: Layout, asked: int | None) -> int | None:
    """Return the number of classes in the file, which must be those asked for and recorded."""
    weight = checkpoint.state.get(layout.classifier)
    if weight is None or weight.ndim != 2:
        return asked  # load_strict reports the key
    count = len(weight)
    recorded = checkpoint.description.num_classes if checkpoint.description else None
    where = f"{checkpoint.path} has {count} classes ({layout.classifier})"
    if count > MOST_CLASSES:
        raise CheckpointError(f"{where}, more than the {MOST_CLASSES} that are let pass")
    if asked not in (None, count):
        raise InputError(f"{where}, but num_classes is {asked}")
    if recorded not in (None, count):
        raise CheckpointError(f"{where}, but its description says {recorded}")
    return count
