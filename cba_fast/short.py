"""Short reprs of results: a few lines where a full one would print thousands of values."""

import re
import textwrap
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields
from numbers import Real
from typing import Any, ClassVar

LONG = 100  # the most characters in one line


class Short:
    """Base of dataclasses whose repr says how much they hold instead of printing all of it.

    Use with ``@dataclass(repr=False)``. The properties named in `figures` are printed first.
    """

    figures: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        names = (*self.figures, *(f.name for f in fields(self)))  # type: ignore[arg-type]
        return call(type(self).__name__, {name: getattr(self, name) for name in names})


def call(name: str, values: Mapping[str, object]) -> str:
    """Return ``name(key=value, ...)``, one value per line if it is long."""
    parts = [f"{key}={shown(value)}" for key, value in values.items()]
    line = f"{name}({', '.join(parts)})"
    if len(line) <= LONG and "\n" not in line:
        return line
    return f"{name}(\n" + textwrap.indent(",\n".join(parts), "  ") + "\n)"


def shown(value: Any) -> str:
    """Return the repr of a value, or a short description of it where the repr is long."""
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):  # an array or a tensor
        return f"<{tuple(value.shape)} {value.dtype}>"
    if isinstance(value, Mapping):
        if len(value) <= 4 and not isinstance(next(iter(value.values()), None), list | tuple):
            return "{" + ", ".join(f"{k!r}: {shown(v)}" for k, v in value.items()) + "}"
        return f"<{len(value)} by key>" if value else "{}"
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        if len(value) > 12:
            return _many(value)
        items = [shown(v) for v in value]
        text = ", ".join(items)
        if len(text) <= LONG and "\n" not in text:
            return f"[{text}]"
        if len(text) > 10 * LONG or "\n" in text:
            return _many(value)
        return "[\n" + textwrap.indent(",\n".join(items), "  ") + "\n]"
    text = repr(value)
    return text if isinstance(value, Short) or len(text) <= 2 * LONG else f"{text[: 2 * LONG]}..."


def _many(values: Sequence | Set) -> str:
    first = next(iter(values))
    if all(isinstance(v, Real) for v in values):
        return f"<{len(values)} numbers from {min(values):.6g} to {max(values):.6g}>"
    text = re.sub(r"\s+", " ", shown(first))
    return f"<{len(values)}, such as {text[: LONG // 2]}{'...' * (len(text) > LONG // 2)}>"
