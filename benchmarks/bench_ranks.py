"""What it costs to share the images of `evaluate` among processes: N with one thread, one with N.

    python benchmarks/bench_ranks.py --images 48

Both ways run in turns on the same generated images and the same number of threads in all. Starting
Python and the network takes the same time for any number of images, so each way also runs on a few
images, and the seconds per image are those of the difference. The overhead is how much longer the
processes need for an image.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cba_fast.datasets.synth import generate

FEW = 8


def command(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "cba_fast"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    return [*start, str(processes), "-m", "cba_fast"]


def seconds(processes: int, threads: int, images: Path, scores: Path, options: list[str]) -> float:
    """Return how long one run of `evaluate` takes; it writes `scores`."""
    scores.unlink(missing_ok=True)
    args = ["evaluate", "--test_dataset", images, "--json", scores, "--num_samples", 0, *options]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    done = subprocess.run(
        [*command(processes), *map(str, args)], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=48, help="Images of a run.")
    parser.add_argument("--processes", type=int, default=2, help="N, also the threads of the one.")
    parser.add_argument("--rounds", type=int, default=3, help="Times that each way runs.")
    parser.add_argument("--model", default="convnext_base", help="Network of the study.")
    parser.add_argument("--input_size", type=int, default=384)
    parser.add_argument("--batch_size", type=int, default=8)
    args = parser.parse_args()
    options = ["--model_family", args.model.split("_")[0], "--model", args.model]
    options += ["--input_size", args.input_size, "--batch_size", args.batch_size]
    options += ["--num_workers", 0, "--device", "cpu"]
    with tempfile.TemporaryDirectory() as folder:
        root, times, found = Path(folder), {}, {}
        for count in (FEW, args.images):
            generate(root / str(count), classes=2, images_per_class=count // 2 + 1,
                     test_per_class=count // 2, size=args.input_size)  # fmt: skip
        for _ in range(args.rounds):
            for processes, threads in ((1, args.processes), (args.processes, 1)):
                for count in (FEW, args.images):
                    scores = root / f"{processes}.json"
                    spent = seconds(processes, threads, root / str(count), scores, options)
                    times.setdefault((processes, count), []).append(spent)
                found[processes] = json.loads(scores.read_text())
    one, many = (found[n]["max_box_acc"] for n in (1, args.processes))
    print(f"MaxBoxAcc: {one} by one process, {many} by {args.processes}")
    whole = {key: statistics.median(each) for key, each in times.items()}
    each = {
        n: (whole[n, args.images] - whole[n, FEW]) / (args.images - FEW)
        for n in (1, args.processes)
    }
    print("time by the number of processes:")
    for n, per_image in each.items():
        print(f"of {n}: {1e3 * per_image:.1f} ms an image, {whole[n, FEW]:.1f} s for {FEW} of them")
    print(f"overhead: {100 * (each[args.processes] / each[1] - 1):+.1f} %")


if __name__ == "__main__":
    main()
