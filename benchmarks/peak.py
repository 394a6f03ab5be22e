"""Measure the peak of float32 multiplications and additions: ``python benchmarks/peak.py``."""

import argparse
import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).with_name("fma_peak.c")
# The kernels are built in the same way: operations are fused, but floating point is not relaxed.
FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]


def fma_peak_gflops(threads: int, seconds: float = 0.05, repeats: int = 8) -> float | None:
    """Return the most GFLOP/s of `repeats` runs on all `threads`, or None without a C compiler.

    Uses the widest vectors of this processor, whatever CBA_ISA says.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        subprocess.run([*compiler.split(), *FLAGS, str(SOURCE), "-o", str(library)], check=True)
        chains = ctypes.CDLL(str(library)).fma_chains
    chains.restype, chains.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_void_p]

    def run(steps: int) -> float:
        return chains(steps, ctypes.byref(ctypes.c_float()))

    start = time.perf_counter()
    run(1_000_000)
    steps = max(1, int(1e6 * seconds / (time.perf_counter() - start)))
    with ThreadPoolExecutor(threads) as pool:
        rates = [_rate(pool, run, steps, threads) for _ in range(repeats)]
    return max(rates) / 1e9


def _rate(pool: ThreadPoolExecutor, run, steps: int, threads: int) -> float:
    start = time.perf_counter()
    operations = sum(pool.map(run, [steps] * threads))
    return operations / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    threads = parser.parse_args().threads
    peak = fma_peak_gflops(threads)
    text = "no C compiler" if peak is None else f"{peak:.0f} GFLOP/s on {threads} threads"
    print(text)


if __name__ == "__main__":
    main()
