"""Calls a user's own function that makes a model.

Its code runs with all rights of this process. A checkpoint alone never causes that.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelError, short_error
from ..resume import file_fingerprint
from ..shapes import Size, map_shape
from .anatomy.layers import main_tensor
from .anatomy.parts import describe, logits_of, unwrapped

_FORM = "package.module:function or path/to/file.py:function"
_WANTED = "one that maps images (N, 3, H, W) to logits (N, num_classes) or maps (N, C, h, w)"
# Side of the image that a new network is tried with, if none is known.
_TRIED_SIZE = 224


def load_factory(name: str) -> Callable[..., nn.Module]:
    """Import the function that `name` names.

    Args:
        name: ``package.module:function``, where the module is installed or lies below the working
            directory, or ``file.py:function``, whose file may import its neighbours.

    Raises:
        InputError: `name` has another form, the import fails, or there is no such function.
    """
    module = _module(name)
    place, _, function = name.rpartition(":")
    found: Any = getattr(module, function, None)
    if not _makes(found):
        known = [k for k, v in vars(module).items() if _makes(v)]
        close = difflib.get_close_matches(function, known, 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        kind = "" if found is None else f", but the {type(found).__name__} of that name"
        raise InputError(f"`model_factory`: {place} has no function {function!r}{kind}{hint}")
    return found


def model_from_factory(name: str, num_classes: int | None = None, **arguments: Any) -> nn.Module:
    """Return the model that the function `name` makes of `arguments`, on the CPU in float32.

    `DataParallel` and `torch.compile` around it are taken off: the commands choose how to run.

    Args:
        name: see `load_factory`.
        num_classes: an argument as well, unless it is None or the function takes none.
        arguments: the others.

    Raises:
        InputError: as `load_factory`; the function raises, or returns something else than a module.
    """
    factory = load_factory(name)
    if num_classes is not None and _takes_classes(factory):
        arguments["num_classes"] = num_classes
    try:
        model = factory(**arguments)
    except Exception as e:  # the code is someone else's and may raise anything
        raise InputError(f"`model_factory`: {name} raised {_short(e)}") from e
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise InputError(
            f"`model_factory`: {name} must return a torch.nn.Module, got {kind} ({_WANTED})"
        )
    return unwrapped(model).to("cpu", torch.float32)


@torch.no_grad()
def count_classes(name: str, model: nn.Module, input_size: Size = None) -> int | None:
    """Return the number of logits that the model of a factory gives for an image of zeros.

    It is None for models that return maps (N, C, h, w), as those for segmentation, which have an
    ERF, but no classes. Logits and maps may come in a dict or a tuple.

    Raises:
        InputError: it raises, or returns something else.
    """
    height, width = map_shape(input_size or _TRIED_SIZE, name="input_size")
    try:
        output = model.eval()(torch.zeros(1, 3, height, width))
    except Exception as e:
        raise InputError(
            f"`model_factory`: the model of {name} raised {_short(e)} for an image of"
            f" {height}x{width}"
        ) from e
    try:
        logits = logits_of(model, output)
    except ModelError:
        found = main_tensor(output)
        if isinstance(found, Tensor) and found.ndim == 4:
            return None
        logits = None
    if logits is None or len(logits) != 1:
        got = describe(output if logits is None else logits)
        raise InputError(
            f"`model_factory`: the model of {name} must be {_WANTED}, but returned {got} for"
            f" (1, 3, {height}, {width})"
        )
    return logits.shape[1]


def source_digest(name: str) -> str | None:
    """Return the SHA-256 of the file that holds the function; None if it is in no file."""
    place = name.rpartition(":")[0]
    file = place if place.endswith(".py") else getattr(_module(name), "__file__", None)
    found = file_fingerprint(file)
    return found["sha256"] if found else None


def _module(name: str) -> ModuleType:
    place, _, function = name.rpartition(":")
    if not place or not function.isidentifier():
        raise InputError(f"`model_factory` must be {_FORM}, got {name!r}")
    path = Path(place)
    if place.endswith(".py") and not path.is_file():
        raise InputError(f"`model_factory`: there is no file {place}")
    try:
        return _of_file(path) if place.endswith(".py") else _of_package(place)
    except Exception as e:
        raise InputError(f"`model_factory`: {place} cannot be imported: {_short(e)}") from e


def _of_package(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a command's path begins with the folder of its script
    return importlib.import_module(name)


def _of_file(path: Path) -> ModuleType:
    """Import a file, once in a process as long as it stays the same."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # stays, because the function itself may import a neighbour
    fingerprint = file_fingerprint(path) or {}
    name = f"model_factory_{path.stem}_{fingerprint['sha256'][:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise InputError(f"{path}: not a file of Python code")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # by this name its classes can be pickled
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _makes(found: object) -> bool:
    """Say whether it may make a network: a network itself can be called, too."""
    return callable(found) and not isinstance(found, nn.Module)


def _takes_classes(function: Callable) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of an extension module does not say
        return True
    return any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)


def _short(e: Exception) -> str:
    """Return the error in one line, with the place in the user's code that raised it."""
    text = short_error(e)
    frames = [f for f in traceback.extract_tb(e.__traceback__) if not f.filename.startswith("<")]
    if isinstance(e, SyntaxError) or frames[-1].filename in (__file__, importlib.__file__):
        return text
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})"
