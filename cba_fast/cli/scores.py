"""How box scores are printed and written, for the commands that compute them."""

import json
from pathlib import Path

import click

from cba_fast import files
from cba_fast.errors import InputError


def print_scores(result, iou_thr: float) -> None:
    """Print the box metrics of a `BoxResult` at the IoU threshold asked for."""
    at = result.iou_thresholds.index(iou_thr)
    for mode, title in (("largest", "MaxBoxAcc    "), ("all", "  all contours")):
        if mode in result.modes:
            scores = result.modes[mode]
            click.echo(f"{title}: {scores.max_box_acc[at]:.2f}%")
            click.echo(f"  threshold  : {scores.optimal_threshold[at]:.4g} (IoU {iou_thr:g})")
    if result.max_box_acc_v2 is not None:
        click.echo(f"MaxBoxAccV2  : {result.max_box_acc_v2:.2f}%")
    missing = f", {len(result.missing)} missing" if result.missing else ""
    click.echo(f"Images       : {result.num_images} counted{missing}")


def read_tuned(path: Path) -> dict:
    """Read the JSON file of another run.

    Raises:
        InputError: not readable as a JSON object.
    """
    try:
        tuned = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: cannot be read as JSON: {e}") from e
    if not isinstance(tuned, dict):
        raise InputError(f"{path}: not a JSON object")
    return tuned


def print_transferred(rows: list[dict], source: Path) -> None:
    """Print accuracies at thresholds tuned elsewhere beside the best ones."""
    click.echo(f"At the thresholds of {source}:")
    for row in rows:
        click.echo(
            f"  {row['contours']:7} IoU {row['iou']:g}: {row['box_acc']:.2f}% at "
            f"{row['threshold']:.4g} (best here {row['max_box_acc']:.2f}%)"
        )


def write_scores(path: Path, result, extra: dict) -> None:
    """Write the JSON object of a run and say where it is."""
    files.write_json(path, result.to_json() | extra)
    click.echo(f"Results      : {path}")
