"""Folds and merges anyone's model by its structure, and checks that its outputs stay the same."""

import copy
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from ...errors import short_error
from ...shapes import map_shape
from ...short import Short
from ..families.layers import Mergeable
from .structure import Search, Step

log = logging.getLogger("cba_fast")

# Largest difference of outputs in float64, relative to the largest output. Rounding errors of 1e-16
# may grow a thousandfold in a deep network; a norm that is lost or misplaced changes digits, even
# one that a layer scale of 1e-6 hides.
AGREE = 1e-9
# So many steps may turn out wrong, each found by some runs of the model, before all is left alone.
MOST_WRONG = 8
# The side of the random images that are tried first: small, because float64 is slow.
SMALL_SIDE = 64


@dataclass(repr=False)
class FoldReport(Short):
    """What became of a model's norms and branches; prints a line for each kind.

    Attributes:
        folded: the names of the norms that a neighbouring layer took in.
        merged: the names of the modules of which parallel branches became fewer.
        left: the names of batch norms and modules that stayed, with the reasons.
    """

    folded: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        if self.folded:
            lines.append(f"folded{len(self.folded):5} norms, first {self.folded[0]!r}")
        if self.merged:
            lines.append(f"merged{len(self.merged):5} sums of branches, first {self.merged[0]!r}")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"left  {len(n):5}, first {n[0]!r}: {reason}" for reason, n in reasons.items()]
        return "\n".join(lines) or "nothing to fold or merge"


def fold(
    model: nn.Module,
    *,
    strips: bool = True,
    example: Tensor | tuple | None = None,
    keep: Iterable[str] = (),
) -> tuple[nn.Module, FoldReport]:
    """Return a copy of any model with folded norms and merged branches, and what was done.

    - A batch norm is folded into the convolution or linear layer before it, or into the 1x1
      convolution after it.
    - Parallel convolutions of one input that a module sums, dilated ones and norms included, become
      one, or as few as their shapes allow.

    `torch.fx` finds these in the largest modules that it can trace. Weights are computed in float64
    and rounded once. Before that, original and copy run on one input in float64: steps after which
    outputs differ are not made, and none where the model cannot run.

    Args:
        model: in evaluation mode; it is left as it is.
        strips: keep crossed strips; False sums them into one square kernel.
        example: the input of the check, or a tuple of inputs; None tries random images.
        keep: the names of modules whose outputs are looked at, and must remain.

    Returns:
        The copy, and the report.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cba_fast.models import fold
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> folded, report = fold(model)
        >>> print(report)
        folded    1 norms, first '1'
        >>> type(folded[1]).__name__
        'Identity'
    """
    keep, wrong = dict.fromkeys(keep, "it is to be kept"), dict[str, str]()
    exact = copy.deepcopy(model).double()
    steps, left = _next(exact, strips, keep)
    if not steps:
        return copy.deepcopy(model), FoldReport(left=left)
    try:
        args = _inputs(exact, example)
    except Exception as e:  # the code is someone else's and may raise anything
        why = "the model cannot be run to check the result (an example input can be given): "
        why += short_error(e)
        return copy.deepcopy(model), FoldReport(left=left | {s.target: why for s in steps})
    for _ in range(MOST_WRONG):
        form = copy.deepcopy(exact)
        steps, left = _fold_all(form, strips, keep | wrong)
        different = _first_difference(exact, form, args, steps)
        if different is None:
            break
        wrong[different] = "outputs differ without it"
    else:
        why = "outputs differ in many places"
        return copy.deepcopy(model), FoldReport(left=left | {s.target: why for s in steps})
    _cast_like(form, model)
    report = FoldReport(
        [s.target for s in steps if s.kind != "sum"],
        [s.target for s in steps if s.kind == "sum"],
        left | wrong,
    )
    log.info("folded by structure: %s", report)
    return form, report


def _next(form: nn.Module, strips: bool, keep: dict[str, str]) -> tuple[list[Step], dict[str, str]]:
    """Return steps that can be made at once, norms first, and why norms are left."""
    search = Search(form, keep)
    return list(search.norms()) or list(search.sums(strips)), search.left


def _fold_all(form: nn.Module, strips: bool, keep: dict[str, str]):
    """Make all steps in place; return them in order, and why norms are left."""
    done: list[Step] = []
    while True:
        steps, left = _next(form, strips, keep)
        for step in steps:
            step.apply(form, strips)
        if not steps:
            return done, left
        done += steps


def _first_difference(
    exact: nn.Module, form: nn.Module, args: tuple, steps: list[Step]
) -> str | None:
    """Return the target of the first step in the order of the calls that was wrong, or None.

    Compared are what each norm or sum, or the layer that took the norm before it in, gave, and the
    outputs. If these alone differ, the last step is blamed.
    """
    folded = {layer for step in steps if step.kind == "after" for layer in step.layers}
    points = {s.layers[0] if s.kind == "before" else s.target: s.target for s in steps}
    points = {name: target for name, target in points.items() if name not in folded}
    rest = dict(form.named_modules())
    points = {name: target for name, target in points.items() if name in rest}
    try:
        found = _outputs(form, args, points)
    except Exception:  # the code is someone else's and may raise anything
        return steps[-1].target
    expected = _outputs(exact, args, points)
    for (name, y), (other, e) in zip(found, expected, strict=False):
        bound = AGREE * e.abs().max().item() if e.numel() else 0
        if name != other or y.shape != e.shape or not torch.allclose(y, e, rtol=0, atol=bound):
            return points.get(other, steps[-1].target)
    return None if len(found) == len(expected) else steps[-1].target


def _inputs(model: nn.Module, example: Tensor | tuple | None) -> tuple:
    """Return inputs with which a model runs."""
    device = next(model.parameters()).device
    if example is not None:
        args = example if isinstance(example, tuple) else (example,)
        args = tree_map_only(Tensor, lambda t: _double(t.to(device)), args)
        _outputs(model, args)
        return args
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size", (3, 224, 224))
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = size[0] if first is None else first.in_channels
    described = getattr(getattr(model, "description", None), "input_size", None)
    shapes = {map_shape(s) for s in (SMALL_SIDE, 224, tuple(size[1:]), described or 224)}
    for shape in sorted(shapes, key=math.prod):
        images = torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(0))
        args = (images.to(device, torch.float64),)
        try:
            _outputs(model, args)
        except Exception as e:  # the code is someone else's and may raise anything
            error = e
        else:
            return args
    raise error


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


@torch.no_grad()
def _outputs(model: nn.Module, args: tuple, points: Iterable[str] = ()) -> list[tuple[str, Tensor]]:
    """Return what modules of these names gave, in the order of their calls, and the outputs."""
    found: list[tuple[str, Tensor]] = []

    def note(name: str):
        return lambda module, args, y: found.append((name, y.clone()))

    hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in points]
    device = next(model.parameters()).device
    cards = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cards), torch.autocast(device.type, enabled=False):
            torch.manual_seed(0)
            outputs = [y for y in tree_leaves(model(*args)) if isinstance(y, Tensor)]
    finally:
        for hook in hooks:
            hook.remove()
    if not outputs or not all(y.isfinite().all() for y in outputs):
        raise ValueError("its outputs are not finite tensors")
    return found + [("", _double(y)) for y in outputs]


def _cast_like(form: nn.Module, model: nn.Module) -> None:
    """Give parameters and buffers their dtype in `model`; new ones get that of its first layer."""
    known = {n: t.dtype for n, t in (*model.named_parameters(), *model.named_buffers())}
    usual = next(dtype for dtype in known.values() if dtype.is_floating_point)
    for name, tensor in (*form.named_parameters(), *form.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(known.get(name, usual))


def merge_report(model: nn.Module, form: nn.Module) -> FoldReport:
    """Return what `cba_fast.models.merge` made of a model, in the words of `fold`."""
    rest = {n for n, m in form.named_modules() if isinstance(m, _BatchNorm)}
    norms = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    merged = [n for n, m in model.named_modules() if isinstance(m, Mergeable) and not m.is_merged]
    left = dict.fromkeys(rest, "activation maps need the features before it")
    return FoldReport([n for n in norms if n not in rest], merged, left)
