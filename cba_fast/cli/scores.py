"""How box scores are printed and written, for the commands that compute them."""

from pathlib import Path

import click

from cba_fast import files


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


def print_transferred(rows: list[dict], source: Path) -> None:
    """Print accuracies at thresholds tuned elsewhere beside the best ones."""
    click.echo(f"At the thresholds of {source}:")
    for row in rows:
        click.echo(
            f"  {row['contours']:7} IoU {row['iou']:g}: {row['box_acc']:.2f}% at "
            f"{row['threshold']:.4g} (best here {row['max_box_acc']:.2f}%)"
        )


def transferred_json(rows: list[dict], source: Path) -> dict:
    """Return the JSON object of accuracies at thresholds tuned elsewhere."""
    return {"file": str(source), "accuracies": rows}


def write_scores(path: Path, result, extra: dict) -> None:
    """Write the JSON object of a run."""
    files.write_json(path, result.to_json() | extra)
