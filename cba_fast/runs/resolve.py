"""Complete a run's settings by what its checkpoint says, and tell in one line what came of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..choices import INPUT_SIZE
from ..data import ImageRecord, ImageSet, model_labels, read_class_names
from ..models import Checkpoint, ModelDescription, read_checkpoint
from ..models.resolve import Resolved, resolve_description
from ..short import Short
from .settings import DataConfig, ModelConfig


@dataclass(frozen=True, repr=False)
class ResolvedRun(Short):
    """Settings without gaps.

    Attributes:
        model, data: the settings; `data.input_size` is a number.
        class_names: of the checkpoint's classes, in the order of their labels, if it records them.
        line: what to tell at the start of a run: each setting, and what was assumed.
        known: what another file with these weights can record: nothing that was assumed.
    """

    model: ModelConfig
    data: DataConfig
    class_names: tuple[str, ...] | None
    line: str
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
        names = read_class_names(self.data.classes) if self.data.classes else self.class_names
        found = model_labels(images, self.model.num_classes or 1000, names, true_labels)
        return [replace(r, label=found.get(r.image_id)) for r in records]


def resolve(model: ModelConfig, data: DataConfig, *, swept: bool = False) -> ResolvedRun:
    """Fill what is None in the settings: from the checkpoint, else with the study's defaults.

    Settings that are complete already stay as they are.

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
        num_classes=model.num_classes,
        output_stride=model.output_stride,
        input_size=data.input_size,
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
    return ResolvedRun(
        replace(
            model,
            family=found.family,
            name=found.model,
            num_classes=found.num_classes,
            output_stride=found.output_stride,
            alpha=found.alpha,
            beta=found.beta,
        ),
        replace(data, input_size=found.input_size),
        found.class_names,
        settings_line(resolved, checkpoint),
        resolved.known(),
    )


_SHORT = {"input_size": "input", "output_stride": "stride", "alpha": "alpha", "beta": "beta"}


def settings_line(resolved: Resolved, checkpoint: Checkpoint | None) -> str:
    """Return the line that a command begins with: the model, and where its settings are from."""
    found = resolved.description
    parts = [f"{found.family} {found.model}"]
    if found.num_classes is not None:
        parts.append(f"{found.num_classes} class{'' if found.num_classes == 1 else 'es'}")
    values = {
        k: f"{short} {v:g}" for k, short in _SHORT.items() if (v := getattr(found, k)) is not None
    }
    parts += [
        text + (f" (recorded: {resolved.replaced[k]:g})" if k in resolved.replaced else "")
        for k, text in values.items()
    ]
    if checkpoint is None:
        return f"Model        : {', '.join([*parts, 'random weights'])}"
    parts.append(f"weights {checkpoint.path}")
    parts += [checkpoint.taken] if checkpoint.taken else []
    values |= {"family": found.family, "model": found.model}
    assumed = [values[k] for k in ("family", "model", *_SHORT) if k in resolved.assumed]
    if assumed:
        source = f" ({', '.join(assumed)}: assumed, the checkpoint does not say)"
    else:
        source = " (recorded in the checkpoint)" if checkpoint.description else ""
    return f"Model        : {', '.join(parts)}{source}"
