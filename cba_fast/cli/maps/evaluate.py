"""``cba-fast evaluate``."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from ...runs.settings import BoxConfig, DataConfig, SizeConfig, settings
from ...stages import stage
from ..options import (
    FILE,
    box_options,
    cluster_options,
    config_option,
    data_options,
    json_option,
    map_options,
    model_options,
    option,
    profile_option,
    report_option,
    resolved,
    run_options,
    sheets_option,
    tables_option,
    tell_advice,
    threshold_from_option,
)
from ..progress import bar, warn
from .report import tell_written
from .scores import (
    print_accuracies,
    print_classification,
    print_scores,
    print_source,
    transferred_json,
    write_scores,
)


@click.command()
@model_options()
@data_options()
@map_options()
@run_options(with_compile=True)
@cluster_options()
@box_options(with_metadata=False, contours=False)
@config_option(
    SizeConfig, "num_samples", type=click.IntRange(min=0), help="Images of the ERF; 0: none."
)
@config_option(SizeConfig, "shares", multiple=False, default=SizeConfig.shares[0])
@config_option(SizeConfig, "seed", help="Seed of the ERF sample.")
@threshold_from_option()
@option(
    "--predictions",
    type=FILE,
    help="Write the five best classes of each image here, as CSV or JSON (for wsol-eval).",
)
@report_option()
@tables_option()
@sheets_option()
@profile_option()
@json_option()
def command(
    model_config,
    data_config,
    map_config,
    run_config,
    cluster_config,
    box_config,
    num_samples,
    p,
    seed,
    threshold_from,
    predictions,
    report_path,
    tables,
    sheets,
    json_path,
):
    """Images in; MaxBoxAcc, MaxBoxAccV2, top-1, localization and ERF out, no files between.

    The counts equal those of generate-heatmap followed by wsol-eval. A CUB_200_2011 folder brings
    its boxes; for other images give --cub_root or --metadata_root. With --engine ray the workers of
    a Ray cluster share the images (docs/cluster.md).
    """
    from ... import files, locks
    from ...report import MapKeeper
    from ...report.render import page_path
    from ...runs import ranks
    from ...runs.cluster.shards import evaluate_in_shards
    from ...runs.evaluate import evaluate
    from ...runs.scoring.boxes import read_tuned

    model_config, data_config = resolved(model_config, data_config)
    tell_advice(model_config, data_config, run_config)
    used = {
        "model": settings(model_config),
        "data": settings(data_config, map_config.at(data_config.input_size)),
        "run": settings(run_config),
    }
    saved, processes = [], ranks.join()
    on_cluster = cluster_config.engine == "ray"
    written = (report_path and page_path(report_path), tables, sheets)
    kept_by = next((path for path in written if path is not None), None)
    if on_cluster and (kept_by or not processes.alone):
        needs = "--report, --tables and --sheets need one process"
        what = needs if kept_by else "torchrun is another way"
        raise click.UsageError(f"{what}: leave out --engine ray")
    outputs = {"json": json_path, "predictions": predictions, "report": written[0]}
    files.check_distinct(**outputs)
    for path in filter(None, (*outputs.values(), tables, sheets)):
        locks.hold(path)

    def save(found) -> None:
        if not processes.leads:
            return
        try:
            _write_predictions(predictions, found)
            if json_path:
                write_scores(json_path, found.result, _json(found, used, threshold_from))
                saved.append(json_path)
        except OSError:  # a full disk, for example, which must not cost the scores
            _print(found, threshold_from)
            raise

    keeping = nullcontext() if kept_by is None else MapKeeper(kept_by)
    try:
        with keeping as keeper:
            bars: dict[str, Any] = {"progress": bar("evaluating"), "erf_progress": bar("ERF sizes")}
            run: Callable = partial(evaluate, keeper=keeper, ranks=processes, **bars)
            if on_cluster:
                run = partial(evaluate_in_shards, cluster_config, log=click.echo)
            found = run(
                model_config,
                data_config,
                run_config,
                map_config,
                with_metadata(box_config, data_config),
                num_samples=num_samples,
                p=p,
                seed=seed,
                tuned=read_tuned(threshold_from) if threshold_from else None,
                scored=save,
            )
            save(found)
            if keeper is not None:
                with stage("report"):
                    _write_report(written, keeper, found, used)
    except KeyboardInterrupt:
        left = f"{json_path} holds the box scores without ERF" if saved else "nothing was written"
        click.echo(f"Interrupted: {left}.", err=True)
        raise
    warn(found.notes)
    _print(found, threshold_from)
    if predictions:
        click.echo(f"Predictions  : {predictions}")
    if json_path:
        click.echo(f"Results      : {json_path}")
    tell_written(*written)


def _write_report(written: tuple, keeper, found, used: dict) -> None:
    from ...report import RunErf, Sizes, write_report

    name = str(used["data"]["method"])
    page, tables, sheets = written
    erf = {}
    if found.erf is not None:
        e = found.erf
        erf[name] = RunErf(Sizes(e["mean"], e["std"], e["num_samples"]), told={"p": e["p"]})
    write_report(
        {name: keeper.root},
        page,
        found.box_config,
        images=found.paths,
        erf=erf,
        tables=tables,
        sheets=sheets,
        more_settings={key: value for part in used.values() for key, value in part.items()},
        progress=bar,
    )


def _write_predictions(path: Path | None, found) -> None:
    from ...data import write_predictions

    if path is not None:
        write_predictions(path, found.predictions)


def _json(found, used: dict, threshold_from: Path | None) -> dict:
    """Return what the JSON file holds beside the box scores."""
    from ...runs.scoring.boxes import box_settings, versions

    extra = {
        "classification": found.classification,
        "erf": found.erf,
        "unreadable": found.unreadable,
        "constant": found.constant,
        "settings": used | {"boxes": box_settings(found.box_config)},
        "versions": versions(),
    }
    if found.fixed is not None:
        extra["fixed_threshold"] = found.fixed
    if found.transferred is not None and threshold_from is not None:
        extra["threshold_from"] = transferred_json(found.transferred, threshold_from)
    return extra


def with_metadata(boxes: BoxConfig, data: DataConfig) -> BoxConfig:
    """Return `boxes` with the metadata options, which the command shares with the images."""
    return replace(
        boxes,
        metadata_root=data.metadata_root if boxes.cub_root is None else None,
        dataset_name=data.dataset_name,
        split=data.split,
    )


def _print(found, threshold_from: Path | None) -> None:
    print_scores(found.result, found.box_config.iou_thr)
    for label, source in zip(("Images of", "Ground truth"), found.sources, strict=True):
        print_source(label, source)
    if found.classification is not None:
        print_classification(found.classification)
    if found.erf is not None:
        e = found.erf
        click.echo(
            f"ERF size     : {e['mean']:.1f} +- {e['std']:.1f} pixels (p = {e['p']:g}, "
            f"{e['num_samples']} images)"
        )
    print_accuracies(found.fixed, "At the threshold asked for")
    print_accuracies(found.transferred, f"At the thresholds of {threshold_from}")
