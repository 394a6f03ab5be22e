"""Tables of measured convolutions, from which the automatic choice takes the fastest method.

``cba-fast tune`` measures on the device at hand and writes a table to the user's cache folder.
Tables that were made for this package on named devices lie beside this file. The user's table is
asked first, then the shipped one; where both are silent, `dwconv_choice` has a rule. A table is
read at the first call of the convolution on a device, and asked at the first call of a layout.
"""

import functools
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import files
from ..errors import CbaWarning, InputError
from ..short import Short
from .dwconv_checks import is_channels_last
from .places import HARDWARE, SOFTWARE, place_of

FORMAT = 1
FOLDER_VARIABLE = "CBA_CACHE_DIR"
SHIPPED = Path(__file__).parent
USER, OURS = "yours", "shipped"
METHODS = ("fft", "direct", "conv2d", "torch", "triton", "cuda", "cuda_strip")

# A call that was not measured itself is of the kind of one that was. The sides of a map or a kernel
# are rounded up, because smaller ones waste more of a kernel's work on padding. Images and channels
# are rounded down, because more of them fill a device better. On GPUs the largest power of 2, up to
# 8, that divides both sides of a map is part of the kind, because kernels read rows in such pieces.
KERNEL_SIDES = (1, 3, 5, 7, 9, 13, 21, 31, 51, 63)
ALIGNMENTS = (8, 4, 2, 1)
MAP_SIDES = (7, 14, 28, 56, 112, 224)
IMAGES = (1, 8, 64)
CHANNELS = (32, 128, 512)
_KINDS = {"bfloat16": "half", "float16": "half", "float32": "float32"}
# PyTorch's time falls with the taps, and so does that of a sum over taps; that of the other methods
# does not. In a kind the kernel may have fewer taps than the measured one.
_BY_TAPS = ("conv2d", "torch", "direct")
_CALL = re.compile(r"(\w+) (\w+) (\w+) (\d+)x(\d+)x(\d+)x(\d+)_k(\d+)x(\d+)", re.ASCII)


class Call(NamedTuple):
    """A call of the convolution as far as its speed depends on it: the key of a table."""

    direction: str
    dtype: str
    layout: str
    batch: int
    channels: int
    height: int
    width: int
    kh: int
    kw: int

    def __str__(self) -> str:
        n, c, h, w, kh, kw = self[3:]
        return f"{self.direction} {self.dtype} {self.layout} {n}x{c}x{h}x{w}_k{kh}x{kw}"

    @classmethod
    def parse(cls, text: str) -> "Call":
        """Return the call that is printed as `text`."""
        found = _CALL.fullmatch(text)
        if found is None:
            raise InputError(f"{text!r} is no call of the convolution")
        direction, dtype, layout, *sizes = found.groups()
        return cls(direction, dtype, layout, *map(int, sizes))

    @classmethod
    def of(cls, direction: str, image: Tensor, kernel_size: tuple[int, int]) -> "Call | None":
        """Return the call for an image (N,C,H,W), or None for a kind that is never measured.

        Slices and transposed maps, whose rows may lie anywhere, are not measured.
        """
        dtype, channels_last = str(image.dtype).removeprefix("torch."), is_channels_last(image)
        if dtype not in _KINDS or not _are_dense(image, channels_last):
            return None
        layout = "channels_last" if channels_last else "contiguous"
        return cls(direction, dtype, layout, *image.shape, *kernel_size)  # type: ignore[call-arg]

    def kinds(self, aligned: bool) -> list[str]:
        """Return the names of this call's kind, and of those with fewer images.

        Args:
            aligned: whether the alignment of rows is part of the kind, as it is on GPUs.
        """
        if self.dtype == "float16" and (not aligned or max(self.kh, self.kw) <= 5):
            return []  # PyTorch has other kernels here than for bfloat16, which is measured
        sides = [_at_most(side, KERNEL_SIDES) for side in (self.kh, self.kw)]
        side = next((s for s in MAP_SIDES if self.height * self.width <= s * s), None)
        channels = next((step for step in reversed(CHANNELS) if self.channels >= step), None)
        if None in (*sides, side, channels):
            return []
        first = f"{self.direction} {_KINDS[self.dtype]} {self.layout}"
        if aligned:
            both = (self.height, self.width)
            first += f" by{next(a for a in ALIGNMENTS if all(n % a == 0 for n in both))}"
        rest = f"{channels}x{side}x{side}_k{sides[0]}x{sides[1]}"
        return [f"{first} {n}x{rest}" for n in reversed(IMAGES) if self.batch >= n]

    def smallest_share(self) -> float:
        """Return the taps of the smallest kernel of this kind as a share of these, in (0, 1]."""
        share = 1.0
        for side in (self.kh, self.kw):
            below = max((s for s in KERNEL_SIDES if s < side), default=-1)
            share *= (below + 2) / side
        return share


def _at_most(value: int, steps: Sequence[int]) -> int | None:
    return next((step for step in steps if value <= step), None)


def _are_dense(images: Tensor, channels_last: bool) -> bool:
    """Say whether each image lies in memory without gaps, in this memory format."""
    _, c, h, w = images.shape
    dense = (1, w * c, c) if channels_last else (h * w, w, 1)
    strides = zip((c, h, w), images.stride()[1:], dense, strict=True)
    return all(size == 1 or stride == wanted for size, stride, wanted in strides)


@dataclass(repr=False)
class Table(Short):
    """Measured calls of one device: milliseconds by method, and of PyTorch's other ways.

    Attributes:
        place: the device and versions (`places.place_of`).
        cases: for each `Call`, as text, the milliseconds of each way whose result was right.
        wrong: for each `Call` that has some, the ways that are never taken, and why.
        path: the file; None for a table that is not stored.
        source: `USER` or `OURS`.
    """

    place: dict
    cases: dict[str, dict[str, float]] = field(default_factory=dict)
    wrong: dict[str, dict[str, str]] = field(default_factory=dict)
    path: Path | None = None
    source: str = USER

    def method(self, call: Call, methods: Collection[str]) -> str | None:
        """Return the fastest of `methods` for a call, or None if the table is silent.

        A call that was measured gets the method that was fastest for it; another one gets the
        method that loses least in the worst measured case of its kind.
        """
        for kind in (None, *call.kinds(self.place["kind"] == "cuda")):
            costs = (self._kinds.get(kind) if kind else self.cases.get(str(call))) or {}
            able = {m: cost for m, cost in costs.items() if m in methods}
            if kind and call.direction == "grad_weight":
                # PyTorch's plain weight gradient is wrong for some shapes (see `dwconv_torch`).
                able.pop("conv2d", None)
            if able:
                return min(able, key=lambda m: (able[m], m != "torch"))
        return None

    @functools.cached_property
    def _kinds(self) -> dict[str, dict[str, float]]:
        """For each kind, of each method that was right in all its cases, the worst loss."""
        found: dict[str, list[dict[str, float]]] = {}
        for text, costs in self.cases.items():
            call = Call.parse(text)
            kinds = call.kinds(self.place["kind"] == "cuda")
            if not kinds or not any(m in METHODS for m in costs):
                continue
            share = call.smallest_share()
            costs = {
                m: ms * (share if m in _BY_TAPS else 1) for m, ms in costs.items() if m in METHODS
            }
            least = min(costs.values())
            found.setdefault(kinds[0], []).append({m: ms / least for m, ms in costs.items()})
        return {
            kind: {m: max(c[m] for c in all_costs) for m in set.intersection(*map(set, all_costs))}
            for kind, all_costs in found.items()
        }

    def write(self) -> None:
        """Write the table to its file in one step, a line for each call."""
        if self.path is None:
            raise ValueError("the table has no file that it could be written to")
        lines = [f'"format": {FORMAT}', f'"place": {json.dumps(self.place)}']
        for name in ("cases", "wrong"):
            entries = getattr(self, name).items()
            rows = ",\n".join(f'  "{k}": {json.dumps(v, allow_nan=False)}' for k, v in entries)
            lines.append(f'"{name}": {{\n{rows}\n }}')
        files.write_text(self.path, "{\n " + ",\n ".join(lines) + "\n}\n")


def read(path: Path, source: str = USER) -> Table:
    """Read a table.

    Raises:
        InputError: the file holds something else; the message names it and what is wrong.
        OSError: it cannot be read.
    """
    found = files.read_json(path)
    if not isinstance(found, dict) or "format" not in found:
        raise InputError(f"{path}: this is no table of convolutions")
    if found["format"] != FORMAT:
        raise InputError(f"{path}: it has format {found['format']!r}, this version reads {FORMAT}")
    place, cases, wrong = (found.get(key) for key in ("place", "cases", "wrong"))
    if not (isinstance(place, dict) and isinstance(cases, dict) and isinstance(wrong, dict)):
        raise InputError(f"{path}: 'place', 'cases' and 'wrong' must be objects")
    if missing := [key for key in (*HARDWARE, *SOFTWARE) if key not in place]:
        raise InputError(f"{path}: 'place' lacks {', '.join(missing)}")
    for text, costs in cases.items():
        try:
            Call.parse(text)
        except InputError as e:
            raise InputError(f"{path}: {e}") from None
        if not isinstance(costs, dict) or not all(map(_is_time, costs.values())):
            raise InputError(f"{path}: {text}: not all times are positive numbers: {costs}")
    return Table(place, cases, wrong, path, source)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def user_path(place: dict) -> Path:
    """Return the file of the user's table for a place, in CBA_CACHE_DIR or the cache folder."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder) / file_name(place)
    import platformdirs  # here, because most processes never ask for a table

    return platformdirs.user_cache_path("cba_fast", appauthor=False) / file_name(place)


def file_name(place: dict) -> str:
    """Return the name of the file of a table: what it depends on, but for the versions."""
    parts = [place[key] for key in ("kind", "vendor", "arch", "device")]
    parts += [f"{place['threads']}t"] * bool(place["threads"])
    words = [re.sub("[^a-z0-9]+", "-", str(part).lower()).strip("-") for part in parts]
    return f"dwconv_{'_'.join(words)}.json"


def difference(table: Table, place: dict) -> str | None:
    """Return how the place of a table differs from this one, or None."""
    for key in (*HARDWARE, *SOFTWARE):
        if table.place[key] != place[key]:
            return f"it was measured with {key} {table.place[key]}, here it is {place[key]}"
    return None


_loaded: dict[tuple, list[Table]] = {}
on_change: list[Callable[[], None]] = []  # called when a table has changed


def tables(device: torch.device) -> list[Table]:
    """Return the tables for a device, in the order in which they are asked.

    A user's table that is damaged, or was measured on another device or with other versions, is
    left out with a warning.
    """
    key = (device.type, device.index, torch.get_num_threads())
    if key not in _loaded:
        place = place_of(device)
        _loaded[key] = [t for t in (_users(place), _shipped(place)) if t is not None]
    return _loaded[key]


def forget() -> None:
    """Read the tables again when they are needed next, and choose anew."""
    _loaded.clear()
    for function in on_change:
        function()


def _users(place: dict) -> Table | None:
    return _checked(user_path(place), USER, lambda table: difference(table, place))


def _checked(path: Path, source: str, refuses: Callable[[Table], str | None]) -> Table | None:
    """Return the table of a file; if it cannot be used, warn and return None."""
    try:
        table = read(path, source)
        reason = refuses(table)
    except FileNotFoundError:
        return None
    except InputError as e:
        reason = str(e).removeprefix(f"{path}: ")
    except OSError as e:
        reason = e.strerror or str(e)
    if reason is None:
        return table
    warnings.warn(
        f"{path}: this table of measured convolutions is not used: {reason}; `cba-fast tune` "
        "makes a new one",
        CbaWarning,
        stacklevel=2,
    )
    return None


def _shipped(place: dict) -> Table | None:
    """Return the shipped table of this kind of processor with the nearest number of threads."""
    same = ("kind", "vendor", "arch")

    def distance(table: Table) -> tuple:
        ratio = (table.place["threads"] or 1) / (place["threads"] or 1)
        return table.place["device"] != place["device"], abs(math.log(ratio))

    paths = sorted(SHIPPED.glob(f"dwconv_{place['kind']}_*.json"))
    found = [t for p in paths if (t := _checked(p, OURS, lambda table: None))]
    found = [t for t in found if all(t.place[key] == place[key] for key in same)]
    return min(found, key=distance, default=None)
