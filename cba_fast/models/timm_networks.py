"""Networks by timm's names: which there are, what timm says about them, their weights."""

import difflib
import sys
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..errors import InputError, first_line
from ..shapes import Size, map_shape
from .checkpoints import Checkpoint, load_strict, mismatches

# The functions of timm's modules that bring published checkpoints to timm's keys.
_FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")


def timm_family(name: str) -> str:
    """Return the last part of the name of timm's module that has a model, such as "resnet".

    Raises:
        InputError: timm has no model of that name; the message has those of similar names.
    """
    arch = name.split(".", 1)[0]
    if not timm.is_model(arch):
        close = difflib.get_close_matches(arch, timm.list_models(), 3, 0.7)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise InputError(f"unknown model {name!r}; {hint}")
    return timm.models.model_entrypoint(arch).__module__.rpartition(".")[2]


def timm_configuration(name: str) -> dict:
    """Return timm's configuration of a model and its pretrained weights.

    Raises:
        InputError: timm has no weights of that tag.
    """
    arch = name.split(".", 1)[0]
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError as e:
        tags = timm.list_models(f"{arch}.*", pretrained=True)
        close = difflib.get_close_matches(name, tags, 3) or tags[:3] or ["no weights"]
        raise InputError(f"unknown weights {name!r}; timm has {', '.join(close)}") from e
    return {} if found is None else {**found.to_dict(), "has_weights": found.has_weights}


def pretrained_name(name: str) -> str:
    """Return the name with the tag of the weights that timm takes for it.

    Raises:
        InputError: timm has no weights of that model.
    """
    found = timm_configuration(name)
    if not found.get("has_weights"):
        raise InputError(f"timm has no pretrained weights of {name}; give a file as `weights`")
    return f"{found['architecture']}.{found['tag']}" if found["tag"] else found["architecture"]


def create_network(
    name: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    output_stride: int | None = None,
    input_size: Size = None,
    **options: Any,
) -> nn.Module:
    """Build timm's model.

    Args:
        name: timm's name.
        num_classes: rows of the classifier; other than those of the pretrained weights: a new one.
        pretrained: download timm's weights; otherwise they are random.
        output_stride: 16 asks timm for it; 32 and None leave what the model has.
        input_size: size of the images, a side or (H, W), for networks that take one size alone.
        options: arguments of the model's constructor.

    Raises:
        InputError: the model does not take the settings, or there are no weights.
    """
    if output_stride == 16:
        options["output_stride"] = 16
    known = timm_configuration(name)
    shape = input_size and map_shape(input_size, name="input_size")
    if shape and known.get("fixed_input_size") and shape != tuple(known["input_size"][1:]):
        options["img_size"] = shape[0] if shape[0] == shape[1] else shape

    def build() -> nn.Module:
        return timm.create_model(name, pretrained, num_classes=num_classes, **options)

    unfit = (TypeError, AssertionError, NotImplementedError)
    try:
        return download(name, build, but=unfit) if pretrained else build()
    except (*unfit, RuntimeError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        given = ", ".join(f"{k} {v}" for k, v in options.items())
        what = f"{name} does not take {given}" if given else name
        raise InputError(f"{what}: {first_line(e)}") from e


def download(name: str, build: Callable, but: tuple[type[Exception], ...] = ()) -> nn.Module:
    """Return ``build()``, which downloads weights; turn what that raises into one sentence.

    Errors of the types in `but` stay what they are.

    Raises:
        InputError: the weights cannot be had; the message says from where.
    """
    passed: tuple[type[Exception], ...] = (InputError, *but)
    try:
        return build()
    except passed:
        raise
    except Exception as e:  # the hub's client raises many types: OSError, HTTP and proxy errors
        known = timm_configuration(name)
        hub, url = known.get("hf_hub_id"), known.get("url")
        source = f"{hub} of the Hugging Face hub" if hub else url
        raise InputError(
            f"the pretrained weights of {name} cannot be loaded from {source}"
            f" ({first_line(e).partition('. ')[0]}); give a file of them as `weights` (train-wsol:"
            " `init_weights`)"
        ) from e


def with_classifier(checkpoint: Checkpoint, name: str) -> tuple[Checkpoint, int | None]:
    """Return the part of a checkpoint that holds timm's classifier, and its number of classes.

    The number is None if no part has it, as in files with other names than timm's.
    """
    classifier = timm_configuration(name).get("classifier")
    first = classifier[0] if isinstance(classifier, tuple | list) else classifier
    for found in checkpoint.variants():
        weight = found.state.get(f"{first}.weight")
        if weight is not None and weight.ndim in (2, 4):
            return found, len(weight)
    return checkpoint, None


def load_network(model: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Load a checkpoint of timm's keys, or of those that timm itself brings to its keys.

    Raises:
        CheckpointError: keys are missing, unexpected or mis-shaped; the message lists them.
    """
    state = _with_counts(checkpoint.state, model)
    if mismatches(model, state):
        changed = _with_counts(_filtered(state, model), model)
        # The keys of the file are the ones that a message can name.
        state = state if mismatches(model, changed) else changed
    load_strict(model, state, checkpoint.path, name)


def load_fitting(
    model: nn.Module, checkpoint: Checkpoint, name: str, new_classes: int | None = None
) -> tuple[str, list[str]]:
    """Load the first part of a checkpoint that fits a network.

    Args:
        model, checkpoint, name: the network, the file, and the name for messages.
        new_classes: keep the network's own weights of so many rows where the file has another
            number of rows, which is how the heads of other classes look.

    Returns:
        `Checkpoint.taken` of the part, and the keys that were kept.

    Raises:
        CheckpointError: none fits; the message lists what is wrong with the one that is nearest.
    """
    own, parts = model.state_dict(), []
    for part in checkpoint.variants():
        state = _with_counts(part.state, model)
        kept = [
            key
            for key in own.keys() & state.keys()
            if own[key].shape[:1] == (new_classes,)
            if state[key].shape != own[key].shape and state[key].shape[1:] == own[key].shape[1:]
        ]
        parts.append((state | {key: own[key] for key in kept}, sorted(kept), part.taken))
    fitting = next((p for p in parts if not mismatches(model, p[0])), None)
    state, kept, taken = fitting or max(parts, key=lambda p: len(own.keys() & p[0].keys()))
    load_strict(model, state, checkpoint.path, name)
    return taken, kept


def rows_of_head(model: nn.Module, checkpoint: Checkpoint) -> int | None:
    """Return the number of rows of a head if that alone keeps a file from fitting, else None."""
    own = model.state_dict()
    for part in checkpoint.variants():
        state = _with_counts(part.state, model)
        rows = {len(v) for k, v in state.items() if k in own and v.ndim and v.shape != own[k].shape}
        if state.keys() == own.keys() and len(rows) == 1:
            return rows.pop()
    return None


def _with_counts(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Add the number of batches that a batch norm has seen, which old files do not hold."""
    added = {
        key: torch.zeros_like(value, device="cpu")
        for key, value in model.state_dict().items()
        if key.endswith("num_batches_tracked") and key not in state
    }
    return {**state, **added}


def _filtered(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict in timm's keys, if timm knows the file's, else as it is."""
    module = sys.modules[type(model).__module__]
    change = next((f for n in _FILTERS if (f := getattr(module, n, None))), None)
    if change is None:
        return state
    try:
        return dict(change(dict(state), model))
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError):
        return state  # not a file that the function knows
