"""Save memory by recomputing activations in the backward pass, and estimate what is kept."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint as recomputed

from ..choices import Checkpoint
from ..models.families.layers import LayerScaleBlock
from ..models.families.replknet import ConvFFN, RepLKBlock
from .lean import lean_convolutions, replace_forward

LEVELS = get_args(Checkpoint)[1:]  # without auto

_BLOCKS = (RepLKBlock, ConvFFN, LayerScaleBlock, ConvNeXtBlock)


def parts_of(model: nn.Module, level: str, *, between: bool = False) -> list[nn.Module]:
    """Return the modules whose activations are recomputed at a level.

    Args:
        model: the network.
        level: ``block`` for each residual block of RepLKNet, ConvNeXt (timm's too), SLaK and
            slak_flex; ``stage`` for each chain of such blocks; ``none`` for no module.
        between: add the chains of layers before and between the blocks, such as the stem, whose
            maps are the largest of a network in training.

    Raises:
        ValueError: an unknown level, or a model without such blocks.
    """
    if level not in LEVELS:
        raise ValueError(f"checkpoint must be one of {LEVELS}, got {level!r}")
    if level == "none":
        return []
    modules = list(model.modules())
    if level == "block":
        found: list[nn.Module] = [m for m in modules if isinstance(m, _BLOCKS)]
    else:
        found = [m for m in modules if _is_chain(m)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no blocks that are known here, so checkpoint must be"
            f" 'none', got {level!r}"
        )
    return found + (list(_between(model)) if between else [])


def _between(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost chains of layers with weights that contain no block and lie in none."""
    for child in module.children():
        if isinstance(child, _BLOCKS):
            continue
        if any(isinstance(m, _BLOCKS) for m in child.modules()):
            yield from _between(child)
        elif isinstance(child, nn.Sequential) and any(True for _ in child.parameters()):
            yield child
        elif isinstance(child, nn.ModuleList):
            yield from _between(child)


def _is_chain(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Sequential)
        and len(module) > 0
        and all(isinstance(m, _BLOCKS) for m in module)
    )


@contextlib.contextmanager
def recomputing(model: nn.Module, level: str, *, between: bool = False) -> Iterator[None]:
    """Let the parts of `model` at `level` keep only their inputs for the backward pass.

    The backward pass computes each part once more when it reaches it: one more forward pass in all,
    with equal results. In training a part draws the same random numbers again (for its drop path),
    and its batch norms do not update their running statistics the second time.

    Args:
        model, level, between: see :func:`parts_of`.

    Raises:
        ValueError: see :func:`parts_of`.
    """
    with contextlib.ExitStack() as stack:
        for part in parts_of(model, level, between=between):
            forward = functools.partial(
                recomputed,
                part.forward,
                use_reentrant=False,
                preserve_rng_state=part.training,
                context_fn=functools.partial(_contexts, part),
            )
            replace_forward(stack, part, forward)
        yield


def _contexts(part: nn.Module) -> tuple[contextlib.AbstractContextManager, ...]:
    """Return the contexts of a part's first and further forward passes.

    Outside of training there may be several backward passes, and each enters the second context.
    """
    further = _statistics_set_aside(part) if part.training else contextlib.nullcontext()
    return contextlib.nullcontext(), further


@contextlib.contextmanager
def _statistics_set_aside(part: nn.Module) -> Iterator[None]:
    """Let the batch norms of `part` update copies of their running statistics."""
    norms = [m for m in part.modules() if isinstance(m, _BatchNorm) and m.training]
    own = [dict(m._buffers) for m in norms]
    try:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update((k, b if b is None else b.clone()) for k, b in buffers.items())
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update(buffers)


def kept_bytes(
    model: nn.Module,
    shape: tuple[int, ...],
    level: str = "none",
    *,
    run: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> int:
    """Return how many bytes an input gradient keeps at its peak, without computing anything.

    Counted is what the forward pass keeps for the backward pass, each storage once and without
    weights, and at the levels ``block`` and ``stage`` what a part keeps while it is recomputed. The
    temporary results of single layers are not counted. Shapes are propagated on PyTorch's meta
    device.

    Args:
        model: the network, frozen or not; it is left as it is and treated as frozen.
        shape: (N,3,H,W) of the batch, treated as float32 (under autocast less is kept).
        level: one of `LEVELS`.
        run: function (model, images) -> output; None for ``model(images)``.

    Raises:
        ValueError: see :func:`parts_of`.

    Example:
        >>> import timm
        >>> from cba_fast.erf import kept_bytes
        >>> model = timm.create_model("test_convnext", num_classes=10)
        >>> kept = {level: kept_bytes(model, (1, 3, 64, 64), level) for level in ("none", "block")}
        >>> kept["block"] < kept["none"]
        True
    """
    shadow = _shadow(model, "meta", lambda p: False).eval()
    with torch.inference_mode(False), lean_convolutions(shadow):
        images = torch.empty(shape, device="meta", requires_grad=True)
        return _measured(shadow, images, parts_of(shadow, level), run).peak


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for its backward pass.

    Attributes:
        peak: most bytes at a time, including those of a part that is being recomputed.
        largest: bytes of the largest tensor.
    """

    peak: int
    largest: int


def kept_in_training(
    model: nn.Module,
    shape: tuple[int, ...],
    level: str = "none",
    *,
    device: str = "cpu",
    run: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> Kept:
    """Return how many bytes a training step keeps, without computing anything.

    Weights, their gradients and the optimizer's state are not counted; see :func:`kept_bytes` for
    what is.

    Args:
        model: the network in float32; it is left as it is and treated as in training mode.
        shape: (N,3,H,W) of the batch.
        level: one of `LEVELS`; layers between the blocks are recomputed too.
        device: type of the device, on which autocast depends.
        run: function (model, images) -> output; None for ``model(images)``.

    Raises:
        ValueError: see :func:`parts_of`; also if a batch norm would see one value per channel.
    """
    with _fake_tensors():  # unlike the meta device, it follows autocast
        shadow = _shadow(model, device, lambda p: p.requires_grad).train()
        parts = parts_of(shadow, level, between=True)
        return _measured(shadow, torch.empty(shape, device=device), parts, run)


def uses_all_weights(
    model: nn.Module, shape: tuple[int, ...], run: Callable[[nn.Module, Tensor], Tensor]
) -> bool:
    """Say whether the output of a training step depends on all weights, without computing it.

    Args:
        model, shape, run: see :func:`kept_in_training`.
    """
    with _fake_tensors():
        shadow = _shadow(model, "cpu", lambda p: p.requires_grad).train()
        with torch.enable_grad():
            end = run(shadow, torch.empty(shape)).grad_fn
        nodes = [] if end is None else [end]
        seen = set(nodes)
        while nodes:
            new = {n for n, _ in nodes.pop().next_functions if n is not None} - seen
            seen |= new
            nodes += new
    used = {id(n.variable) for n in seen if hasattr(n, "variable")}
    return all(id(p) in used for p in shadow.parameters() if p.requires_grad)


def _measured(shadow: nn.Module, images: Tensor, parts: list[nn.Module], run) -> Kept:
    run = run or (lambda model, x: model(x))
    meter = _Meter(shadow)
    with torch.enable_grad(), meter.watching(parts), meter:
        y = run(shadow, images)
    del y
    return Kept(max(meter.peak, meter.outside), meter.largest)


def _fake_tensors() -> FakeTensorMode:
    # At a process's first gradient PyTorch starts threads for the devices it knows. Fake tensors
    # count as one, and with such a thread no fork of the process can compute gradients.
    with torch.inference_mode(False), torch.enable_grad():
        torch.ones((), requires_grad=True).backward()
    return FakeTensorMode()


class _Meter(torch.autograd.graph.saved_tensors_hooks):
    """Adds up the storages that autograd keeps while it is active.

    Attributes:
        outside: bytes kept outside of the recomputed parts, and those of the parts' inputs.
        peak: most bytes at a time while a part is recomputed. The backward pass goes from the end
            to the beginning and frees what it has used, so nothing behind that part is left.
        largest: bytes of the largest storage.
    """

    def __init__(self, model: nn.Module):
        super().__init__(self._pack, lambda t: t)
        self.outside = self.peak = self.largest = 0
        # Storages are identified by their address, so those that were seen must stay alive.
        self._seen = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
        self._alive: list[Tensor] = []

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)
            self.outside += storage.nbytes()
            self.largest = max(self.largest, storage.nbytes())
        return tensor

    @contextlib.contextmanager
    def watching(self, parts: list[nn.Module]) -> Iterator[None]:
        """Count what is kept during the calls of `parts` as recomputed."""
        starts: list[int] = []

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            starts.append(self.outside)

        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            start = starts.pop()
            inside, self.outside = self.outside - start, start + args[0].nbytes
            self.peak = max(self.peak, self.outside + inside)

        handles = [m.register_forward_pre_hook(before) for m in parts]
        handles += [m.register_forward_hook(after) for m in parts]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _shadow(model: nn.Module, device: str, learns: Callable[[nn.Parameter], bool]) -> nn.Module:
    """Return a copy of `model` in float32 whose tensors have shapes but no meaningful values."""

    def empty(t: Tensor) -> Tensor:
        dtype = torch.float32 if t.is_floating_point() else t.dtype
        return torch.empty(t.shape, dtype=dtype, device=device)

    memo: dict[int, object] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(empty(p), requires_grad=learns(p))
    for b in model.buffers():
        memo[id(b)] = empty(b)
    return copy.deepcopy(model, memo)
