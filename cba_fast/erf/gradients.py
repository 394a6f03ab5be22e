"""Gradients of a model's score with respect to its input, with frozen weights."""

import contextlib
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..choices import Score
from ..errors import ModelError
from ..models.anatomy.layers import main_tensor
from ..models.anatomy.parts import fitting, logits_of
from ..nn import frozen
from .lean import lean_convolutions
from .point import Point, position
from .recompute import recomputing

SCORES = get_args(Score)


def gradient_of(
    model: nn.Module, x: Tensor, total: Callable[[Tensor], Tensor], *, checkpoint: str = "none"
) -> Tensor:
    """Return the gradient of the scalar ``total(x)``; see :func:`gradients_of`."""
    (grad,) = gradients_of(
        model, x, lambda images: [total(images)], lambda index, grad: grad, checkpoint=checkpoint
    )
    return grad


def gradients_of(
    model: nn.Module,
    x: Tensor,
    totals: Callable[[Tensor], list[Tensor]],
    use: Callable[[int, Tensor], Any],
    *,
    checkpoint: str = "none",
) -> list:
    """Call ``use(index, gradient)`` for the gradient of each scalar of ``totals(x)``, last first.

    `x` is left as it is. The caller may be under ``torch.no_grad`` or ``torch.inference_mode``, but
    the model's own tensors must not be inference tensors.

    Args:
        model: the module that `totals` runs. Meanwhile it is `frozen`, and its convolutions keep no
            inputs (see :func:`~cba_fast.erf.lean.lean_convolutions`).
        x: (N,C,H,W), floating, on the model's device.
        totals: function from a tensor like `x` to scalars, which may share a graph.
        use: gets the index of a scalar and a gradient of the shape and dtype of `x`.
        checkpoint: ``block`` or ``stage`` to recompute the activations of each block or stage in
            the backward pass (see :func:`~cba_fast.erf.recompute.recomputing`), or ``none``.

    Returns:
        What `use` returned, in the order of the scalars.
    """
    check_images(x)
    used = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(fitting(model, x))
        # The model is frozen first, because only frozen convolutions become lean.
        stack.enter_context(frozen(model))
        stack.enter_context(lean_convolutions(model))
        stack.enter_context(recomputing(model, checkpoint))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        x = x.clone() if x.is_inference() else x.detach()
        x.requires_grad_(True)
        left = totals(x)
        while left:
            # What only this scalar needs of the graph is freed with it.
            (grad,) = torch.autograd.grad(left.pop(), x, retain_graph=bool(left))
            used.append(use(len(left), grad))
    return used[::-1]


def check_images(x: object) -> None:
    """Raise ValueError unless `x` is a floating tensor (N,C,H,W)."""
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"images must be a floating (N,C,H,W) tensor, got {_describe(x)}")


def top1_score(logits: object, score: str = "prob", *, study_softmax: bool = False) -> Tensor:
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
    point: Point = None,
    checkpoint: str = "none",
) -> Tensor:
    """Return the gradient of each image's top-1 score with respect to its pixels.

    grad[n] = d top1_score(model(x))[n] / d x[n]. One backward pass computes it for the whole batch,
    as the gradient of the summed scores, because images do not interact in eval mode. The model
    runs in eval mode with frozen weights; its mode, its ``requires_grad`` flags and its ``.grad``
    are as before at the end.

    Args:
        model: a classifier from images to logits (N,K), on the device of `x`, perhaps in a dict or
            tuple; or a network with logits for each position, as for segmentation, whose logits at
            `point` are taken.
        x: images (N,3,H,W), floating, preprocessed.
        score: ``prob`` (the study), ``logit`` or ``logprob``; see :func:`top1_score`.
        study_softmax: apply the softmax of ``prob`` twice. None to follow the model's attribute
            ``study_softmax`` (False where it has none).
        point: position of an output that is a map, see :func:`~cba_fast.erf.point.position`; None
            for its centre.
        checkpoint: ``none``, ``block`` or ``stage``; see :func:`gradients_of`.

    Returns:
        (N,3,H,W), dtype of `x`.

    Raises:
        ValueError: `x` is not a floating (N,C,H,W) tensor, the model's output is not (N,K) and no
            map of logits, `point` is not on it, `score` or `checkpoint` is unknown, or the model
            has no blocks to recompute.

    Notes:
        A softmax that saturates at 1 in float32 has a zero gradient; ``logit`` does not saturate.
        Batches of different sizes agree within rounding only, because convolutions may be computed
        by different algorithms.

    Example:
        >>> import timm, torch
        >>> from cba_fast.erf import input_gradient
        >>> model = timm.create_model("test_resnet", num_classes=10)
        >>> grad = input_gradient(model, torch.randn(2, 3, 64, 64), score="logit")
        >>> grad.shape
        torch.Size([2, 3, 64, 64])
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {SCORES}, got {score!r}")
    if study_softmax is None:
        study_softmax = bool(getattr(model, "study_softmax", False))

    def total(images: Tensor) -> Tensor:
        logits = _logits_at(model, model(images), images, score, point)
        return top1_score(logits, score, study_softmax=study_softmax).sum()

    return gradient_of(model, x, total, checkpoint=checkpoint)


def _logits_at(model, output: object, images: Tensor, score: str, point: Point) -> object:
    """Return logits (N,K) from the model's output, or from one position of a map of logits."""
    if point is None:
        with contextlib.suppress(ModelError):
            return logits_of(model, output)
    output = main_tensor(output)
    if not isinstance(output, Tensor) or output.ndim != 4:
        if point is not None:
            raise ValueError(
                f"`point` is a position of a map, and the model returns {_describe(output)}: name"
                " the `layer` whose map it belongs to"
            )
        return output
    if output.shape[1] in (1, images.shape[1]) and score != "logit":
        raise ValueError(
            f"the model returns {_describe(output)}, which are images rather than class scores, so"
            f' `score` {score!r} means nothing: take `layer` "output"'
        )
    row, column = position(point, output.shape[2:])
    return output[:, :, row, column]


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
