"""``cba-fast wsol-eval``."""

from pathlib import Path

import click

from .options import box_options, statistics_options
from .progress import bar, warn
from .scores import (
    print_accuracies,
    print_pixel_scores,
    print_scores,
    print_source,
    print_statistics,
    transferred_json,
    write_scores,
)

BOXES_ONLY = (
    "cub_root",
    "iou_thr",
    "contours",
    "threshold",
    "threshold_from",
    "allow_boxes_beyond",
    *("predictions", "per_class", "bootstrap", "confidence", "seed"),
    *("compare", "compare_predictions"),
)


@click.command()
@click.option(
    "--np_root",
    type=click.Path(path_type=Path),
    default=Path("np_heatmap_output"),
    help="Folder of maps, or a store of them.",
)
@box_options(with_metadata=True, contours="largest")
@click.option(
    "--mask_root",
    type=click.Path(path_type=Path),
    help="Score against masks instead (PxAP): the folder of the mask paths in the metadata.",
)
@statistics_options()
@click.option(
    "--threshold_from",
    type=click.Path(path_type=Path),
    help="Also score at the thresholds that this JSON file of another run found best.",
)
@click.option("--num_workers", type=click.IntRange(1, 64), default=2, help="Threads that read.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write everything here.")
@click.pass_context
def command(
    context, np_root, box_config, mask_root, statistics, threshold_from, num_workers, json_path
):
    """Score stored heatmaps: MaxBoxAcc and MaxBoxAccV2 against boxes, or PxAP against masks.

    The maps are <class>/<stem>.npy or <image_id>.npy below NP_ROOT, or a store made of such files;
    the boxes come from --cub_root or --metadata_root.
    """
    if mask_root is not None:
        _check_pixel_options(context)
        _score_pixels(np_root, mask_root, box_config, num_workers, json_path)
        return
    if statistics.per_class and json_path is None:
        raise click.UsageError("--per_class needs --json, where the figures are written")
    from ..runs.score import box_settings, read_tuned, score_folder, versions

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
    _print_end(result, json_path)


def _statistics_settings(statistics, np_root: Path) -> dict:
    from ..runs.settings import settings

    return settings(statistics) | {"np_root": str(np_root)}


def _check_pixel_options(context: click.Context) -> None:
    """Refuse what PxAP has no use for: an option without effect would be a trap."""
    given = [
        name
        for name in BOXES_ONLY
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--{given[0]} is about boxes and does not go with --mask_root")


def _score_pixels(np_root, mask_root, config, num_workers, json_path) -> None:
    from ..data.metadata import find_folder
    from ..runs.score import versions
    from ..runs.score_pixels import PixelConfig, score_pixels
    from ..runs.settings import settings

    if config.metadata_root is None:
        raise click.UsageError("--mask_root needs --metadata_root")
    pixel_config = PixelConfig(
        mask_root,
        config.metadata_root,
        config.dataset_name,
        config.split,
        config.cam_curve_interval,
        config.eval_size,
        config.resize_maps,
        config.missing_as_miss,
        config.clip,
    )
    result, notes = score_pixels(np_root, pixel_config, bar("scoring"), num_workers)
    warn(notes)
    folder = find_folder(config.metadata_root, config.dataset_name, config.split)
    print_pixel_scores(result)
    print_source("Ground truth", str(folder))
    if json_path:
        used = settings(pixel_config) | {"np_root": str(np_root)}
        write_scores(json_path, result, {"settings": used, "versions": versions()})
    _print_end(result, json_path)


def _print_end(result, json_path: Path | None) -> None:
    if json_path:
        click.echo(f"Results      : {json_path}")
    elif result.missing:
        click.echo(f"  missing    : {', '.join(result.missing[:3])} ... (all with --json)")
