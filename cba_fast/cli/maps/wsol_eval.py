"""``cba-fast wsol-eval``."""

from pathlib import Path

import click

from ..options import (
    box_options,
    json_option,
    np_root_option,
    profile_option,
    statistics_options,
    threads_option,
    threshold_from_option,
)
from ..progress import bar, warn
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
@profile_option()
@json_option()
def command(np_root, box_config, statistics, threshold_from, num_workers, json_path):
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
        if tuned:
            extra["threshold_from"] = transferred_json(scored.transferred, threshold_from)
        write_scores(json_path, result, extra)
    print_end(result, json_path)


def _statistics_settings(statistics, np_root: Path) -> dict:
    from ...runs.settings import settings

    return settings(statistics) | {"np_root": str(np_root)}
