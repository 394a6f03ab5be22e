"""``cba-fast erf-intervene``: change a network's ERF, and look what localization does."""

import time
from pathlib import Path

import click

from ...choices import SCORE_RESAMPLES
from ...runs.declare import check_values
from ...runs.settings import BoxConfig, InterveneConfig, Statistics
from ..maps.evaluate import with_metadata
from ..options import (
    SIDE,
    comma_lists,
    config_option,
    config_options,
    data_options,
    map_options,
    model_options,
    option,
    overwrite_option,
    resolved,
    run_options,
    sized,
    tables_option,
)
from ..progress import bar, continuable, warn
from ..tables import new_table, print_tables, save_tables


@click.command()
@model_options(default=None)
@data_options("cub-200-2011", input_size={"type": SIDE})
@map_options()
@run_options()
@config_options(
    BoxConfig,
    "box_config",
    *("cub_root", "cam_curve_interval", "eval_size", "resize_maps", "allow_beyond"),
    make=sized(BoxConfig),
)
@config_options(
    InterveneConfig, "config", **comma_lists(InterveneConfig, "kinds", "radii", "changes")
)
@config_option(
    Statistics,
    "num_resamples",
    type=click.IntRange(min=2),
    default=SCORE_RESAMPLES,
    otherwise=None,
    help="Resamples of the images, from which the intervals come.",
)
@config_option(Statistics, "confidence")
@option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("erf_intervene"),
    help="Folder of the results.",
)
@tables_option()
@overwrite_option(help="Measure anew and replace earlier results.")
def command(
    model_config,
    data_config,
    map_config,
    run_config,
    box_config,
    config,
    bootstrap,
    confidence,
    output,
    tables,
    overwrite,
):
    """Change the ERF of a trained network, and look what localization does.

    In copies of the network the large depthwise kernels are cut to radius r. Controls take the same
    energy from random or inner taps, or change the feature maps as much. For each: top-1,
    MaxBoxAcc, MaxBoxAccV2, ERF size and area, and paired intervals of the difference to the
    untouched network (docs/analysis.md). What is measured is kept: the same command goes on.
    """
    from ...analysis.plots import save_figure
    from ...experiments.intervene.answer import answer_lines
    from ...experiments.intervene.findings import FILES, find, outputs_of, write_findings
    from ...experiments.intervene.plots import plot_interventions
    from ...experiments.intervene.run import intervene

    start = time.perf_counter()
    check_values(config)
    model_config, data_config = resolved(model_config, data_config)
    outputs = outputs_of(output)
    outputs.check(overwrite=True)  # only files that no such run wrote are refused
    with continuable():
        found = intervene(
            model_config,
            data_config,
            run_config,
            map_config,
            with_metadata(box_config, data_config),
            config,
            output,
            overwrite=overwrite,
            progress=bar("networks"),
        )
    findings = find(found, num_resamples=bootstrap, confidence=confidence, seed=config.seed)
    warn(findings.notes)
    _print_table(findings, tables)
    answer = answer_lines(findings)
    for line in answer:
        click.echo(line)
    outputs.prepare(overwrite=True)
    paths = write_findings(output, findings, answer, found.used)
    picture = output / FILES[2]
    save_figure(plot_interventions(findings), picture)
    told = ", ".join(map(str, (*paths, picture)))
    click.echo(f"Results: {told} ({time.perf_counter() - start:.1f} s)")


def _print_table(findings, folder: Path | None) -> None:
    from ...experiments.intervene.answer import cell_of
    from ...experiments.intervene.findings import METRICS, TITLES, UNITS

    metrics = [m for m in METRICS if m in findings.untouched.effects]
    right = ["energy", "features", *(f"{TITLES[m]} ({UNITS[m]})" for m in metrics)]
    title = (
        f"Networks with a changed ERF; in brackets: {100 * findings.confidence:g} % interval of the"
        " difference to the untouched network"
    )
    table = new_table("network", "dose", right=right, title=title)
    last = ""
    for row in findings.rows:
        if row.setting.dose != last:
            table.add_section()
        last = row.setting.dose
        own = [cell_of(m, row.effects[m], row is findings.untouched) for m in metrics]
        table.add_row(row.setting.kind, _dose(row), _energy(row.energy), f"{row.change:.1%}", *own)
    print_tables(table, width=200)
    save_tables(folder, {"interventions": table})


def _energy(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _dose(row) -> str:
    """Return what was done: the radius, and of changed features how strong that makes them."""
    dose = row.setting.dose
    if row.sigma is not None:
        return f"{dose}: sigma {row.sigma:.2f}"
    return dose if row.dropped is None else f"{dose}: {row.dropped:.0%} of channels"
