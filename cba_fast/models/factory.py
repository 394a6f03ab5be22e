"""Networks that a user's own function makes, named as package.module:function or file.py:function.

The file or module is imported, so its code runs. A checkpoint alone never causes that.
"""

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from ..errors import InputError
from ..resume import file_fingerprint

# Side of the image that a new network is tried with, if none is known.
_TRIED_SIZE = 224


def make_network(factory: str, num_classes: int | None = None) -> nn.Module:
    """Call a user's function and return the network that it makes.

    Args:
        factory: ``package.module:function`` or ``path/to/file.py:function``. The working directory
            and the file's folder are searched for what it imports, after the installed packages.
        num_classes: passed on as an argument of that name, unless it is None or the function takes
            none.

    Raises:
        InputError: there is no such file, module or function, its code fails, or what it returns
            is no ``nn.Module``; the message names the place.
    """
    function = _function(factory)
    options = {"num_classes": num_classes} if _takes_classes(function, num_classes) else {}
    found = _run(factory, lambda: function(**options))
    if not isinstance(found, nn.Module):
        raise InputError(
            f"`model_factory` {factory} must return an nn.Module that maps images (N, 3, H, W) to"
            f" logits (N, num_classes), got {type(found).__name__}"
        )
    return found


def count_classes(factory: str, network: nn.Module, input_size: int | None = None) -> int:
    """Return the number of logits that the network gives for an image of zeros.

    Raises:
        InputError: it fails, or returns something else than logits.
    """
    size = input_size or _TRIED_SIZE
    network.eval()
    with torch.no_grad():
        logits = _run(factory, lambda: network(torch.zeros(1, 3, size, size)))
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 1:
        is_tensor = isinstance(logits, torch.Tensor)
        got = tuple(logits.shape) if is_tensor else f"a {type(logits).__name__}"
        raise InputError(
            f"the network of `model_factory` {factory} must map images (N, 3, H, W) to logits"
            f" (N, num_classes); for (1, 3, {size}, {size}) it returned {got}"
        )
    return logits.shape[1]


def source_digest(factory: str) -> str | None:
    """Return the SHA-256 of the file that holds the function; None if it is in no file."""
    target, _, _ = factory.rpartition(":")
    path = target if target.endswith(".py") else getattr(_module(factory, target), "__file__", None)
    found = file_fingerprint(path)
    return found and found["sha256"]


def _function(factory: str) -> Callable:
    target, _, name = factory.rpartition(":")
    if not target or not name:
        raise InputError(
            f"`model_factory` must be package.module:function or path/to/file.py:function, got"
            f" {factory!r}"
        )
    module = _module(factory, target)
    function = getattr(module, name, None)
    if not callable(function):
        known = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        close = difflib.get_close_matches(name, known, 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"`model_factory` {factory}: {target} has no function {name!r}{hint}")
    return function


def _module(factory: str, target: str) -> ModuleType:
    """Import a file or a module, each once in a process."""
    if not target.endswith(".py"):
        _search(os.getcwd())
        try:
            return _run(factory, lambda: importlib.import_module(target))
        except InputError as e:
            missing = getattr(e.__cause__, "name", None)
            if not isinstance(e.__cause__, ModuleNotFoundError) or not target.startswith(missing):
                raise
            raise InputError(f"`model_factory` {factory}: no module {missing!r} is found") from e
    path = Path(target).resolve()
    if not path.is_file():
        raise InputError(f"`model_factory` {factory}: no such file {target}")
    name = f"cba_fast_factory_{path.stem}_{file_fingerprint(path)['sha256'][:16]}"
    if name not in sys.modules:
        _search(str(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            _run(factory, lambda: spec.loader.exec_module(module))
        except InputError:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _search(folder: str) -> None:
    # At the end, so that a file of the user's named like an installed package hides nothing.
    if folder not in sys.path:
        sys.path.append(folder)


def _takes_classes(function: Callable, num_classes: int | None) -> bool:
    if num_classes is None:
        return False
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of an extension module does not say
        return True
    return any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)


def _run(factory: str, code: Callable):
    """Run a user's code; turn what it raises into one sentence that says where."""
    try:
        return code()
    except InputError:
        raise
    except Exception as e:
        place = traceback.extract_tb(e.__traceback__)[-1]
        raise InputError(
            f"`model_factory` {factory} failed at {place.filename}:{place.lineno}:"
            f" {type(e).__name__}: {e}"
        ) from e
