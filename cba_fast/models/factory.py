"""Calls a user's own function that makes a model."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from ..errors import InputError

_FORM = "package.module:function or path/to/file.py:function"


def load_factory(name: str) -> Callable[..., nn.Module]:
    """Import the function that `name` names; its code is run with all rights of this process.

    Args:
        name: ``package.module:function``, where the module is installed or lies below the working
            directory, or ``file.py:function``, whose file may import its neighbours.

    Raises:
        InputError: `name` has another form, the import fails, or there is no such function.
    """
    place, _, function = name.rpartition(":")
    if not place or not function.isidentifier():
        raise InputError(f"`model_factory` must be {_FORM}, got {name!r}")
    path = Path(place)
    if place.endswith(".py") and not path.is_file():
        raise InputError(f"`model_factory`: there is no file {place}")
    try:
        module = _of_file(path) if place.endswith(".py") else _of_package(place)
    except Exception as e:  # the code is someone else's and may raise anything
        raise InputError(f"`model_factory`: {place} cannot be imported: {_short(e)}") from e
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"`model_factory`: {place} has no function {function!r}")
    return found


def model_from_factory(name: str, **arguments) -> nn.Module:
    """Return the model that the function `name` makes of `arguments`.

    Raises:
        InputError: as `load_factory`; the function raises, or returns something else than a module.
    """
    factory = load_factory(name)
    try:
        model = factory(**arguments)
    except Exception as e:
        raise InputError(f"`model_factory`: {name} raised {_short(e)}") from e
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise InputError(f"`model_factory`: {name} must return a torch.nn.Module, got {kind}")
    return model


def _of_package(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a command's path begins with the folder of its script
    return importlib.import_module(name)


def _of_file(path: Path) -> ModuleType:
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # stays, because the function itself may import a neighbour
    spec = importlib.util.spec_from_file_location(f"model_factory_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # by this name its classes can be pickled
    spec.loader.exec_module(module)
    return module


def _short(e: Exception) -> str:
    return f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"
