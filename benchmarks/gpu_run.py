"""Test and measure what needs an NVIDIA GPU, in two calls of about five minutes.

    python benchmarks/gpu_run.py --prebuild python3.12     # elsewhere, before: the compiled core
    python3 benchmarks/gpu_run.py --call 1 --seconds 290 --out /tmp/gpu --archive gpu_1.tar.gz
    python3 benchmarks/gpu_run.py --call 2 --seconds 290 --out /tmp/gpu --archive gpu_2.tar.gz
    python benchmarks/gpu_run.py --call 1 --out dry --dry_run --faults   # on a CPU: tiny shapes

The first call proves on a few small cases that the kernels run, and times the most important
shapes. The second one runs all tests marked gpu, profiles a launch of each main kernel, searches
for bad accesses and races, makes the table of the automatic choice and measures an evaluation.

Nothing is installed, the package runs from here. `--prebuild` compiles the core for the given
Python and for Hopper into ``build/gpu/``. Carried along, that folder saves the build if it belongs
to the same sources and can be imported; otherwise the core is built there.

Each step is a process with a time limit. Each test and each way to compute a case has an alarm,
too: a process that says nothing for so long is killed, and another one goes on behind it. Results
are JSON lines in the output folder, a file for each step; `summary.json` says how each step ended.
The archive holds all of this and is written after each step. Exits with 1 if a step failed.
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
from gpu_tests import run_tests

ROOT = Path(__file__).resolve().parent.parent
FAULTS = Path(__file__).with_name("gpu_faults.py")
RESERVE = 5  # seconds that are kept for the archive and the report


class Step(NamedTuple):
    """A step of a call.

    Attributes:
        turn: steps with the same turn run at the same time; measurements run alone.
        function: takes the run and the seconds that it may use, and returns how it ended.
        limit: the most seconds of the step.
        least: the seconds that must be left for the step to start.
    """

    turn: int
    function: Callable[["Run", float], dict]
    limit: float
    least: float = 10


class Run:
    """One call: the folder of its results, the time that is left, and how each step ended.

    Args:
        out: the folder of the results.
        seconds: the time for everything.
        dry: whether to run tiny shapes on the CPU, with Triton's kernels in its interpreter.
        faults: whether a test that hangs, one that fails and a way that hangs are put in.
        archive: the ``.tar.gz`` file for all results, or None.
        alarm: the seconds after which a test or a way that says nothing is given up.
    """

    root = ROOT

    def __init__(
        self,
        out: Path,
        seconds: float,
        *,
        dry: bool = False,
        faults: bool = False,
        archive: Path | None = None,
        alarm: float = 40,
    ):
        self.out, self.dry, self.archive, self.alarm = out, dry, archive, alarm
        self.more_tests = [FAULTS] if faults else []
        self.end = time.monotonic() + seconds
        self.summary: dict[str, dict] = {}
        self._writing = threading.Lock()
        folders = (ROOT, ROOT / "tests", ROOT / "benchmarks")
        self.env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
        self.env |= {"TRITON_DEFAULT_FP_FUSION": "1", "PYTHONUNBUFFERED": "1", "CBA_GPU_RUN": "1"}
        self.env |= {"CBA_CACHE_DIR": str(out)}  # `tune` writes its table there, networks find it
        self.env |= {"CBA_GPU_FAULTS": "1"} if faults else {}
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
            try:
                result = step.function(self, max(5, min(step.limit, left - RESERVE)))
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

    def command(
        self, name: str, arguments: list, limit: float, *, alarm: float | None = None, **env: str
    ) -> dict:
        """Run a command with its output in ``<name>.log``, and return how it ended."""
        log = self.out / f"{name}.log"
        log.write_text("")
        how = {"env": self.env | env, "cwd": ROOT, "alarm": alarm}
        code = run_limited(arguments, log, limit, **how)
        tail = log.read_text(errors="replace").splitlines()[-3:]
        if code is None:
            return {"status": "failed", "reason": f"hung, or took {limit:.0f} s", "tail": tail}
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
    """Take the core that was carried along, or build it; the package also runs without it."""
    if run.dry:
        command = gpu_commands.configure(ROOT, run.out / "build", sys.executable)
        return {"status": "done", "command": " ".join(map(str, command))}
    if (library := gpu_commands.carried(ROOT)) is not None:
        gpu_commands.install(library, ROOT / "cba_fast")
        check = [sys.executable, "-c", gpu_commands.CHECK]
        if run.command("build_carried", check, min(30, limit))["status"] == "done":
            return {"status": "done", "carried": library.name}
        (ROOT / "cba_fast" / library.name).unlink()
    if missing := gpu_commands.missing_for_build():
        return {"status": "failed", "reason": f"not here: {', '.join(missing)}"}
    start, folder, result = time.monotonic(), run.out / "build", {}
    for name, command in gpu_commands.build(ROOT, folder, sys.executable).items():
        result = run.command(name, command, limit - (time.monotonic() - start))
        if result["status"] != "done":
            return result
    gpu_commands.install(gpu_commands.built(folder), ROOT / "cba_fast")
    return result


def smoke_tests(run: Run, limit: float) -> dict:
    """Run a few small cases of the CUDA and Triton kernels."""
    chosen = f"{gpu_commands.SMALL_CUDA} or {gpu_commands.SMALL_TRITON}"
    return run_tests(run, "smoke_tests", gpu_commands.gpu_test_files(ROOT), chosen, limit)


def tests(run: Run, limit: float) -> dict:
    """Run all tests marked gpu."""
    env = {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
    return run_tests(run, "tests", gpu_commands.gpu_test_files(ROOT), "", limit, env=env)


def sanitized(name: str, check: str, chosen: str) -> Callable[[Run, float], dict]:
    """Return the step that runs small cases under one of the checks of compute-sanitizer."""

    def step(run: Run, limit: float) -> dict:
        tool = gpu_commands.nvidia_tool("compute-sanitizer")
        if tool is None:
            return {"status": "skipped", "reason": "compute-sanitizer is not installed"}
        prefix = (tool, "--tool", check, "--error-exitcode", "9", "--print-limit", "20")
        prefix += ("--target-processes", "application-only")
        # With caching the tool would see only the large blocks that PyTorch cuts tensors from.
        env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        files = gpu_commands.gpu_test_files(ROOT)
        return run_tests(run, name, files, chosen, limit, prefix=prefix, env=env)

    return step


def measured(name: str) -> Callable[[Run, float], dict]:
    """Return the step that measures `name`.

    If a way to compute a case hangs or ends its process, another process goes on without it.
    """

    def step(run: Run, limit: float) -> dict:
        end = time.monotonic() + limit
        records = run.out / f"{name}.jsonl"
        records.write_text("")
        alarm = run.alarm if name == "convolutions" else None
        while True:
            left = end - time.monotonic()
            arguments = [sys.executable, __file__, "--out", run.out, "--measure", name]
            arguments += ["--seconds", left, *["--dry_run"] * run.dry]
            result = run.command(name, arguments, left, alarm=alarm)
            if result["status"] == "done":
                break
            lost = gpu_records.note_lost(records, result.get("code"))
            if not lost or end - time.monotonic() < 20:
                return result
        if lost := [r["lost"] for r in gpu_records.read(records) if "lost" in r]:
            result |= {"status": "failed", "lost": lost}
        return result

    return step


def tuned(*arguments: str) -> Callable[[Run, float], dict]:
    """Return the step that measures for the table of the automatic choice, by ``cba-fast tune``.

    If a kernel ends the process, the same command goes on without it.
    """

    def step(run: Run, limit: float) -> dict:
        end, result = time.monotonic() + limit, {}
        chosen = ("--case", "1x2x6x5_k3x3") if run.dry else arguments
        for attempt in range(3):
            left = end - time.monotonic()
            command = [sys.executable, "-c", gpu_commands.CBA_FAST, "tune", *chosen]
            command += ["--seconds", max(1, left - 15)]
            result = run.command(f"tune_{attempt}", command, left)
            if result["status"] == "done" or left < 40:
                break
        return result

    return step


def profiles(run: Run, limit: float) -> dict:
    """Profile one launch of each main kernel, in a process of its own, with Nsight Compute."""
    tool, end, found = gpu_commands.nvidia_tool("ncu"), time.monotonic() + limit, {}
    if tool is None and not run.dry:
        return {"status": "skipped", "reason": "ncu is not installed"}
    for name, kernel in gpu_commands.PROFILED.items():
        ncu = [tool, *gpu_commands.NCU, "--kernel-name", f"regex:{kernel}"] if tool else []
        arguments = [sys.executable, __file__, "--out", run.out, "--measure", f"launch_{name}"]
        arguments = [*ncu, *arguments, *["--dry_run"] * run.dry]
        left = end - time.monotonic()
        if left > 3:
            found[name] = run.command(f"ncu_{name}", arguments, min(left, 25))["status"]
    well = list(found.values()) == ["done"] * len(gpu_commands.PROFILED)
    return {"status": "done" if well else "failed", **found}


NETWORK = ("--model", "replknet_31b", "--input_size", "384", "--batch_size", "64")
STEPS = {
    "machine": Step(0, machine, 30),
    "build": Step(1, build, 170),
    "smoke_tests": Step(2, smoke_tests, 60),
    "rates": Step(3, measured("rates"), 20),
    "convolutions": Step(4, measured("convolutions"), 130, least=30),
    "tune_network": Step(5, tuned(*NETWORK, "--direction", "forward", "--dtype", "bfloat16"), 45),
    "network": Step(6, measured("network"), 70, least=30),
    "tests": Step(7, tests, 110),
    "memcheck": Step(7, sanitized("memcheck", "memcheck", gpu_commands.SANITIZED), 110),
    "racecheck": Step(7, sanitized("racecheck", "racecheck", gpu_commands.SANITIZED_RACES), 110),
    "profiles": Step(8, profiles, 70),
    "tune": Step(9, tuned(*NETWORK), 80),
    "evaluation": Step(10, measured("evaluation"), 70, least=40),
    "erf_ops": Step(11, measured("erf_ops"), 30),
    "receptive_field": Step(12, measured("receptive_field"), 50, least=30),
    "compiled_network": Step(13, measured("compiled_network"), 240, least=90),
}
CALLS = {
    1: ("machine", "build", "smoke_tests", "rates", "convolutions", "tune_network", "network"),
    2: (
        *("machine", "build", "tests", "memcheck", "racecheck", "profiles"),
        *("tune", "evaluation", "erf_ops", "receptive_field"),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prebuild", metavar="PYTHON", help="Build for this Python; do no more.")
    parser.add_argument("--call", type=int, choices=CALLS, default=1, help="Default: 1.")
    parser.add_argument("--only", action="append", choices=STEPS, help="A step, for the call's.")
    parser.add_argument("--out", type=Path, help="Folder for the results.")
    parser.add_argument("--archive", type=Path, help="A .tar.gz file of all results.")
    parser.add_argument("--seconds", type=float, default=290, help="Time for all. Default: 290.")
    parser.add_argument("--alarm", type=float, default=40, help="Seconds of silence. Default: 40.")
    parser.add_argument("--dry_run", action="store_true", help="Tiny shapes on the CPU.")
    parser.add_argument("--faults", action="store_true", help="Put in what hangs and fails.")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prebuild:
        return gpu_commands.prebuild(ROOT, args.prebuild)
    if args.out is None:
        parser.error("--out is missing, a folder for the results, such as --out /tmp/gpu")
    out = args.out.resolve()
    if args.measure:
        return gpu_records.measure(args.measure, out, args.dry_run, args.seconds)
    how = {"dry": args.dry_run, "faults": args.faults, "alarm": args.alarm}
    run = Run(out, args.seconds, archive=args.archive and args.archive.resolve(), **how)
    chosen = [(name, STEPS[name]) for name in args.only or CALLS[args.call]]
    for _, together in groupby(chosen, key=lambda item: item[1].turn):
        together = list(together)
        with ThreadPoolExecutor(len(together)) as pool:
            list(pool.map(lambda item: run.step(*item), together))
    print("\n".join(gpu_records.report(out)), flush=True)
    return 1 if any(s["status"] == "failed" for s in run.summary.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
