"""Counts the instructions that a warp executes in the main loop of a kernel, from machine code.

The main loop is the smallest one with the most matrix products. A turn of it is counted as in a
kernel's usual case, by these rules:

- Of branches that round sums (F2FP) a warp takes one, because the sums of a row are in one of them.
- What lies between the branches around these and the loop is executed for two rows at a time.
- Stores of single elements or pairs are not executed where there are stores of 16 bytes.
- A loop that lays a row out takes as many turns as the words of a row need.
"""

import re
from pathlib import Path
from typing import NamedTuple

_LABEL = re.compile(r"^(\.L_x_\d+):")
_CODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_JUMP = re.compile(r"^(@!?U?P\d+ )?BRA (?:!?U?P\d+, )?`\((\.L_x_\d+)\)")
_NARROW = re.compile(r"STG\.E(\.U16)? ")
ROWS_AT_ONCE = 2  # that the row-Hankel kernel stores, `take_row` in csrc/cuda/dwconv_hankel.cu


class Turn(NamedTuple):
    """What a warp executes in a turn of the main loop: instructions, and products among them."""

    instructions: float
    products: int


def functions(listing: str) -> dict[str, str]:
    """Return the code of each function in what ``nvdisasm -c`` prints, by mangled name."""
    parts = re.split(r"^\.text\.(?=\w+:$)", listing, flags=re.MULTILINE)[1:]
    return {part.split(":", 1)[0]: part for part in parts}


def main_loop(code: str, laid_out: int = 1) -> Turn | None:
    """Return what is executed in a turn of a function's main loop; None without products.

    Args:
        code: the function, as `functions` returns it.
        laid_out: the most words of a row that one lane lays out.
    """
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(lines)
        elif instruction := _CODE.match(line):
            lines.append(instruction[1])
    found = [(i, _JUMP.match(line)) for i, line in enumerate(lines)]
    jumps = [(i, labels[m[2]], bool(m[1])) for i, m in found if m and m[2] in labels]

    def count(span: tuple[int, int], word: str) -> int:
        return sum(word in line for line in lines[slice(*span)])

    loops = [(to, i + 1) for i, to, condition in jumps if to <= i and condition]
    most = max((count(loop, "HMMA") for loop in loops), default=0)
    if not most:
        return None
    loop = min((o for o in loops if count(o, "HMMA") == most), key=lambda o: o[1] - o[0])
    skipped = [(i + 1, to) for i, to, _ in jumps if loop[0] <= i < to <= loop[1]]
    weights = [1.0] * len(lines)

    def scale(span: tuple[int, int], factor: float) -> None:
        weights[slice(*span)] = [factor * w for w in weights[slice(*span)]]

    def around(i: int, spans: list) -> tuple[int, int] | None:
        inside = (s for s in spans if s[0] <= i < s[1])
        return min(inside, key=lambda s: s[1] - s[0], default=None)

    rounding = [i for i in range(*loop) if "F2FP" in lines[i]]
    branches = {around(i, skipped) for i in rounding} - {None}
    for branch in branches:
        scale(branch, 1 / len(branches))
    outer = [s for s in skipped if s not in branches and all(s[0] <= i < s[1] for i in rounding)]
    if branches and (both := around(rounding[0], outer)):
        scale(both, 1 / ROWS_AT_ONCE)
        narrow = [i for i in range(*both) if _NARROW.search(lines[i])]
        for span in {around(i, skipped) for i in narrow if count(both, "STG.E.128")} - {both}:
            scale(span, 0)
    for inner in loops:
        if loop[0] < inner[0] and inner[1] < loop[1] and not count(inner, "F2FP"):
            words = count(inner, "STS") // 2  # in one turn; a word is stored twice
            if words and count(inner, "LDS "):
                scale(inner, -(-laid_out // words))
    return Turn(sum(weights[slice(*loop)]), most)


def tool() -> str | None:
    """Return NVIDIA's disassembler, the one on the path or Triton's own, or None."""
    import importlib.util
    import shutil

    found = importlib.util.find_spec("triton")
    own = found and Path(found.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return shutil.which("nvdisasm") or (str(own) if own and own.exists() else None)
