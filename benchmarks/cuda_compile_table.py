"""Compile the CUDA kernels for GPUs that need not be here; print their registers and memory.

    python benchmarks/cuda_compile_table.py                       # everything, as a table
    python benchmarks/cuda_compile_table.py --show benchmarks/results/gpu_compile/nvcc-13.0.jsonl
    python benchmarks/cuda_compile_table.py --source erf_size.cu --arch sm_90
    python benchmarks/cuda_compile_table.py --json benchmarks/results/gpu_compile/nvcc-13.0.jsonl

The figures are those that ``nvcc -Xptxas -v`` prints and, for kernels with matrix products, the
instructions and products of a turn of the main loop (`machine_code`): a row of an image where the
number of steps is fixed, else a step. Exits with 1 if a kernel spills registers.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import machine_code

CSRC = Path(__file__).resolve().parent.parent / "csrc"
ARCHS = ("sm_80", "sm_90", "sm_100")
COLUMNS = ("nvcc", "source", "kernel", "arch", "registers", "spills", "stack", "shared")
COLUMNS += ("instructions", "products")

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def sources() -> list[Path]:
    """Return the CUDA sources of the package."""
    return sorted((CSRC / "cuda").glob("*.cu"))


def digest(source: Path) -> str:
    """Return a fingerprint of a source and of all headers it could include."""
    headers = sorted([*(CSRC / "cuda").glob("*.h"), *(CSRC / "common").glob("*.h")])
    return hashlib.sha256(b"".join(p.read_bytes() for p in [source, *headers])).hexdigest()[:16]


def nvcc_version() -> str:
    """Return the version of nvcc: "13.0"."""
    shown = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    return re.search(r"release ([\d.]+)", shown.stdout)[1]


def compiled(source: Path, arch: str) -> list[dict]:
    """Return a record of each kernel of `source` on `arch`, with its registers and memory.

    Raises:
        RuntimeError: `source` does not compile; the message is that of nvcc.
    """
    number = arch.removeprefix("sm_")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("nvcc", "-O3", "-std=c++17", f"-I{CSRC}", "-Xptxas", "-v", "-cubin"),
            *("-gencode", f"arch=compute_{number},code=sm_{number}"),
            *("-o", f"{folder}/kernels.cubin", str(source)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        tool, listing = machine_code.tool(), ""
        if tool and done.returncode == 0:
            command = [tool, "-c", f"{folder}/kernels.cubin"]
            listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    common = {"source": source.name, "digest": digest(source)}
    code = machine_code.functions(listing)
    return [common | record for record in _records(done.stdout + done.stderr, code)]


def _records(output: str, code: dict[str, str]) -> Iterator[dict]:
    """Read the figures of each kernel from the output of ptxas and from its machine code."""
    starts = list(_ENTRY.finditer(output))
    names = _demangled([m[1] for m in starts])
    ends = [m.start() for m in starts[1:]] + [len(output)]
    for match, name, end in zip(starts, names, ends, strict=True):
        text = output[match.end() : end]
        stack, stores, loads = map(int, _STACK.search(text).groups())
        shared = _SHARED.search(text)
        turn = machine_code.main_loop(code.get(match[1], ""), _laid_out(name))
        yield {
            "kernel": name,
            "arch": match[2],
            "registers": int(_USED.search(text)[1]),
            "spills": stores + loads,
            "stack": stack,
            "shared": int(shared[1]) if shared else 0,
            **(
                {"instructions": round(turn.instructions, 1), "products": turn.products}
                if turn
                else {}
            ),
        }


def _laid_out(kernel: str) -> int:
    """Return how many words of a row a lane of the row-Hankel kernel lays out; 1 for others."""
    tile = re.search(r"hankel_kernel<\w+, \(?(?:int\)?)?(\d+), (\d+), (\d+), (\d+)>", kernel)
    if tile is None:
        return 1
    _, columns, images, steps = map(int, tile.groups())
    return -(-(4 * columns + 8 * steps) * images // 32)


def _demangled(names: list[str]) -> list[str]:
    """Return the names as they are in the source, without namespaces and parameters."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None or not names:
        return names
    shown = subprocess.run([tool, *names], capture_output=True, text=True, check=True)
    plain = [re.sub(r"\(anonymous namespace\)::|\bcba::", "", n) for n in shown.stdout.splitlines()]
    return [re.sub(r"^void ", "", re.sub(r"\(.*", "", name)) for name in plain]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [path.name for path in sources()]
    parser.add_argument("--source", action="append", choices=names, help="Default: all.")
    parser.add_argument("--arch", action="append", choices=ARCHS, help="Default: all.")
    parser.add_argument("--json", type=Path, help="Write the records as JSON lines.")
    parser.add_argument("--show", type=Path, help="Print a file of records; compile nothing.")
    args = parser.parse_args()
    if args.show:
        records = [json.loads(line) for line in args.show.read_text().splitlines()]
    else:
        todo = [p for p in sources() if not args.source or p.name in args.source]
        jobs = [(path, arch) for path in todo for arch in args.arch or ARCHS]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = pool.map(lambda job: compiled(*job), jobs)
            version = nvcc_version()
            records = [{"nvcc": version, **record} for part in parts for record in part]
    print("Memory is in bytes; shared memory is without what a launch adds.\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    print("\n".join("| " + " | ".join(str(r.get(c, "")) for c in COLUMNS) + " |" for r in records))
    if args.json:
        args.json.write_text("".join(json.dumps(r) + "\n" for r in records))
    return 1 if any(r["spills"] for r in records) else 0


if __name__ == "__main__":
    sys.exit(main())
