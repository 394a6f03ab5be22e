"""Lets counters of floating point operations know our classes."""

import sys

from torch import nn

# Where counters look a module's exact type up.
_COUNTERS = (
    ("thop.profile", "register_hooks"),
    ("ptflops.pytorch_engine", "MODULES_MAPPING"),
)


def count_as(cls: type[nn.Module], base: type[nn.Module]) -> None:
    """Let thop and ptflops, if they are imported, count modules of type `cls` like those of `base`.

    They take a type that they do not know for one without operations. Both visit a model by
    ``apply`` before they look types up, so that a module can tell them in time from there.
    """
    for module, table in _COUNTERS:
        known = getattr(sys.modules.get(module), table, {})
        if base in known:
            known.setdefault(cls, known[base])
