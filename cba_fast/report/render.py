"""The HTML page of a report: one file that needs no network."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.resources import files as package_files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import files
from ..analysis.tables import write_tables
from ..choices import READERS
from ..runs.scoring.boxes import box_settings, versions
from ..runs.settings import BoxConfig, ReportConfig, settings
from .causes import DEFINITIONS, HIT, SOURCE
from .claims import find_claims
from .collect import Collected, collect
from .erf import RunErf
from .gallery import (
    ERF_COLORS,
    Card,
    Images,
    choose,
    colour_bar,
    erf_picture,
    make_cards,
)
from .plots import curves, erf_and_score, profiles, stroke
from .sheets import write_sheets
from .tables import classes, differences, erf_table, headline, make_tables, write_per_image


def write_report(
    score_maps: Mapping[str, str | os.PathLike],
    output: str | os.PathLike | None,
    boxes: BoxConfig,
    report: ReportConfig | None = None,
    *,
    images: Images = None,
    erf: Mapping[str, RunErf] | None = None,
    tables: str | os.PathLike | None = None,
    sheets: str | os.PathLike | None = None,
    more_settings: Mapping[str, object] | None = None,
    num_workers: int = READERS,
    progress: Callable[[str], Callable] | None = None,
) -> Collected:
    """Score stored maps of one or more methods and write a page that shows the results.

    Args:
        score_maps: by name of the run, a folder of maps or a store.
        output: the HTML file, or a folder, in which it is ``report.html``; None for no page.
        boxes: ground truth and protocol.
        report: what is shown; None for the defaults.
        images: folder of the images, below which they lie under their ids, or the file of each
            id; None for those of ``boxes.cub_root`` if it is given, else the gallery shows the maps
            alone.
        erf: the effective receptive field by the name of the run, see `read_erf`.
        tables: folder for the tables as CSV, Markdown and LaTeX, and for ``per_image.csv``.
        sheets: folder for contact sheets, see `write_sheets`.
        more_settings: settings that the page tells beside its own, such as the model's.
        num_workers: number of threads that read maps.
        progress: called with what is done, returns ``progress(iterable, total)``.

    Returns:
        All that the page was made from.

    Raises:
        InputError, ScoreMapError: as `collect` and `make_cards`.
        OSError: the file cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from cba_fast.report import write_report
        >>> from cba_fast.runs.settings import BoxConfig
        >>> made = write_report(
        ...     {"sharp": "maps", "wide": "other_maps"},
        ...     "report.html",
        ...     BoxConfig(cub_root=Path("CUB_200_2011")),
        ... )
        >>> len(made.runs[0].judged), Path("report.html").exists()
        (6, True)
    """
    report = report or ReportConfig()
    collected = collect(score_maps, boxes, report, num_workers, progress, erf)
    if images is None and boxes.cub_root is not None:
        images = Path(boxes.cub_root) / "images"
    if output is not None:
        files.write_text(page_path(output), render(collected, images, more_settings))
    if tables is not None:
        write_tables(tables, make_tables(collected))
        write_per_image(Path(tables) / "per_image.csv", collected)
    if sheets is not None:
        write_sheets(sheets, collected, images)
    return collected


def page_path(output: str | os.PathLike) -> Path:
    """Return the HTML file of a report: `output` itself, or ``report.html`` in this folder."""
    output = Path(output)
    return output if output.suffix.lower() in (".html", ".htm") else output / "report.html"


def render(
    collected: Collected,
    images: Images = None,
    more_settings: Mapping[str, object] | None = None,
) -> str:
    """Return the page as text; arguments and errors as :func:`write_report`.

    Example:
        >>> from pathlib import Path
        >>> from cba_fast.report import collect, render
        >>> from cba_fast.runs.settings import BoxConfig, ReportConfig
        >>> config = BoxConfig(cub_root=Path("CUB_200_2011"))
        >>> page = render(collect({"CAM": "maps"}, config, ReportConfig()))
        >>> page.startswith("<!doctype html>")
        True
    """
    ids, sampling = choose(collected) if collected.report.gallery else ([], "No gallery.")
    cards = list(make_cards(collected, ids, images))
    environment = Environment(
        loader=PackageLoader("cba_fast.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages = package_files("cba_fast.report") / "page"
    return environment.get_template("report.html").render(
        style=Markup((pages / "report.css").read_text("utf-8")),
        script=Markup((pages / "report.js").read_text("utf-8")),
        runs=[
            {"name": run.name, "colour": colour, "dash": dash}
            for run, (colour, dash) in zip(collected.runs, map(stroke, itertools.count()))
        ],
        boxes=collected.boxes,
        config=collected.config,
        report=collected.report,
        headline=headline(collected),
        differences=differences(collected),
        plots=curves(collected),
        erf=_erf(collected),
        classes=classes(collected),
        causes=_causes(collected),
        cause_source=SOURCE,
        claims=find_claims(collected),
        notes=[(run.name, note) for run in collected.runs for note in run.notes],
        cards=cards,
        sampling=sampling,
        colour_bar=colour_bar(collected.report.colormap),
        data=_page_data(collected, cards),
        settings=_settings(collected, images, more_settings or {}),
        versions=versions(),
    )


def _erf(collected: Collected) -> dict | None:
    """Return the section on effective receptive fields; None where no run has one."""
    if not collected.erf:
        return None
    both, longest = collected.erf_and_scores(), collected.report.thumbnail
    maps = {n: e.map for n, e in collected.erf.items() if e.map is not None}
    plots = [profiles(collected)] if maps else []
    return {
        "table": erf_table(collected),
        "maps": [{"name": n, "picture": erf_picture(m.erf.map, longest)} for n, m in maps.items()],
        "plots": plots + ([erf_and_score(collected, both)] if both else []),
        "both": both,
        "colour_bar": colour_bar(ERF_COLORS),
    }


def _causes(collected: Collected) -> list[dict]:
    """Return a row for each cause of a failure: how many images of each run have it."""
    counts = [Counter(j.cause for j in run.judged.values()) for run in collected.runs]
    totals = [len(run.judged) for run in collected.runs]
    return [
        {
            "name": cause,
            "failure": cause != HIT,
            "definition": definition,
            "counts": [(c[cause], 100 * c[cause] / n) for c, n in zip(counts, totals)],
        }
        for cause, definition in DEFINITIONS.items()
    ]


def _page_data(collected: Collected, cards: list[Card]) -> dict:
    """Return what the page's script needs: thresholds, and the boxes of each image and run."""
    first = collected.runs[0]
    thresholds = first.result.thresholds
    best = [thresholds.index(run.threshold) for run in collected.runs]
    return {
        "thresholds": [float(f"{t:.6g}") for t in thresholds],
        "best": best,
        "iou": collected.config.iou_thr,
        "cards": [
            [None if s is None else {"truth": s.truth, "steps": s.steps} for s in card.shown]
            for card in cards
        ],
    }


def _settings(collected: Collected, images: Images, more: Mapping[str, object]) -> dict[str, str]:
    used = {**more, **box_settings(collected.config), **settings(collected.report)}
    if not isinstance(images, Mapping):
        used["images"] = images
    for run in collected.runs:
        if not files.is_temporary(run.source.root):  # which nobody could find
            used[f"score maps of {run.name}"] = run.source.root
    for name, erf in collected.erf.items():
        used |= {f"ERF of {name}: {key}": value for key, value in erf.told.items()}
    return {key: "not set" if value is None else str(value) for key, value in used.items()}
