"""Complete a run's settings by what its checkpoint says, and tell in one line what came of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from timm.data import resolve_data_config

from ..choices import INPUT_SIZE
from ..data import ImageRecord, ImageSet, model_labels, read_class_names
from ..data.preprocessing import STUDY, Preprocessing
from ..models import DEFAULT_MODELS, FAMILIES, ModelDescription, read_checkpoint
from ..models.description import FACTORY
from ..models.factory import source_digest
from ..models.resolve import Resolved, resolve_description
from ..models.timm_networks import timm_configuration
from ..short import Short
from .settings import DataConfig, ModelConfig


@dataclass(frozen=True, repr=False)
class ResolvedRun(Short):
    """Settings without gaps.

    Attributes:
        model, data: the settings; `data.input_size` is a side, or text such as "96x128".
        class_names: in the order of the labels: those of the file `classes`, or else those that the
            checkpoint records, if any.
        line: what to tell at the start of a run: each setting, and what was assumed.
        warning: a sentence, if the images are not made as the weights want them; else "".
        known: what another file with these weights can record: nothing that was assumed.
    """

    model: ModelConfig
    data: DataConfig
    class_names: tuple[str, ...] | None
    line: str
    warning: str
    known: ModelDescription

    def labelled(
        self,
        records: Iterable[ImageRecord],
        images: ImageSet,
        true_labels: Mapping[str, int] | None = None,
    ) -> list[ImageRecord]:
        """Return records of `images` whose labels are the model's classes; see `model_labels`.

        Raises:
            InputError: the labels are not known, or outside of the model's classes.
        """
        classes = self.model.num_classes or 1000
        found = model_labels(images, classes, self.class_names, true_labels)
        return [replace(r, label=found.get(r.image_id)) for r in records]


def resolve(model: ModelConfig, data: DataConfig, *, swept: bool = False) -> ResolvedRun:
    """Fill what is None in the settings: from the checkpoint, else with defaults.

    The defaults are the study's for its families, and timm's for all other networks. Settings that
    are complete already stay as they are.

    Args:
        model, data: settings.
        swept: leave slak_flex's alpha and beta out: the run goes through many of them.

    Raises:
        InputError, CheckpointError: as `cba_fast.models.build_model`.
    """
    checkpoint = None if model.weights is None else read_checkpoint(model.weights, mapped=True)
    resolved = resolve_description(
        checkpoint,
        family=model.family,
        model=model.name,
        factory=model.factory,
        pretrained=model.pretrained,
        num_classes=model.num_classes,
        output_stride=model.output_stride,
        input_size=data.input_size,
        preprocess=data.preprocess,
        alpha=model.alpha,
        beta=model.beta,
        default_input_size=INPUT_SIZE,
    )
    if swept:
        resolved = replace(
            resolved,
            description=replace(resolved.description, alpha=None, beta=None),
            assumed=tuple(k for k in resolved.assumed if k not in ("alpha", "beta")),
        )
    found = resolved.description
    if found.family == FACTORY and found.num_classes is None:  # the network alone knows
        found = model.build(input_size=found.input_size).description
        found = replace(resolved.description, num_classes=found.num_classes)
        resolved = replace(resolved, description=found)
    return ResolvedRun(
        replace(
            model,
            family=found.family,  # type: ignore[arg-type]  # timm's name for other networks
            name=found.model,
            num_classes=found.num_classes,
            output_stride=found.output_stride,
            alpha=found.alpha,
            beta=found.beta,
            factory_sha256=source_digest(model.factory) if model.factory else None,
        ),
        replace(
            data,
            input_size=found.input_size,
            preprocess=found.preprocessing,
            preprocessing=preprocessing_of(found.preprocessing, found.family, found.model),
        ),
        found.class_names if data.classes is None else read_class_names(data.classes),
        settings_line(resolved, model.pretrained),
        _pixel_warning(resolved, model.pretrained),
        resolved.known(),
    )


def preprocessing_of(preprocess: str | None, family: str, name: str | None) -> Preprocessing:
    """Return what a setting of `DataConfig.preprocess` means for a model.

    "model" is timm's configuration of it, and ImageNet's mean and std for a user's own network.
    """
    preprocess = preprocess or ("study" if family in FAMILIES else "model")
    if preprocess == "study":
        return STUDY
    known = {} if family == FACTORY else timm_configuration(name or DEFAULT_MODELS[family])
    # timm's defaults fill what the configuration does not say.
    found = resolve_data_config(pretrained_cfg=known or {"url": ""})
    return Preprocessing(found["interpolation"], tuple(found["mean"]), tuple(found["std"]))


def _pixel_warning(resolved: Resolved, pretrained: bool) -> str:
    """Say so if weights of other programs see other values than they were trained on."""
    found, read = resolved.description, resolved.checkpoint
    foreign = pretrained or (found.family not in FAMILIES and read and read.description is None)
    if found.preprocessing != "study" or not foreign:
        return ""
    usual = preprocessing_of("model", found.family, found.model)
    if (usual.mean, usual.std) == (STUDY.mean, STUDY.std):
        return ""
    return (
        f"`preprocess` study gives {found.model} values of mean and std 0.5; it was probably"
        f" trained with mean {_listed(usual.mean)} and std {_listed(usual.std)}, which"
        " `preprocess` model takes"
    )


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:g}" for v in values)


_SHORT = {"input_size": "input", "output_stride": "stride", "alpha": "alpha", "beta": "beta"}


def settings_line(resolved: Resolved, pretrained: bool = False) -> str:
    """Return the line that a command begins with: the model, and where its settings are from."""
    found, checkpoint = resolved.description, resolved.checkpoint
    parts = [f"{found.family} {found.model}"]
    if found.num_classes is not None:
        parts.append(f"{found.num_classes} class{'' if found.num_classes == 1 else 'es'}")
    values = {
        k: f"{short} {v}" if isinstance(v, str) else f"{short} {v:g}"
        for k, short in _SHORT.items()
        if (v := getattr(found, k)) is not None
    }
    parts += [
        text + (f" (recorded: {resolved.replaced[k]:g})" if k in resolved.replaced else "")
        for k, text in values.items()
    ]
    if found.preprocessing == "model" or "preprocessing" in resolved.replaced:
        was = resolved.replaced.get("preprocessing")
        parts.append(f"preprocess {found.preprocessing}" + (f" (recorded: {was})" if was else ""))
    if checkpoint is None:
        weights = "timm's weights" if pretrained else "random weights"
        if not pretrained and found.family not in (*FAMILIES, FACTORY):
            weights += ", not timm's pretrained ones"
        return f"Model        : {', '.join([*parts, weights])}"
    parts.append(f"weights {checkpoint.path}")
    parts += [checkpoint.taken] if checkpoint.taken else []
    values |= {"family": found.family, "model": found.model}
    assumed = [values[k] for k in ("family", "model", *_SHORT) if k in resolved.assumed]
    if assumed:
        source = f" ({', '.join(assumed)}: assumed, the checkpoint does not say)"
    else:
        source = " (recorded in the checkpoint)" if checkpoint.description else ""
    return f"Model        : {', '.join(parts)}{source}"
