"""Memory and time of ``wsol-eval`` on many maps, such as the 50,000 of ILSVRC's validation set.

    python benchmarks/bench_scale.py --maps 10000 25000 50000 --record

The maps are 12x12 random values upscaled to 224x224 and stored as float64, as the study stores its
maps. There are 200 different ones; the other files are links to them, because 50,000 of them would
take 20 GB. Each run has a process of its own, which tells its peak memory beside what importing
PyTorch takes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from cba_fast.bench.records import add_record, device_slug, machine

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from data_factory import metadata_folder

RESULTS = Path(__file__).parent / "results"
DIFFERENT = 200
CLASSES = 1000

# What a process of its own does: argv are the arguments of `cba-fast`.
MEASURED = """
import json, sys, time
import torch
from cba_fast.cli.main import main

def kib(field):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(field))

imported = kib("VmRSS")
start = time.perf_counter()
try:
    main(sys.argv[1:])
except SystemExit as e:
    assert not e.code
print(json.dumps({"s": time.perf_counter() - start, "kib": kib("VmHWM") - imported}))
"""


def write_maps(root: Path, count: int, size: int) -> None:
    """Write `count` maps and metadata with a box for each."""
    random = np.random.default_rng(0)
    ids = [f"{i % CLASSES:04}/{i:05}.jpg" for i in range(count)]
    paths = [root / "maps" / i.replace(".jpg", ".npy") for i in ids]
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    for path in paths[:DIFFERENT]:
        values = cv2.resize(random.random((12, 12)), (size, size))
        np.save(path, (values - values.min()) / np.ptp(values))
    for number, path in enumerate(paths[DIFFERENT:]):
        os.link(paths[number % DIFFERENT], path)
    corners = random.integers(0, 250, (count, 2)).tolist()
    boxes = {i: [(x, y, x + 200, y + 200)] for i, (x, y) in zip(ids, corners)}
    labels = {i: int(i.split("/")[0]) for i in ids}
    metadata_folder(root / "meta", boxes, dict.fromkeys(ids, (500, 500)), labels)


def measure(count: int, size: int, interval: float, contours: str, workers: int) -> dict:
    """Return seconds, peak memory beside PyTorch, and the profile of one run."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_maps(root, count, size)
        command = ["wsol-eval", "--np_root", root / "maps", "--metadata_root", root / "meta"]
        command += ["--cam_curve_interval", interval, "--contours", contours]
        command += ["--num_workers", workers, "--json", root / "found.json", "--profile"]
        made = subprocess.run(
            [sys.executable, "-c", MEASURED, *map(str, command)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(made.stdout.splitlines()[-1])
        result = json.loads((root / "found.json").read_text())
    assert result["num_images"] == count
    return {
        "maps": count,
        "seconds": round(found["s"], 2),
        "us_per_map": round(1e6 * found["s"] / count, 1),
        "peak_mb_beside_torch": round(found["kib"] * 1024 / 1e6, 1),
        "profile": result["profile"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, nargs="+", default=[10000, 25000, 50000])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--interval", type=float, default=0.001)
    parser.add_argument("--contours", default="both")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="Add the result to results/.")
    args = parser.parse_args()
    how = (args.size, args.interval, args.contours, args.workers)
    for count in args.maps:
        found = measure(count, *how)
        print(found)
        if args.record:
            record = {"bench": "scale", "case": f"{count} maps {args.size}"}
            record |= {
                "direction": "wsol-eval",
                "size": args.size,
                "interval": args.interval,
                "contours": args.contours,
                **found,
            }
            path = RESULTS / f"scale_{device_slug()}.jsonl"
            add_record(path, {**record, "machine": machine()})


if __name__ == "__main__":
    main()
