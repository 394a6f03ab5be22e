"""``cba-fast wsol-eval``."""

from pathlib import Path

import click

from .options import box_options
from .progress import bar, warn
from .scores import print_scores, print_transferred, read_tuned, write_scores


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
    from cba_fast.study.config import settings
    from cba_fast.study.score import score_folder, transferred_accuracies, versions

    tuned = read_tuned(threshold_from) if threshold_from else None
    scored = score_folder(np_root, box_config, progress=bar("scoring"))
    warn(scored.notes)
    print_scores(scored.result, box_config.iou_thr)
    extra = {"settings": settings(box_config) | {"np_root": str(np_root)}, "versions": versions()}
    if tuned is not None:
        rows = transferred_accuracies(scored.result, tuned, str(threshold_from))
        print_transferred(rows, threshold_from)
        extra["threshold_from"] = {"file": str(threshold_from), "accuracies": rows}
    if scored.result.missing and not json_path:
        click.echo(f"  missing    : {', '.join(scored.result.missing[:3])} ... (all with --json)")
    if json_path:
        write_scores(json_path, scored.result, extra)
