"""Everything that needs an NVIDIA GPU, in one run of at most eight minutes, safe to repeat.

    python benchmarks/gpu_run.py --out gpu_results          # on the GPU machine, network or not
    python benchmarks/gpu_run.py --out dry --dry_run        # anywhere: every path, tiny shapes

Builds the compiled core where a compiler, CMake and pybind11 are found, runs the tests marked gpu,
compute-sanitizer on small cases where it is installed, then measures (`gpu_measure`, `gpu_choice`,
`gpu_networks`): the device's own rates, the ERF ops, the convolutions against PyTorch's three ways
and with them the choice, RepLKNet-31B, its receptive field, an evaluation. Each step is a process
with a time limit, so that a crash or a hang of one costs only that. Results are JSON lines in the
output folder, one file per step, written as they come; `summary.json` says how each step ended.
Exits with 1 if a step failed.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZED = (
    "test_passes_are_within_bounds and bfloat16 and contiguous"
    " and (64x16x12x12 or 2x5x7x7 or 2x3x33x65 or 2x70x13x9) or test_views and unaligned"
)
MEASURED = (
    "rates",
    "erf_ops",
    "convolutions",
    "choice",
    "network",
    "receptive_field",
    "evaluation",
)
# Seconds that a step may take of the default time, in order.
LIMITS = {
    **{"machine": 15, "build": 110, "tests": 150, "sanitizer": 40},
    **{"rates": 15, "erf_ops": 15, "convolutions": 110, "choice": 30, "network": 40},
    **{"receptive_field": 30, "evaluation": 30},
}


class Run:
    """One run: where results go, how much time is left.

    Args:
        out: folder of the results.
        seconds: for everything.
        dry: tiny shapes on the CPU, Triton's kernels in its interpreter.
        limits: cap each step by `LIMITS`, not only by the time that is left.
    """

    def __init__(self, out: Path, seconds: float, dry: bool, limits: bool):
        self.out, self.dry, self.limits = out, dry, limits
        self.end = time.monotonic() + seconds
        self.summary: dict[str, dict] = {}
        self.env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        self.env["TRITON_DEFAULT_FP_FUSION"] = "1"
        if dry:
            self.env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        out.mkdir(parents=True, exist_ok=True)

    def step(self, name: str, function: Callable[["Run", float], dict]) -> None:
        """Run a step and note how it ended."""
        left = self.end - time.monotonic()
        start = time.monotonic()
        if left < 10:
            result = {"status": "skipped", "reason": "no time was left"}
        else:
            try:
                limit = LIMITS[name] if self.limits else left
                result = function(self, min(limit, left - 5))
            except Exception as e:  # the other steps are worth having
                result = {"status": "failed", "reason": f"{type(e).__name__}: {e}"}
        self.summary[name] = result | {"seconds": round(time.monotonic() - start, 1)}
        (self.out / "summary.json").write_text(json.dumps(self.summary, indent=1) + "\n")
        print(f"{name}: {json.dumps(self.summary[name])[:400]}", flush=True)

    def command(self, name: str, arguments: list, limit: float, **kwargs) -> dict:
        """Run a command, its output in ``<name>.log``, and return how it ended."""
        log = self.out / f"{name}.log"
        with log.open("w") as file:
            try:
                code = subprocess.run(
                    [str(a) for a in arguments],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                    env=self.env,
                    cwd=ROOT,
                    check=False,
                    **kwargs,
                ).returncode
            except subprocess.TimeoutExpired:
                return {"status": "failed", "reason": f"took more than {limit:.0f} s"}
        lines = log.read_text(errors="replace").splitlines()[-3:]
        return {"status": "failed" if code else "done", "code": code, "tail": lines}


def machine(run: Run, limit: float) -> dict:
    code = """
import json, torch, triton
from cba_fast.kernels import native
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
    "cudnn": torch.backends.cudnn.version(), "native": native.unavailable(),
    "devices": [{"name": d.name, "capability": [d.major, d.minor], "bytes": d.total_memory,
                 "multiprocessors": d.multi_processor_count} for d in devices]}))
"""
    result = run.command("machine", [sys.executable, "-c", code], limit)
    if result["status"] == "done":
        found = json.loads(result.pop("tail")[-1])
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm", "--format=csv"]
        if shutil.which(query[0]):
            shown = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10)
            found["nvidia_smi"] = shown.stdout.strip()
        found["python"] = platform.python_version()
        (run.out / "machine.json").write_text(json.dumps(found, indent=1) + "\n")
        if not found["devices"] and not run.dry:
            return {"status": "failed", "reason": "PyTorch sees no CUDA device"}
    return result


def build(run: Run, limit: float) -> dict:
    """Build ``cba_fast._C`` in place; without the tools the package runs without it."""
    missing = [t for t in ("cmake", "c++") if not shutil.which(t)]
    missing += [m for m in ("pybind11",) if importlib.util.find_spec(m) is None]
    if missing:
        return {"status": "skipped", "reason": f"not here: {', '.join(missing)} (as CBA_NATIVE=0)"}
    import pybind11

    folder = run.out / "build"
    configure = [
        *("cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release"),
        *(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"),
        *("-DCBA_CUDA_ARCHS=90-real", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'cba_fast'}"),
        *(["-G", "Ninja"] if shutil.which("ninja") else []),
    ]
    if run.dry:
        return {"status": "done", "command": " ".join(map(str, configure))}
    start = time.monotonic()
    result = run.command("build_configure", configure, limit)
    if result["status"] == "done":
        left = limit - (time.monotonic() - start)
        result = run.command("build", ["cmake", "--build", folder, "-j"], left)
    return result


def tests(run: Run, limit: float) -> dict:
    arguments = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    files = ["tests/test_dwconv_gpu.py", "tests"]
    arguments += [*files[: 1 if run.dry else 2], "-o", "addopts=--strict-markers", "-rs"]
    if run.dry:
        arguments.append("--collect-only")
    elif importlib.util.find_spec("xdist"):
        arguments += ["-n", "8"]  # most of the time is compilation
    return run.command("tests", arguments, limit)


def sanitizer(run: Run, limit: float) -> dict:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    arguments = [tool, "--tool", "memcheck", "--error-exitcode", "9", "--target-processes", "all"]
    arguments += [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    arguments += ["tests/test_dwconv_gpu.py", "-k", SANITIZED]
    if run.dry:
        return {"status": "done", "command": " ".join(arguments)}
    if not Path(tool).exists():
        return {"status": "skipped", "reason": "compute-sanitizer is not installed"}
    run.env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # else it knows only the cache's large blocks
    try:
        return run.command("sanitizer", arguments, limit)
    finally:
        del run.env["PYTORCH_NO_CUDA_MEMORY_CACHING"]


def measured(name: str) -> Callable[[Run, float], dict]:
    def step(run: Run, limit: float) -> dict:
        arguments = [sys.executable, __file__, "--out", run.out, "--measure", name]
        arguments += ["--seconds", limit] + ["--dry_run"] * run.dry
        return run.command(name, arguments, limit)

    return step


def measure(name: str, out: Path, dry: bool, seconds: float) -> None:
    """Write the records of one measurement, each as soon as it is there.

    Networks run with the choice that the convolutions measured before lead to.
    """
    import gpu_choice
    import gpu_measure
    import gpu_networks

    from cba_fast.ops import dwconv_gpu

    device = "cpu" if dry else "cuda"
    if name == "choice":
        records = gpu_choice.choice(device, seconds - 15)
    elif hasattr(gpu_measure, name):
        records = getattr(gpu_measure, name)(device)
    else:
        before = [p for p in (out / "convolutions.jsonl", out / "choice.jsonl") if p.exists()]
        if before and not dry:
            methods = gpu_choice.methods(gpu_choice.read(before))
            dwconv_gpu.measured()[_arch()] = {"methods": methods}
        records = getattr(gpu_networks, name)(device)
    with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps({"bench": f"gpu_{name}", **record}) + "\n")
            file.flush()
            print(json.dumps(record), flush=True)


def _arch() -> str:
    import torch

    from cba_fast.ops import dwconv_gpu

    return dwconv_gpu.arch_of(torch.device("cuda", torch.cuda.current_device()))


STEPS = {"machine": machine, "build": build, "tests": tests, "sanitizer": sanitizer}
STEPS |= {name: measured(name) for name in MEASURED}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="Folder of the results.")
    parser.add_argument("--seconds", type=float, default=470, help="For everything.")
    parser.add_argument(
        "--only", action="append", choices=STEPS, help="Default: all; each with a limit."
    )
    parser.add_argument("--dry_run", action="store_true", help="Tiny shapes on the CPU.")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    if args.measure:
        measure(args.measure, args.out, args.dry_run, args.seconds)
        return 0
    run = Run(args.out, args.seconds, args.dry_run, limits=not args.only)
    for name in args.only or STEPS:
        run.step(name, STEPS[name])
    return 1 if any(s["status"] == "failed" for s in run.summary.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
