"""``cba-fast evaluate``."""

from dataclasses import replace
from pathlib import Path

import click

from .options import box_options, data_options, map_options, model_options, run_options
from .progress import bar, warn
from .scores import print_scores, print_transferred, read_tuned, write_scores


@click.command()
@model_options()
@data_options(default="sample_data")
@map_options()
@run_options()
@box_options(with_metadata=False, contours=None)
@click.option("--num_samples", type=click.IntRange(min=0), default=200, help="Images of the ERF.")
@click.option("--p", type=click.FloatRange(0, 1, min_open=True), default=0.2, help="ERF share.")
@click.option("--seed", type=int, default=0, help="Seed of the ERF sample.")
@click.option("--threshold_from", type=click.Path(path_type=Path), help="JSON of another run.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write everything here.")
def command(
    model_config,
    data_config,
    map_config,
    run_config,
    box_config,
    num_samples,
    p,
    seed,
    threshold_from,
    json_path,
):
    """Images in; MaxBoxAcc, MaxBoxAccV2, top-1, localization and ERF out, no files between.

    The counts equal those of generate-heatmap followed by wsol-eval.
    """
    from cba_fast.study.config import settings
    from cba_fast.study.evaluate import evaluate
    from cba_fast.study.score import transferred_accuracies, versions

    tuned = read_tuned(threshold_from) if threshold_from else None
    box_config = replace(
        box_config,
        metadata_root=data_config.metadata_root if box_config.cub_root is None else None,
        dataset_name=data_config.dataset_name,
        split=data_config.split,
    )
    found = evaluate(
        model_config,
        data_config,
        run_config,
        map_config,
        box_config,
        num_samples=num_samples,
        p=p,
        seed=seed,
        progress=bar("evaluating"),
    )
    warn(found.notes)
    print_scores(found.result, box_config.iou_thr)
    if found.classification is not None:
        c = found.classification
        click.echo(f"Top-1        : {c['top1']:.2f}% (top-5 {c['top5']:.2f}%)")
        click.echo(
            f"Localization : top-1 {c['top1_localization']:.2f}%, top-5 "
            f"{c['top5_localization']:.2f}%"
        )
    if found.erf is not None:
        e = found.erf
        click.echo(
            f"ERF size     : {e['mean']:.1f} +- {e['std']:.1f} pixels (p = {p:g}, "
            f"{e['num_samples']} images)"
        )
    extra = {
        "classification": found.classification,
        "erf": found.erf,
        "unreadable": found.unreadable,
        "constant": found.constant,
        "settings": {
            "model": settings(model_config),
            "data": settings(data_config, map_config),
            "run": settings(run_config),
            "boxes": settings(replace(box_config, contours="both")),
        },
        "versions": versions(),
    }
    if tuned is not None:
        rows = transferred_accuracies(found.result, tuned, str(threshold_from))
        print_transferred(rows, threshold_from)
        extra["threshold_from"] = {"file": str(threshold_from), "accuracies": rows}
    if json_path:
        write_scores(json_path, found.result, extra)
