"""How a setting is declared: once, as a field of a config class.

The field has the type, the range and the choices in its annotation, and the default and the help
text in `setting`. The command's option (`cba_fast.cli.options`), the key of a file of experiments
(`cba_fast.experiments.settings`) and the record in the outputs are made from it.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import InputError


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have. An open end does not belong to it; NaN never does."""

    min: float | None = None
    max: float | None = None
    min_open: bool = False
    max_open: bool = False

    def holds(self, value: float) -> bool:
        """Say whether a number is in the range."""
        above = self.min is None or value > self.min or (value == self.min and not self.min_open)
        below = self.max is None or value < self.max or (value == self.max and not self.max_open)
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        """Return what comes after "must be" in a message."""
        if self.max is not None:
            ends = "(" if self.min_open else "[", ")" if self.max_open else "]"
            return f"in {ends[0]}{self.min:g}, {self.max:g}{ends[1]}"
        if self.min is None:
            return "finite"
        if isinstance(self.min, float):
            return f"{'positive' if self.min_open else '0 or positive'} and finite"
        return "0 or more" if self.min == 0 else f"at least {self.min}"


MANY = "many"  # the mark of settings that hold a tuple of values
Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # what NumPy's generators take
Share = Annotated[float, Range(0, 1, min_open=True)]
PositiveNumber = Annotated[float, Range(0.0, min_open=True)]


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    option: str | tuple[str, ...] = (),
    otherwise: str | None = None,
) -> Any:
    """Declare a field of a config class.

    Args:
        default: the default; none if it is left out.
        help: what the setting does, for users, with an example.
        option: the name of its option, if that is not the field's, and further ones.
        otherwise: what holds if nothing is given, where the default itself does not say it.
    """
    names = (option,) if isinstance(option, str) else option
    text = {"help": help, "option": names, "otherwise": otherwise}
    return dataclasses.field(default=default, metadata=text)


def same(config: Any, name: str, **changes: Any) -> Any:
    """Declare a field as another config class does; `changes` may give another default."""
    field = config.__dataclass_fields__[name]
    return dataclasses.field(**{"default": field.default, **changes}, metadata=field.metadata)


@dataclass(frozen=True)
class Declared:
    """A declared setting, taken apart.

    Attributes:
        name: of the field.
        kind: its type without the rest: int, float, bool, str, `Path`, or what the annotation says.
        choices: of a `Literal`, else empty.
        marks: what its `Annotated` holds, a `Range` for example.
        optional: None is a value, too.
        default: `dataclasses.MISSING` if there is none.
        text: the arguments of `setting`.
    """

    name: str
    kind: Any
    choices: tuple
    marks: tuple
    optional: bool
    default: Any
    text: Mapping[str, Any]

    @property
    def range(self) -> Range | None:
        return next((m for m in self.marks if isinstance(m, Range)), None)

    @property
    def option(self) -> str:
        """The name of its option, and of its key in a file of experiments."""
        return (*self.text["option"], self.name)[0]


@cache
def declared(config: type) -> dict[str, Declared]:
    """Return the settings of a config class by the names of their fields.

    Fields without `setting` are not chosen by users, and are left out.
    """
    hints = get_type_hints(config, include_extras=True)
    return {
        f.name: Declared(f.name, *_parts(hints[f.name]), f.default, f.metadata)
        for f in dataclasses.fields(config)
        if f.metadata
    }


def _parts(hint: Any) -> tuple[Any, tuple, tuple, bool]:
    if get_origin(hint) is Annotated:
        kind, choices, marks, optional = _parts(get_args(hint)[0])
        return kind, choices, (*marks, *hint.__metadata__), optional
    if get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
        rest = [a for a in get_args(hint) if a is not type(None)]
        return (*_parts(rest[0])[:3], True) if len(rest) == 1 else (hint, (), (), True)
    if get_origin(hint) is tuple:
        kind, choices, marks, optional = _parts(get_args(hint)[0])
        return kind, choices, (*marks, MANY), optional
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0]), get_args(hint), (), False
    return hint, (), (), False


def check_values(config: Any) -> None:
    """Refuse a config with a value that is out of range or none of the choices.

    Raises:
        InputError: the message names the setting and its value.
    """
    for name, found in declared(config.__class__).items():
        value = getattr(config, name)
        if (value is None and found.optional) or MANY in found.marks:
            continue
        if found.range and not found.range.holds(value):
            raise InputError(f"`{name}` must be {found.range}, got {value}")
        if found.choices and value not in found.choices:
            raise InputError(f"`{name}` {value!r} is not one of {found.choices}")
