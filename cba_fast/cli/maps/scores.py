"""How box scores are printed and written, for the commands that compute them."""

from pathlib import Path

import click

from ... import files
from ...stages import open_profile


def print_source(label: str, source: str) -> None:
    """Print which folder was read for the images or the ground truth."""
    click.echo(f"{label:<13}: {source}")


def print_scores(result, iou_thr: float, bootstrap=None) -> None:
    """Print the box metrics of a `BoxResult` at the IoU threshold asked for.

    Args:
        result: the scores.
        iou_thr: one of its IoU thresholds.
        bootstrap: a `BootstrapResult` whose intervals are printed below the scores, or None.
    """
    at = result.iou_thresholds.index(iou_thr)
    for mode, title in (("largest", "MaxBoxAcc    "), ("all", "  all contours")):
        if mode in result.modes:
            scores = result.modes[mode]
            click.echo(f"{title}: {scores.max_box_acc[at]:.2f}%")
            _print_interval(bootstrap, "box_acc", mode, iou_thr)
            click.echo(f"  threshold  : {scores.optimal_threshold[at]:.4g} (IoU {iou_thr:g})")
    if result.max_box_acc_v2 is not None:
        click.echo(f"MaxBoxAccV2  : {result.max_box_acc_v2:.2f}%")
        _print_interval(bootstrap, "max_box_acc_v2")
    print_counts(result)


def print_classification(scores: dict) -> None:
    """Print top-1 and top-5 accuracy and localization; those of top-5 may be None."""
    top5 = (scores["top5"], scores["top5_localization"])
    text = ["unknown" if v is None else f"{v:.2f}%" for v in top5]
    click.echo(f"Top-1        : {scores['top1']:.2f}% (top-5 {text[0]})")
    click.echo(f"Localization : top-1 {scores['top1_localization']:.2f}%, top-5 {text[1]}")


def print_statistics(found, iou_thr: float, compared: Path | None) -> None:
    """Print what was asked for beside the scores: a `FoundStatistics`.

    Args:
        found: the statistics.
        iou_thr: of the rows of a comparison, beside MaxBoxAcc's own 0.5.
        compared: where the other run's maps are.
    """
    if found.classification is not None:
        print_classification(found.classification)
        for name in ("top1_localization", "top5_localization"):
            _print_interval(found.bootstrap, name, prefix=f"{name[:3]}-{name[3]} ")
    if found.bootstrap is not None:
        click.echo(
            f"Intervals    : {100 * found.bootstrap.confidence:g}%, "
            f"{found.bootstrap.num_resamples} bootstrap resamples of the images, "
            f"seed {found.bootstrap.seed}"
        )
    if found.comparison is not None:
        click.echo(f"Compared with {compared} on the same resamples (difference in points):")
        for d in found.comparison.intervals:
            if d.metric != "box_acc" or d.iou in (0.5, iou_thr):
                name = f"{d.contours} IoU {d.iou:g}" if d.metric == "box_acc" else d.metric
                click.echo(
                    f"  {name:17} {d.a:.2f}% - {d.b:.2f}% = {d.estimate:+.2f} "
                    f"[{d.low:+.2f}, {d.high:+.2f}], p = {d.p_value:.2g}"
                )


def _print_interval(bootstrap, metric: str, contours=None, iou=None, prefix: str = "") -> None:
    if bootstrap is None:
        return
    try:
        found = bootstrap.find(metric, contours, iou)
    except KeyError:  # top-5 without five predictions
        return
    click.echo(f"  interval   : {prefix}{found.low:.2f}% to {found.high:.2f}%")


def print_counts(result) -> None:
    """Print how many images a score counts, and how many lack a map."""
    missing = f", {len(result.missing)} missing" if result.missing else ""
    click.echo(f"Images       : {result.num_images} counted{missing}")


def print_accuracies(rows: list[dict] | None, title: str) -> None:
    """Print accuracies at given thresholds beside the best ones, if there are any."""
    if rows is None:
        return
    click.echo(f"{title}:")
    for row in rows:
        click.echo(
            f"  {row['contours']:7} IoU {row['iou']:g}: {row['box_acc']:.2f}% at "
            f"{row['threshold']:.4g} (best here {row['max_box_acc']:.2f}%)"
        )


def transferred_json(rows: list[dict], source: Path) -> dict:
    """Return the JSON object of accuracies at thresholds tuned elsewhere."""
    return {"file": str(source), "accuracies": rows}


def write_scores(path: Path, result, extra: dict) -> None:
    """Write the JSON object of a run, with where its time went up to now if that is asked for."""
    profile = open_profile()
    timed = {} if profile is None else {"profile": profile.to_json()}
    files.write_json(path, result.to_json() | extra | timed)


def print_end(result, json_path: Path | None) -> None:
    """Print where all was written; else the first of the images that lack a map."""
    if json_path:
        click.echo(f"Results      : {json_path}")
    elif result.missing:
        click.echo(f"  missing    : {', '.join(result.missing[:3])} ... (all with --json)")
