"""The command ``erf-shape``: the ERF of slak_flex's mixtures, and the one nearest to a target."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from .. import locks, resume
from ..choices import CHECKPOINT
from ..data import ImageRecord, ImageSet
from ..data.reading import Report
from ..erf import (
    AreaRatio,
    ErfShape,
    Partial,
    area_ratio,
    erf_shape,
    measure_erf_map,
    scale_free_area_ratio,
    shape_distance,
)
from ..errors import InputError
from ..files import write_json, write_npy
from ..models import SLaKFlex
from ..npy import read_npy
from ..runs.erf.maps import map_walk
from ..runs.erf.shared import as_json, check_precision, checkpoint_level, run_description
from ..runs.inference import report_on
from ..runs.runtime import Runtime
from ..runs.settings import DataConfig, ModelConfig, RunConfig, SweepConfig
from ..shapes import Size
from ..short import Short


@dataclass(repr=False)
class Mixture(Short):
    """The ERF of slak_flex at alpha = 1 - square_share, beta = square_share.

    Attributes:
        square_share: beta / (alpha + beta).
        map: the ERF map (S,S) float64.
        ratios, scale_free: the map's published and scale-free area ratios.
        shape: the map's shape descriptors.
        distance: :func:`~cba_fast.erf.shape_distance` from the target; None without a target.
    """

    square_share: float
    map: np.ndarray
    ratios: list[AreaRatio]
    scale_free: list[AreaRatio]
    shape: ErfShape
    distance: float | None = None

    @property
    def alpha(self) -> float:
        return 1 - self.square_share

    @property
    def beta(self) -> float:
        return self.square_share

    def as_dict(self) -> dict:
        """Return everything but the map as JSON values."""
        values = {"alpha": self.alpha, "beta": self.beta, "shape": self.shape.as_dict()}
        values["area_ratio_log10_published"] = [r._asdict() for r in self.ratios]
        values["area_ratio_scale_free"] = [r._asdict() for r in self.scale_free]
        return values if self.distance is None else {**values, "distance": self.distance}


@dataclass(repr=False)
class Sweep(Short):
    """The result of a run.

    Attributes:
        mixtures: those of the sweep, from cross to square.
        tried: those that a search measured.
        best: the one nearest to the target; None without a target.
        notes: lines to print at the end.
    """

    mixtures: list[Mixture]
    tried: list[Mixture] = field(default_factory=list)
    best: Mixture | None = None
    notes: list[str] = field(default_factory=list)


def check_unmixed(config: ModelConfig) -> None:
    """Refuse settings that fix the mixture.

    Raises:
        InputError: alpha or beta is given.
    """
    if config.alpha is not None or config.beta is not None:
        raise InputError("alpha and beta are what is swept; leave them out")


def load_mixable(config: ModelConfig) -> SLaKFlex:
    """Build slak_flex in the form in which alpha and beta can still be changed, on the CPU.

    Raises:
        InputError: another family, alpha or beta given, or a checkpoint with merged weights.
        CheckpointError: the weights cannot be loaded.
    """
    check_unmixed(config)
    if config.family not in (None, "slak_flex"):
        raise InputError(f"only slak_flex has a mixture to change, not {config.family}")
    model = config.build()
    if not isinstance(model, SLaKFlex):
        raise InputError(f"only slak_flex has a mixture to change, not {model.family}")
    try:
        model.set_mixing(1, 0)
    except ValueError as e:
        raise InputError(f"{config.weights}: {e}") from e
    return model


class MixtureMaps:
    """Measures the ERF map of each mixture once, and keeps the finished maps.

    A mixture is given by one number, beta / (alpha + beta). The output depends on nothing else,
    because a layer norm follows the mixture and removes a common factor (but for its epsilon).

    Args:
        model: from :func:`load_mixable`; its mixture is changed.
        records: the images.
        input_size: of the images in pixels.
        run: how to compute.
        num_images: number of images of each map.
        checkpoint, progress: see :func:`~cba_fast.runs.erf.sizes.compute_sizes`.
        partial: keeps the finished maps, from which a killed run continues; None keeps nothing.
    """

    def __init__(
        self,
        model: SLaKFlex,
        records: Sequence[ImageRecord],
        input_size: Size,
        run: Runtime,
        num_images: int,
        checkpoint: str = CHECKPOINT,
        partial: Partial | None = None,
        progress: Callable = lambda steps, count: steps,
    ):
        self.model, self.records, self.input_size, self.run = model, records, input_size, run
        self.num_images, self.checkpoint = num_images, checkpoint
        self.partial, self.progress = partial, progress
        self.report: Report = report_on(records, run.config.strict)
        stored = (partial.load() if partial else None) or {}
        self.maps: dict[float, np.ndarray] = dict(
            zip(stored.get("shares", np.empty(0)).tolist(), stored.get("maps", ()))
        )
        self.continued = len(self.maps)
        if stored:
            self.report.loads(str(stored["report"]))

    def __call__(self, square_share: float) -> Mixture:
        """Return the mixture of a share of the square kernel in [0, 1].

        Raises:
            ImageError: no image can be used, or, in a strict run, one cannot.
            InputError: the ERF map is zero everywhere.
        """
        if square_share not in self.maps:
            self.maps[square_share] = self._measure(square_share)
            if self.partial:
                self.partial.save(self.arrays)
        found = self.maps[square_share]
        return Mixture(
            square_share, found, area_ratio(found), scale_free_area_ratio(found), erf_shape(found)
        )

    def _measure(self, square_share: float) -> np.ndarray:
        self.model.set_mixing(1 - square_share, square_share)
        form = self.run.form_of(self.model)
        walk = map_walk(self.records, self.input_size, self.run, self.progress)
        level = checkpoint_level(self.checkpoint, form, self.input_size, self.run, features=True)
        try:
            with self.run.autocast():
                found = measure_erf_map(form, walk, self.num_images, checkpoint=level).map
            erf_shape(found)
        except ValueError as e:
            walk.report.check_any(0)
            raise InputError(
                f"no ERF map at alpha {1 - square_share:g}, beta {square_share:g}: {e}"
            ) from e
        self.report = walk.report
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the finished maps as `partial` keeps them."""
        return {
            "shares": np.array(list(self.maps)),
            "maps": np.stack(list(self.maps.values())),
            "report": np.array(self.report.dumps()),
        }


def run_sweep(
    measure: Callable[[float], Mixture],
    config: SweepConfig,
    target: np.ndarray | None = None,
) -> Sweep:
    """Measure the sweep's mixtures and, with a target, search the one whose ERF is nearest to it.

    The search minimizes :func:`~cba_fast.erf.shape_distance` to the target over the share of the
    square kernel, by Brent's bounded method (`scipy.optimize.minimize_scalar`) between the
    neighbours of the sweep's nearest mixture. The nearest of all measured mixtures is returned.

    Args:
        measure: function from a share of the square kernel to its mixture, such as a `MixtureMaps`.
        config: the sweep.
        target: an ERF map (H,W), or None.
    """
    shares = config.shares()
    sweep = Sweep([measure(share) for share in shares])
    if target is None:
        return sweep
    tried: dict[float, Mixture] = {}

    def compared(mixture: Mixture) -> float:
        mixture.distance = shape_distance(mixture.map, target)
        return mixture.distance

    def objective(share: float) -> float:
        tried[float(share)] = measure(float(share))
        return compared(tried[float(share)])

    nearest = int(np.argmin([compared(m) for m in sweep.mixtures]))
    bounds = shares[max(nearest - 1, 0)], shares[min(nearest + 1, len(shares) - 1)]
    options = {"maxiter": config.evaluations, "xatol": 1e-3}
    minimize_scalar(objective, bounds=bounds, method="bounded", options=options)
    sweep.tried = list(tried.values())
    every = [*sweep.mixtures, *sweep.tried]
    sweep.best = min(every, key=lambda m: math.inf if m.distance is None else m.distance)
    return sweep


@locks.released()
def compute_sweep(
    model: SLaKFlex,
    images: ImageSet,
    model_config: ModelConfig,
    data: DataConfig,
    run: RunConfig | Runtime,
    config: SweepConfig,
    output: str | os.PathLike,
    *,
    target: np.ndarray | None = None,
    target_name: str = "",
    json_path: str | os.PathLike | None = None,
    checkpoint: str = CHECKPOINT,
    overwrite: bool = False,
    progress: Callable = lambda steps, count: steps,
) -> Sweep:
    """Run a sweep, and a search if there is a target, and write the results.

    `output` gets the sweep's maps (steps,S,S) float64, from cross to square. The JSON file gets the
    settings and, for each mixture of the sweep and the search, area ratios and descriptors.

    Args:
        model: from :func:`load_mixable`.
        images: the data set; the first `config.num_images` usable ones count.
        model_config, data, run: the settings of the model, the images and the computation.
        config: the sweep.
        output: the ``.npy`` file.
        target: an ERF map (H,W) to match, or None.
        target_name: name of the target in the JSON file.
        json_path: the JSON file; None for one beside `output`.
        checkpoint, overwrite, progress: see :func:`~cba_fast.runs.erf.sizes.compute_sizes`.

    Raises:
        ImageError: no image can be used, or, with `run.strict`, one cannot.
        InputError: fp16, or a map that is zero everywhere.
    """
    run = Runtime.of(run)
    check_precision(run.config)
    # The number of mixtures and the target are left out, because the maps do not depend on them: a
    # finer sweep or another search uses the maps that exist.
    of_maps = {"num_images": config.num_images}
    described = run_description(model_config, data, run, images.records, of_maps)
    json_path = Path(json_path or Path(output).with_suffix(".json"))
    outputs = [resume.beside(output, described), resume.beside(json_path, described)]
    resume.claim(outputs, overwrite)
    partial = Partial(output)
    what = (model, images.records, data.input_size)
    measure = MixtureMaps(*what, run, config.num_images, checkpoint, partial, progress)
    try:
        found = run_sweep(measure, config, target)
    except BaseException:
        if measure.maps:
            partial.save(measure.arrays, force=True)
        raise
    if measure.continued:
        found.notes.append(f"continued after {measure.continued} mixtures")
    found.notes += measure.report.lines()
    used = {**as_json(described), "sweep": asdict(config)}
    write_json(json_path, _report(found, used, target_name))
    write_npy(output, np.stack([m.map for m in found.mixtures]))
    partial.save(measure.arrays, force=True)
    return found


def _report(found: Sweep, used: dict, target_name: str) -> dict:
    report: dict[str, Any] = {"mixtures": [m.as_dict() for m in found.mixtures]}
    if found.best is not None:
        report["match"] = {
            "target": target_name,
            "best": found.best.as_dict(),
            "tried": [m.as_dict() for m in found.tried],
        }
    return {**report, "settings": used}


def load_target(path: str | os.PathLike) -> np.ndarray:
    """Read a saved ERF map (H,W).

    Raises:
        InputError: the file cannot be read as one; the message names it.
    """
    try:
        erf = read_npy(path)
        erf_shape(erf)
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: no ERF map: {getattr(e, 'strerror', None) or e}") from e
    return erf


def table(mixtures: Sequence[Mixture]) -> list[str]:
    """Return a table to print, with the descriptors and the 50 % area ratios of each mixture."""
    head = (
        f"{'alpha':>6} {'beta':>6} {'sigma':>12} {'axes':>6} {'cross':>7} {'fourfold':>8} "
        f"{'round':>6} {'partic.':>8} {'50% log10':>9} {'50% free':>9}"
    )
    with_distance = any(m.distance is not None for m in mixtures)
    rows = [head + ("  distance" if with_distance else "")]
    for m in mixtures:
        s = m.shape
        sigma = f"{s.sigma_major:.1f}/{s.sigma_minor:.1f}"
        rows.append(
            f"{m.alpha:6.3f} {m.beta:6.3f} {sigma:>12} {s.axis_ratio:6.3f} {s.cross_share:7.1%} "
            f"{s.fourfold:+8.3f} {s.roundness:6.3f} {s.participation:8.2%} "
            f"{_half(m.ratios):>9} {_half(m.scale_free):>9}"
            + ("" if m.distance is None else f" {m.distance:9.4f}")
        )
    return rows


def _half(ratios: Sequence[AreaRatio]) -> str:
    ratio = next(r.ratio for r in ratios if r.threshold == 0.5)
    return "none" if ratio is None else f"{ratio:.2%}"
