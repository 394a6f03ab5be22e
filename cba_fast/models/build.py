"""Build a model of one of the study's families, with or without a checkpoint."""

import os
import re

import timm
import torch
from torch import nn

from ..errors import CheckpointError, InputError
from .checkpoints import Checkpoint, load_strict, mismatches, read_checkpoint
from .convnext_study import ConvNeXtStudy
from .layouts import Layout
from .resolve import Resolved, resolve_description

_TIMM = tuple(int(n) for n in re.findall(r"\d+", timm.__version__)[:3])


def build_model(
    family: str | None = None,
    *,
    model: str | None = None,
    checkpoint: str | os.PathLike | None = None,
    num_classes: int | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    output_stride: int | None = None,
    **model_kwargs,
) -> nn.Module:
    """Build a classifier in evaluation mode, on the CPU in the default dtype.

    Settings that a checkpoint of ``train-wsol`` records need not be given.

    The checkpoint's keys choose the variant: RepLKNet and slak_flex with merged branches, SLaK with
    or without strips, norms and width factor 1.3, ConvNeXt in the study's layout or in timm's names
    (then timm's own model, with its norm before the classifier). Every key must be there and fit.

    Args:
        family: one of `FAMILIES`; None for the checkpoint's.
        model: a model name of that family, as in ``timm.create_model``; None for the one that the
            checkpoint records, or the study's (`DEFAULT_MODELS`). For convnext any ConvNeXt of
            timm's.
        checkpoint: a file, see `read_checkpoint`; None for random weights.
        num_classes: None for the checkpoint's, or 1000 without one.
        alpha, beta: the mixture of slak_flex, finite; None for the recorded one, or for 1 and 0,
            SLaK's cross.
        output_stride: 32, or 16 for small inputs: the last stage then keeps the resolution; None
            for the recorded one, or 32.
        **model_kwargs: options of the model's constructor, such as ``drop_path_rate``.

    Returns:
        A module with ``forward`` (logits), ``forward_features``, ``forward_head``,
        ``get_classifier``, and the attributes ``family``, ``study_softmax`` and ``description`` (a
        `ModelDescription`).

    Raises:
        InputError: unknown family or model, a model of another family, alpha or beta where they
            have no meaning, `num_classes` below 1 or other than the checkpoint's.
        CheckpointError: see `read_checkpoint`; a file of another family or model, or with missing,
            unexpected or mis-shaped keys.
    """
    read = None if checkpoint is None else read_checkpoint(checkpoint)
    resolved = resolve_description(
        read,
        family=family,
        model=model,
        num_classes=num_classes,
        output_stride=output_stride,
        alpha=alpha,
        beta=beta,
    )
    found = resolved.description
    options = {"output_stride": found.output_stride}
    options |= {k: v for k in ("alpha", "beta") if (v := getattr(found, k)) is not None}
    options |= model_kwargs
    if read is None:
        built = _create(found.family, found.model, None, found.num_classes or 1000, options)
    else:
        built = _load(read, resolved, options)
    built.description = found
    return built.eval()


def _load(read: Checkpoint, resolved: Resolved, options: dict) -> nn.Module:
    """Return the module that the checkpoint's keys ask for, with its weights."""
    state, layout = read.state, resolved.layout
    family, name = resolved.description.family, resolved.description.model
    num_classes = resolved.description.num_classes or 1000
    if family == "slak" and "width_factor" not in options and _is_unwidened(name, state):
        options = {**options, "width_factor": 1.0}
    built = _create(family, name, layout, num_classes, {**layout.options, **options})
    if family == "convnext":
        state = _as_convolutions(state, built)
    try:
        load_strict(built, state, read.path, name)
    except CheckpointError as e:
        fits = _fitting_names(name, layout, num_classes, state, built)
        if fits:
            raise CheckpointError(f"{e}; it fits {' or '.join(fits)}") from None
        raise
    return built


def _create(
    family: str, name: str, layout: Layout | None, num_classes: int, options: dict
) -> nn.Module:
    """Return the module; on the meta device if weights will be loaded and timm allows it."""
    # timm before 1.0.15 computes drop path rates with tensors, which the meta device refuses.
    on_meta = layout is not None and (family != "convnext" or _TIMM >= (1, 0, 15))
    try:
        with torch.device("meta" if on_meta else "cpu"):
            if family == "convnext" and (layout is None or layout.name == "study"):
                return ConvNeXtStudy(name, num_classes=num_classes, **options)
            built = timm.create_model(name, num_classes=num_classes, **options)
        if family != "convnext":
            return built
        built.family, built.study_softmax = "convnext", False
        return built
    except (RuntimeError, ValueError) as e:
        raise InputError(f"{name}: {e}") from e


def _as_convolutions(state, built: nn.Module):
    """Reshape the weights of linear layers where timm's small ConvNeXts have 1x1 convolutions."""
    own = built.state_dict()
    return {
        k: v.reshape(own[k].shape)
        if k in own and v.ndim == 2 and own[k].shape == (*v.shape, 1, 1)
        else v
        for k, v in state.items()
    }


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
