"""``cba-fast analysis-per-image``: what goes with localization, image by image."""

import time
from pathlib import Path

import click

from ...choices import CORRELATION_RESAMPLES
from ...runs.settings import SizeConfig, Statistics
from ..options import config_option, option, overwrite_option, tables_option
from ..progress import bar, continuable, warn
from ..tables import new_table, print_tables, save_tables


@click.command()
@option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="File of experiments as collect-erf-wsol takes it (YAML or JSON), whose weights exist.",
)
@option(
    "--save_fig",
    type=click.Path(dir_okay=False),
    help="Write the scatter plot here, too, besides <output>/scatter.png.",
)
@option("--show", is_flag=True, help="Open the pictures in windows.")
@option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("erf_wsol_per_image"),
    help="Folder of the results.",
)
@config_option(
    SizeConfig, "num_samples", default=None, help="Images drawn.  [default: the file's, 200]"
)
@config_option(
    SizeConfig,
    "seed",
    default=None,
    help="Seed of the drawn images.  [default: the file's erf_seed, 0]",
)
@config_option(SizeConfig, "score")
@option(
    "--resamples",
    group="Score",
    type=click.IntRange(min=2),
    default=CORRELATION_RESAMPLES,
    help="Bootstrap resamples of the images, from which the intervals come.",
)
@config_option(Statistics, "seed", called="bootstrap_seed")
@config_option(Statistics, "confidence")
@tables_option()
@overwrite_option("resume", "no_resume", help="Measure anew and replace earlier results.")
def command(
    config: Path,
    save_fig: str | None,
    show: bool,
    output: Path,
    num_samples: int | None,
    seed: int | None,
    score: str,
    resamples: int,
    bootstrap_seed: int,
    confidence: float,
    tables: Path | None,
    overwrite: bool,
) -> None:
    """Ask image by image what goes with localization: the ERF size or the feature maps.

    Measures per image and model the ERF size, the IoU at the model's optimal threshold, and how
    well its feature maps cover the object (docs/analysis.md). Correlations and partial correlations
    come with bootstrap intervals, a CSV, a JSON file and pictures. What is measured is kept: the
    same command goes on.
    """
    from ...analysis.plots import check_display, check_picture
    from ...experiments.per_image import measure
    from ...experiments.per_image_answer import answer_lines
    from ...experiments.per_image_report import (
        check_findings,
        find,
        model_columns,
        write_findings,
    )
    from ...experiments.per_image_sample import draw_sample, load_subjects
    from ...runs import ranks
    from ...runs.resolve import resolve

    if save_fig:
        check_picture(save_fig)
    if show:
        check_display()
    start = time.perf_counter()
    subjects, notes = load_subjects(config, num_samples, seed)
    sample = draw_sample(subjects[0].settings)
    warn(notes + sample.notes())
    used = {"score": score, "num_samples": subjects[0].settings.num_samples}
    used |= {"p": subjects[0].settings.p, "seed": subjects[0].settings.erf_seed}
    outputs = check_findings(output, {**used, "models": [s.name for s in subjects]}, overwrite)
    models, processes = [], ranks.join()
    for subject in subjects:
        of_model = subject.settings.model_of(subject.weights)
        click.echo(resolve(of_model, subject.settings.data()).line, err=True)
        with continuable():
            found = measure(
                subject,
                sample,
                output,
                score=score,
                overwrite=overwrite,
                progress=bar(subject.name),
                ranks=processes,
            )
        models.append(model_columns(subject, sample, found))
        warn(_of_model(subject.name, found.notes))
    if not processes.leads:
        return
    findings = find(
        models, sample, num_resamples=resamples, confidence=confidence, seed=bootstrap_seed
    )
    warn(findings.notes)
    answer = answer_lines(findings)
    _print_tables(findings, tables)
    for line in answer:
        click.echo(line)
    outputs.prepare(overwrite=True)
    written = write_findings(output, findings, {"config": str(config), **used}, answer)
    paths = written + _draw(findings, output, save_fig, show)
    click.echo(f"Results: {', '.join(map(str, paths))} ({time.perf_counter() - start:.1f} s)")
    if show:
        from ...analysis.plots import show_figures

        show_figures()


def _of_model(name: str, notes: list[str]) -> list[str]:
    return [n if n.startswith(" ") else f"{name}: {n}" for n in notes]


def _draw(found, output: Path, save_fig: str | None, show: bool) -> tuple[Path, ...]:
    from ...analysis.plots import plot_forest, plot_images, save_figure
    from ...experiments.per_image_answer import forest_groups
    from ...experiments.per_image_report import ERF, OUTCOME

    columns = {m.name: (m.columns[ERF], m.columns[OUTCOME]) for m in found.models}
    scatter = plot_images(columns, "ERF size (pixels)", "IoU at the optimal threshold", show=show)
    forest = plot_forest(*forest_groups(found), show=show)
    paths: tuple[Path, ...] = (output / "scatter.png", output / "forest.png")
    for figure, path in zip((scatter, forest), paths, strict=True):
        save_figure(figure, path)
    if save_fig:
        save_figure(scatter, save_fig)
        paths += (Path(save_fig),)
    return paths


def _print_tables(found, folder: Path | None) -> None:
    from ...analysis.correlations import BETWEEN, POOLED, WITHIN
    from ...experiments.per_image_answer import text_of, title_of
    from ...experiments.per_image_report import COLUMNS, TITLES

    c = found.correlations
    names = [n for n in COLUMNS if not found.undefined(n)]
    columns: tuple[str, ...] = ("model", "images", "MaxBoxAcc %", "threshold")
    right = [TITLES[name] for name in names]
    models = new_table(*columns, right=right, title="Means over the images")
    for m in found.models:
        figures = [f"{_mean(m.columns[n]):.3g}" for n in names]
        models.add_row(
            m.name, str(len(m.image_ids)), f"{m.max_box_acc:.2f}", f"{m.threshold:.3g}", *figures
        )
    levels = [("model", found.models[0].name)]
    if c.num_models > 1:
        levels = [(WITHIN, None), (POOLED, None), (BETWEEN, None)]
    both = [f"{name} ({level})" for level, _ in levels for name in ("Pearson", "Spearman")]
    columns = ("", *both, f"R2 ({levels[0][0]})")
    related = new_table(*columns, title="Correlations with the IoU (after |: what is held fixed)")
    for question in dict.fromkeys(r.question for r in c.relations):
        rows = [c.find(level, question.xs, question.given, model) for level, model in levels]
        cells = [text_of(v) for r in rows for v in (r.pearson, r.spearman)]
        related.add_row(title_of(question), *cells, text_of(rows[0].r2, ""))
    columns = ("", *(m.name for m in found.models))
    each = new_table(*columns, title="Pearson's r of the IoU, model by model")
    for question in dict.fromkeys(r.question for r in c.relations if r.pearson is not None):
        cells = [
            text_of(c.find("model", question.xs, question.given, m.name).pearson)
            for m in found.models
        ]
        each.add_row(title_of(question), *cells)
    tables = {"means": models, "correlations": related}
    tables |= {"correlations_by_model": each} if c.num_models > 1 else {}
    print_tables(*tables.values(), width=200)
    save_tables(folder, tables)


def _mean(values) -> float:
    known = values[values == values]
    return float(known.mean()) if len(known) else float("nan")
