"""What goes with localization, image by image: correlations, partial ones, and their intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from ..choices import CONFIDENCE, CORRELATION_RESAMPLES
from ..short import Short
from ..wsol.scoring.resampling import check_resampling, percentile_interval
from .moments import Rows, level_correlations, make_rows, partial_correlation, partial_r2, resampled

WITHIN, POOLED, BETWEEN = "within", "pooled", "between"


@dataclass(frozen=True, repr=False)
class Question(Short):
    """One relation: of the outcome with `xs`, with what `given` explains taken out of both.

    Attributes:
        xs: the variables.
        given: the controls; none for a plain correlation.
    """

    xs: tuple[str, ...]
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """A statistic and its bootstrap interval; None where it is undefined."""

    estimate: float | None
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is known and lies on one side of 0."""
        low, high = self.low, self.high
        return low is not None and high is not None and (low > 0 or high < 0)

    @property
    def is_positive(self) -> bool:
        """Whether the estimate is known and above 0."""
        return self.estimate is not None and self.estimate > 0


@dataclass(frozen=True)
class Relation:
    """The answer to one question at one level.

    Attributes:
        level: ``"model"``, ``"within"``, ``"pooled"`` or ``"between"``.
        model: the model's name at level ``"model"``, else None.
        question: what was asked.
        pearson: (partial) correlation; None for several `xs`, which have no sign.
        spearman: the same of ranks.
        r2: Pearson's squared, for several `xs` the squared multiple (partial) correlation.
        r2_by_chance: what `r2` is on average if nothing is related: len(xs) / degrees of freedom.
        reason: why there is no estimate; "" if there is one.
    """

    level: str
    model: str | None
    question: Question
    pearson: Value | None
    spearman: Value | None
    r2: Value
    r2_by_chance: float | None
    reason: str = ""


@dataclass(frozen=True)
class Contrast:
    """The r2 of `second` minus that of `first`, at one level; the interval is of common resamples.

    Both are adjusted for their numbers of variables, 1 - (1 - r2) * f / (f - k) with k variables
    and f degrees of freedom without them, so that the longer list does not win by its length.
    """

    level: str
    model: str | None
    first: Question
    second: Question
    difference: Value


@dataclass(frozen=True)
class BetweenModels:
    """Pearson's r between the models' means, the models taken as a sample of models.

    Attributes:
        x: the variable.
        r: the correlation.
        low, high: interval by Fisher's z transform; None for fewer than 4 models.
        p_value: two-sided, of no correlation, under normality.
        count: the number of models.
    """

    x: str
    r: float
    low: float | None
    high: float | None
    p_value: float
    count: int


@dataclass(repr=False)
class Correlations(Short):
    """All relations of an outcome.

    Attributes:
        outcome: its name.
        relations: one per level and question.
        contrasts: of each level, if asked for.
        between_models: the between level with the models as the sample.
        num_images, num_rows, num_models: what the figures are from.
        num_resamples, confidence, seed: of the bootstrap.
    """

    outcome: str
    relations: list[Relation]
    contrasts: list[Contrast]
    between_models: list[BetweenModels]
    num_images: int
    num_rows: int
    num_models: int
    num_resamples: int
    confidence: float
    seed: int

    def find(
        self,
        level: str,
        xs: str | Sequence[str],
        given: Sequence[str] = (),
        model: str | None = None,
    ) -> Relation:
        """Return one relation.

        Raises:
            KeyError: there is none.
        """
        wanted = Question((xs,) if isinstance(xs, str) else tuple(xs), tuple(given))
        for relation in self.relations:
            if (relation.level, relation.model, relation.question) == (level, model, wanted):
                return relation
        raise KeyError((level, model, wanted))

    def to_json(self) -> dict:
        """Return the fields as JSON values; None stands for what is undefined."""
        return asdict(self)


def correlate(
    values: dict[str, np.ndarray],
    models: np.ndarray,
    images: np.ndarray,
    model_names: Sequence[str],
    outcome: str,
    questions: Sequence[Question],
    contrast: tuple[Question, Question] | None = None,
    *,
    num_resamples: int = CORRELATION_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Correlations:
    """Correlate an outcome with other variables over images and models.

    Levels, see :func:`~cba_fast.analysis.moments.level_correlations`: each model alone over
    its images; ``within``, all models with their means subtracted; ``pooled``, all rows alike, a
    mixture of the two others; ``between``, the models' means. Partial correlations are those of
    the residuals of linear regressions.

    Args:
        values: the variables by name, (n,) each, finite.
        models: (n,) integers 0 to M-1, the row's model.
        images: (n,) integers, the row's image.
        model_names: M names.
        outcome: one of `values`.
        questions: over the others of `values`.
        contrast: two of `questions`; the difference of their r2 (second minus first, adjusted)
            gets an interval of its own, from the same resamples.
        num_resamples: R >= 2.
        confidence: in (0, 1).
        seed: of the resampling.

    Returns:
        Estimates and percentile intervals. What is undefined is None: variables that do not vary,
        fewer than 3 models at the between level, or too few rows for the number of controls.

    Raises:
        ValueError: shapes, values or options that do not fit.

    Notes:
        A resample draws images and keeps all models of an image together (a cluster bootstrap): the
        rows of an image are not independent. The intervals tell what other images would change.
        They say nothing of other models or seeds of the training; for the between level see
        `between_models`. An r2 is never below 0 and so is the interval's end: compare it with
        `r2_by_chance`.

    Source:
        Efron 1979 (percentile bootstrap); Field and Welsh 2007, "Bootstrapping clustered data".
    """
    check_resampling(num_resamples, confidence)
    rows = make_rows(np.column_stack(list(values.values())), models, images)
    if rows.num_models != len(model_names):
        raise ValueError(f"{len(model_names)} names for {rows.num_models} models")
    asked = _Asked(list(values), outcome, tuple(questions))
    found = [asked.answers(rows, weights) for weights in resampled(rows, num_resamples, seed)]
    run = _Run(asked, rows, found[0][0], np.concatenate(found[1:]), confidence)
    levels = [("model", n) for n in model_names] + [(k, None) for k in (WITHIN, POOLED, BETWEEN)]
    relations = [
        run.relation(i, level, model, k)
        for i, (level, model) in enumerate(levels)
        for k in range(len(questions))
    ]
    contrasts = []
    if contrast is not None:
        first, second = (asked.questions.index(q) for q in contrast)
        contrasts = [run.contrast(i, *level, first, second) for i, level in enumerate(levels)]  # type: ignore[call-arg]
    return Correlations(
        outcome,
        relations,
        contrasts,
        _between_models(values, rows, outcome, questions, confidence),
        rows.num_images,
        len(rows.values),
        rows.num_models,
        num_resamples,
        confidence,
        seed,
    )


@dataclass(frozen=True)
class _Asked:
    names: list[str]
    outcome: str
    questions: tuple[Question, ...]

    def answers(self, rows: Rows, weights: np.ndarray) -> np.ndarray:
        """Return Pearson, Spearman and r2 of each level and question: (r, M + 3, K, 3)."""
        raw, ranked = (level_correlations(rows, weights, ranks) for ranks in (False, True))
        out = np.full((*raw.shape[:2], len(self.questions), 3), np.nan)
        y = self.names.index(self.outcome)
        for k, question in enumerate(self.questions):
            xs, given = ([self.names.index(n) for n in v] for v in (question.xs, question.given))
            if len(xs) == 1:
                out[:, :, k, 0] = partial_correlation(raw, y, xs[0], given)
                out[:, :, k, 1] = partial_correlation(ranked, y, xs[0], given)
            out[:, :, k, 2] = partial_r2(raw, y, xs, given)
        return out


@dataclass(frozen=True)
class _Run:
    """Estimates (M + 3, K, 3) and resamples (R, M + 3, K, 3) of what was asked."""

    asked: _Asked
    rows: Rows
    estimate: np.ndarray
    draws: np.ndarray
    confidence: float

    def relation(self, at: int, level: str, model: str | None, k: int) -> Relation:
        """Return the answer to question `k` at the level in place `at`."""
        question = self.asked.questions[k]
        left = self._left(at, level, question)
        reason = ""
        if left <= len(question.xs):
            what = "models" if level == BETWEEN else "images"
            reason = f"too few {what} for {len(question.xs) + len(question.given)} variables"
        elif np.isnan(self.estimate[at, k, 2]):
            reason = "a variable does not vary"

        def value(statistic: int) -> Value:
            return self._value(self.estimate[at, k], self.draws[:, at, k], statistic, reason)

        pearson, spearman = (value(0), value(1)) if len(question.xs) == 1 else (None, None)
        chance = None if reason else len(question.xs) / left
        return Relation(level, model, question, pearson, spearman, value(2), chance, reason)

    def contrast(self, at: int, level: str, model: str | None, first: int, second: int) -> Contrast:
        """Return the adjusted r2 of question `second` minus that of question `first`."""
        pair = [self.asked.questions[k] for k in (first, second)]
        left = [self._left(at, level, q) for q in pair]
        if any(n <= len(q.xs) for n, q in zip(left, pair)):
            return Contrast(level, model, pair[0], pair[1], Value(None, None, None))
        adjusted = [
            [
                1 - (1 - r2) * n / (n - len(q.xs))
                for r2 in (self.estimate[at, k, 2], self.draws[:, at, k, 2])
            ]
            for k, q, n in zip((first, second), pair, left)
        ]
        own, draws = (b - a for a, b in zip(*adjusted))
        value = self._value([own], draws[:, None], 0, False)
        return Contrast(level, model, pair[0], pair[1], value)

    def _left(self, at: int, level: str, question: Question) -> int:
        """Return the degrees of freedom that means and controls leave."""
        m = self.rows.num_models
        if level == BETWEEN:
            n, means = m, 1
        elif level == "model":
            n, means = int((self.rows.models == at).sum()), 1
        else:
            n, means = len(self.rows.models), m if level == WITHIN else 1
        return n - means - len(question.given)

    def _value(self, estimate, draws: np.ndarray, s: int, undefined) -> Value:
        if undefined or np.isnan(estimate[s]):
            return Value(None, None, None)
        low, high = percentile_interval(draws[:, s], self.confidence) or (None, None)
        return Value(float(estimate[s]), low, high)


def _between_models(
    values: dict[str, np.ndarray],
    rows: Rows,
    outcome: str,
    questions: Sequence[Question],
    confidence: float,
) -> list[BetweenModels]:
    m = rows.num_models
    if m < 3:
        return []
    n = np.bincount(rows.models)
    means = {k: np.bincount(rows.models, v) / n for k, v in values.items()}
    varying = {k for k, v in means.items() if np.ptp(v) > 1e-12 * np.abs(v).max()}
    found = []
    for question in questions:
        x = question.xs[0]
        if len(question.xs) > 1 or question.given or not {x, outcome} <= varying:
            continue
        found.append(between_models(x, means[x], means[outcome], confidence))
    return found


def between_models(
    name: str, x: np.ndarray, y: np.ndarray, confidence: float = CONFIDENCE
) -> BetweenModels:
    """Correlate two figures of at least three models, which are taken as a sample of models.

    Args:
        name: of `x`.
        x, y: (M,), neither of them constant.
        confidence: of the interval.
    """
    test = stats.pearsonr(x, y)
    low = high = None
    if len(x) > 3:
        interval = test.confidence_interval(confidence)
        low, high = float(interval.low), float(interval.high)
    return BetweenModels(name, float(test.statistic), low, high, float(test.pvalue), len(x))
