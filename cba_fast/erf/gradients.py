"""Gradients of a model's score with respect to its input, with frozen weights."""

import contextlib
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor, nn

from ..choices import Score
from ..models.features import FeatureLayout, layout_of
from ..nn import frozen
from .lean import lean_convolutions
from .recompute import recomputing

SCORES = get_args(Score)


def gradient_of(
    model: nn.Module, x: Tensor, total: Callable[[Tensor], Tensor], *, checkpoint: str = "none"
) -> Tensor:
    """Return the gradient of the scalar ``total(x)``, which runs `model`, with respect to `x`.

    `x` is left as it is. The caller may be under ``torch.no_grad`` or ``torch.inference_mode``, but
    the model's own tensors must not be inference tensors.

    Args:
        model: the module that `total` runs. Meanwhile it is `frozen`, and its convolutions keep no
            inputs (see :func:`~cba_fast.erf.lean.lean_convolutions`).
        x: (N,C,H,W), floating, on the model's device.
        total: function from a tensor like `x` to a scalar.
        checkpoint: ``block`` or ``stage`` to recompute the activations of each block or stage in
            the backward pass (see :func:`~cba_fast.erf.recompute.recomputing`), or ``none``.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"images must be a floating (N,C,H,W) tensor, got {_describe(x)}")
    with contextlib.ExitStack() as stack:
        # The model is frozen first, because only frozen convolutions become lean.
        stack.enter_context(frozen(model))
        stack.enter_context(lean_convolutions(model))
        stack.enter_context(recomputing(model, checkpoint))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        x = x.clone() if x.is_inference() else x.detach()
        x.requires_grad_(True)
        (grad,) = torch.autograd.grad(total(x), x)
    return grad


def top1_score(logits: Tensor, score: str = "prob", *, study_softmax: bool = False) -> Tensor:
    """Return each image's score at its top-1 class, in float32 (float64 logits: float64).

    With z the logits and s the softmax over the classes, the score is the maximum over the classes
    of s(z) (``prob``), s(s(z)) (``prob`` with `study_softmax`), z (``logit``) or log s(z)
    (``logprob``). The first of equal values is taken; for ``prob`` the values after the last
    softmax are compared, as in the study.

    Args:
        logits: (N,K).
        score: one of `SCORES`.
        study_softmax: apply the softmax twice (``prob`` only): the heads of the study's ConvNeXt
            and slak_flex end in a softmax of their own.

    Returns:
        (N,) scores, differentiable.

    Raises:
        ValueError: `score` is unknown or `logits` is not (N,K) with K >= 1.
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {SCORES}, got {score!r}")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"the model must return (N,K) logits, got {_describe(logits)}")
    # In half precision, softmax outputs would be equal and small gradients become zero.
    values = logits if logits.dtype == torch.float64 else logits.float()
    if score == "prob":
        values = values.softmax(1)
        if study_softmax:
            values = values.softmax(1)
    elif score == "logprob":
        values = values.log_softmax(1)
    return values.gather(1, values.argmax(1, keepdim=True)).squeeze(1)


def input_gradient(
    model: nn.Module,
    x: Tensor,
    *,
    score: str = "prob",
    study_softmax: bool | None = None,
    checkpoint: str = "none",
) -> Tensor:
    """Return the gradient of each image's top-1 score with respect to its pixels.

    grad[n] = d top1_score(model(x))[n] / d x[n]. One backward pass computes it for the whole batch,
    as the gradient of the summed scores, because images do not interact in eval mode. The model
    runs in eval mode with frozen weights; its mode, its ``requires_grad`` flags and its ``.grad``
    are as before at the end.

    Args:
        model: a classifier from images to logits (N,K), on the device of `x`.
        x: images (N,3,H,W), floating, preprocessed.
        score: ``prob`` (the study), ``logit`` or ``logprob``; see :func:`top1_score`.
        study_softmax: apply the softmax of ``prob`` twice. None to follow the model's attribute
            ``study_softmax`` (False where it has none).
        checkpoint: ``none``, ``block`` or ``stage``; see :func:`gradient_of`.

    Returns:
        (N,3,H,W), dtype of `x`.

    Raises:
        ValueError: `x` is not a floating (N,C,H,W) tensor, the model's output is not (N,K),
            `score` or `checkpoint` is unknown, or the model has no blocks to recompute.

    Notes:
        A softmax that saturates at 1 in float32 has a zero gradient; ``logit`` does not saturate.
        Batches of different sizes agree within rounding only, because convolutions may be computed
        by different algorithms.
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {SCORES}, got {score!r}")
    if study_softmax is None:
        study_softmax = bool(getattr(model, "study_softmax", False))

    def total(images: Tensor) -> Tensor:
        return top1_score(model(images), score, study_softmax=study_softmax).sum()

    return gradient_of(model, x, total, checkpoint=checkpoint)


def center_gradient(
    model: nn.Module,
    x: Tensor,
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    layout: str | FeatureLayout | None = None,
    checkpoint: str = "none",
) -> Tensor:
    """Return the gradient of the central features with respect to each image's pixels.

    grad[n] = d (sum over c of relu(F[n, c, h//2, w//2])) / d x[n], where F = features(x), brought
    to (N,C,h,w). Features may also be (N,h,w,C), as Swin's, or tokens, as ViT's, whose prefix
    tokens such as the class token are left out.

    Args:
        model: the module that `features` runs.
        x: images (N,3,H,W), floating, preprocessed.
        features: function from images to the unpooled feature map before the final norm; None for
            ``model.forward_features``.
        layout: ``NCHW``, ``NHWC`` or ``NLC`` (tokens), how the features hold the map; None to let
            :func:`cba_fast.models.features.layout_of` find out.
        checkpoint: ``none``, ``block`` or ``stage``; see :func:`gradient_of`.

    Returns:
        (N,3,H,W), dtype of `x`.

    Raises:
        ValueError: `x` is not a floating (N,C,H,W) tensor, the features are no map, their layout
            cannot be known, `checkpoint` is unknown, or the model has no blocks to recompute.

    Source: X. Ding et al., "Scaling Up Your Kernels to 31x31" (2022), the ERF script of its code.
    """
    run = features or model.forward_features
    what = {"model": model, "last": features is None, "layout": layout}

    def total(images: Tensor) -> Tensor:
        found = run(images)
        f = layout_of(found, images.shape[2:], where="the network", **what).to_nchw(found)
        return f[:, :, f.shape[2] // 2, f.shape[3] // 2].relu().sum()

    return gradient_of(model, x, total, checkpoint=checkpoint)


def finite_images(grad: Tensor) -> Tensor:
    """Return for each image whether its gradient (N,C,H,W) is finite throughout: (N,) bool."""
    return grad.isfinite().flatten(1).all(1)


def images_of(grad: Tensor, chosen: list[int]) -> Tensor:
    """Return the gradients of the chosen images, without a copy if all are chosen."""
    return grad if len(chosen) == len(grad) else grad[chosen]


def _describe(x: object) -> str:
    if isinstance(x, Tensor):
        return f"{tuple(x.shape)} {x.dtype}"
    return type(x).__name__
