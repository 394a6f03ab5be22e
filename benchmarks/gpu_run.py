"""Test and measure everything that needs an NVIDIA GPU, in one run of at most eight minutes.

    python3 benchmarks/gpu_run.py --out /tmp/gpu --archive gpu_results.tar.gz  # network or not
    python3 benchmarks/gpu_run.py --out dry --dry_run                 # anywhere: tiny shapes

    # a second run, for more of the table of the choice, and compiled networks
    python3 benchmarks/gpu_run.py --out /tmp/gpu --archive more.tar.gz --seconds 560 \
        --only build --only tune --only compiled_network

It builds the compiled core where a compiler, CMake and pybind11 are found; nothing is installed,
the package runs from here. It runs the tests marked gpu, and small cases under compute-sanitizer
where that is installed. Then it measures (`gpu_measure`, `gpu_networks`) the device's rates, the
ERF ops, the convolutions against PyTorch's three ways, the table of the automatic choice
(``cba-fast tune``), and with that table RepLKNet-31B, its receptive field and an evaluation.

Each step is a process with a time limit, so that a crash or a hang costs only that step. The
results are files of JSON lines in the output folder, one for each step; `summary.json` says how
each step ended; ``dwconv_cuda_*.json`` is the new table for ``cba_fast/ops/``. The archive holds
all of this but the build and is written after each step. The run can be repeated; it exits with 1
if a step failed.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import gpu_commands
import gpu_records
from gpu_process import run_limited

ROOT = Path(__file__).resolve().parent.parent
RESERVE = 20  # seconds that are kept for the table and the archive


class Step(NamedTuple):
    """A step of a run.

    Attributes:
        turn: steps with the same turn run at the same time; measurements run alone.
        function: takes the run and the seconds that it may use, and returns how it ended.
        limit: the most seconds of the step in a run of all steps.
        least: the seconds that must be left for the step to start.
    """

    turn: int
    function: Callable[["Run", float], dict]
    limit: float
    least: float = 10


class Run:
    """One run: the folder of its results, the time that is left, and how each step ended.

    Args:
        out: the folder of the results.
        seconds: the time for everything.
        dry: whether to run tiny shapes on the CPU, with Triton's kernels in its interpreter.
        limits: whether each step has its own limit besides the time that is left.
        archive: the ``.tar.gz`` file for all results, or None.
    """

    def __init__(self, out: Path, seconds: float, dry: bool, limits: bool, archive: Path | None):
        self.out, self.dry, self.limits, self.archive = out, dry, limits, archive
        self.end = time.monotonic() + seconds
        self.summary: dict[str, dict] = {}
        self._writing = threading.Lock()
        self.env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        self.env |= {
            "CBA_CACHE_DIR": str(out)
        }  # where `tune` writes its table, and networks find it
        self.env |= {"TRITON_DEFAULT_FP_FUSION": "1", "PYTHONUNBUFFERED": "1"}
        if dry:
            self.env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        out.mkdir(parents=True, exist_ok=True)

    def step(self, name: str, step: Step) -> None:
        """Run a step and note how it ended."""
        start = time.monotonic()
        left = self.end - start
        if left < step.least:
            result = {"status": "skipped", "reason": f"{max(left, 0):.0f} s were left"}
        else:
            limit = min(step.limit, left) if self.limits else left
            try:
                result = step.function(self, max(5, min(limit, left - RESERVE)))
            except Exception as e:  # the other steps can still run
                result = {"status": "failed", "reason": f"{type(e).__name__}: {e}"}
        result |= {"seconds": round(time.monotonic() - start, 1)}
        with self._writing:
            self.summary[name] = result
            (self.out / "summary.json").write_text(json.dumps(self.summary, indent=1) + "\n")
            self._pack()
            print(f"{name}: {json.dumps(result)[:600]}", flush=True)

    def _pack(self) -> None:
        if self.archive is None:
            return
        part = self.archive.with_name(self.archive.name + ".part")
        with tarfile.open(part, "w:gz") as tar:
            for path in sorted(self.out.iterdir()):
                if path.is_file() and path not in (part, self.archive):
                    tar.add(path, arcname=f"gpu_results/{path.name}")
        part.replace(self.archive)

    def command(self, name: str, arguments: list, limit: float, **env: str) -> dict:
        """Run a command with its output in ``<name>.log``, and return how it ended."""
        log = self.out / f"{name}.log"
        code = run_limited(arguments, log, limit, env=self.env | env, cwd=ROOT)
        tail = log.read_text(errors="replace").splitlines()[-3:]
        if code is None:
            return {"status": "failed", "reason": f"took more than {limit:.0f} s", "tail": tail}
        return {"status": "failed" if code else "done", "code": code, "tail": tail}


def machine(run: Run, limit: float) -> dict:
    """Write down the GPU, the driver and the versions of the machine."""
    result = run.command("machine", [sys.executable, "-c", gpu_commands.MACHINE], limit)
    if result["status"] != "done":
        return result
    found = json.loads(result.pop("tail")[-1])
    found["python"] = platform.python_version()
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem"
        run.command("nvidia_smi", ["nvidia-smi", query, "--format=csv"], 10)
        found["nvidia_smi"] = (run.out / "nvidia_smi.log").read_text(errors="replace").strip()
    (run.out / "machine.json").write_text(json.dumps(found, indent=1) + "\n")
    if not found["devices"] and not run.dry:
        return {"status": "failed", "reason": "PyTorch sees no CUDA device"}
    return result


def build(run: Run, limit: float) -> dict:
    """Build ``cba_fast._C``; skipped if a tool is missing, as the package also runs without it."""
    if missing := gpu_commands.missing_for_build():
        return {"status": "skipped", "reason": f"not here: {', '.join(missing)} (as CBA_NATIVE=0)"}
    folder = run.out / "build"
    configure = gpu_commands.configure(ROOT, folder)
    if run.dry:
        return {"status": "done", "command": " ".join(map(str, configure))}
    start = time.monotonic()
    result = run.command("build_configure", configure, limit)
    if result["status"] == "done":
        left = limit - (time.monotonic() - start)
        how = ["--build", folder, "-j", os.cpu_count() or 1]
        result = run.command("build", [configure[0], *how], left)
    if result["status"] == "done":
        for library in (folder / "lib").glob("_C*.so"):
            gpu_commands.install(library, ROOT / "cba_fast")
    return result


def tests_of_triton(run: Run, limit: float) -> dict:
    """Run the tests that need no compiled core, while it is built."""
    return _tests(
        run, "tests_of_triton", ["tests/ops/test_dwconv_gpu.py"], "triton or automatic", limit
    )


def tests(run: Run, limit: float) -> dict:
    """Run the other tests marked gpu."""
    files = gpu_commands.gpu_test_files(ROOT)
    return _tests(run, "tests", files, "not (test_dwconv_gpu and (triton or automatic))", limit)


def _tests(run: Run, name: str, files: list, chosen: str, limit: float) -> dict:
    more = ["--collect-only"] if run.dry else gpu_commands.in_parallel()
    arguments = gpu_commands.pytest(files, chosen, "-rsfE", "--durations=10", *more)
    return run.command(name, arguments, limit, TORCHINDUCTOR_COMPILE_THREADS="2")


def sanitizer_triton(run: Run, limit: float) -> dict:
    """Run small cases of the Triton kernels under memcheck."""
    files = ["tests/ops/test_dwconv_gpu.py"]
    chosen = gpu_commands.SANITIZED_TRITON
    return _sanitized(run, "sanitizer_triton", "memcheck", files, chosen, limit)


def sanitizer_cuda(run: Run, limit: float) -> dict:
    """Run small cases of the CUDA kernels under memcheck."""
    files = ["tests/ops/test_dwconv_gpu.py", "tests/ops/test_quantize.py", *_CUDA_FILES]
    chosen = gpu_commands.SANITIZED_CUDA
    return _sanitized(run, "sanitizer_cuda", "memcheck", files, chosen, limit)


def sanitizer_races(run: Run, limit: float) -> dict:
    """Run small cases of the CUDA kernels under racecheck."""
    chosen = gpu_commands.SANITIZED_RACES
    return _sanitized(run, "sanitizer_races", "racecheck", list(_CUDA_FILES), chosen, limit)


_CUDA_FILES = tuple(
    f"tests/kernels/test_{name}.py"
    for name in (
        *("dwconv_cuda", "dwconv_cuda_hankel", "dwconv_cuda_strip", "erf_cuda"),
        "box_sweep_cuda",
    )
)


def _sanitized(run: Run, name: str, check: str, files: list, chosen: str, limit: float) -> dict:
    tool = gpu_commands.sanitizer()
    if run.dry:
        arguments = gpu_commands.pytest(files, chosen, "--collect-only")
        return run.command(name, arguments, limit)
    if tool is None:
        return {"status": "skipped", "reason": "compute-sanitizer is not installed"}
    arguments = [tool, "--tool", check, "--error-exitcode", "9", "--print-limit", "20"]
    arguments += ["--target-processes", "application-only", *gpu_commands.pytest(files, chosen)]
    # With caching the tool would see only the large blocks that PyTorch cuts tensors from.
    return run.command(name, arguments, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def measured(name: str) -> Callable[[Run, float], dict]:
    """Return the step that measures `name`.

    If a kernel of ours ends its process, it is started again without that backend.
    """

    def step(run: Run, limit: float) -> dict:
        end = time.monotonic() + limit
        records = run.out / f"{name}.jsonl"
        records.write_text("")
        lost: list[str] = []
        while True:
            left = end - time.monotonic()
            arguments = [sys.executable, __file__, "--out", run.out, "--measure", name]
            arguments += ["--seconds", left, *["--dry_run"] * run.dry]
            arguments += [a for backend in lost for a in ("--without", backend)]
            result = run.command(name, arguments, left)
            if lost:
                result |= {"status": "failed", "lost": lost}
            if result.get("code") != gpu_records.LOST or end - time.monotonic() < 20:
                return result
            lost = [*lost, gpu_records.read(records)[-1]["lost"]]

    return step


STEPS = {
    "machine": Step(0, machine, 60),
    "build": Step(1, build, 170),
    "tests_of_triton": Step(1, tests_of_triton, 170),
    "tests": Step(2, tests, 130),
    "sanitizer_triton": Step(2, sanitizer_triton, 130),
    "sanitizer_cuda": Step(2, sanitizer_cuda, 130),
    "sanitizer_races": Step(2, sanitizer_races, 130),
    "rates": Step(3, measured("rates"), 30),
    "erf_ops": Step(4, measured("erf_ops"), 30),
    "convolutions": Step(5, measured("convolutions"), 120, least=30),
    "tune": Step(6, measured("tune"), 100, least=40),
    "network": Step(7, measured("network"), 70, least=40),
    "receptive_field": Step(8, measured("receptive_field"), 50, least=40),
    "evaluation": Step(9, measured("evaluation"), 80, least=50),
    "compiled_network": Step(10, measured("compiled_network"), 240, least=90),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="Folder for the results.")
    parser.add_argument("--archive", type=Path, help="A .tar.gz file of all results.")
    parser.add_argument("--seconds", type=float, default=470, help="Time for everything.")
    parser.add_argument("--only", action="append", choices=STEPS, help="A step; default: all.")
    parser.add_argument("--dry_run", action="store_true", help="Tiny shapes on the CPU.")
    parser.add_argument("--measure", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--without", action="append", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = args.out.resolve()
    if args.measure:
        return gpu_records.measure(args.measure, out, args.dry_run, args.seconds, args.without)
    archive = args.archive and args.archive.resolve()
    run = Run(out, args.seconds, args.dry_run, limits=len(args.only or STEPS) > 1, archive=archive)
    chosen = [(name, step) for name, step in STEPS.items() if name in (args.only or STEPS)]
    for _, together in groupby(chosen, key=lambda item: item[1].turn):
        together = list(together)
        with ThreadPoolExecutor(len(together)) as pool:
            list(pool.map(lambda item: run.step(*item), together))
    print("\n".join(gpu_records.report(out)), flush=True)
    return 1 if any(s["status"] == "failed" for s in run.summary.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
