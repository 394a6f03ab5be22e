"""Large-kernel CNNs, class activation maps, MaxBoxAcc and effective receptive fields, fast.

Importing ``cba_fast`` itself imports none of its parts, and no torch. CONTRIBUTING.md has a map of
the parts, which are floors: a module imports only from floors below its own.
"""

import importlib
from typing import Any

try:
    from ._version import __version__  # written by the installation, from the tags of git
except ImportError:
    __version__ = "0+unknown"  # a checkout on PYTHONPATH

_LAZY = ("ops", "nn", "models", "data", "wsol", "erf", "errors", "files")
_FUNCTIONS = ("accelerate", "restore")  # of `nn`


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.nn"), name)
    if name == "tune":
        return importlib.import_module(f"{__name__}.bench.tune").tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_FUNCTIONS, "tune"])
