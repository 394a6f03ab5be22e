"""Statistics of ``wsol-eval`` beyond the scores: top-1, classes, intervals, comparisons."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...data.predictions import read_predictions
from ...data.textlines import some
from ...errors import InputError
from ...short import Short
from ...wsol import (
    BootstrapResult,
    BoxEvaluator,
    BoxResult,
    ClassResult,
    bootstrap,
    classification_scores,
    compare,
    correct_classes,
)
from ..settings import Statistics

Predictions = Mapping[str, list[int]]


@dataclass(repr=False)
class FoundStatistics(Short):
    """The statistics; None for what was not asked for, and `notes` to print at the end."""

    classification: dict[str, float | None] | None = None
    bootstrap: BootstrapResult | None = None
    comparison: BootstrapResult | None = None
    per_class: list[ClassResult] | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        """Return the statistics that were asked for as JSON values."""
        out: dict = {}
        if self.classification is not None:
            out["classification"] = self.classification
        if self.bootstrap is not None:
            out["bootstrap"] = self.bootstrap.to_json()
        if self.comparison is not None:
            out["comparison"] = self.comparison.to_json()
        if self.per_class is not None:
            out["per_class"] = [asdict(c) for c in self.per_class]
        return out


def read_all_predictions(asked: Statistics) -> tuple[Predictions | None, Predictions | None]:
    """Read the predictions of this run and of the other one, where they are given.

    Raises:
        InputError: a file that is not valid.
    """
    paths = (asked.predictions, asked.compare_predictions)
    first, second = (None if path is None else read_predictions(path) for path in paths)
    return first, second


def find_statistics(
    asked: Statistics,
    predictions: tuple[Predictions | None, Predictions | None],
    evaluator: BoxEvaluator,
    result: BoxResult,
    other: BoxEvaluator | None,
    missing_as_miss: bool,
) -> FoundStatistics:
    """Compute the statistics that are asked for.

    Args:
        asked: which statistics.
        predictions: from :func:`read_all_predictions`.
        evaluator, result: the evaluator and the scores of this run.
        other: the evaluator of the other run; None without a comparison.
        missing_as_miss: as for `BoxEvaluator.compute`.

    Raises:
        InputError: needed labels or predictions are missing, top-1 is asked for without the contour
            mode "largest", or the runs cannot be compared.
    """
    found = FoundStatistics()
    correct = _correct(evaluator, predictions[0], asked.predictions, found.notes)
    if correct is not None:
        found.classification = classification_scores(evaluator, result, correct)
    if asked.per_class:
        found.per_class = evaluator.per_class(result)
    options: dict[str, Any] = {
        "num_resamples": asked.num_resamples,
        "confidence": asked.confidence,
        "seed": asked.seed,
        "missing_as_miss": missing_as_miss,
    }
    if asked.num_resamples:
        found.bootstrap = bootstrap(evaluator, correct=correct, **options)
    if other is not None:
        theirs = _correct(other, predictions[1], asked.compare_predictions, found.notes)
        both = None
        if correct is not None and theirs is not None:
            both = (correct, theirs)
        elif correct is not None or theirs is not None:
            needed = "compare_predictions" if theirs is None else "predictions"
            found.notes.append(f"top-1 and top-5 localization are not compared: no `{needed}`")
        found.comparison = compare(evaluator, other, correct=both, **options)
    return found


def _correct(
    evaluator: BoxEvaluator, predictions: Predictions | None, path: Path | None, notes: list[str]
) -> dict[str, np.ndarray] | None:
    if predictions is None:
        return None
    ids = list(evaluator.table.index)
    try:
        correct = correct_classes(ids, predictions, evaluator.boxes.labels)
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    unused = predictions.keys() - evaluator.table.index.keys()
    if unused:
        notes.append(f"{path}: {len(unused)} predictions have no score map: {some(sorted(unused))}")
    return correct
