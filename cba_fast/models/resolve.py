"""Decide which model to build, from what was asked for, what its checkpoint says, and defaults."""

from dataclasses import dataclass, fields
from typing import Any, get_args

import timm
from timm.models import is_model_in_modules

from ..choices import Family, Preprocess
from ..errors import CheckpointError, InputError
from ..shapes import Size, size_word
from ..short import Short
from .checkpoints import Checkpoint
from .description import FACTORY, ModelDescription
from .families.layouts import Layout, detect_layout
from .timm_networks import pretrained_name, timm_configuration, timm_family, with_classifier

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
        layout: that of the checkpoint's keys; None without a checkpoint, and outside of `FAMILIES`.
        assumed: names of the values that were neither asked for nor recorded.
        replaced: by name, the recorded values in whose place others were asked for.
        checkpoint: the part of the file that holds the model; None without a checkpoint.
    """

    description: ModelDescription
    layout: Layout | None
    assumed: tuple[str, ...]
    replaced: dict[str, object]
    checkpoint: Checkpoint | None = None

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
    factory: str | None = None,
    pretrained: bool | str = False,
    num_classes: int | None = None,
    output_stride: int | None = None,
    input_size: Size = None,
    preprocess: Preprocess | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    default_input_size: int | None = None,
) -> Resolved:
    """Complete what was asked for by what the checkpoint says, then by defaults.

    None means that a value was not asked for. Family, model and number of classes must be the
    checkpoint's; other values may differ from the recorded ones, which `Resolved.replaced` lists.
    Defaults are the study's for its families, and timm's for all other networks.

    Args:
        checkpoint: from `read_checkpoint`; None for random or timm's weights.
        family, model, factory, pretrained, num_classes, output_stride, alpha, beta: see
            `build_model`.
        input_size: side of the images in pixels, or (H, W).
        preprocess: "study" or "model", see `ModelDescription.preprocessing`.
        default_input_size: the study's side, taken if another is neither asked for nor recorded,
            and timm has none for the model.

    Raises:
        InputError: an unknown model, a value that no model has, alpha or beta where they have no
            meaning, or another number of classes than the weights'.
        CheckpointError: the checkpoint belongs to another family or model or to no known one, or
            contradicts itself.
    """
    _check_values(num_classes, output_stride)
    layout = detect_layout(checkpoint.state) if checkpoint else None
    known_family, name = _identity(checkpoint, layout, family, model, factory)
    recorded = checkpoint.description if checkpoint else None
    if known_family not in FAMILIES:
        layout = None
        if output_stride == 32 and not (recorded and recorded.output_stride):
            output_stride = None  # timm's models keep their own, which is not always 32
    if pretrained:
        name = _pretrained(checkpoint, known_family, name)
    mixing = {k: v for k, v in (("alpha", alpha), ("beta", beta)) if v is not None}
    merged = layout is not None and layout.name == "merged"
    if mixing and known_family != "slak_flex":
        raise InputError(f"{' and '.join(mixing)} belong to slak_flex, not to {known_family}")
    if mixing and merged and checkpoint:
        raise InputError(
            f"{checkpoint.path}: the mixture is merged into the weights; leave alpha and beta out"
        )
    said_preprocess = recorded.preprocessing if recorded else None
    preprocess = preprocess or said_preprocess or ("study" if known_family in FAMILIES else "model")
    if input_size is not None:
        input_size = size_word(input_size, "input_size")
    asked: dict[str, Any] = {"output_stride": output_stride, "input_size": input_size}
    defaults: dict[str, Any] = {
        "output_stride": 32 if known_family in FAMILIES else None,
        "input_size": _usual_size(known_family, name, preprocess, default_input_size),
    }
    if known_family == "slak_flex" and not merged:
        asked |= {"alpha": alpha, "beta": beta}
        defaults |= {"alpha": 1.0, "beta": 0.0}
    said = {k: getattr(recorded, k) if recorded else None for k in asked}
    values = {
        k: next((v for v in (asked[k], said[k], defaults[k]) if v is not None), None) for k in asked
    }
    unsaid = {k for k in asked if asked[k] is None and said[k] is None and values[k] is not None}
    if family is None and recorded is None and layout is None and known_family in FAMILIES:
        unsaid.add("family")
    if model is None and recorded is None and known_family != FACTORY:
        unsaid.add("model")
    checkpoint, count = _classes(checkpoint, layout, known_family, name, num_classes, pretrained)
    described = ModelDescription(
        known_family,
        name,
        count,
        recorded.class_names if recorded else None,
        preprocessing=preprocess,
        **values,
    )
    replaced = {k: said[k] for k in asked if said[k] is not None and said[k] != values[k]}
    if said_preprocess not in (None, preprocess):
        replaced["preprocessing"] = said_preprocess
    assumed = tuple(f.name for f in fields(described) if f.name in unsaid)
    return Resolved(described, layout, assumed, replaced, checkpoint)


def family_of(name: str) -> str:
    """Return the family of a model: one of `FAMILIES`, or the name of timm's module.

    Raises:
        InputError: there is no such model; the message has those of similar names.
    """
    arch = name.split(".", 1)[0]
    # timm lists every model under the last part of the name of the module that registers it, and
    # the modules here are named after their families.
    found = next((f for f in FAMILIES if is_model_in_modules(arch, [f])), None)
    return found or timm_family(name)


def _check_values(num_classes: int | None, output_stride: int | None) -> None:
    if num_classes is not None and num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")
    if output_stride not in (None, 16, 32):
        raise InputError(f"output_stride must be 16 or 32, got {output_stride}")


def _identity(
    checkpoint: Checkpoint | None,
    layout: Layout | None,
    family: str | None,
    model: str | None,
    factory: str | None,
) -> tuple[str, str]:
    """Return the family and the name of the network that is meant."""
    recorded = checkpoint.description if checkpoint else None
    if factory is not None:
        if family not in (None, FACTORY) or model not in (None, factory):
            raise InputError(
                "`model_factory` makes the whole network; leave `model_family` and `model` out"
            )
        if checkpoint and recorded and recorded.family != FACTORY:
            raise CheckpointError(
                f"{checkpoint.path}: is a {recorded.model}, and not of `model_factory` {factory}"
            )
        return FACTORY, factory
    if checkpoint and recorded and recorded.family == FACTORY:
        raise CheckpointError(
            f"{checkpoint.path}: its network was made by {recorded.model}, and a checkpoint alone"
            " never runs code; give that as `model_factory`"
        )
    wanted = model or (recorded.model if recorded else None)
    if wanted and family not in FAMILIES:
        of = family_of(wanted)
        if of not in FAMILIES and family in (None, of):
            if checkpoint and recorded:
                _check_same(checkpoint, recorded, wanted)
            return of, wanted
        family = of if family is None and checkpoint is None else family
    if family is not None and family not in FAMILIES:
        raise InputError(f"unknown model family {family!r}; one of {', '.join(FAMILIES)}")
    known = _family(checkpoint, layout, family)
    if checkpoint and recorded and model:
        _check_same(checkpoint, recorded, model)
    return known, _checked_name(known, wanted)


def _family(checkpoint: Checkpoint | None, layout: Layout | None, family: str | None) -> str:
    if checkpoint is None:
        if family is None:
            raise InputError("without a checkpoint, `model` or `model_family` must be given")
        return family
    recorded = checkpoint.description.family if checkpoint.description else None
    if layout is None:
        wanted = family or recorded
        keys = ", ".join(list(checkpoint.state)[:3])
        raise CheckpointError(
            f"{checkpoint.path}: not a checkpoint of "
            + (f"{wanted}, nor of another known family" if wanted else "a known family")
            + f" (keys: {keys}, ... {len(checkpoint.state)} in all)"
            + ("" if wanted else "; name its `model`, such as resnet50, or give a `model_factory`")
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


def _check_same(checkpoint: Checkpoint, recorded: ModelDescription, model: str) -> None:
    """Refuse another model than the recorded one.

    timm's name may carry the tag of pretrained weights, which the checkpoint's replace.
    """
    if model.split(".", 1)[0] != recorded.model.split(".", 1)[0]:
        raise CheckpointError(
            f"{checkpoint.path}: is a {recorded.model}, and the model {model} was asked for"
        )


def _checked_name(family: str, model: str | None) -> str:
    name = model or DEFAULT_MODELS[family]
    if is_model_in_modules(name.split(".", 1)[0], [family]):
        return name
    if timm.is_model(name.split(".", 1)[0]):
        raise InputError(f"model {name!r} belongs to the family {family_of(name)}, not to {family}")
    known = timm.list_models(module=family)
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    raise InputError(f"unknown model {name!r}; {family} has {shown}")


def _pretrained(checkpoint: Checkpoint | None, family: str, name: str) -> str:
    """Return the name with the tag of timm's weights."""
    if checkpoint is not None:
        raise InputError(
            f"`pretrained` and {checkpoint.path} are two sources of weights; choose one"
        )
    if family == FACTORY or (family in FAMILIES and family != "convnext"):
        raise InputError(
            "`pretrained` is for timm's models; "
            + (
                f"the function {name} may load weights itself"
                if family == FACTORY
                else f"give a file of {family} as `weights`"
            )
        )
    return pretrained_name(name)


def _usual_size(family: str, name: str, preprocess: str, study: int | None) -> int | str | None:
    """Return the size of the images of a run that says none; None where no run asks for it."""
    if study is None:
        return None
    known = {} if family == FACTORY else timm_configuration(name)
    if preprocess == "model" or (family not in FAMILIES and known.get("fixed_input_size")):
        return size_word((known.get("input_size") or (3, 224, 224))[1:])
    return study


def _classes(
    checkpoint: Checkpoint | None,
    layout: Layout | None,
    family: str,
    name: str,
    asked: int | None,
    pretrained: bool | str,
) -> tuple[Checkpoint | None, int | None]:
    """Return the part of the file that holds the model, and the number of classes.

    That of the weights must be the number that was asked for and recorded.
    """
    if checkpoint is None or family == FACTORY:
        recorded = checkpoint.description if checkpoint else None
        usual = None
        if family not in (*FAMILIES, FACTORY) or pretrained is True:
            usual = timm_configuration(name).get("num_classes")
        if pretrained is True and asked not in (None, usual):
            raise InputError(
                f"the pretrained weights of {name} have {usual} classes, but num_classes is {asked}"
            )
        return checkpoint, asked or (recorded.num_classes if recorded else None) or usual
    if layout is None:
        checkpoint, count = with_classifier(checkpoint, name)
        if count is None:  # a file with other keys, which must fit
            return checkpoint, asked or timm_configuration(name).get("num_classes")
        key = "the classifier"
    else:
        weight, key = checkpoint.state.get(layout.classifier), layout.classifier
        if weight is None or weight.ndim != 2:
            return checkpoint, asked  # load_strict reports the key
        count = len(weight)
    said = checkpoint.description.num_classes if checkpoint.description else None
    where = f"{checkpoint.path} has {count} classes ({key})"
    if count > MOST_CLASSES:
        raise CheckpointError(f"{where}, more than the {MOST_CLASSES} that are let pass")
    if asked not in (None, count):
        raise InputError(f"{where}, but num_classes is {asked}")
    if said not in (None, count):
        raise CheckpointError(f"{where}, but its description says {said}")
    return checkpoint, count
