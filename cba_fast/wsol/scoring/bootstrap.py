"""How sure a score is: bootstrap intervals over images, and paired comparisons of two runs."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from ...choices import CONFIDENCE, SCORE_RESAMPLES
from ...errors import InputError
from ...short import Short
from .box_result import V2_IOUS
from .evaluator import BoxEvaluator
from .resampling import check_resampling, draw, parts, percentile_interval
from .row_table import RowTable

BATCH_BYTES = 100 << 20  # of the weights, or counts, of the resamples that are scored at a time
TIE = 1e-9  # percent points, far below one image: equal means of three may differ by rounding
IMAGES = 2048  # whose rows are compared with an IoU threshold at a time


@dataclass(frozen=True, repr=False)
class Interval:
    """A score and its bootstrap interval, in percent.

    Attributes:
        metric: ``"box_acc"`` (the best accuracy of one contour mode and IoU threshold),
            ``"max_box_acc_v2"``, ``"top1_localization"`` or ``"top5_localization"``.
        contours, iou: of ``"box_acc"``; None for the others.
        estimate: the score of the whole set, or the difference of two runs.
        low, high: the percentile interval.
        standard_error: standard deviation of the resamples (ddof 1).
        bias: mean of the resamples minus `estimate`. The maximum over thresholds makes it positive
            for a score; the more so, the fewer images there are.
    """

    metric: str
    contours: str | None
    iou: float | None
    estimate: float
    low: float
    high: float
    standard_error: float
    bias: float

    def __repr__(self) -> str:
        iou = None if self.iou is None else f"IoU {self.iou:g}"
        name = " ".join(filter(None, [self.metric, self.contours, iou]))
        return f"<{name}: {self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]>"


@dataclass(frozen=True, repr=False)
class Difference(Interval):
    """A difference A - B of two runs over the same images, in percent points.

    Attributes:
        a, b: the two scores.
        p_value: two-sided: 2 * (1 + min(#(d <= 0), #(d >= 0))) / (1 + resamples), at most 1, for
            the differences d of the resamples.
    """

    a: float
    b: float
    p_value: float


@dataclass(repr=False)
class BootstrapResult(Short):
    """Intervals (or differences) and how they were made; `to_json` gives JSON values."""

    num_resamples: int
    confidence: float
    seed: int
    num_images: int
    intervals: list[Interval]

    def find(self, metric: str, contours: str | None = None, iou: float | None = None) -> Interval:
        """Return the interval of a score.

        Args:
            metric, contours, iou: as of `Interval`; ``"max_box_acc"`` is ``"box_acc"`` of the
                largest contour at IoU 0.5, as `BoxResult.max_box_acc` is.

        Raises:
            KeyError: there is none.
        """
        if metric == "max_box_acc":
            metric, contours, iou = "box_acc", contours or "largest", iou or 0.5
        for interval in self.intervals:
            if (interval.metric, interval.contours, interval.iou) == (metric, contours, iou):
                return interval
        raise KeyError(f"no interval of {(metric, contours, iou)}; there are {self.intervals}")

    def to_json(self) -> dict:
        """Return the fields as plain JSON values."""
        return asdict(self)


def bootstrap(
    evaluator: BoxEvaluator,
    *,
    num_resamples: int = SCORE_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    missing_as_miss: bool = False,
    correct: dict[str, np.ndarray] | None = None,
) -> BootstrapResult:
    """Estimate intervals of all scores by resampling the images.

    Each resample draws N of the N images with replacement and takes the score anew, its maximum
    over thresholds included; the interval is that of the percentiles (1 - confidence) / 2 and
    (1 + confidence) / 2 of these scores.

    Args:
        evaluator: the evaluated images.
        num_resamples: R >= 2.
        confidence: in (0, 1).
        seed: of NumPy's default generator; the same seed and images give the same intervals.
        missing_as_miss: images without a score map are drawn too, as misses.
        correct: from `correct_classes`, for top-1 and top-5 localization.

    Raises:
        InputError: no image, a bad number or confidence, or `correct` without the largest contour.

    Notes:
        Deterministic and exact: a resample is a row of integer weights, and its counts at all
        thresholds a product of matrices of integers in float32. Thresholds that no image tells
        apart are counted once (at 1,000 thresholds about 255 remain). Memory: some 200 MB.

    Source:
        Efron 1979, "Bootstrap Methods: Another Look at the Jackknife" (percentile interval).

    Example:
        >>> import numpy as np
        >>> from cba_fast.data import load_boxes, map_name
        >>> from cba_fast.wsol import BoxEvaluator, bootstrap
        >>> boxes = load_boxes(cub_root="CUB_200_2011")
        >>> evaluator = BoxEvaluator(boxes)
        >>> maps = [np.load(f"maps/{map_name(i)}") for i in boxes.image_ids]
        >>> evaluator.update(maps, boxes.image_ids)
        >>> bootstrap(evaluator, num_resamples=200).find("max_box_acc_v2")
        <max_box_acc_v2: 94.44 [83.33, 100.00]>
    """
    check_resampling(num_resamples, confidence)
    run = _Run(evaluator, list(evaluator.table.index), correct)
    total = _total(evaluator, missing_as_miss)
    point = run.scores(np.ones((1, len(run.ids)), np.uint16), total)
    weights = _weights(total, len(run.ids), run.num_counts, num_resamples, seed)
    draws = [run.scores(w, total) for w in weights]
    drawn = {key: np.concatenate([d[key] for d in draws]) for key in point}
    intervals = [Interval(*key, *_summary(point[key][0], drawn[key], confidence)) for key in point]  # type: ignore[call-arg]
    return BootstrapResult(num_resamples, confidence, seed, total, intervals)


def compare(
    a: BoxEvaluator,
    b: BoxEvaluator,
    *,
    num_resamples: int = SCORE_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    missing_as_miss: bool = False,
    correct: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None = None,
) -> BootstrapResult:
    """Compare two runs over the same images by a paired bootstrap: is A really better than B?

    Both runs are scored on the same resamples, so that what makes an image hard for both cancels.
    A difference whose interval leaves out 0 is one that other images would hardly reverse.

    Args:
        a, b: evaluators of the same images with the same ground truth; their thresholds may differ,
            contour modes and IoU thresholds that only one of them has are left out.
        num_resamples, confidence, seed: as for :func:`bootstrap`.
        missing_as_miss: as for :func:`bootstrap`; an image that only one run holds is a miss of the
            other.
        correct: that argument of :func:`bootstrap` for `a` and for `b`, each in the order of its
            own ``table.index``.

    Returns:
        The intervals are `Difference` objects.

    Raises:
        InputError: the runs hold different images (with `missing_as_miss`: their ground truths
            do; one is named), other ground truth, or nothing that both have.

    Example:
        >>> import numpy as np
        >>> from cba_fast.data import load_boxes, map_name
        >>> from cba_fast.wsol import BoxEvaluator, compare
        >>> boxes = load_boxes(cub_root="CUB_200_2011")
        >>> runs = {}
        >>> for folder in ("maps", "other_maps"):
        ...     runs[folder] = BoxEvaluator(boxes)
        ...     maps = [np.load(f"{folder}/{map_name(i)}") for i in boxes.image_ids]
        ...     runs[folder].update(maps, boxes.image_ids)
        >>> difference = compare(runs["maps"], runs["other_maps"], num_resamples=200)
        >>> found = difference.find("max_box_acc_v2")
        >>> print(f"{found.estimate:.1f} points, p = {found.p_value:.2f}")
        -5.6 points, p = 0.65
    """
    check_resampling(num_resamples, confidence)
    a.check_boxes(b.boxes)
    ids = _images_of_both(a, b, missing_as_miss)
    total, _ = (_total(run, missing_as_miss) for run in (a, b))  # equal; an empty run is refused
    runs = [
        _Run(e, ids, None if c is None else _in_order(c, e, ids))
        for e, c in zip((a, b), (None, None) if correct is None else correct)
    ]
    one = np.ones((1, len(ids)), np.uint16)
    points = [run.scores(one, total) for run in runs]
    keys = [key for key in points[0] if key in points[1]]
    if not keys:
        raise InputError("the two runs have no contour mode and IoU threshold in common")
    num_counts = max(run.num_counts for run in runs)
    draws = []
    for w in _weights(total, len(ids), num_counts, num_resamples, seed):
        x, y = (run.scores(w, total) for run in runs)
        draws.append({key: x[key] - y[key] for key in keys})
    differences: list[Interval] = []
    for key in keys:
        a_score, b_score = (float(point[key][0]) for point in points)
        drawn = np.concatenate([d[key] for d in draws])
        side = 1 + min(np.count_nonzero(drawn <= TIE), np.count_nonzero(drawn >= -TIE))
        p = min(1.0, 2 * side / (1 + num_resamples))
        told = _summary(a_score - b_score, drawn, confidence)
        differences.append(Difference(*key, *told, a_score, b_score, p))  # type: ignore[call-arg]
    return BootstrapResult(num_resamples, confidence, seed, total, differences)


def _images_of_both(a: BoxEvaluator, b: BoxEvaluator, missing_as_miss: bool) -> list[str]:
    """Return the images that at least one of two runs holds, those of `a` first."""
    sets: tuple = (a.table.index.keys(), b.table.index.keys())
    what = "runs must hold"
    if missing_as_miss:  # what is missing follows from the ground truth
        sets, what = (set(a.boxes.image_ids), set(b.boxes.image_ids)), "ground truths must list"
    only = sorted(sets[0] ^ sets[1])
    if only:
        raise InputError(
            f"the two {what} the same images; {len(only)} are in one of them only, such as "
            f"{only[0]!r}"
        )
    return list(a.table.index | b.table.index)


def _in_order(
    correct: dict[str, np.ndarray], evaluator: BoxEvaluator, ids: list[str]
) -> dict[str, np.ndarray]:
    """Bring `correct` from the order of an evaluator to that of `ids`; False for other images."""
    at = [evaluator.table.index.get(i, -1) for i in ids]
    return {name: np.append(right, False)[at] for name, right in correct.items()}


def _total(evaluator: BoxEvaluator, missing_as_miss: bool) -> int:
    if not len(evaluator):
        raise InputError("no image was evaluated")
    return len(evaluator.boxes.image_ids) if missing_as_miss else len(evaluator)


def _weights(
    total: int, num_images: int, num_counts: int, num_resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield how often each resample draws each image: (r, num_images) uint16 (or uint32).

    The images from `num_images` to `total` are the missing ones, which count nowhere. r is such
    that the weights, and `num_counts` float32 values per resample, stay within `BATCH_BYTES`.
    """
    rng = np.random.default_rng(seed)
    dtype = np.uint16 if total < 2**16 else np.uint32
    size = max(np.dtype(dtype).itemsize * total, 4 * num_counts)
    for part in parts(num_resamples, BATCH_BYTES // size):
        weights = np.empty((part, num_images), dtype)
        for row in weights:
            row[:] = draw(rng, total)[:num_images]
        yield weights


def _percent(counts: np.ndarray, total: int) -> np.ndarray:
    return 100.0 * counts.astype(np.float64) / total


def _summary(
    estimate: float, drawn: np.ndarray, confidence: float
) -> tuple[float, float, float, float, float]:
    low, high = percentile_interval(drawn, confidence) or (math.nan, math.nan)
    error, bias = np.std(drawn, ddof=1), np.mean(drawn) - estimate
    return float(estimate), low, high, float(error), float(bias)


class _Run:
    """Images in a given order, ready to be scored under weights.

    Those of `ids` that the evaluator does not hold are misses at all thresholds.
    """

    def __init__(
        self, evaluator: BoxEvaluator, ids: list[str], correct: dict[str, np.ndarray] | None
    ):
        if correct is not None and "largest" not in evaluator.modes:
            raise InputError("top-1 localization needs the contour mode 'largest'")
        self.evaluator, self.ids = evaluator, ids
        self.columns = _distinct_columns(evaluator)
        self.correct = {k: v.astype(np.float32) for k, v in (correct or {}).items()}
        keys = len(evaluator.modes) * len(evaluator.iou_thresholds) + len(self.correct)
        self.num_counts = keys * len(self.columns)

    def scores(self, weights: np.ndarray, total: int) -> dict[tuple, np.ndarray]:
        """Return each score under each row of `weights` (R, N): key -> (R,) percent."""
        counts, hits = self._counts(weights)
        out = {
            ("box_acc", mode, iou): _percent(c.max(axis=1), total)
            for (mode, iou), c in counts.items()
        }
        if "all" in self.evaluator.modes:
            each = [out["box_acc", "all", iou] for iou in V2_IOUS]
            out["max_box_acc_v2", None, None] = np.mean(each, axis=0)
        if hits:
            # the first of the best is the lowest threshold, as in BoxResult.optimal_threshold
            best = counts["largest", 0.5].argmax(axis=1)
            for name, c in hits.items():
                key = (f"{name}_localization", None, None)
                out[key] = _percent(c[np.arange(len(c)), best], total)
        return out

    def _counts(self, weights: np.ndarray) -> tuple[dict[tuple, np.ndarray], dict[str, np.ndarray]]:
        """Return the weighted counts at the distinct thresholds, (R, T') float32.

        They are exact: integers below 2**24. First those of all localized images by mode and IoU;
        then, by "top1" and "top5", those of the images whose class is right too (IoU 0.5, largest).
        """
        evaluator, shape = self.evaluator, (len(weights), len(self.columns))
        keys = [(mode, iou) for mode in evaluator.modes for iou in evaluator.iou_thresholds]
        counts = {key: np.zeros(shape, np.float32) for key in keys}
        hits = {name: np.zeros(shape, np.float32) for name in self.correct}
        for start in range(0, len(self.ids), IMAGES):
            part = slice(start, start + IMAGES)
            w = weights[:, part].astype(np.float32)
            rows = np.take(_rows(evaluator.table, self.ids[part]), self.columns, axis=2)
            for mode, iou in keys:
                reached = rows[:, evaluator.modes.index(mode)] > evaluator.rank(iou)
                reached = reached.astype(np.float32)
                counts[mode, iou] += w @ reached
                if (mode, iou) == ("largest", 0.5):
                    for name, right in self.correct.items():
                        hits[name] += (w * right[part]) @ reached
        return counts, hits


def _rows(table: RowTable, ids: list[str]) -> np.ndarray:
    """Return the rows of `ids`, (len(ids), M, T); zeros for those that have none."""
    here = np.array([i in table.index for i in ids], bool)
    rows = np.zeros((len(ids), *table.row_shape), np.uint8)
    rows[here] = table.take([i for i in ids if i in table.index])
    return rows


def _distinct_columns(evaluator: BoxEvaluator) -> np.ndarray:
    """Return the thresholds, ascending, without those at which all images do as one below."""
    order = np.argsort(evaluator.thresholds, kind="stable")
    same = np.ones(len(order) - 1, bool)
    for block in evaluator.table.blocks():
        same &= (block[:, :, order[1:]] == block[:, :, order[:-1]]).all(axis=(0, 1))
    return order[np.concatenate([[True], ~same])]
