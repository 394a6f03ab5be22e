"""The tables of a report for papers, and a row for each image."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..analysis.tables import PaperTable
from ..wsol import BootstrapResult
from ..wsol.scoring.bootstrap import Difference, Interval
from ..wsol.scoring.box_result import V2_IOUS
from .causes import DEFINITIONS, HIT
from .claims import title
from .collect import Collected, class_names

PER_IMAGE: tuple[str, ...] = ("run", "image_id", "iou", "x0", "y0", "x1", "y1", "threshold")
PER_IMAGE += ("cause", "localized", "true_boxes", "map_width", "map_height")


def make_tables(collected: Collected) -> list[PaperTable]:
    """Return all tables of a report; those that have no rows are left out."""
    tables = [
        scores_table(collected),
        differences_table(collected),
        causes_table(collected),
        classes_table(collected),
        erf_table(collected),
    ]
    return [table for table in tables if table.rows]


def headline(collected: Collected) -> list[tuple[str, list[Interval], float, int]]:
    """Return for each run: name, MaxBoxAcc, MaxBoxAccV2 and its parts, best threshold, images."""
    rows = []
    for run in collected.runs:
        parts = [run.intervals.find("box_acc", "all", iou) for iou in V2_IOUS]
        scores = [run.intervals.find("max_box_acc"), run.intervals.find("max_box_acc_v2"), *parts]
        best = run.result.modes["largest"].optimal_threshold
        threshold = best[run.result.iou_thresholds.index(0.5)]
        rows.append((run.name, scores, threshold, run.result.num_images))
    return rows


def scores_table(collected: Collected) -> PaperTable:
    """Return the scores of the runs with their intervals."""
    heads = ["MaxBoxAcc", "MaxBoxAccV2", *(f"V2 at IoU {iou:g}" for iou in V2_IOUS)]
    rows = [
        (name, *(_with_interval(s) for s in scores), f"{threshold:.4g}", str(count))
        for name, scores, threshold, count in headline(collected)
    ]
    return PaperTable(
        "scores",
        f"Localization in percent of the images, with {_intervals(collected)}. The threshold is "
        "that of MaxBoxAcc.",
        ("Run", *heads, "Threshold", "Images"),
        rows,
    )


def differences(collected: Collected) -> list[tuple[str, str, Difference | str]]:
    """Return the pair of runs, the score and the difference; or why they are not compared."""
    rows = []
    for name, found in collected.differences.items():
        pair = f"{collected.runs[0].name} − {name}"  # noqa: RUF001
        if not isinstance(found, BootstrapResult):
            rows.append((pair, "", found))
            continue
        for d in found.intervals:
            v1_or_v2 = (d.contours, d.iou) == ("largest", 0.5) or d.metric == "max_box_acc_v2"
            if v1_or_v2 or d.contours == "all" or d.iou == collected.config.iou_thr:
                rows.append((pair, title(d.metric, d.contours, d.iou), d))
    return rows


def differences_table(collected: Collected) -> PaperTable:
    """Return the paired differences of the first run and the others."""
    rows = [
        (pair, score, f"{d.a:.2f}", f"{d.b:.2f}", _with_interval(d, "+"), f"{d.p_value:.2g}")
        if isinstance(d, Difference)
        else (pair, f"not compared: {d}", "", "", "", "")
        for pair, score, d in differences(collected)
    ]
    return PaperTable(
        "differences",
        f"Paired differences in percent points, with {_intervals(collected)}.",
        ("Runs", "Score", "First", "Second", "Difference", "p"),
        rows,
    )


def causes_table(collected: Collected) -> PaperTable:
    """Return how many images of each run are localized, or fail for which cause."""
    counts = [Counter(j.cause for j in run.judged.values()) for run in collected.runs]
    rows = [
        (cause, *(f"{c[cause]} ({100 * c[cause] / c.total():.1f} %)" for c in counts))
        for cause in DEFINITIONS
    ]
    caption = (
        "Images by cause of failure, at each run's best threshold for IoU "
        f"{collected.config.iou_thr:g} and the largest contour."
    )
    return PaperTable("failures", caption, ("Cause", *_names(collected)), rows)


def classes(collected: Collected) -> list[tuple[str, int, list[float | None]]]:
    """Return name, images and the accuracy of each run for each class; none without labels."""
    if collected.boxes.labels is None:
        return []
    counts: dict[int, int] = {}
    accuracy: dict[int, list[float | None]] = {}
    for n, run in enumerate(collected.runs):
        at = run.result.iou_thresholds.index(collected.config.iou_thr)
        for found in run.evaluator.per_class(run.result):
            counts.setdefault(found.label, found.num_images)
            row = accuracy.setdefault(found.label, [None] * len(collected.runs))
            row[n] = found.box_acc["largest"][at]
    names = class_names(collected.boxes, list(counts))
    return [(names[label], counts[label], accuracy[label]) for label in sorted(counts)]


def classes_table(collected: Collected) -> PaperTable:
    """Return the accuracy of each class."""
    rows = [
        (name, str(count), *("" if a is None else f"{a:.2f}" for a in accuracy))
        for name, count, accuracy in classes(collected)
    ]
    caption = (
        f"Percent of the images at IoU {collected.config.iou_thr:g}, largest contour, at the best "
        "threshold of the whole set."
    )
    return PaperTable("classes", caption, ("Class", "Images", *_names(collected)), rows)


def erf_table(collected: Collected) -> PaperTable:
    """Return the ERF size of each run that has one, and the figures of its ERF map."""
    rows = []
    for run in collected.runs:
        erf = collected.erf.get(run.name)
        if erf is None:
            continue
        size = images = "not measured"
        if erf.sizes is not None:
            size, images = f"{erf.sizes.mean:.1f} ± {erf.sizes.std:.1f}", str(erf.sizes.count)
        figures = ["not measured", *[""] * 5]
        if erf.map is not None:
            h, w = erf.map.erf.map.shape
            free = {r.threshold: r.ratio for r in erf.map.scale_free}
            squares = ["none" if (r := free.get(t)) is None else f"{r:.1%}" for t in (0.5, 0.99)]
            figures = [
                f"{h} x {w}",
                str(erf.map.erf.count or "unknown"),
                f"{erf.map.pixels[0.5] / (h * w):.2%}",
                *squares,
                f"{erf.map.shape.sigma_major:.1f} / {erf.map.shape.sigma_minor:.1f}",
            ]
        rows.append((run.name, size, images, *figures))
    heads: tuple[str, ...] = ("Run", "ERF size", "Images", "Map", "Images of the map")
    heads += ("Half in", "50 % square", "99 % square", "Sigma")
    caption = (
        "ERF size: pixels, mean and standard deviation over the images. Half in: the fewest pixels "
        "that hold half of the ERF map, as a share of the image. Square: the share of the image's "
        "area that the smallest central square with this part of the map covers. Sigma: of the map "
        "along its two axes, in pixels."
    )
    return PaperTable("erf", caption, heads, rows)


def write_per_image(path: Path, collected: Collected) -> None:
    """Write a CSV with a row for each run and image: the box at the best threshold and its IoU.

    Boxes are in pixels of the map and include both corners, true ones are separated by ``;``.
    """
    rows: list[Sequence[object]] = [PER_IMAGE]
    for run in collected.runs:
        for image_id, judged in run.judged.items():
            width, height = run.map_sizes[image_id]
            truth = collected.boxes.scaled(image_id, (width, height)).tolist()
            boxes = "; ".join(" ".join(map(str, box)) for box in truth)
            found = (f"{judged.iou:.6f}", *judged.box, f"{run.threshold:.6g}", judged.cause)
            hit = int(judged.cause == HIT)
            rows.append([run.name, image_id, *found, hit, boxes, width, height])
    files.write_text(path, files.csv_text(rows))


def _names(collected: Collected) -> list[str]:
    return [run.name for run in collected.runs]


def _intervals(collected: Collected) -> str:
    report = collected.report
    return (
        f"{100 * report.confidence:g} % intervals from {report.num_resamples} bootstrap resamples "
        "of the images"
    )


def _with_interval(s: Interval, sign: str = "") -> str:
    return f"{s.estimate:{sign}.2f} [{s.low:{sign}.2f}, {s.high:{sign}.2f}]"
