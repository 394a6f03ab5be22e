"""``cba-fast collect-erf-wsol``."""

import sys
import time
from pathlib import Path

import click

from ..options import cluster_options, option, overwrite_option, tables_option
from ..progress import bar
from ..tables import new_table, print_tables, save_tables


@click.command()
@option(
    "--config",
    "config_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="YAML file of experiments and grids; docs/experiments.md describes it.",
)
@option("--dry_run", is_flag=True, help="Print the experiments and what each needs.")
@tables_option()
@overwrite_option("redo", help="Run again what has results of other settings, weights or images.")
@cluster_options(without=("shards",))
def command(
    config_path: Path, dry_run: bool, tables: Path | None, overwrite: bool, cluster_config
) -> None:
    """Train, score and measure a set of experiments, and collect the points for the plots.

    Each experiment ends as a row of erf_wsol_points.csv (MaxBoxAcc at IoU 0.5, mean ERF of 200
    images) and a JSON file. What is done is skipped: the same command continues an interrupted
    run and tries failed experiments again. The exit status is 1 if any failed. With --engine ray
    they run on the machines of a Ray cluster, several at once (docs/cluster.md).
    """
    from ... import locks
    from ...experiments.cluster import on_cluster
    from ...experiments.collect import collect
    from ...experiments.plan import load_experiments
    from ...experiments.progress import check_inputs, find_steps, refuse_changes

    start = time.perf_counter()
    plan = load_experiments(config_path)
    if not dry_run:
        locks.hold(plan.output_dir / "collect-erf-wsol", plan.output_dir)
    steps = find_steps(plan)
    if dry_run:
        _print_steps(steps, overwrite)
    if not overwrite:
        refuse_changes(steps)
    engine = on_cluster(cluster_config) if cluster_config.engine == "ray" else None
    check_inputs(steps, devices=engine is None)
    if dry_run:
        return
    outcomes = []
    try:
        found = collect(plan, steps, engine=engine, overwrite=overwrite, log=click.echo, bar=bar)
        for outcome in found:
            outcomes.append(outcome)
    except KeyboardInterrupt:
        click.echo(
            f"Interrupted after {len(outcomes)} of {len(steps)} experiments: the same command goes "
            "on from there.",
            err=True,
        )
        raise
    outcomes.sort(key=lambda o: plan.experiments.index(o.experiment))
    _print_outcomes(outcomes, tables)
    failed = [o for o in outcomes if o.status == "failed"]
    click.echo(f"Points       : {plan.csv}")
    click.echo(f"Results      : {plan.output_dir} ({time.perf_counter() - start:.1f} s)")
    if failed:
        click.echo(
            f"{len(failed)} of {len(outcomes)} failed; {plan.output_dir}/<name>.error.txt tells "
            "why, the same command tries them again",
            err=True,
        )
        sys.exit(1)


def _print_outcomes(outcomes, folder: Path | None) -> None:
    columns = ("name", "family", "status", "top-1 %", "MaxBoxAcc %", "ERF mean")
    table = new_table(*columns, title="Localization and ERF size (pixels) of each experiment")
    for o in outcomes:
        figures = [""] * 3
        if o.result is not None:
            labels = o.result["classification"]
            top1 = f"{labels['top1']:.2f}" if labels else ""
            figures = [top1, f"{o.result['max_box_acc']:.2f}", f"{o.result['erf']['mean']:.1f}"]
        table.add_row(o.experiment.name, o.experiment.settings.model_family, o.status, *figures)
    print_tables(table, width=140)
    save_tables(folder, {"experiments": table})
    for o in outcomes:
        if o.error:
            click.echo(f"{o.experiment.name}: {o.error}")


def _print_steps(steps, overwrite: bool) -> None:
    from ...experiments.progress import describe

    table = new_table("name", "family", "what a run would do")
    for step, text in zip(steps, describe(steps, overwrite)):
        table.add_row(step.experiment.name, step.experiment.settings.model_family, text)
    print_tables(table, width=140)
