"""Build the model that a training run starts from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..errors import CbaError, CheckpointError, InputError
from ..models import detect_layout, read_checkpoint
from ..runs.settings import ModelConfig
from .config import TrainConfig, drop_path_rate

# The name of the initial layer scale in the constructor of each family.
LAYER_SCALE = {
    "convnext": "ls_init_value",
    "slak": "layer_scale_init_value",
    "slak_flex": "layer_scale_init_value",
}


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
    options = {"drop_path_rate": drop_path_rate(model_config, config)}
    if config.ls_init is not None:
        options[LAYER_SCALE[model_config.family]] = config.ls_init
    if continued is not None:
        model = model_config.build(checkpoint=continued, num_classes=None, **options)
    elif config.init_weights is not None:
        model = _from_checkpoint(model_config, config, num_classes, class_names, options, log)
    elif config.pretrained:
        model = _pretrained(model_config, num_classes, options)
    else:
        model = model_config.build(num_classes=num_classes, **options)
    if config.study_softmax and not model.study_softmax:
        raise InputError(
            f"`study_softmax`: the layout of {config.init_weights} has no softmax in the study"
        )
    model.description = replace(
        model.description,
        num_classes=num_classes,
        class_names=class_names,
        input_size=config.input_size,
    )
    return model


def _pretrained(model_config: ModelConfig, num_classes: int, options: dict) -> nn.Module:
    try:
        return model_config.build(num_classes=num_classes, pretrained=True, **options)
    except CbaError:
        raise
    except Exception as e:  # the hub's client raises many types: OSError, HTTP and proxy errors
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise InputError(
            f"the pretrained weights of {model_config.name or model_config.family} cannot be "
            f"loaded ({reason}); `init_weights` takes a file instead"
        ) from e


def _from_checkpoint(model_config, config, num_classes, class_names, options, log) -> nn.Module:
    path = config.init_weights
    checkpoint = read_checkpoint(path)
    if (layout := detect_layout(checkpoint.state)) is not None and layout.name == "merged":
        raise CheckpointError(f"{path}: its branches are merged for inference; train the original")
    model = model_config.build(checkpoint=path, num_classes=None, **options)
    recorded = checkpoint.description
    source = f"weights from {path}" + (f" ({checkpoint.taken})" if checkpoint.taken else "")
    for name in ("output_stride", "alpha", "beta") if recorded else ():
        was, now = getattr(recorded, name), getattr(model.description, name)
        source += f", {name} {now:g} instead of {was:g}" if was not in (None, now) else ""
    head = model.get_classifier()
    others = recorded and class_names and recorded.class_names not in (None, class_names)
    if head.out_features == num_classes and not others:
        log(f"{source}, all keys")
        return model
    prefix = next(name for name, module in model.named_modules() if module is head)
    replaced = [f"{prefix}.{name}" for name, _ in head.named_parameters()]
    log(
        f"{source}, except the head of {head.out_features}{' other' if others else ''} classes, "
        f"replaced by a random one of {num_classes}: {', '.join(replaced)}"
    )
    model.reset_classifier(num_classes)
    return model
