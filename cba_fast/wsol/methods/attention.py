"""Attention of transformers: recorded in any implementation, and followed through the layers."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_SOFTMAX = (torch.softmax, torch.Tensor.softmax, F.softmax)


class Attentions(TorchFunctionMode):
    """Records the attention of each layer that runs in this context.

    Fused attention never holds its matrix, so it is computed step by step meanwhile, with the same
    result but for rounding: `scaled_dot_product_attention`, `multi_head_attention_forward` and
    softmaxes whose result is (N, heads, L, L).

    Attributes:
        found: for each layer the tensor of which gradients can be asked, with N * heads * L * L
            entries.
        shapes: for each layer (N, heads, L, L).
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self.shapes: list[torch.Size] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(args, kwargs)
        out = func(*args, **kwargs)
        if func in _SOFTMAX and out.ndim == 4 and out.shape[2] == out.shape[3]:
            self._keep(out, out.shape)
        return out

    def _keep(self, attention: Tensor, shape: torch.Size) -> None:
        self.found.append(attention)
        self.shapes.append(shape)

    def _fused(
        self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ) -> Tensor:
        if is_causal or enable_gqa or q.shape[-2] != k.shape[-2] or q.ndim != 4:
            more = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
            return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, **more)
        scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        attention = scores.softmax(-1)
        self._keep(attention, attention.shape)
        return attention @ v

    def _multi_head(self, args, kwargs) -> tuple[Tensor, Tensor | None]:
        asked = {"need_weights": True, "average_attn_weights": False}
        out, weights = F.multi_head_attention_forward(*args, **{**kwargs, **asked})
        assert weights is not None  # they were asked for
        # What is returned is a view; the product with the values was made of its base.
        base = weights if weights._base is None else weights._base
        if weights.ndim == 4 and weights.shape[2] == weights.shape[3]:
            self._keep(base, weights.shape)
        if not kwargs.get("need_weights", True):
            return out, None
        return out, weights.mean(1) if kwargs.get("average_attn_weights", True) else weights


def attention_rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Follow the attention through the layers, half of each token staying where it is.

    R = B_1, then R = B_l R, with B_l = (mean over heads of A_l + I) / 2.

    Args:
        attentions: for each layer (N, heads, L, L), rows summing to 1.

    Returns:
        (N, L, L): the share of each input token (column) in each output token (row).

    Source:
        Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers" (arXiv 2005.00928).
    """
    means = (attention.mean(1) for attention in attentions)
    steps = ((mean + torch.eye(mean.shape[-1], device=mean.device)) / 2 for mean in means)
    return functools.reduce(lambda rolled, step: step @ rolled, steps)


def chefer(attentions: Sequence[Tensor], attention_gradients: Sequence[Tensor]) -> Tensor:
    """Follow the attention through the layers where it speaks for the target class.

    R = I, then R = R + B_l R, with B_l = mean over heads of relu(A_l * d score / d A_l). The result
    is R - I, because I, which says that each token is relevant for itself, would hide small B_l
    where the mean of all tokens is classified.

    Args:
        attentions: for each layer (N, heads, L, L).
        attention_gradients: the gradients of the target logit with respect to them.

    Returns:
        (N, L, L): the relevance of each input token (column) for each output token (row).

    Source:
        Chefer, Gur and Wolf 2021, "Generic Attention-model Explainability for Interpreting
        Bi-Modal and Encoder-Decoder Transformers" (arXiv 2103.15679), equations 5 and 6.
    """
    both = zip(attentions, attention_gradients, strict=True)
    steps = ((attention * gradient).relu().mean(1) for attention, gradient in both)
    return functools.reduce(lambda found, step: found + step + step @ found, steps)
