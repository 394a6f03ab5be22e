"""MaxBoxAcc's box sweep against the official algorithm: ``pytest benchmarks/bench_box_sweep.py``.

Every case first checks that the IoUs are equal. Then the public op and the baselines take turns in
one process and on one thread. The baselines are the official algorithm (Choe et al., CVPR 2020;
clovaai/wsolevaluation) written plainly with OpenCV, the same algorithm remembering the boxes of
equal masks, and the op's own union-find. All take float64 maps (the union-find takes bytes) and
return the best IoU at each threshold. Times are CPU times of the thread, so that other processes on
a shared machine do not count; two threads are timed by the wall clock. The records are written to
``benchmarks/results/``, from where ``table.py`` prints them.
"""

import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from cba_fast import ops
from cba_fast.kernels import box_sweep_cpp
from cba_fast.reference.box_sweep import box_iou

MODES = ("largest", "all")
ROUNDS = 3
CALLS = 5  # calls of the op in a row for each run of OpenCV, which has 1,000 calls in it
# The call that comes first after OpenCV's finds other data in the caches: it is timed as "cold".
COARSE = (7, 12, 56)
KINDS = ("bicubic", "bilinear", "blurred", "cam")
# On hard maps OpenCV takes up to two minutes for 1,000 thresholds, so that it is timed on every
# 20th one and the time multiplied by 20.
HARD_STEP = 20


def smooth(coarse: int, kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a map of `coarse` x `coarse` random values, upsampled and scaled to [0, 1]."""
    values = rng.random((coarse, coarse))
    if kind == "cam":  # two blobs on noise, cut off below zero as by ReLU
        y, x = np.mgrid[:coarse, :coarse] / coarse
        blobs = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / 0.05) for a, b in rng.random((2, 2))]
        values = np.maximum(sum(blobs) + 0.5 * values - 0.4, 0)
    cubic = kind in ("bicubic", "blurred")
    method = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    values = cv2.resize(values, (size, size), interpolation=method)
    if kind == "blurred":
        values = cv2.GaussianBlur(values, (0, 0), size / 60)
    return (values - values.min()) / np.ptp(values)


def upsampled(coarse: int, kind: str, size: int) -> np.ndarray:
    """Return two maps, or one where OpenCV takes more than a second for it."""
    rng = np.random.default_rng(coarse)
    return np.stack([smooth(coarse, kind, size, rng) for _ in range(1 if coarse == 56 else 2)])


def spiral(n: int) -> np.ndarray:
    """Return a path of ones, one pixel wide, that winds inwards with a gap of one pixel."""
    mask, y, x, length = np.zeros((n, n)), 0, 0, n - 1
    for turn in range(n - 1):
        dy, dx = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn % 4]
        if turn > 2 and turn % 2 == 1:
            length -= 2
        for _ in range(length):
            mask[y, x] = 1
            y, x = y + dy, x + dx
    mask[y, x] = 1
    return mask


def hard(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a map with many or long contours; with ", levels" each pixel has a random value."""
    y, x = np.mgrid[:size, :size]
    ring = np.maximum(abs(y - size // 2), abs(x - size // 2))
    shapes = {
        "noise": lambda: np.ones((size, size)),
        "checkerboard": lambda: (y + x) % 2,
        "spiral": lambda: spiral(size),
        "rings": lambda: ring % 2 * (ring + 1) / (size // 2 + 1),
        "sparse dots": lambda: (y % 4 == 1) & (x % 4 == 1),
        "diagonals": lambda: (y + x) % 4 == 0,
    }
    name, _, levels = kind.partition(", ")
    values = shapes[name]() * (rng.random((size, size)) if levels or name == "noise" else 1.0)
    return values / values.max()


HARD = [
    *("noise", "checkerboard", "checkerboard, levels", "spiral", "spiral, levels", "rings"),
    *("sparse dots", "sparse dots, levels", "diagonals", "diagonals, levels"),
]


def official(maps: np.ndarray, truth: np.ndarray, thresholds, mode: str, remember: bool):
    """Return the best IoU of each map at each threshold as the official evaluator finds it."""
    rows = []
    for scoremap in maps:
        height, width = scoremap.shape
        image = np.expand_dims((scoremap * 255).astype(np.uint8), 2)
        known: dict[int, list] = {}
        boxes, counts = [], []
        for t in thresholds:
            level = int(t * np.max(image))
            here = known.get(level) if remember else None
            if here is None:
                _, mask = cv2.threshold(image, level, 255, cv2.THRESH_BINARY)
                found = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
                if mode == "largest" and found:
                    found = [max(found, key=cv2.contourArea)]
                here = [
                    [x, y, min(x + w, width - 1), min(y + h, height - 1)]
                    for x, y, w, h in map(cv2.boundingRect, found)
                ] or [[0, 0, 0, 0]]
                known[level] = here
            boxes += here
            counts.append(len(here))
        iou = box_iou(np.asarray(boxes), truth).max(1)
        rows.append([part.max() for part in np.split(iou, np.cumsum(counts)[:-1])])
    return np.array(rows)


@pytest.fixture
def file(record):
    """Return a function that records the times of a case."""
    versions = {"opencv": cv2.__version__, "numpy": np.__version__}

    def add(case: str, size: int, mode: str, thresholds: int, threads: int, **values) -> None:
        labels = {"bench": "box_sweep", "direction": mode, "dtype": "float64", "algorithm": "auto"}
        labels["case"] = f"{case}, {size}x{size}, {thresholds} thresholds, {threads} threads"
        record("box_sweep", {**labels, **values, "versions": versions})

    return add


@pytest.fixture(autouse=True)
def one_thread():
    before, cv_before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before)
    cv2.setNumThreads(cv_before)


def seconds(f: Callable, clock: Callable[[], float] = time.thread_time) -> float:
    start = clock()
    f()
    return clock() - start


def truth_for(size: int) -> np.ndarray:
    return np.array([[size // 5, size // 4, size * 2 // 3, size * 3 // 4]])


def compare(benchmark, file, maps, mode, thresholds, step, case) -> None:
    """Check the results, time the rivals in turns and record milliseconds per map."""
    truth, some = truth_for(maps.shape[-1]), thresholds[::step]
    tensors, gt = torch.from_numpy(maps), [truth] * len(maps)
    expected = official(maps, truth, some, mode, remember=False)
    found = ops.best_box_iou(tensors, gt, thresholds, contours=mode).numpy()
    assert np.array_equal(found[:, ::step], expected)
    u, boxes = ops.quantize(tensors), torch.from_numpy(np.concatenate(gt))
    offsets, levels = torch.arange(len(maps) + 1), torch.from_numpy(thresholds)
    pixels = {"method": "pixels"}

    def once():
        ops.best_box_iou(tensors, gt, thresholds, contours=mode)

    runs = {
        "remembering_ms": lambda: official(maps, truth, some, mode, remember=True),
        "union_find_ms": lambda: box_sweep_cpp.best_box_iou(
            u, boxes, offsets, levels, mode, **pixels
        ),
        "official_ms": lambda: official(maps, truth, some, mode, remember=False),
        "ours_cold_ms": once,
    }
    times = {name: [] for name in (*runs, "ours_ms")}
    if step > 1:
        del runs["remembering_ms"]  # few of these thresholds share a level

    def baselines():
        for name, run in runs.items():
            times[name].append(seconds(run) * (step if name == "official_ms" else 1))

    def ours():
        for _ in range(CALLS):
            once()

    benchmark.pedantic(
        lambda: times["ours_ms"].append(seconds(ours) / CALLS), setup=baselines, rounds=ROUNDS
    )
    times = {name: 1e3 * np.array(t) / len(maps) for name, t in times.items() if t}
    medians = {name: float(np.median(t)) for name, t in times.items()}
    speedups = times["official_ms"] / times["ours_ms"]
    file(
        case,
        maps.shape[-1],
        mode,
        len(thresholds),
        1,
        **medians,
        speedup=medians["official_ms"] / medians["ours_ms"],
        speedup_p20_p80=np.percentile(speedups, (20, 80)).tolist(),
        speedup_cold=medians["official_ms"] / medians["ours_cold_ms"],
        official_timed_on=len(some),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coarse", COARSE)
def test_upsampled(benchmark, file, coarse, kind, size, mode):
    maps = upsampled(coarse, kind, size)
    case = f"{coarse}x{coarse} {kind}"
    compare(benchmark, file, maps, mode, np.arange(0, 1, 0.001), 1, case)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coarse", COARSE)
def test_100_thresholds(benchmark, file, coarse, kind, mode):
    maps = upsampled(coarse, kind, 224)
    case = f"{coarse}x{coarse} {kind}"
    compare(benchmark, file, maps, mode, np.arange(0, 1, 0.01), 1, case)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", HARD)
def test_hard(benchmark, file, kind, mode):
    maps = hard(kind, 224, np.random.default_rng(1))[None]
    compare(benchmark, file, maps, mode, np.arange(0, 1, 0.001), HARD_STEP, kind)


@pytest.mark.parametrize("mode", MODES)
def test_two_threads(benchmark, file, mode):
    rng = np.random.default_rng(2)
    maps = torch.from_numpy(np.stack([smooth(12, "bicubic", 224, rng) for _ in range(256)]))
    gt, thresholds = [truth_for(224)] * len(maps), np.arange(0, 1, 0.001)
    times: dict[int, list[float]] = {1: [], 2: []}

    def run(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        return ops.best_box_iou(maps, gt, thresholds, contours=mode)

    def timed(threads: int) -> None:
        times[threads].append(seconds(lambda: run(threads), time.perf_counter))

    assert torch.equal(run(1), run(2))
    benchmark.pedantic(timed, args=(2,), setup=lambda: timed(1), rounds=ROUNDS * CALLS)
    # The fastest rounds are compared, because other processes slow two threads more than one.
    one, two = (1e3 * min(times[n]) / len(maps) for n in (1, 2))
    case = f"{len(maps)} maps 12x12 bicubic, two threads against one"
    values = {"ours_ms": two, "one_thread_ms": one, "speedup": one / two}
    file(case, 224, mode, len(thresholds), 2, **values)
