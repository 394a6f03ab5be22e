"""Differences between changed and untouched networks, with paired intervals over the images."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ... import files, resume
from ...runs.scoring.boxes import versions
from ...short import Short
from ...wsol import BoxEvaluator
from ...wsol.scoring.bootstrap import compare
from ...wsol.scoring.resampling import check_resampling, draw, percentile_interval
from ..baselines import fixed_box_baselines
from .measure import Measured, area_of
from .run import Interventions, Setting

TOP1, BOX, V2, SIZE, AREA = "top1", "max_box_acc", "max_box_acc_v2", "erf_size", "erf_area"
METRICS = (TOP1, BOX, V2, SIZE, AREA)
TITLES = {
    TOP1: "top-1",
    BOX: "MaxBoxAcc",
    V2: "MaxBoxAccV2",
    SIZE: "ERF size",
    AREA: "ERF area",
}
UNITS = {TOP1: "%", BOX: "%", V2: "%", SIZE: "pixels", AREA: "% of the input"}


@dataclass(frozen=True)
class Effect:
    """A figure of network A, and its difference to that of network B over the same images.

    Attributes:
        value: of A; None where it is undefined.
        difference: A - B.
        low, high: the paired percentile interval of the difference; None where it is undefined.
    """

    value: float | None
    difference: float | None
    low: float | None
    high: float | None

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval lies below or above 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(repr=False)
class Row(Short):
    """One network, compared with the untouched one.

    Attributes:
        setting: how it was made.
        energy: share of the kernels' energy that was taken; None for changed features.
        sigma: standard deviation of the blur in cells of the feature map, or None.
        dropped: share of channels that were dropped, or None.
        change: relative change of the feature maps.
        effects: by metric; top-1 is missing where labels are not known.
        against: for a control, by metric, the outer cut of the same dose minus this control; empty
            for others.
    """

    setting: Setting
    energy: float | None
    sigma: float | None
    dropped: float | None
    change: float
    effects: dict[str, Effect]
    against: dict[str, Effect] = field(default_factory=dict)


@dataclass(repr=False)
class Findings(Short):
    """What `find` makes of the measurements.

    Attributes:
        rows: one per network, the untouched one first.
        num_images, num_erf: number of images that all networks localize, and of those of the ERF.
        centred_box: MaxBoxAcc of the best centred box of one relative size for all images, percent.
        num_resamples, confidence, seed: of the bootstrap.
        notes: lines to print.
    """

    rows: list[Row]
    num_images: int
    num_erf: int
    centred_box: float
    num_resamples: int
    confidence: float
    seed: int
    notes: list[str]

    @property
    def untouched(self) -> Row:
        return self.rows[0]

    def of_kind(self, kind: str) -> list[Row]:
        """Return the rows of a kind, the weakest change first."""
        return [r for r in self.rows if r.setting.kind == kind]


def find(found: Interventions, *, num_resamples: int, confidence: float, seed: int = 0) -> Findings:
    """Compare each network with the untouched one, and each control with the outer cut.

    Only images that every network could use count. All comparisons are on the same resamples of
    them, so that what makes an image hard for both networks cancels.

    Args:
        found: the measurements.
        num_resamples: R >= 2.
        confidence: of the intervals, in (0, 1).
        seed: of the resamples.

    Raises:
        InputError: a bad number or confidence.
    """
    check_resampling(num_resamples, confidence)
    measured = list(found.measured.values())
    ids = _shared(m.ids for m in measured)
    erf_ids = _shared(m.erf_ids for m in measured)
    versus = _Comparison(found, ids, erf_ids, num_resamples, confidence, seed)
    (base, *_), rows = measured, []
    for setting, m in found.measured.items():
        row = _row(setting, m, versus(m, base))
        outer = found.measured.get(Setting("outer", setting.radius))
        if outer is not None and setting.radius is not None and outer is not m:
            row.against = versus(outer, m)
        rows.append(row)
    notes = list(found.notes)
    for name, kept, every in (("", ids, measured[0].ids), ("ERF ", erf_ids, measured[0].erf_ids)):
        if len(kept) < len(every):
            notes.append(f"{len(every) - len(kept)} {name}images are left out: a network failed")
    floor = fixed_box_baselines(replace(found.what.boxes, image_ids=tuple(ids))).centred_box
    return Findings(rows, len(ids), len(erf_ids), floor, num_resamples, confidence, seed, notes)


def _shared(each) -> list[str]:
    first, *rest = [a.tolist() for a in each]
    sets = [set(r) for r in rest]
    return [i for i in first if all(i in s for s in sets)]


def _row(setting: Setting, m: Measured, effects: dict[str, Effect]) -> Row:
    dose, kind = float(m.dose), setting.kind
    return Row(
        setting,
        dose if kind in ("outer", "random", "inner") else None,
        dose if kind == "blur" else None,
        dose if kind == "drop" else None,
        float(m.change),
        effects,
    )


class _Comparison:
    """Computes the effects of one network against another on resamples of the shared images."""

    def __init__(
        self,
        found: Interventions,
        ids: list[str],
        erf_ids: list[str],
        num_resamples: int,
        confidence: float,
        seed: int,
    ):
        self.found, self.ids, self.erf_ids = found, ids, erf_ids
        how = {"num_resamples": num_resamples, "confidence": confidence, "seed": seed}
        self.how: dict[str, Any] = how
        # `compare` draws in the same way, so that top-1 has the resamples of the boxes.
        self.counts, self.erf_counts = (
            np.stack([np.ones(n, np.int64), *(draw(rng, n) for _ in range(num_resamples))])
            for n, rng in ((len(i), np.random.default_rng(seed)) for i in (ids, erf_ids))
        )
        self._evaluators: dict[int, BoxEvaluator] = {}

    def __call__(self, a: Measured, b: Measured) -> dict[str, Effect]:
        effects = {}
        if len(a.right) and len(b.right):
            right = [100.0 * _take(m.right, m.ids, self.ids) for m in (a, b)]
            effects[TOP1] = self._effect(self.counts, right[0], right[1])
        scores = compare(self._evaluator(a), self._evaluator(b), **self.how)
        for name in (BOX, V2):
            d: Any = scores.find(name)
            effects[name] = Effect(d.a, d.estimate, d.low, d.high)
        sizes, squares = (
            [_take(getattr(m, name), m.erf_ids, self.erf_ids) for m in (a, b)]
            for name in ("erf_size", "squares")
        )
        effects[SIZE] = self._effect(self.erf_counts, sizes[0], sizes[1])
        area = functools.partial(area_of, input_size=self.found.what.data.input_size)
        effects[AREA] = self._effect(self.erf_counts, squares[0], squares[1], area)
        return effects

    def _evaluator(self, m: Measured) -> BoxEvaluator:
        if id(m) not in self._evaluators:
            self._evaluators[id(m)] = m.evaluator(self.found.what, self.ids)
        return self._evaluators[id(m)]

    def _effect(
        self,
        counts: np.ndarray,
        a: np.ndarray,
        b: np.ndarray,
        of_mean: Callable[[np.ndarray], np.ndarray] = lambda mean: mean,
    ) -> Effect:
        """Return the effect on a function of the mean over the images; row 0 of `counts` is all."""
        x, y = (of_mean(counts @ v.astype(np.float64) / counts.shape[1]) for v in (a, b))
        interval = percentile_interval((x - y)[1:], self.how["confidence"]) or (None, None)
        defined = np.isfinite(x[0] - y[0])
        value = float(x[0]) if np.isfinite(x[0]) else None
        return Effect(value, float(x[0] - y[0]) if defined else None, *interval)


def _take(values: np.ndarray, ids: np.ndarray, wanted: Sequence[str]) -> np.ndarray:
    at = {image_id: i for i, image_id in enumerate(ids.tolist())}
    return values[[at[i] for i in wanted]]


FILES = ("erf_intervene.json", "erf_intervene.csv", "erf_intervene.png")


def outputs_of(folder: Path) -> resume.Outputs:
    """Return the files of the findings, which later findings in the same folder may replace."""
    return resume.beside(folder / FILES[0], resume.describe({}), *FILES[1:])


def write_findings(
    folder: Path, findings: Findings, answer: list[str], settings: dict
) -> tuple[Path, Path]:
    """Write the table as CSV, and everything as JSON; return their paths.

    The CSV has one row per network: for each metric its value, the difference to the untouched
    network with its interval, and for controls the difference of the outer cut to the control.
    """
    parts = ("difference", "low", "high")
    names = [f"{m}{p}" for m in METRICS for p in ("", *(f"_{p}" for p in parts))]
    names += [f"outer_minus_this_{m}{p}" for m in METRICS for p in ("", "_low", "_high")]
    doses = ("energy", "sigma", "dropped", "change")
    table = [["kind", "radius", *doses, *names]]
    for row in findings.rows:
        cells = [row.setting.kind, row.setting.radius, *(getattr(row, d) for d in doses)]
        for metric in METRICS:
            e = row.effects.get(metric)
            cells += [getattr(e, p, None) for p in ("value", *parts)]
        for metric in METRICS:
            e = row.against.get(metric)
            cells += [getattr(e, p, None) for p in parts]
        table.append(["" if c is None else c for c in cells])
    files.write_text(folder / FILES[1], files.csv_text(table))
    document = asdict(findings) | {"answer": answer, "settings": settings, "versions": versions()}
    files.write_json(folder / FILES[0], document)
    return folder / FILES[0], folder / FILES[1]
