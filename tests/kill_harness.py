"""Kill long commands at random moments, start them again, and compare with an uninterrupted run.

    PYTHONPATH=. python tests/kill_harness.py --kills 60 [--command train-wsol] [--seed 1]

Half of the signals come at a random time of the run, half just before a random file of the outputs
is opened, renamed or removed. Some commands are killed twice. The last run must end with the files
of an uninterrupted run, byte for byte but for the times that `kill_runs.same_but_times` leaves out.
No process and no temporary file may be left, and a command that can still speak says which signal
ended it.
"""

import argparse
import functools
import itertools
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kill_runs import HERE, Case, Ended, Kill, Runner, contents, differences

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)

_MODEL = "--model_family replknet --model replknet_nano --weights {in}/r.pth"
_IMAGES = "--test_dataset {in}/cub --input_size 64 --num_workers 1 --batch_size 2"
_MAPS = f"{_MODEL} {_IMAGES} --map_size 32"
_TRAIN = "--epochs 3 --batch_size 4 --input_size 64 --output_stride 16 --num_workers 1"
_WSOL = (
    f"--model_family replknet --model replknet_nano --data_root {{in}}/cub {_TRAIN} "
    "--exp_name x --lr 3e-3"
)
CASES = [
    Case("generate-heatmap", f"{_MAPS} --heatmap_output deep/heat"),
    Case("generate-heatmap", f"{_MAPS} --heatmap_output heat --store store"),
    Case("evaluate", f"{_MAPS} --num_samples 4 --json s.json --predictions p.csv --report r.html"),
    Case("erf-compute", f"{_MODEL} {_IMAGES} --num_samples 9 --output erf.npy --save_map map.npy"),
    Case("erf-map", f"{_MODEL} {_IMAGES} --num_images 6 --output map.npy --save_fig map.png"),
    Case("train-wsol", _WSOL),
    Case("collect-erf-wsol", "--config {in}/plan.yaml"),
    Case("wsol-eval", "--np_root {in}/np_heat --cub_root {in}/cub --bootstrap 20 --json s.json"),
    Case("pack-maps", "--np_root {in}/np_heat --store store"),
    Case("analysis-per-image", "--config {in}/models.yaml --num_samples 5 --resamples 20"),
    Case(
        "erf-intervene",
        f"{_MAPS} --num_images 6 --num_samples 2 --bootstrap 20 --radii 6,1 --kinds outer,blur",
    ),
    Case(
        "erf-shape",
        f"--weights {{in}}/f.pth --model slak_flex_nano {_IMAGES} --steps 3 --num_samples 2 "
        "--output shape.npy",
    ),
    Case("synth-cub", "--root synth --classes 2 --images_per_class 20 --size 64"),
    Case("prepare-cub", "--source {in}/cub.tgz --output prepared"),
    Case("demo", "--quick --output demo"),
    Case("generate-heatmap", f"{_MAPS} --heatmap_output heat", ranks=2),
    Case("evaluate", f"{_MAPS} --num_samples 4 --json s.json", ranks=2),
    Case("erf-compute", f"{_MODEL} {_IMAGES} --num_samples 9 --output erf.npy", ranks=2),
    Case("train-wsol", _WSOL, ranks=2),
]


def make_inputs(root: Path) -> Path:
    """Write the images, weights, maps and plan files that the commands read."""
    sys.path.insert(0, str(HERE))
    import yaml
    from checkpoint_factory import make_checkpoint
    from data_factory import cub_archive

    from cba_fast.datasets.prepare import split_images
    from cba_fast.datasets.synth import generate

    generate(root / "cub", classes=3, images_per_class=10, test_per_class=5, size=64)
    split_images(root / "cub")
    cub_archive(root / "cub.tgz", root / "cub")
    for name, family in (("r", "replknet"), ("f", "slak_flex")):
        make_checkpoint(root / f"{name}.pth", family, f"{family}_nano", num_classes=3)
    import numpy as np

    for path in (root / "cub" / "images").rglob("*.jpg"):
        rng = np.random.default_rng(len(path.name))
        to = root / "np_heat" / path.parent.name / f"{path.stem}.npy"
        to.parent.mkdir(parents=True, exist_ok=True)
        np.save(to, rng.random((32, 32)))
    defaults = {"test_dataset": str(root / "cub"), "input_size": 64, "map_size": 32}
    defaults |= {"num_workers": 1, "num_samples": 3, "model": "replknet_nano"}
    defaults |= {"model_family": "replknet"}
    training = {"data_root": str(root / "cub"), "output_stride": 16, "batch_size": 4, "epochs": 2}
    plan = {"defaults": defaults | training, "grid": {"lr": [1e-3, 4e-3]}}
    models = {"defaults": defaults, "experiments": [{"name": "r", "weights": str(root / "r.pth")}]}
    for name, content in (("plan", plan), ("models", models)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return root


@dataclass
class Row:
    """What happened to one case.

    Attributes:
        wanted: the files of an uninterrupted run.
        seconds, events, space: of that run; the last are the bytes of its files.
        kills: the signals that ended a run, counted.
        late: how often a run ended by itself before its signal, or in spite of it.
        early: how often the signal came before the command could speak.
        problems: one line each.
    """

    case: Case
    wanted: dict
    seconds: float
    events: int
    space: int = 0
    kills: Counter = field(default_factory=Counter)
    late: int = 0
    early: int = 0
    problems: list[str] = field(default_factory=list)


def reference(runner: Runner, case: Case) -> Row:
    """Run a case without a kill."""
    folder = runner.root / "whole"
    shutil.rmtree(folder, ignore_errors=True)
    done = runner.run(case, folder)
    if done.status != 0:
        raise SystemExit(f"{case.name} fails without a kill:\n{done.text}")
    space = sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())
    row = Row(case, contents(folder), done.seconds, done.events, space)
    row.problems += [f"uninterrupted: {line}" for line in done.orphans]
    for name in row.wanted:
        partial = "partial" in name and case.name != "erf-shape"  # which keeps its maps
        if ".tmp-" in name or name.endswith(".lock") or partial:
            row.problems.append(f"uninterrupted: {name} is left")
    return row


def fill_disk(runner: Runner, row: Row) -> None:
    """Run a case on a file system with too little space for its files, then give it more."""
    folder, disk = runner.root / "full", ["mount", "-t", "tmpfs", "-o"]
    folder.mkdir()
    subprocess.run([*disk, f"size={row.space // 2}", "none", str(folder)], check=True)
    try:
        done = runner.run(row.case, folder)
        row.problems += done.orphans
        told = "No space left on device" in done.text and "Traceback" not in done.text
        if done.status == 0 or not told:
            row.problems.append(f"full disk: status {done.status}, output: {done.text[-1500:]}")
        subprocess.run([*disk, "remount,size=1g", "none", str(folder)], check=True)
        done = runner.run(row.case, folder)
        if done.status != 0:
            row.problems.append(f"with space again, it fails: {done.text[-1500:]}")
        else:
            found = differences(contents(folder), row.wanted)
            row.problems += [f"full disk: {line}" for line in found]
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def draw(rng: random.Random, row: Row) -> Kill:
    """Draw a signal and its moment."""
    number, by_event = rng.choice(SIGNALS), rng.random() < 0.5 and row.events > 0
    at = rng.randint(1, row.events) if by_event else rng.uniform(0, row.seconds)
    group = row.case.ranks == 1 and rng.random() < 0.4
    return Kill(number, at, group, rng.randrange(row.case.ranks))


def trial(runner: Runner, row: Row, kills: list[Kill], log: Callable[[str], None]) -> None:
    """Kill a case at the given moments, let it end, and note what is wrong."""
    folder, problems = runner.root / "killed", []
    shutil.rmtree(folder, ignore_errors=True)
    for kill in kills:
        done = runner.run(row.case, folder, kill)
        problems += [f"after {kill}: {line}" for line in done.orphans]
        if done.status == 0:
            row.late += 1
            continue
        row.kills[signal.Signals(kill.number).name] += 1
        problems += [f"after {kill}: {line}" for line in wrong_end(row, kill, done)]
    done = runner.run(row.case, folder)
    problems += done.orphans
    if done.status != 0:
        problems.append(f"started again, it fails: {done.text[-1500:]}")
    else:
        problems += differences(contents(folder), row.wanted)
    history = ", then ".join(map(str, kills))
    row.problems += [f"{history}: {line}" for line in problems]
    log(f"{row.case.name} {row.case.ranks}: {history}: {'; '.join(problems) or 'equal'}")


def wrong_end(row: Row, kill: Kill, done: Ended) -> list[str]:
    """Return what is wrong with the exit status and the last line of a killed run."""
    if row.case.ranks > 1:
        return []  # torchrun has the last word
    if kill.number == signal.SIGKILL:
        return [] if done.status == -signal.SIGKILL else [f"exit status {done.status}"]
    if done.status == -kill.number and not kill.by_event:
        row.early += 1
        return []
    name, last = signal.Signals(kill.number).name, (done.text.strip().splitlines() or [""])[-1]
    if done.status == 128 + kill.number and last.startswith(f"Ended by {name}"):
        return []
    return [f"exit status {done.status}, output: {done.text[-1500:]}"]


def survive(
    runner: Runner,
    cases: list[Case],
    count: int,
    seed: int,
    log: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Kill the cases in turn until `count` runs were ended by a signal."""
    rng, rows = random.Random(seed), {}
    for case in itertools.cycle(cases):
        left = count - sum(sum(row.kills.values()) for row in rows.values())
        if left <= 0:
            return list(rows.values())
        row = rows[case] = rows.get(case) or reference(runner, case)
        kills = [draw(rng, row) for _ in range(min(left, rng.choice((1, 1, 1, 2))))]
        trial(runner, row, kills, log)


def table(rows: list[Row]) -> list[str]:
    """Return a line per case, and the count."""
    head = f"{'command':26} {'s':>5} {'events':>6}  {'INT':>3} {'TERM':>4} {'KILL':>4}  late early"
    lines = [head]
    for row in rows:
        name = row.case.name + (f" x{row.case.ranks}" if row.case.ranks > 1 else "")
        name += " --store" if "--store store" in row.case.line and "heat" in name else ""
        counts = [row.kills[s.name] for s in SIGNALS]
        said = f"  {len(row.problems)} PROBLEMS" if row.problems else ""
        lines.append(
            f"{name:26} {row.seconds:5.1f} {row.events:6d}  {counts[0]:3d} {counts[1]:4d} "
            f"{counts[2]:4d}  {row.late:4d} {row.early:5d}{said}"
        )
    kills = sum(sum(row.kills.values()) for row in rows)
    bad = sum(bool(row.problems) for row in rows)
    lines += [f"{kills} kills; {'all survived' if not bad else f'problems in {bad} commands'}"]
    return lines + [f"{row.case.name}: {line}" for row in rows for line in row.problems]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    names = sorted({c.name for c in CASES})
    parser.add_argument("--command", choices=names, action="append", help="may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--fork", action="store_true", help="fork runs from one process, without the imports"
    )
    parser.add_argument("--full_disk", action="store_true", help="fill a tmpfs instead (root only)")
    args = parser.parse_args()
    if args.fork:
        import torch

        torch.set_num_threads(1)
    cases = [c for c in CASES if not args.command or c.name in args.command]
    with tempfile.TemporaryDirectory(prefix="cba_kills_") as root:
        runner = Runner(Path(root), make_inputs(Path(root) / "inputs"), fork=args.fork)
        if args.full_disk:
            rows = [reference(runner, case) for case in cases]
            for row in rows:
                fill_disk(runner, row)
                print(row.case.name, row.problems or "as it should", flush=True)
        else:
            log = functools.partial(print, flush=True)
            rows = survive(runner, cases, args.kills, args.seed, log)
    print("\n".join(table(rows)))
    sys.exit(any(row.problems for row in rows))


if __name__ == "__main__":
    main()
