"""Build the model that a training run starts from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..choices import INPUT_SIZE
from ..errors import CheckpointError, InputError
from ..models import FAMILIES, detect_layout, read_checkpoint
from ..models.factory import source_digest
from ..models.resolve import resolve_description
from ..models.timm_networks import load_fitting
from ..runs.resolve import preprocessing_of
from ..runs.settings import ModelConfig
from .config import LAYER_SCALE, TrainConfig, drop_path_rate


def completed(model_config: ModelConfig, config: TrainConfig) -> tuple[ModelConfig, TrainConfig]:
    """Return the settings with family, input size and preprocessing, which files are named after.

    Settings that are complete already stay as they are. The family and the name may be those of
    `init_weights`.

    Raises:
        InputError, CheckpointError: as `cba_fast.models.build_model`.
    """
    family: str | None = model_config.family
    name, factory = model_config.name, model_config.factory
    if family is None and name is None and factory is None:
        if config.init_weights is None:
            raise InputError(
                "give `model_family`, `model` or `model_factory`, or `init_weights` to go on from"
            )
        read = read_checkpoint(config.init_weights, mapped=True)
        found = resolve_description(read).description
        family, name = found.family, None if found.family in FAMILIES else found.model
    found = resolve_description(
        None,
        family=family,
        model=name,
        factory=factory,
        input_size=config.input_size,
        preprocess=config.preprocess,
        default_input_size=INPUT_SIZE,
    ).description
    preprocess = found.preprocessing
    if isinstance(found.input_size, str):
        raise InputError(f"{found.model} takes images of {found.input_size}: give `input_size`")
    return (
        replace(
            model_config,
            family=found.family,  # type: ignore[arg-type]  # timm's name for other networks
            name=name if found.family in FAMILIES else found.model,
            factory_sha256=source_digest(factory) if factory else None,
        ),
        replace(
            config,
            input_size=found.input_size,
            preprocess=preprocess,
            preprocessing=preprocessing_of(preprocess, found.family, found.model),
        ),
    )


def initial_model(
    model_config: ModelConfig,
    config: TrainConfig,
    num_classes: int,
    log: Callable[[str], None] = print,
    *,
    continued: Path | None = None,
    class_names: tuple[str, ...] | None = None,
) -> nn.Module:
    """Build the model of a run in its training form, on the CPU.

    Random weights follow from ``config.seed``, to which PyTorch's global generator is set. The
    model's `description` is what is to be recorded with its weights.

    Args:
        model_config, config: settings.
        num_classes: number of rows of the classifier.
        log: gets a line on the keys that ``init_weights`` gave and did not give.
        continued: file with the last state of the run, if it is continued. It gives weights and
            variant, and the first weights need not exist any more.
        class_names: names of the rows. If ``init_weights`` records other names, its classifier is
            replaced by a random one.

    Raises:
        InputError: the model has no such setting, or pretrained weights cannot be loaded.
        CheckpointError: ``init_weights`` cannot be loaded, or holds merged branches.
    """
    torch.manual_seed(config.seed)
    options: dict[str, Any] = {"input_size": config.input_size}
    if model_config.family in FAMILIES or config.drop_path is not None:
        options["drop_path_rate"] = drop_path_rate(model_config, config)
    if config.ls_init is not None:
        options[LAYER_SCALE[model_config.family or ""]] = config.ls_init
    if continued is not None:
        model = model_config.build(checkpoint=continued, num_classes=None, **options)
    elif config.init_weights is not None:
        model = _from_checkpoint(model_config, config, num_classes, class_names, options, log)
    else:
        if model_config.pretrained:
            options["pretrained"] = "features"
        model = model_config.build(num_classes=num_classes, **options)
    if config.study_softmax and not getattr(model, "study_softmax", False):
        raise InputError(
            f"`study_softmax`: the layout of {config.init_weights} has no softmax in the study"
        )
    model.description = replace(
        model.description,
        num_classes=num_classes,
        class_names=class_names,
        input_size=config.input_size,
        preprocessing=config.preprocess or "study",
    )
    return model


def _from_checkpoint(model_config, config, num_classes, class_names, options, log) -> nn.Module:
    path = config.init_weights
    checkpoint = read_checkpoint(path)
    layout = detect_layout(checkpoint.state) if model_config.family in FAMILIES else None
    if layout is not None and layout.name == "merged":
        raise CheckpointError(f"{path}: its branches are merged for inference; train the original")
    source = f"weights from {path}" + (f" ({checkpoint.taken})" if checkpoint.taken else "")
    if factory := model_config.factory:
        model = model_config.build(num_classes=num_classes, **options)
        _, kept = load_fitting(model, checkpoint, f"the network of {factory}", num_classes)
        log(f"{source}, all keys" + (f" but {', '.join(kept)}, which are random" if kept else ""))
        return model
    model = model_config.build(checkpoint=path, num_classes=None, **options)
    recorded, count = checkpoint.description, model.description.num_classes
    for name in ("output_stride", "alpha", "beta") if recorded else ():
        was, now = getattr(recorded, name), getattr(model.description, name)
        source += f", {name} {now:g} instead of {was:g}" if was not in (None, now) else ""
    others = recorded and class_names and recorded.class_names not in (None, class_names)
    if count == num_classes and not others:
        log(f"{source}, all keys")
        return model
    heads = model.get_classifier()  # distilled networks have two
    heads = list(heads) if isinstance(heads, tuple | list | nn.ModuleList) else [heads]
    replaced = [
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if any(module is head for head in heads)
        for name, _ in module.named_parameters()
    ]
    log(
        f"{source}, except the head of {count}{' other' if others else ''} classes, "
        f"replaced by a random one of {num_classes}: {', '.join(replaced)}"
    )
    model.reset_classifier(num_classes)
    return model
