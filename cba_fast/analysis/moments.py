"""Correlation matrices of clustered rows at several levels, for many weightings at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..short import Short
from ..wsol.scoring.resampling import parts

# Below this share of its own variance, what is left of a variable is rounding.
_NOTHING = 1e-10
# A sum of squares below this is rounding: values are scaled to [-1, 1], ranks to (0, 1].
_NO_SPREAD = 1e-18
# Numbers in the largest temporary array.
_CHUNK = 1 << 22


@dataclass(frozen=True, repr=False)
class Rows(Short):
    """Observations of several models on the same images, from :func:`make_rows`.

    Attributes:
        values: (n, V) float64, one row per image and model, each column in [-1, 1].
        models: (n,) int64, 0 to M-1, each occurring.
        images: (n,) int64, 0 to I-1: the cluster of a row.
        num_models: M.
        num_images: I.
    """

    values: np.ndarray
    models: np.ndarray
    images: np.ndarray
    num_models: int
    num_images: int


def make_rows(values: np.ndarray, models: np.ndarray, images: np.ndarray) -> Rows:
    """Return the observations, each column centred and divided by its largest magnitude.

    No correlation changes by that, and what is spread and what rounding can then be told apart.

    Args:
        values: (n, V), finite.
        models: (n,) integers 0 to M-1.
        images: (n,) integers, equal for the rows of one image.

    Raises:
        ValueError: the shapes do not fit, a value is not finite, or a model has no row.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not len(values) == len(models) == len(images) > 0:
        shapes = values.shape, np.shape(models), np.shape(images)
        raise ValueError("expected (n, V), (n,) and (n,), got {}, {} and {}".format(*shapes))
    if not np.isfinite(values).all():
        raise ValueError("values must be finite: leave incomplete rows out")
    names, models = np.unique(models, return_inverse=True)
    if not np.array_equal(names, np.arange(len(names))):
        raise ValueError(f"models must be numbered 0 to M-1 without a gap, got {names.tolist()}")
    found, images = np.unique(images, return_inverse=True)
    centred = values - values.mean(axis=0)
    scale = np.abs(centred).max(axis=0)
    # A column of equal values leaves rounding: 1e-12 of them is none.
    varies = scale > 1e-12 * np.abs(values).max(axis=0)
    centred = np.where(varies, centred / np.where(varies, scale, 1), 0)
    return Rows(centred, models, images, len(names), len(found))


def resampled(rows: Rows, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield weights (r, n) of the rows: first ones alone, then resamples of the images.

    A resample draws I of the I images with replacement; all rows of an image have its count. So the
    models of an image stay together.
    """
    yield np.ones((1, len(rows.values)))
    rng = np.random.default_rng(seed)
    even = np.full(rows.num_images, 1 / rows.num_images)
    for part in parts(num_resamples, _CHUNK // rows.values.size):
        counts = rng.multinomial(rows.num_images, even, part)
        yield counts[:, rows.images].astype(np.float64)


def level_correlations(rows: Rows, weights: np.ndarray, ranked: bool) -> np.ndarray:
    """Return the correlation matrices at all levels.

    With S[m] the scatter matrix of model m's rows about their mean (weighted), mu[m] the mean and
    n[m] the weight:

    - one model: from S[m];
    - within models: from the sum of S[m], as if each model's mean were subtracted;
    - pooled: from the sum of S[m] + n[m] (mu[m] - mu)(mu[m] - mu)', all rows alike;
    - between models: from the mu[m], each model with weight 1.

    Args:
        rows: the observations.
        weights: (r, n), whole numbers >= 0: how often each row counts.
        ranked: replace the values by their mid-ranks first (Spearman): among the model's rows for
            the first two levels, among all rows for the pooled level, among the mu[m] for the last;
            divided by their number, so that models of different n[m] count alike.

    Returns:
        (r, M + 3, V, V): the models, within, pooled, between. NaN in the rows and columns of
        variables that do not vary, and at the between level for fewer than 3 models.
    """
    values = rows.values[None]
    means, scatter, n = _moments(rows, values, weights)
    between = _between(means, ranked)
    if ranked:
        pooled = _pooled(*_moments(rows, _ranks(rows.values, weights), weights))
        within = np.empty((len(weights), *rows.values.shape))
        for m in range(rows.num_models):
            own = rows.models == m
            within[:, own] = _ranks(rows.values[own], weights[:, own])
        _, scatter, _ = _moments(rows, within, weights)
    else:
        pooled = _pooled(means, scatter, n)
    levels = [scatter, scatter.sum(axis=1, keepdims=True), pooled[:, None], between[:, None]]
    return _correlation(np.concatenate(levels, axis=1))


def _moments(rows: Rows, values: np.ndarray, weights: np.ndarray):
    """Return means (r, M, V), scatter (r, M, V, V) and weights (r, M) of the models."""
    r, v = len(weights), values.shape[2]
    means = np.empty((r, rows.num_models, v))
    scatter = np.empty((r, rows.num_models, v, v))
    n = np.empty((r, rows.num_models))
    for m in range(rows.num_models):
        own = rows.models == m
        x, w = values[:, own], weights[:, own, None]
        n[:, m] = w.sum(axis=(1, 2))
        means[:, m] = (w * x).sum(axis=1) / np.maximum(n[:, m], 1)[:, None]
        d = x - means[:, m, None]
        scatter[:, m] = (w * d).swapaxes(1, 2) @ d
    return means, scatter, n


def _pooled(means: np.ndarray, scatter: np.ndarray, n: np.ndarray) -> np.ndarray:
    center = (n[..., None] * means).sum(axis=1) / n.sum(axis=1)[:, None]
    d = means - center[:, None]
    return scatter.sum(axis=1) + (n[..., None] * d).swapaxes(1, 2) @ d


def _between(means: np.ndarray, ranked: bool) -> np.ndarray:
    if means.shape[1] < 3:
        return np.full((len(means), *means.shape[2:] * 2), np.nan)
    if ranked:
        means = stats.rankdata(means, axis=1)
    d = means - means.mean(axis=1, keepdims=True)
    return d.swapaxes(1, 2) @ d


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mid-ranks (r, n, V), divided by their number, of values (n, V) in each weighting.

    A value of weight w stands for w equal observations: its rank is the weight below it plus
    (weight of its equals + 1) / 2.
    """
    total = np.maximum(weights.sum(axis=1), 1)[:, None]
    out = np.empty((len(weights), *values.shape))
    for v, column in enumerate(values.T):
        _, group = np.unique(column, return_inverse=True)
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        equal = np.add.reduceat(weights[:, order], starts, axis=1)
        out[:, :, v] = ((equal.cumsum(axis=1) - equal / 2 + 0.5) / total)[:, group]
    return out


def _correlation(scatter: np.ndarray) -> np.ndarray:
    own = np.einsum("...vv->...v", scatter)
    spread = np.sqrt(np.where(own > _NO_SPREAD, own, np.nan))
    return scatter / (spread[..., :, None] * spread[..., None, :])


def partial_correlation(corr: np.ndarray, y: int, x: int, given: list[int]) -> np.ndarray:
    """Return the correlation of what linear regressions on `given` leave of y and of x.

    With C the correlation matrix and g the controls, the residual covariance of a and b is
    R[a, b] = C[a, b] - C[a, g] C[g, g]^-1 C[g, b], and r = R[y, x] / sqrt(R[y, y] R[x, x]).

    Args:
        corr: (..., V, V) correlation matrices.
        y, x: the variables' positions.
        given: positions of the controls; none gives C[y, x].

    Returns:
        (...,) in [-1, 1]; NaN where a variable does not vary, or the controls explain y or x
        completely.

    Source:
        Fisher 1924, "The distribution of the partial correlation coefficient".
    """
    left = _residual(corr, [y, x], given)
    own = np.einsum("...vv->...v", left)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = left[..., 0, 1] / np.sqrt(own[..., 0] * own[..., 1])
    return np.where((own > _NOTHING).all(axis=-1), np.clip(r, -1, 1), np.nan)


def partial_r2(corr: np.ndarray, y: int, xs: list[int], given: list[int]) -> np.ndarray:
    """Return which share of what `given` leaves unexplained of y's variance the `xs` explain.

    (R2(y on given and xs) - R2(y on given)) / (1 - R2(y on given)), the squared multiple partial
    correlation; with one x the square of :func:`partial_correlation`, without `given` plain R2.

    Args:
        corr: (..., V, V) correlation matrices.
        y: position of the outcome.
        xs: positions of the predictors.
        given: positions of the controls.

    Returns:
        (...,) in [0, 1]; NaN as in :func:`partial_correlation`.
    """
    before = _residual(corr, [y], given)[..., 0, 0]
    after = _residual(corr, [y], [*given, *xs])[..., 0, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = 1 - after / before
    return np.where(before > _NOTHING, np.clip(r2, 0, 1), np.nan)


def _residual(corr: np.ndarray, of: list[int], given: list[int]) -> np.ndarray:
    """Return the covariances (..., len(of), len(of)) that are left after regression on `given`."""
    kept = corr[..., of, :]
    own = kept[..., of]
    if not given:
        return own
    among, across = corr[..., given, :][..., given], kept[..., given]
    # A pseudo-inverse gives the projection also where controls depend on each other. It takes no
    # NaN: such matrices (a control does not vary) get the identity, and NaN again at the end.
    bad = ~np.isfinite(among).all(axis=(-1, -2))
    among = np.where(bad[..., None, None], np.eye(len(given)), among)
    inverse = np.linalg.pinv(among, rcond=_NOTHING, hermitian=True)
    left = own - across @ inverse @ across.swapaxes(-1, -2)
    return np.where(bad[..., None, None], np.nan, left)
