"""``cba-fast wsol-eval``."""

from pathlib import Path

import click

from ...stages import stage
from ..options import (
    box_options,
    images_option,
    json_option,
    np_root_option,
    profile_option,
    report_option,
    sheets_option,
    statistics_options,
    tables_option,
    threads_option,
    threshold_from_option,
)
from ..progress import bar, warn
from .report import tell_written
from .scores import (
    print_accuracies,
    print_end,
    print_scores,
    print_source,
    print_statistics,
    transferred_json,
    write_scores,
)


@click.command()
@np_root_option()
@box_options(with_metadata=True, contours=True)
@statistics_options()
@threshold_from_option()
@threads_option()
@images_option()
@report_option()
@tables_option()
@sheets_option()
@profile_option()
@json_option()
def command(
    np_root,
    box_config,
    statistics,
    threshold_from,
    num_workers,
    images,
    report_path,
    tables,
    sheets,
    json_path,
):
    """Score stored heatmaps against boxes: MaxBoxAcc and MaxBoxAccV2.

    The maps are <class>/<stem>.npy or <image_id>.npy below NP_ROOT, or a store made of such files;
    the boxes come from --cub_root or --metadata_root. `pixel-eval` scores against masks (PxAP).
    """
    if statistics.per_class and json_path is None:
        raise click.UsageError("--per_class needs --json, where the figures are written")
    from ...runs.scoring.boxes import box_settings, read_tuned, score_folder, versions

    tuned = read_tuned(threshold_from) if threshold_from else None
    scored = score_folder(
        np_root, box_config, tuned, bar("scoring"), statistics, num_workers=num_workers
    )
    result, found = scored.result, scored.statistics
    assert found is not None  # `statistics` are given
    warn(scored.notes)
    print_scores(result, box_config.iou_thr, found.bootstrap)
    print_source("Ground truth", scored.evaluator.boxes.source)
    print_statistics(found, box_config.iou_thr, statistics.compare)
    print_accuracies(scored.fixed, "At the threshold asked for")
    print_accuracies(scored.transferred, f"At the thresholds of {threshold_from}")
    if json_path:  # last: if it cannot be written, the scores are on the screen
        extra = {
            **found.to_json(),
            "settings": box_settings(box_config) | _statistics_settings(statistics, np_root),
            "versions": versions(),
        }
        if scored.fixed is not None:
            extra["fixed_threshold"] = scored.fixed
        if scored.transferred is not None:
            extra["threshold_from"] = transferred_json(scored.transferred, threshold_from)
        write_scores(json_path, result, extra)
    print_end(result, json_path)
    written = (report_path, tables, sheets)
    if any(path is not None for path in written):
        with stage("report"):
            _write_report(np_root, box_config, statistics, images, written, num_workers)
        tell_written(*written)


def _write_report(np_root: Path, boxes, statistics, images, written: tuple, num_workers) -> None:
    """Write the report of the maps, and of those that they are compared with."""
    from ...report import write_report
    from ...runs.settings import ReportConfig

    roots = [path for path in (np_root, statistics.compare) if path is not None]
    names = [path.resolve().name for path in roots]
    runs = dict(zip(names if len(set(names)) == len(roots) else map(str, roots), roots))
    asked = {"confidence": statistics.confidence, "seed": statistics.seed}
    if statistics.num_resamples:
        asked["num_resamples"] = statistics.num_resamples
    page, tables, sheets = written
    write_report(
        runs,
        page,
        boxes,
        ReportConfig(**asked),
        images=images,
        tables=tables,
        sheets=sheets,
        num_workers=num_workers,
        progress=bar,
    )


def _statistics_settings(statistics, np_root: Path) -> dict:
    from ...runs.settings import settings

    return settings(statistics) | {"np_root": str(np_root)}
