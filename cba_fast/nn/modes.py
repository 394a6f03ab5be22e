"""Contexts in which a model evaluates, and in which its weights get no gradients."""

import contextlib
from collections.abc import Iterator

from torch import nn

from ..errors import ModelError


def checked_module(model: object) -> nn.Module:
    """Return `model` if it is a network, as functions that take any network begin.

    Raises:
        TypeError: it is no module; a name or a class of networks, for example.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    return model


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode; restore the mode of each module at the end, also on errors.

    In training mode batch norms mix the images of a batch and change their running statistics.

    Example:
        >>> from torch import nn
        >>> from cba_fast.nn import eval_mode
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.Dropout())
        >>> with eval_mode(model):
        ...     print(model.training)
        False
        >>> model.training
        True
    """
    training = [m for m in model.modules() if m.training]
    try:
        try:
            model.eval()
        except NotImplementedError as e:  # what torch.export gives has the mode that it was made in
            raise ModelError(
                f"a {type(model).__name__} cannot be put into evaluation mode, because it was"
                " exported: give the network that it was made of"
            ) from e
        yield
    finally:
        for m in training:
            m.training = True


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode with no parameter requiring a gradient; restore both at the end.

    If weights were not frozen, ``autograd.grad(score, x)`` would compute their gradients as well.
    Eval mode keeps the images of a batch independent, so that the gradient of the batch's summed
    score is each image's own gradient. Modes and flags are restored one by one, on errors too.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cba_fast.nn import frozen
        >>> model, x = nn.Conv2d(3, 1, 3), torch.ones(1, 3, 8, 8, requires_grad=True)
        >>> with frozen(model):
        ...     (grad,) = torch.autograd.grad(model(x).sum(), x)
        >>> grad.shape, model.weight.grad
        (torch.Size([1, 3, 8, 8]), None)
    """
    # PyTorch does not let the flags of tensors that were made in inference mode be restored.
    trainable = [
        p for p in checked_module(model).parameters() if p.requires_grad and not p.is_inference()
    ]
    try:
        for p in trainable:
            p.requires_grad_(False)
        with eval_mode(model):
            yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
