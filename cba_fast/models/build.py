"""Build a model of one of the study's families, with or without a checkpoint."""

import os

import timm
import torch
from timm.models import is_model_in_modules
from torch import nn

from ..errors import CheckpointError, InputError
from .checkpoints import Layout, detect_layout, load_state_dict_file, load_strict, mismatches
from .convnext_study import ConvNeXtStudy

FAMILIES = ("convnext", "replknet", "slak", "slak_flex")

# The model of each family in the study.
DEFAULT_MODELS = {
    "convnext": "convnext_base.fb_in22k_ft_in1k_384",
    "replknet": "replknet_31b",
    "slak": "slak_base",
    "slak_flex": "slak_flex_base",
}


def build_model(
    family: str,
    *,
    model: str | None = None,
    checkpoint: str | os.PathLike | None = None,
    num_classes: int | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    output_stride: int = 32,
    **model_kwargs,
) -> nn.Module:
    """Build a classifier in evaluation mode, on the CPU in the default dtype.

    The checkpoint's keys choose the variant: RepLKNet and slak_flex with merged branches, SLaK with
    or without strips, norms and width factor 1.3, ConvNeXt in the study's layout or in timm's names
    (then timm's own model, with its norm before the classifier). Every key must be there and fit.

    Args:
        family: one of `FAMILIES`.
        model: a model name of that family, as in ``timm.create_model``; None for the study's
            (`DEFAULT_MODELS`). For convnext any ConvNeXt of timm's.
        checkpoint: a file, see `load_state_dict_file`; None for random weights.
        num_classes: None for the checkpoint's, or 1000 without one.
        alpha, beta: the mixture of slak_flex, finite; None for 1 and 0, SLaK's cross.
        output_stride: 32, or 16 for small inputs: the last stage then keeps the resolution.
            Checkpoints do not record it.
        **model_kwargs: options of the model's constructor, such as ``drop_path_rate``.

    Returns:
        A module with ``forward`` (logits), ``forward_features``, ``forward_head``,
        ``get_classifier``, and the attributes ``family`` and ``study_softmax``.

    Raises:
        InputError: unknown family or model, a model of another family, alpha or beta where they
            have no meaning, `num_classes` below 1 or other than the checkpoint's.
        CheckpointError: see `load_state_dict_file`; a file of another family, or with missing,
            unexpected or mis-shaped keys.
    """
    name = _checked_name(family, model)
    if num_classes is not None and num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")
    mixing = {k: v for k, v in (("alpha", alpha), ("beta", beta)) if v is not None}
    if mixing and family != "slak_flex":
        raise InputError(f"{' and '.join(mixing)} belong to slak_flex, not to {family}")
    if output_stride not in (16, 32):
        raise InputError(f"output_stride must be 16 or 32, got {output_stride}")
    options = {"output_stride": output_stride, **mixing, **model_kwargs}
    if checkpoint is None:
        return _create(family, name, None, num_classes or 1000, options).eval()
    return _load(family, name, checkpoint, num_classes, options, mixed=bool(mixing)).eval()


def _load(
    family: str, name: str, checkpoint, num_classes: int | None, options: dict, mixed: bool
) -> nn.Module:
    """Return the module that the checkpoint's keys ask for, with its weights."""
    state = load_state_dict_file(checkpoint)
    if family == "slak":
        state = _renamed_strips(state)
    layout = _layout_of(state, family, checkpoint)
    if mixed and layout.name == "merged":
        raise InputError(
            f"{checkpoint}: the mixture is merged into the weights; leave alpha and beta out"
        )
    num_classes = _agreed_classes(state, layout, num_classes, checkpoint)
    if family == "slak" and "width_factor" not in options and _is_unwidened(name, state):
        options = {**options, "width_factor": 1.0}
    built = _create(family, name, layout, num_classes, {**layout.options, **options})
    try:
        load_strict(built, state, checkpoint, name)
    except CheckpointError as e:
        fits = _fitting_names(name, layout, num_classes, state, built)
        if fits:
            raise CheckpointError(f"{e}; it fits {' or '.join(fits)}") from None
        raise
    return built


def _checked_name(family: str, model: str | None) -> str:
    if family not in FAMILIES:
        raise InputError(f"unknown model family {family!r}; one of {', '.join(FAMILIES)}")
    name = model or DEFAULT_MODELS[family]
    arch = name.split(".", 1)[0]
    # timm files every model under the last part of the module that registers it, and our modules
    # are called like their families.
    if is_model_in_modules(arch, [family]):
        return name
    other = next((f for f in FAMILIES if is_model_in_modules(arch, [f])), None)
    if other is not None:
        raise InputError(f"model {name!r} belongs to the family {other}, not to {family}")
    known = timm.list_models(module=family)
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    raise InputError(f"unknown model {name!r}; {family} has {shown}")


def _create(
    family: str, name: str, layout: Layout | None, num_classes: int, options: dict
) -> nn.Module:
    """Return the module; on the meta device if weights will be loaded and timm allows it."""
    try:
        if family != "convnext":
            with torch.device("meta" if layout is not None else "cpu"):
                return timm.create_model(name, num_classes=num_classes, **options)
        # timm before 1.0.15 computes drop path rates with tensors, which the meta device refuses.
        if layout is None or layout.name == "study":
            return ConvNeXtStudy(name, num_classes=num_classes, **options)
        built = timm.create_model(name, num_classes=num_classes, **options)
        built.family, built.study_softmax = "convnext", False
        return built
    except (RuntimeError, ValueError) as e:
        raise InputError(f"{name}: {e}") from e


def _layout_of(state, family: str, checkpoint) -> Layout:
    layout = detect_layout(state)
    if layout is None:
        keys = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"{checkpoint}: not a checkpoint of {family}, nor of another known family "
            f"(keys: {keys}, ... {len(state)} in all)"
        )
    if layout.family != family:
        raise CheckpointError(
            f"{checkpoint}: looks like a {layout.family} checkpoint ({layout.name} layout), "
            f"not {family}"
        )
    return layout


def _agreed_classes(state, layout: Layout, num_classes: int | None, checkpoint) -> int:
    """Return the number of classes in the file, which must be the one asked for, if any."""
    weight = state.get(layout.classifier)
    if weight is None or weight.ndim != 2:
        return num_classes or 1000  # load_strict reports the key
    if num_classes is not None and num_classes != len(weight):
        raise InputError(
            f"{checkpoint} has {len(weight)} classes ({layout.classifier}), but num_classes is "
            f"{num_classes}"
        )
    return len(weight)


def _renamed_strips(state):
    """Call SLaK's strips LoRA1 and LoRA2; an earlier version of the official code says Decom."""
    old = ".large_kernel.Decom"
    return {k.replace(old, ".large_kernel.LoRA"): v for k, v in state.items()}


def _is_unwidened(name: str, state) -> bool:
    """Whether the file's SLaK has the widths of `name` without the released width factor of 1.3."""
    with torch.device("meta"):
        plain = timm.create_model(name, width_factor=1.0).state_dict()
    keys = [k for k in plain if k.startswith("downsample_layers.") and k.endswith(".weight")]
    return all(k in state and state[k].shape == plain[k].shape for k in keys)


def _fitting_names(name, layout: Layout, num_classes: int, state, built) -> list[str]:
    """Return the other models of the family that the file would load into."""
    own = built.state_dict()
    wrong = sum(k not in own or own[k].shape != v.shape for k, v in state.items())
    # A file of another size differs in most keys; and timm has too many ConvNeXts to try them all.
    if 4 * wrong < len(state) or layout.family == "convnext":
        return []
    with torch.device("meta"):
        return [
            other
            for other in timm.list_models(module=layout.family)
            if other != name
            and not mismatches(
                timm.create_model(other, num_classes=num_classes, **layout.options), state
            )
        ]
