"""Finds the parts of any network: what is inside wrappers, its logits, a layer, its last map."""

import contextlib
import difflib
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError, ModelError
from ...nn import frozen
from ...nn.modes import checked_module
from .features import layout_of, random_like

Layer = str | nn.Module | Sequence[str | nn.Module] | None


@dataclass
class Call:
    """One run of a module: its name in the model, its first argument and its result."""

    name: str
    module: nn.Module
    given: object
    result: Any


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside of `DataParallel`, DDP and `torch.compile`, or the model itself.

    Raises:
        TypeError: `model` is no module, or one that shows no layers inside.
    """
    model = checked_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"a {type_name(model)} shows no layers, because it was scripted or traced: give the"
            " network that it was made of"
        )
    while True:
        compiled = model._modules.get("_orig_mod")
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif compiled is not None:
            model = compiled
        else:
            return model


def uncompiled(model: nn.Module) -> contextlib.AbstractContextManager:
    """Return a context in which compiled parts of the model run uncompiled, so that hooks work."""
    compiled = any(
        m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


@contextlib.contextmanager
def fitting(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Say in words where PyTorch fails because device, dtype or shape of the images do not fit.

    Nothing is refused beforehand, because a network may move or convert its images itself.

    Raises:
        InputError: the images do not fit; other errors stay as they are.
    """
    try:
        yield
    except RuntimeError as e:
        if reason := _misfit(model, x, str(e)):
            raise InputError(reason) from e
        raise


def _misfit(model: nn.Module, x: Tensor, said: str) -> str | None:
    """Return what does not fit between the images and the model where PyTorch `said` its error."""
    name, weights = type_name(model), [p for p in model.parameters() if p.is_floating_point()]
    devices = list(dict.fromkeys(str(p.device) for p in weights))
    dtypes = list(dict.fromkeys(p.dtype for p in weights))
    if devices and str(x.device) not in devices and re.search("device|type|meta", said):
        return (
            f"the images are on {x.device}, but the weights of {name} on {', '.join(devices)}: "
            "move one to the other's device"
        )
    if dtypes and x.dtype not in dtypes and "type" in said:
        return (
            f"the images are {x.dtype}, but the weights of {name} {', '.join(map(str, dtypes))}: "
            "convert one to the other's dtype"
        )
    channels = re.search(r"expected input\[\d+, (\d+), .*to have (\d+) channels", said)
    if channels and int(channels[1]) == x.shape[1]:
        hint = "; x.expand(-1, 3, -1, -1) repeats a grey one" if x.shape[1] == 1 else ""
        return (
            f"the images have shape {tuple(x.shape)}, but {name} takes"
            f" (N, {channels[2]}, H, W){hint}"
        )
    if re.search("too small|can't be greater", said):
        return f"the images, {tuple(x.shape)}, are too small for {name}: {said.splitlines()[0]}"
    return None


@contextlib.contextmanager
def watched(
    model: nn.Module, record: Callable[[Call], Tensor | None], only: nn.Module | None = None
) -> Iterator[None]:
    """Call `record` after each run of a module of `model`; what it returns replaces the result.

    `only` is the module to watch, if not all of them are.
    """

    def hook_of(name: str):
        def hook(module, args, result):
            return record(Call(name, module, args[0] if args else None, result))

        return hook

    watch = {n: m for n, m in model.named_modules() if only in (None, m)}
    handles = [m.register_forward_hook(hook_of(name)) for name, m in watch.items()]
    try:
        with uncompiled(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


def logits_of(model: nn.Module, output: object) -> Tensor:
    """Return the logits (N, K) in what a classifier returned: a tensor, or a dict or tuple of them.

    A dict has them under ``logits``, or else as its first (N, K) tensor, as a tuple has.

    Raises:
        ModelError: there are none.
    """
    values = [output]
    if isinstance(output, Mapping):
        values = [output["logits"]] if "logits" in output else list(output.values())
    elif isinstance(output, tuple | list):
        values = list(output)
    for value in values:
        if torch.is_tensor(value):
            value = value.flatten(1) if value.ndim == 4 and value.shape[2:] == (1, 1) else value
            if value.ndim == 2:
                return value
    raise ModelError(f"{type_name(model)} must return (N, K) logits, got {describe(output)}")


def named_layer(model: nn.Module, layer: Layer) -> tuple[str, nn.Module]:
    """Return the dotted name and the module that `layer` means.

    Args:
        model: the network, without wrappers around it.
        layer: a dotted name, whole or its unambiguous end (``layer4`` for ``1.layer4``); a module;
            or a list of one of them.

    Raises:
        InputError: the model has no such layer; a name is answered by those that it may mean.
    """
    if isinstance(layer, list | tuple):
        if len(layer) != 1:
            raise InputError(f"`layer` must be one layer, got {len(layer)} of them")
        layer = layer[0]
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        layer = unwrapped(layer)
        found = [name for name, module in modules.items() if module is layer]
        if not found:
            raise InputError(f"`layer` is a {type_name(layer)} that {type_name(model)} lacks")
        return found[0], layer
    if not isinstance(layer, str):
        raise InputError(f"`layer` must be a name, a module or a list of one, got {layer!r}")
    for start in ("", "module.", "_orig_mod."):
        if (name := layer.removeprefix(start)) in modules:
            return name, modules[name]
    found = [name for name in modules if name.endswith(f".{layer}")]
    if len(found) == 1:
        return found[0], modules[found[0]]
    likely = found or difflib.get_close_matches(layer, modules, n=5)
    deep = 0 if len(model._modules) > 3 else 2  # a Sequential of few parts tells little by itself
    known = sorted((n for n in modules if n and n.count(".") <= deep), key=lambda n: n.count("."))
    names = list(dict.fromkeys([*likely, *known]))
    more = ", ..." if len(names) > 20 else ""
    raise InputError(
        f"{type_name(model)} has {'several modules' if found else 'no module'} named {layer!r}; "
        f"it has {', '.join(names[:20])}{more}"
    )


_LAST: "weakref.WeakKeyDictionary[nn.Module, dict]" = weakref.WeakKeyDictionary()


def _situation(model: nn.Module, x: Tensor) -> tuple:
    """Return what decides, beside the model, which map is the last: its pooling, the image size."""
    return repr(getattr(model, "global_pool", None)), tuple(x.shape[2:])


def known_last_map(model: nn.Module, x: Tensor) -> str | None:
    """Return what :func:`last_map` found earlier, or None."""
    return _LAST.get(model, {}).get(_situation(model, x))


def last_map(model: nn.Module, x: Tensor, end: Callable[[list[Call], Tensor], int]) -> str:
    """Return the name of the last layer whose output is a map on which the logits depend.

    One image is run and watched. Layers that run more than once are left out, and those whose
    positions do not reach the logits, such as the last block of a ViT that reads its class token
    alone: there the answer is the norm before the last attention. The answer is kept for as long as
    the model and its pooling stay the same.

    Args:
        model: the network, without wrappers around it.
        x: images (N, 3, H, W).
        end: function from the calls and the logits to the number of calls before the classifier's,
            which ends the search.

    Raises:
        ModelError: no output is a map of more than one position.
    """
    kept, key = _LAST.setdefault(model, {}), _situation(model, x)
    if key not in kept:
        kept[key] = _find_last_map(model, x[:1], end)
    return kept[key]


def _find_last_map(model: nn.Module, x: Tensor, end: Callable) -> str:
    calls: list[Call] = []
    with frozen(model), torch.enable_grad(), watched(model, calls.append):
        logits = logits_of(model, model(x.detach().clone().requires_grad_()))
        count = end(calls, logits)
        # A new classifier may consist of zeros; what it gets depends on the maps nevertheless.
        answer = calls[count].given if count < len(calls) else logits
        answer = (answer * random_like(answer)).sum()
    tokens, runs = with_tokens(model), Counter(c.name for c in calls)
    maps = [c for c in calls[:count] if c.name and _is_map(c, x, tokens)]
    maps = [c for c in maps if runs[c.name] == 1] or maps
    if not maps:
        raise ModelError(
            f"no layer of {type_name(model)} gives a map (N, C, h, w) or tokens (N, L, C) of the "
            "image; name the `layer` to explain"
        )
    if maps[-1].result.ndim == 3:  # others are queries, keys, and hidden layers of MLPs
        maps = [c for c in maps if c.result.shape[1:] == maps[-1].result.shape[1:]]
    for call in reversed(maps if answer.requires_grad else ()):
        out = call.result
        (grad,) = torch.autograd.grad(answer, out, retain_graph=True, allow_unused=True)
        if grad is not None and out.ndim == 3:  # the class token alone does not count
            grad = layout_of(out, x.shape[2:], model=tokens).to_nchw(grad)
        if grad is not None and grad.any():
            return call.name
    return maps[-1].name


def with_tokens(model: nn.Module) -> nn.Module:
    """Return the part of the model that says how many tokens come before its map, or the model."""
    return next((m for m in model.modules() if hasattr(m, "num_prefix_tokens")), model)


def _is_map(call: Call, x: Tensor, tokens: nn.Module) -> bool:
    """Say whether a module's result may be the feature map: neither pooled nor a projection."""
    out = call.result
    if not torch.is_tensor(out) or not out.is_floating_point() or len(out) != len(x):
        return False
    if out.ndim == 4:  # pooling, such as that of VGG to 7x7, only blurs what was there before
        pools = "Pool" in type_name(call.module) and not any(True for _ in call.module.parameters())
        return out.shape[1:].numel() > max(out.shape[1:]) and not pools
    if out.ndim != 3 or isinstance(call.module, nn.Linear):
        return False
    try:
        return layout_of(out, x.shape[2:], model=tokens).grid != (1, 1)
    except ValueError:
        return False


def type_name(module: object) -> str:
    """Return the name of a module's class, for messages."""
    return type(module).__name__


def describe(value: object) -> str:
    """Return the shape of a tensor, or the name of another value's type."""
    return str(tuple(value.shape)) if torch.is_tensor(value) else type_name(value)
