"""Recompute activations in the backward pass instead of keeping them, where memory is short."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from ..models.layers import LayerScaleBlock
from ..models.replknet import ConvFFN, RepLKBlock
from .lean import lean_convolutions, replace_forward

LEVELS = ("none", "block", "stage")

_BLOCKS = (RepLKBlock, ConvFFN, LayerScaleBlock, ConvNeXtBlock)


def parts_of(model: nn.Module, level: str) -> list[nn.Module]:
    """Return the modules whose activations are recomputed at a level.

    ``block``: each residual block of RepLKNet, ConvNeXt (timm's too), SLaK and slak_flex;
    ``stage``: each chain of such blocks.

    Raises:
        ValueError: unknown level, or a model without such blocks (the message says so).
    """
    if level not in LEVELS:
        raise ValueError(f"checkpoint must be one of {LEVELS}, got {level!r}")
    if level == "none":
        return []
    modules = list(model.modules())
    if level == "block":
        found = [m for m in modules if isinstance(m, _BLOCKS)]
    else:
        found = [m for m in modules if _is_chain(m)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no blocks that are known here, so checkpoint must be"
            f" 'none', got {level!r}"
        )
    return found


def _is_chain(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Sequential)
        and len(module) > 0
        and all(isinstance(m, _BLOCKS) for m in module)
    )


@contextlib.contextmanager
def recomputing(model: nn.Module, level: str) -> Iterator[None]:
    """Let the parts of `model` at `level` keep only their inputs for the backward pass.

    The backward pass computes a part once more when it comes to it: one more forward pass in all,
    with equal results. Random numbers are not replayed (in eval mode there are none).

    Raises:
        ValueError: see :func:`parts_of`.
    """
    parts = parts_of(model, level)
    with contextlib.ExitStack() as stack:
        for part in parts:
            forward = functools.partial(
                recomputed, part.forward, use_reentrant=False, preserve_rng_state=False
            )
            replace_forward(stack, part, forward)
        yield


def kept_bytes(
    model: nn.Module,
    shape: tuple[int, ...],
    level: str = "none",
    *,
    run: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> int:
    """Return how much an input gradient's passes keep at their peak, without computing anything.

    What the forward pass keeps for the backward pass, each storage once and weights left out, plus
    at the levels ``block`` and ``stage`` what the largest part keeps while it is recomputed. The
    temporary results of single layers come on top. Shapes are propagated on PyTorch's meta device.

    Args:
        model: frozen or not; it is left as it is, and taken as frozen.
        shape: (N,3,H,W) of the batch, taken as float32 (under autocast less is kept).
        level: of `LEVELS`.
        run: (model, images) -> the output; None: ``model(images)``.

    Raises:
        ValueError: see :func:`parts_of`.
    """
    run = run or (lambda model, x: model(x))
    shadow = _on_meta(model)
    parts = parts_of(shadow, level)
    meter = _Meter(shadow)
    with torch.inference_mode(False), torch.enable_grad(), lean_convolutions(shadow):
        images = torch.empty(shape, device="meta", requires_grad=True)
        with meter.watching(parts), meter:
            y = run(shadow, images)
    del y
    if not parts:
        return meter.total
    whole = meter.total - sum(meter.inside) + sum(meter.inputs)
    return whole + max(meter.inside)


class _Meter(torch.autograd.graph.saved_tensors_hooks):
    """Adds up the storages that autograd keeps, in all and inside of parts."""

    def __init__(self, model: nn.Module):
        super().__init__(self._pack, lambda t: t)
        self.total = 0
        self.inside: list[int] = []
        self.inputs: list[int] = []
        # Storages are told apart by their address, so those that were seen must stay alive.
        self._seen = {t.untyped_storage()._cdata for t in _tensors_of(model)}
        self._alive: list[Tensor] = []

    def _pack(self, tensor: Tensor) -> Tensor:
        self.total += self._size_if_new(tensor)
        return tensor

    def _size_if_new(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return 0
        self._seen.add(storage._cdata)
        self._alive.append(tensor)
        return storage.nbytes()

    @contextlib.contextmanager
    def watching(self, parts: list[nn.Module]) -> Iterator[None]:
        """Note for each call of a part what it keeps, and the size of its input."""
        starts: list[int] = []

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            starts.append(self.total)

        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.inside.append(self.total - starts.pop())
            self.inputs.append(args[0].nbytes)

        handles = [m.register_forward_pre_hook(before) for m in parts]
        handles += [m.register_forward_hook(after) for m in parts]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _on_meta(model: nn.Module) -> nn.Module:
    """Return a frozen copy in eval mode without data, in float32."""
    memo: dict[int, object] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(_without_data(p.detach()), requires_grad=False)
    for b in model.buffers():
        memo[id(b)] = _without_data(b)
    return copy.deepcopy(model, memo).eval()


def _without_data(t: Tensor) -> Tensor:
    return t.to("meta", torch.float32 if t.is_floating_point() else t.dtype)
