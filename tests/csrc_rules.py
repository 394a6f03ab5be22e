"""Check rules 1, 2 and 4 of csrc/README.md; as a script, exit with 1 if one is broken."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINDINGS = ("csrc/bindings.cpp", "csrc/bindings_cuda.cpp", "csrc/bindings.h")
BUILD_FILES = ("CMakeLists.txt", "setup.py", "pyproject.toml")
SOURCE_SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".in"}

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
PYTHON = re.compile(r"^(pybind11/|Python\.h$)")
RELAXED = re.compile(
    r"-Ofast|fast[-_]math|-funsafe-math|-ffinite-math|-fassociative-math|-freciprocal-math"
)
# Files compiled for one instruction set, and what they may include.
_KINDS = "(baseline|avx2|avx512|body|kernels)"
_PLAIN = r"common/(dtype|gradients)\.h"
ONE_SET = re.compile(rf"(_{_KINDS}\.(cpp|h)|{_PLAIN})$")
ONE_SET_INCLUDE = re.compile(rf"^(immintrin\.h|stdint\.h|cpu/\w+_{_KINDS}\.h|{_PLAIN})$")


def broken_rules(root: Path) -> Iterator[str]:
    """Yield one line for each place under `root` that breaks a rule."""
    sources = [p for p in sorted(root.glob("csrc/**/*")) if p.suffix in SOURCE_SUFFIXES]
    for path in [*sources, *(root / name for name in BUILD_FILES)]:
        if not path.exists():
            continue
        name = path.relative_to(root).as_posix()
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if RELAXED.search(line):
                yield f"{name}:{number}: relaxed floating point: {line.strip()}"
            include = INCLUDE.match(line)
            if include and name.startswith("csrc/"):
                for reason in _include_errors(name, include[1]):
                    yield f"{name}:{number}: {reason}: {include[1]}"


def _include_errors(name: str, header: str) -> Iterator[str]:
    if TORCH.match(header):
        yield "a PyTorch header"
    if PYTHON.match(header) and name not in BINDINGS:
        yield "a Python header outside the bindings"
    if ONE_SET.search(name) and not ONE_SET_INCLUDE.match(header):
        yield "a header that files of one instruction set must not include"


if __name__ == "__main__":
    broken = list(broken_rules(ROOT))
    print("\n".join(broken) or "csrc rules: kept")
    sys.exit(bool(broken))
