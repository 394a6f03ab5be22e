"""Build a model: one of the study's, any of timm's, or what a user's own function makes."""

import os
import re
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import nn

from ..errors import CheckpointError, InputError
from ..shapes import Size
from .checkpoints import Checkpoint, load_strict, mismatches, read_checkpoint
from .description import FACTORY, ModelDescription
from .factory import count_classes, model_from_factory
from .families.convnext_study import ConvNeXtStudy
from .families.layouts import Layout
from .resolve import FAMILIES, Resolved, resolve_description
from .timm_networks import create_network, download, load_fitting, load_network, rows_of_head

_TIMM = tuple(int(n) for n in re.findall(r"\d+", timm.__version__)[:3])


def build_model(
    family: str | None = None,
    *,
    model: str | None = None,
    factory: str | None = None,
    checkpoint: str | os.PathLike | None = None,
    pretrained: bool | str = False,
    num_classes: int | None = None,
    input_size: Size = None,
    alpha: float | None = None,
    beta: float | None = None,
    output_stride: int | None = None,
    **model_kwargs: Any,
) -> nn.Module:
    """Build a classifier in evaluation mode, on the CPU in the default dtype.

    Settings that a checkpoint of ``train-wsol`` records need not be given.

    The checkpoint's keys choose the variant: RepLKNet and slak_flex with merged branches, SLaK with
    or without strips, norms and width factor 1.3, ConvNeXt in the study's layout or in timm's names
    (then timm's own model, with its norm before the classifier). Every key must be there and fit.

    Args:
        family: one of `FAMILIES`; None for that of `model` or of the checkpoint.
        model: any name that ``timm.create_model`` takes, of that family if one is given; None for
            the one that the checkpoint records, or the study's (`DEFAULT_MODELS`).
        factory: instead of a name: where a function is that makes the network, see `load_factory`.
        checkpoint: a file, see `read_checkpoint`; None for random weights.
        pretrained: True: timm's weights (a download) with their classifier; "features": those of
            all but the classifier, which is random.
        num_classes: None for the checkpoint's or timm's, or 1000.
        input_size: size of the images, a side or (H, W), for networks that are built for one size
            alone, such as ViT; None for the recorded one or timm's.
        alpha, beta: the mixture of slak_flex, finite; None for the recorded one, or for 1 and 0,
            SLaK's cross.
        output_stride: 16 for small inputs, where the last stage then keeps the resolution, or 32;
            None for the recorded one, or for 32 (other families: the model's).
        **model_kwargs: options of the model's constructor, such as ``drop_path_rate``.

    Returns:
        A module with ``forward`` (logits) and the attribute ``description`` (a `ModelDescription`).
        All but a factory's have timm's ``forward_features``, ``forward_head``, ``get_classifier``,
        and the attribute ``family``; those of the study have ``study_softmax``.

    Raises:
        InputError: unknown family or model, a model of another family, alpha or beta where they
            have no meaning, `num_classes` below 1 or other than the checkpoint's, a factory that
            fails, weights that cannot be downloaded.
        CheckpointError: see `read_checkpoint`; a file of another family or model, or with missing,
            unexpected or mis-shaped keys.

    Example:
        >>> import torch
        >>> from cba_fast.models import build_model
        >>> model = build_model("replknet", model="replknet_nano", num_classes=10)
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 10])
        >>> model.family, model.description.model
        ('replknet', 'replknet_nano')
    """
    read = None if checkpoint is None else read_checkpoint(checkpoint)
    resolved = resolve_description(
        read,
        family=family,
        model=model,
        factory=factory,
        pretrained=pretrained,
        num_classes=num_classes,
        output_stride=output_stride,
        input_size=input_size,
        alpha=alpha,
        beta=beta,
    )
    found = resolved.description
    if found.family == FACTORY:
        return _from_factory(found, read)
    options = {k: v for k in ("alpha", "beta") if (v := getattr(found, k)) is not None}
    options |= {"output_stride": found.output_stride, **model_kwargs}
    count = found.num_classes or 1000
    if found.family not in FAMILIES or pretrained is True:
        options |= {"input_size": found.input_size, "pretrained": bool(pretrained)}
        built = create_network(found.model, count, **options)
        if resolved.checkpoint is not None:
            load_network(built, resolved.checkpoint, found.model)
        built.family = found.family
    elif pretrained:
        options["pretrained"] = True
        built = download(
            found.model, lambda: _create(found.family, found.model, None, count, options)
        )
    elif read is None:
        built = _create(found.family, found.model, None, count, options)
    else:
        built = _load(read, resolved, options)
    built.description = found
    return built.eval()


def _from_factory(found: ModelDescription, read: Checkpoint | None) -> nn.Module:
    """Return the network of a user's function, with the weights of the file."""
    built = model_from_factory(found.model, found.num_classes)
    if read is not None:
        if found.num_classes is None and (rows := rows_of_head(built, read)):
            built = model_from_factory(found.model, rows)
        load_fitting(built, read, f"the network of {found.model}")
    count = count_classes(found.model, built, found.input_size)
    if None not in (found.num_classes, count) and found.num_classes != count:
        raise InputError(
            f"the network of {found.model} gives {count} logits, but num_classes is"
            f" {found.num_classes}"
        )
    built.description = replace(found, num_classes=count or found.num_classes)
    return built.eval()


def _load(read: Checkpoint, resolved: Resolved, options: dict) -> nn.Module:
    """Return the module that the checkpoint's keys ask for, with its weights."""
    state, layout = read.state, resolved.layout
    family, name = resolved.description.family, resolved.description.model
    num_classes = resolved.description.num_classes or 1000
    if family == "slak" and "width_factor" not in options and _is_unwidened(name, state):
        options = {**options, "width_factor": 1.0}
    assert layout is not None  # without one no family of the study is found
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
