"""``cba-fast wsol-eval``."""

from pathlib import Path

import click

from .options import box_options
from .progress import bar, warn
from .scores import print_scores, print_transferred, transferred_json, write_scores


@click.command()
@click.option("--np_root", type=click.Path(path_type=Path), default=Path("np_heatmap_output"))
@box_options(with_metadata=True, contours="largest")
@click.option("--threshold_from", type=click.Path(path_type=Path), help="JSON of another run.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write everything here.")
def command(np_root, box_config, threshold_from, json_path):
    """Score stored heatmaps against boxes: MaxBoxAcc and MaxBoxAccV2.

    The maps are <class>/<stem>.npy or <image_id>.npy below NP_ROOT; the boxes come from --cub_root
    or --metadata_root.
    """
    from cba_fast.study.score import box_settings, read_tuned, score_folder, versions

    tuned = read_tuned(threshold_from) if threshold_from else None
    scored = score_folder(np_root, box_config, tuned, progress=bar("scoring"))
    result = scored.result
    if json_path:
        extra = {
            "settings": box_settings(box_config) | {"np_root": str(np_root)},
            "versions": versions(),
        }
        if tuned:
            extra["threshold_from"] = transferred_json(scored.transferred, threshold_from)
        write_scores(json_path, result, extra)
    warn(scored.notes)
    print_scores(result, box_config.iou_thr)
    if tuned:
        print_transferred(scored.transferred, threshold_from)
    if json_path:
        click.echo(f"Results      : {json_path}")
    elif result.missing:
        click.echo(f"  missing    : {', '.join(result.missing[:3])} ... (all with --json)")
