"""Compare the box sweep with OpenCV's contours, map by map and level by level.

    python benchmarks/exact_box_sweep.py                    # 200,000 small maps, 10,000 upsampled
    python benchmarks/exact_box_sweep.py --small 1000 --upsampled 10

Every map is swept at all its levels in both contour modes: by the compiled kernels of each
instruction set that the machine runs, with row segments and with the union-find, and by OpenCV. The
boxes must be equal, those of "all" as sorted sets. Prints the number of cases, or the first map
that differs and exits with 1.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import cv2
import numpy as np
import torch
from bench_box_sweep import HARD, KINDS, hard, smooth
from rich.progress import track

from cba_fast.kernels import box_sweep_cpp, native
from cba_fast.reference.box_sweep import box_sweep, box_sweep_all

BATCH = 250  # small maps in a task
SIDES = (16, 24, 32, 48)  # pixels of a side of the upsampled maps


def small_maps(seed: int) -> Iterator[np.ndarray]:
    """Yield maps of up to 14x14 pixels: few levels (ties and holes), many levels, sparse ones."""
    rng = np.random.default_rng(seed)
    for i in range(BATCH):
        shape = rng.integers(1, 15, 2)
        values = rng.integers(0, 256 if i % 50 == 0 else rng.integers(2, 7), shape)
        if i % 10 == 1:
            values *= rng.random(shape) < rng.random()
        yield values.astype(np.uint8)


def upsampled_maps(seed: int) -> Iterator[np.ndarray]:
    """Yield a map of each smooth kind, like real score maps, and every tenth time a hard one."""
    rng = np.random.default_rng(seed)
    size = SIDES[seed % len(SIDES)]
    for kind in KINDS:
        yield (255 * smooth(int(rng.choice((5, 7, 12))), kind, size, rng)).astype(np.uint8)
    if seed % 10 == 0:
        yield (255 * hard(HARD[seed // 10 % len(HARD)], size, rng)).astype(np.uint8)


def differs(u: np.ndarray) -> str | None:
    """Return the name of a kernel that finds other boxes than OpenCV, or None."""
    top = int(u.max())
    thresholds = (np.arange(top) + 0.5) / top if top else np.array([0.0])
    maps, levels = torch.from_numpy(u[None]), torch.from_numpy(thresholds)
    largest, (boxes, offsets) = box_sweep(u[None], thresholds), box_sweep_all(u[None], thresholds)
    for isa in native.build_info()["isas_supported"]:
        for method in ("segments", "pixels"):
            how = {"isa": isa, "method": method}
            if not np.array_equal(box_sweep_cpp.box_sweep(maps, levels, **how), largest):
                return f"{isa}, {method}, largest"
            found = box_sweep_cpp.box_sweep_all(maps, levels, **how)
            if not (np.array_equal(found[0], boxes) and np.array_equal(found[1], offsets)):
                return f"{isa}, {method}, all"
    return None


def compare(task: tuple[str, int]) -> tuple[int, int, str]:
    """Return the numbers of maps and levels that were compared, and a text if one differs."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    name, seed = task
    maps = levels = 0
    for u in (small_maps if name == "small" else upsampled_maps)(seed):
        wrong = differs(u)
        if wrong:
            return maps, levels, f"{wrong}: {u.tolist()}"
        maps, levels = maps + 1, levels + int(u.max())
    return maps, levels, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=200_000, help="Number of small maps.")
    parser.add_argument("--upsampled", type=int, default=10_000, help="Number of smooth maps.")
    args = parser.parse_args()
    tasks = [("small", seed) for seed in range(-(-args.small // BATCH))]
    tasks += [("upsampled", seed) for seed in range(-(-args.upsampled // len(KINDS)))]
    counts: dict[str, np.ndarray] = {}
    # A fork could hang after PyTorch has started its threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        results = pool.map(compare, tasks, chunksize=4)
        for (name, _), (*found, wrong) in track(zip(tasks, results), total=len(tasks)):
            if wrong:
                sys.exit(f"differs from OpenCV {cv2.__version__}: {wrong}")
            counts[name] = counts.get(name, 0) + np.array(found)
    for name, (maps, levels) in counts.items():
        print(f"{name}: {maps:,} maps, {levels:,} (map, level) pairs, both modes: 0 differences")
    isas = ", ".join(native.build_info()["isas_supported"])
    print(f"against OpenCV {cv2.__version__}; instruction sets {isas}; segments and union-find")


if __name__ == "__main__":
    main()
