"""The HTML page of a report: one file that needs no network."""

from collections import Counter
from collections.abc import Callable, Mapping
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import files
from ..choices import READERS
from ..runs.scoring.boxes import box_settings, versions
from ..runs.settings import BoxConfig, ReportConfig, settings
from ..wsol import BootstrapResult
from ..wsol.scoring.box_result import V2_IOUS
from .causes import DEFINITIONS, HIT, SOURCE
from .claims import find_claims, title
from .collect import Collected, class_names, collect
from .gallery import Card, Images, choose, colour_bar, make_cards

# Strokes that differ in dash and in brightness, so that colour alone tells nothing.
STROKES = (
    ("#0059a8", ""),
    ("#b34700", "7 3"),
    ("#00704e", "2 3"),
    ("#7d3c98", "9 3 2 3"),
    ("#333333", "5 2"),
    ("#8a6d00", "1 4"),
)
WIDTH, HEIGHT = 300, 200  # of a plot, without its labels


def write_report(
    score_maps: Mapping[str, Path],
    output: Path,
    boxes: BoxConfig,
    report: ReportConfig | None = None,
    *,
    images: Images = None,
    more_settings: Mapping[str, object] | None = None,
    num_workers: int = READERS,
    progress: Callable[[str], Callable] | None = None,
) -> Collected:
    """Score stored maps of one or more methods and write a page that shows the results.

    Args:
        score_maps: by name of the run, a folder of maps or a store.
        output: the HTML file.
        boxes: ground truth and protocol.
        report: what is shown; None for the defaults.
        images: folder of the images, below which they lie under their ids, or the file of each
            id; None for those of ``boxes.cub_root`` if it is given, else the gallery shows the maps
            alone.
        more_settings: settings that the page tells beside its own, such as the model's.
        num_workers: number of threads that read maps.
        progress: called with what is done, returns ``progress(iterable, total)``.

    Returns:
        All that the page was made from.

    Raises:
        InputError, ScoreMapError: as `collect` and `make_cards`.
        OSError: the file cannot be written.

    Example:
        >>> from pathlib import Path
        >>> write_report(  # doctest: +SKIP
        ...     {"CAM": Path("np_cam"), "PC1": Path("np_pc1")},
        ...     Path("report.html"),
        ...     BoxConfig(cub_root=Path("CUB_200_2011")),
        ... )
    """
    collected = collect(score_maps, boxes, report or ReportConfig(), num_workers, progress)
    if images is None and boxes.cub_root is not None:
        images = Path(boxes.cub_root) / "images"
    files.write_text(output, render(collected, images, more_settings))
    return collected


def render(
    collected: Collected,
    images: Images = None,
    more_settings: Mapping[str, object] | None = None,
) -> str:
    """Return the page as text; arguments and errors as :func:`write_report`."""
    ids, sampling = choose(collected) if collected.report.gallery else ([], "No gallery.")
    cards = list(make_cards(collected, ids, images))
    environment = Environment(
        loader=PackageLoader("cba_fast.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages = package_files("cba_fast.report") / "page"
    return environment.get_template("report.html").render(
        style=Markup((pages / "report.css").read_text("utf-8")),
        script=Markup((pages / "report.js").read_text("utf-8")),
        runs=[_stroked(n, run.name) for n, run in enumerate(collected.runs)],
        boxes=collected.boxes,
        config=collected.config,
        report=collected.report,
        headline=_headline(collected),
        differences=_differences(collected),
        plots=_plots(collected),
        classes=_classes(collected),
        causes=_causes(collected),
        cause_source=SOURCE,
        claims=find_claims(collected),
        notes=[(run.name, note) for run in collected.runs for note in run.notes],
        cards=cards,
        sampling=sampling,
        colour_bar=colour_bar(collected.report.colormap),
        data=_page_data(collected, cards),
        settings=_settings(collected, images, more_settings or {}),
        versions=versions(),
    )


def _stroked(n: int, name: str) -> dict:
    colour, dash = STROKES[n % len(STROKES)]
    return {"name": name, "colour": colour, "dash": dash}


def _headline(collected: Collected) -> list[dict]:
    """Return a row of scores for each run: MaxBoxAcc, MaxBoxAccV2 and its parts."""
    rows = []
    for run in collected.runs:
        parts = [run.intervals.find("box_acc", "all", iou) for iou in V2_IOUS]
        scores = [run.intervals.find("max_box_acc"), run.intervals.find("max_box_acc_v2"), *parts]
        result = run.result
        at = result.iou_thresholds.index(0.5)
        rows.append(
            {
                "name": run.name,
                "scores": scores,
                "threshold": result.modes["largest"].optimal_threshold[at],
                "num_images": result.num_images,
            }
        )
    return rows


def _differences(collected: Collected) -> list[dict]:
    rows = []
    for name, found in collected.differences.items():
        pair = f"{collected.runs[0].name} − {name}"  # noqa: RUF001
        if not isinstance(found, BootstrapResult):
            rows.append({"pair": pair, "reason": found})
            continue
        for d in found.intervals:
            largest_v1 = (d.contours, d.iou) == ("largest", 0.5)
            if d.metric == "max_box_acc_v2" or largest_v1 or d.iou == collected.config.iou_thr:
                name = title(d.metric, d.contours, d.iou)
                rows.append({"pair": pair, "reason": "", "score": name, "d": d})
    return rows


def _plots(collected: Collected) -> list[dict]:
    """Return a plot of accuracy against threshold for each contour mode and IoU threshold."""
    plots = []
    for mode in ("largest", "all"):
        for iou in sorted({*V2_IOUS, collected.config.iou_thr}):
            lines = []
            for n, run in enumerate(collected.runs):
                thresholds = np.array(run.result.thresholds)
                curve = run.result.curve(mode, iou)
                x, y = thresholds * WIDTH, HEIGHT - curve / 100 * HEIGHT
                best = int(np.flatnonzero(curve == curve.max())[0])
                points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))
                line = {"points": points, "x": x[best], "y": y[best], "best": curve[best]}
                lines.append(_stroked(n, run.name) | line | {"threshold": thresholds[best]})
            contours = "largest contour" if mode == "largest" else "all contours"
            plots.append({"title": f"IoU {iou:g}, {contours}", "lines": lines})
    return plots


def _classes(collected: Collected) -> list[dict] | None:
    """Return a row for each class with the accuracy of each run; None without class labels."""
    if collected.boxes.labels is None:
        return None
    rows: dict[int, dict] = {}
    for n, run in enumerate(collected.runs):
        at = run.result.iou_thresholds.index(collected.config.iou_thr)
        for found in run.evaluator.per_class(run.result):
            row = {"num_images": found.num_images, "accuracy": [None] * len(collected.runs)}
            row = rows.setdefault(found.label, row)
            row["accuracy"][n] = found.box_acc["largest"][at]
    names = class_names(collected.boxes, list(rows))
    return [{"name": names[label], **rows[label]} for label in sorted(rows)]


def _causes(collected: Collected) -> list[dict]:
    """Return a row for each cause of a failure: how many images of each run have it."""
    counts = [Counter(j.cause for j in run.judged.values()) for run in collected.runs]
    totals = [len(run.judged) for run in collected.runs]
    return [
        {
            "name": cause,
            "failure": cause != HIT,
            "definition": definition,
            "counts": [(c[cause], 100 * c[cause] / n) for c, n in zip(counts, totals)],
        }
        for cause, definition in DEFINITIONS.items()
    ]


def _page_data(collected: Collected, cards: list[Card]) -> dict:
    """Return what the page's script needs: thresholds, and the boxes of each image and run."""
    first = collected.runs[0]
    thresholds = first.result.thresholds
    best = [thresholds.index(run.threshold) for run in collected.runs]
    return {
        "thresholds": [float(f"{t:.6g}") for t in thresholds],
        "best": best,
        "iou": collected.config.iou_thr,
        "cards": [
            [None if s is None else {"truth": s.truth, "steps": s.steps} for s in card.shown]
            for card in cards
        ],
    }


def _settings(collected: Collected, images: Images, more: Mapping[str, object]) -> dict[str, str]:
    used = {**more, **box_settings(collected.config), **settings(collected.report)}
    if not isinstance(images, Mapping):
        used["images"] = images
    for run in collected.runs:
        if not files.is_temporary(run.source.root):  # which nobody could find
            used[f"score maps of {run.name}"] = run.source.root
    return {key: "not set" if value is None else str(value) for key, value in used.items()}
