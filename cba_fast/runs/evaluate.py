"""The command ``evaluate``: from images to all metrics, without files in between."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from ..data import ImageRecord, ImageSet, map_name, map_names
from ..data.boxes import Boxes, turned_notes
from ..data.reading import Report, cut
from ..data.textlines import counted
from ..errors import CbaError, InputError, ScoreMapError
from ..shapes import map_shape, shape_text
from ..short import Short
from ..stages import stage
from ..wsol import BoxEvaluator, BoxResult, classification_scores, correct_classes
from ..wsol.score_maps import resize_score_map
from .erf.sizes import measure_sizes
from .generate import constant_lines
from .inference import (
    WaitForMaps,
    iter_host_maps,
    load_model,
    open_images,
    report_on,
)
from .overlap import in_background, one_by_one
from .ranks import ALONE, RankError, Ranks
from .resolve import ResolvedRun, resolve
from .runtime import Runtime
from .scoring.boxes import (
    Tuned,
    fixed_accuracies,
    fixed_evaluator,
    make_evaluator,
    open_boxes,
    transferred_accuracies,
)
from .settings import BoxConfig, DataConfig, MapConfig, ModelConfig, RunConfig, SizeConfig


class TakesMaps(Protocol):
    """What takes batches of maps with the ids of their images: an evaluator, for example."""

    def update(self, scoremaps: np.ndarray, image_ids: Sequence[str]) -> None: ...


@dataclass(repr=False)
class EvaluateResult(Short):
    """The scores of one model.

    Attributes:
        result: the box scores.
        classification: from `cba_fast.wsol.classification_scores`; None without labels.
        erf: ``num_samples``, ``p``, ``seed``, ``mean``, ``std`` (ddof 0) of the ERF size in pixels;
            None if it was not asked for or could not be measured (a note says why).
        unreadable: by id, why an image has no map: it could not be read, or its features overflow.
        constant: ids of the images whose map is constant and counts as zeros.
        box_config: the ground truth and protocol that were used.
        fixed, transferred: see `ScoreResult`.
        notes: lines to print at the end of the run.
        predictions: the five best classes of each scored image, best first.
        sources: the folders that were read for the images and for the ground truth.
        paths: the files of the images by their ids in the ground truth.
    """

    result: BoxResult
    classification: dict | None
    erf: dict | None
    unreadable: dict[str, str]
    constant: list[str]
    box_config: BoxConfig
    fixed: list[dict] | None
    transferred: list[dict] | None
    notes: list[str]
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    sources: tuple[str, str] = ("", "")
    paths: dict[str, Path] = field(default_factory=dict)


def evaluate(
    model_config: ModelConfig,
    data: DataConfig,
    run: RunConfig | Runtime,
    maps: MapConfig,
    box_config: BoxConfig,
    *,
    num_samples: int = SizeConfig.num_samples,
    p: float = SizeConfig.shares[0],
    seed: int = SizeConfig.seed,
    tuned: Tuned | None = None,
    scored: Callable[[EvaluateResult], None] | None = None,
    keeper: TakesMaps | None = None,
    progress: Callable | None = None,
    erf_progress: Callable | None = None,
    ranks: Ranks = ALONE,
) -> EvaluateResult:
    """Make the maps of all images with boxes and score them in both contour modes.

    For the same images, run settings and threads the counts equal those of ``generate-heatmap``
    followed by ``wsol-eval``.

    Args:
        model_config, data, run, maps, box_config: settings; gaps are filled by
            `cba_fast.runs.resolve`. Without `cub_root` and `metadata_root`
            the images must be a CUB_200_2011 folder, whose own boxes are taken.
        num_samples, p, seed: number of images of the ERF size (0 leaves it out), share of the
            gradient, and seed of the sample.
        tuned: thresholds of another run, at which the accuracies are computed too.
        scored: called with the result before the ERF is measured, so that it can be saved.
        keeper: gets every batch of maps, too, such as `cba_fast.report.MapKeeper`.
        progress, erf_progress: called with an iterable and its length, return an iterable.
        ranks: from `cba_fast.runs.ranks.join` where several processes share the images; each of
            them returns the result.

    Raises:
        CbaError: as those two commands.
    """
    if keeper is not None and not ranks.alone:
        raise InputError("a report is made by one process, which has all maps: leave out torchrun")
    resolved = resolve(model_config, data)
    model_config = resolved.model
    what = find_images(resolved, maps, box_config)
    records, data, box_config = what.records, what.data, what.box_config
    evaluator, fixed = what.evaluator(tuned), fixed_evaluator(what.boxes, box_config)
    ranks.agree(records, model_config.weights)
    run = Runtime.of(run)
    model = load_model(model_config, run, data.input_size, keep_layers=maps.layer is not None)
    takers = [taker for taker in (evaluator, fixed, keeper) if taker is not None]
    seen, report = score_images(model, what, run, takers, progress, ranks)
    done = _result(what, evaluator, fixed, tuned, seen, report) if ranks.whole else None
    if done and scored:
        scored(done)
    if num_samples > 0:
        sizes, exact = SizeConfig(num_samples, (p,), seed), Runtime.of(run.config.for_erf())
        if run.dtype != exact.dtype:
            model = load_model(model_config, exact, data.input_size)
        erf, more = _erf_summary(model, records, data, exact, sizes, erf_progress, ranks)
        if done:
            done.erf, done.notes = erf, done.notes + more
    return done  # type: ignore[return-value]  # None from a part of a run, which nobody reads


def _result(
    what: "ScoredImages",
    evaluator: BoxEvaluator,
    fixed: BoxEvaluator | None,
    tuned: Tuned | None,
    seen: "Seen",
    report: Report,
) -> EvaluateResult:
    """Return the scores of all images, without the ERF."""
    report.check_any(len(evaluator))
    result = evaluator.compute(missing_as_miss=what.box_config.missing_as_miss)
    return EvaluateResult(
        result,
        _classification(evaluator, result, seen.top5, what.labels()),
        None,
        {what.records[i].image_id: reason for i, reason in report.failed},
        seen.constant,
        what.box_config,
        fixed_accuracies(fixed, result),
        transferred_accuracies(result, tuned) if tuned else None,
        what.notes + constant_lines(seen.constant) + report.lines(),
        seen.top5,
        what.sources,
        {i: record.path for i, record in zip(what.image_ids, what.records)},
    )


def with_own_boxes(config: BoxConfig, images: ImageSet) -> BoxConfig:
    """Return `config` with the boxes of the CUB folder of `images` if it names no ground truth."""
    if config.cub_root is None and config.metadata_root is None and images.kind == "cub":
        return replace(config, cub_root=images.root)
    return config


def _both_modes(config: BoxConfig, images: ImageSet, maps: MapConfig) -> BoxConfig:
    """Return the effective protocol: both contour modes, and a CUB folder's own boxes by default.

    Raises:
        ScoreMapError: maps of another size than asked for, which are not to be resized.
    """
    config = with_own_boxes(config, images)
    wanted = _resized_to(config, maps)
    if wanted is not None and not config.resize_maps:
        raise ScoreMapError(
            f"the maps are {shape_text(map_shape(maps.map_size))}, but `eval_size` asks for "
            f"{shape_text(wanted)} (give `resize_maps` or another `map_size`)"
        )
    return replace(config, contours="both")


def _resized_to(config: BoxConfig, maps: MapConfig) -> tuple[int, int] | None:
    """Return the (H, W) to which the maps are resized before they are scored, or None."""
    if config.eval_size is None:
        return None
    shape = map_shape(config.eval_size, name="eval_size")
    return None if shape == map_shape(maps.map_size) else shape


@dataclass(repr=False)
class ScoredImages(Short):
    """The images of a score, with their ground truth and the protocol.

    Attributes:
        records: the images that have a file and boxes, with the model's labels where they are
            known.
        image_ids: their ids in the ground truth.
        boxes: the ground truth.
        data, maps, box_config: settings without gaps.
        notes: lines to print at the end of the run.
        sources: the folders that were read for the images and for the ground truth.
    """

    records: list[ImageRecord]
    image_ids: list[str]
    boxes: Boxes
    data: DataConfig
    maps: MapConfig
    box_config: BoxConfig
    notes: list[str]
    sources: tuple[str, str]

    def evaluator(self, tuned: Tuned | None = None) -> BoxEvaluator:
        """Return an evaluator of the protocol, which holds no image yet."""
        return make_evaluator(self.boxes, self.box_config, tuned)

    def labels(self) -> dict[str, int] | None:
        """Return the label of each image by its id; None unless all are known."""
        labels = dict(zip(self.image_ids, (record.label for record in self.records)))
        return None if None in labels.values() else labels


def find_images(resolved: ResolvedRun, maps: MapConfig, box_config: BoxConfig) -> ScoredImages:
    """Find the images that have boxes; for arguments and errors see :func:`evaluate`."""
    data = resolved.data
    images, maps = open_images(data), maps.at(data.input_size)
    box_config = _both_modes(box_config, images, maps)
    boxes = open_boxes(box_config)
    records, image_ids, notes = match_images(images.records, boxes, maps.map_names)
    notes += turned_notes(boxes, {i: r.path for i, r in zip(image_ids, records)})
    records, unknown = _labelled(resolved, records, images, boxes, maps)
    sources = (images.source, boxes.source)
    return ScoredImages(records, image_ids, boxes, data, maps, box_config, notes + unknown, sources)


@dataclass(repr=False)
class Seen(Short):
    """What is kept of the scored images: the five best classes by id, and ids of constant maps."""

    top5: dict[str, np.ndarray] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)


def score_images(
    model: nn.Module,
    what: ScoredImages,
    run: Runtime,
    evaluators: Sequence[Any],
    progress: Callable | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Seen, Report]:
    """Make the maps of all images by a model in its form for the run, and add them to evaluators.

    Returns:
        What was seen, and the report on the images that have no map.
    """
    report = report_on(what.records, run.config.strict)
    shape = _resized_to(what.box_config, what.maps)
    batches = ranks.mine(cut(range(len(what.records)), run.config.batch_size))
    found = iter_host_maps(
        model, what.records, what.data, run, what.maps, report, batches, scored=shape is None
    )
    if progress:
        found = progress(found, len(batches))
    seen = _score(found, choose_loop(run), evaluators, what.image_ids, shape)
    states = [e.state_dict() for e in evaluators] if not ranks.alone else []
    parts = ranks.share((seen, states))
    for _, theirs in parts:
        for evaluator, state in zip(evaluators, theirs):
            other = copy(evaluator)
            other.load_state_dict(state)  # this gives the copy a table of its own
            evaluator.merge(other)
    return _in_order([part[0] for part in parts], what.image_ids), ranks.merged(report)


def _in_order(parts: list[Seen], image_ids: list[str]) -> Seen:
    """Return what several processes saw as one, in the order of the images."""
    top5 = {i: row for part in parts for i, row in part.top5.items()}
    constant = {i for part in parts for i in part.constant}
    return Seen(
        {i: top5[i] for i in image_ids if i in top5}, [i for i in image_ids if i in constant]
    )


def choose_loop(run: Runtime) -> Callable:
    """Return the loop that makes batches and scores them: one after the other, or overlapping.

    They overlap where a GPU makes the batches. Beside a model on the CPU, scoring would only take
    the model's cores.
    """
    return in_background if run.device.type == "cuda" else one_by_one


def _score(
    found: Iterable[WaitForMaps],
    loop: Callable,
    evaluators: Sequence[TakesMaps],
    image_ids: list[str],
    shape: tuple[int, int] | None,
) -> Seen:
    """Score the batches, after resizing the maps to `shape` (H, W) if it is given."""
    seen = Seen()

    def sweep(wait: WaitForMaps) -> None:
        indices, host_maps = wait()
        if not indices:
            return
        ids = [image_ids[i] for i in indices]
        score_maps = host_maps.u
        if shape is not None:
            with stage("map"):
                maps = host_maps.localization().maps
                score_maps = np.stack([resize_score_map(m, shape) for m in maps])
        with stage("sweep"):
            for evaluator in evaluators:
                evaluator.update(score_maps, ids)
        seen.top5.update(zip(ids, host_maps.top5))
        seen.constant += [i for i, empty in zip(ids, host_maps.constant) if empty]

    loop(found, sweep)
    return seen


def match_images(
    records: Iterable[ImageRecord], boxes: Boxes, rule: str | None = None
) -> tuple[list[ImageRecord], list[str], list[str]]:
    """Pair images with ground truth by the name of their map, as ``wsol-eval`` does.

    Args:
        records: the images.
        boxes: the ground truth.
        rule: how maps are named, see :func:`cba_fast.data.map_names`.

    Returns:
        The records whose files exist and that have boxes, with the labels of the ground truth if it
        has any; their ids in the ground truth; and notes on images without boxes. Ground truth
        without an image is not reported here, because the evaluator lists it as missing.

    Raises:
        InputError: no image has boxes, two images have the same map, or an image fits two ids of
            the ground truth.
    """
    records = list(records)
    names = map_names(records, rule)
    official = names[:1] == [f"{records[0].image_id}.npy"]
    wanted = dict(zip(names, records))
    ids: dict[str, str] = {}
    for image_id in boxes.image_ids:
        name = f"{image_id}.npy" if official else map_name(image_id)
        if ids.setdefault(name, image_id) != image_id and name in wanted:
            raise InputError(
                f"the image {wanted[name].image_id} could be {ids[name]} or {image_id} of the "
                f"ground truth: the name of their maps, {name}, is the same"
            )
    known = [(r, ids[name]) for name, r in wanted.items() if name in ids]
    paired = [(r, i) for r, i in known if r.path.is_file()]
    if not paired:
        raise InputError(
            f"none of the {len(records)} images is in the ground truth of {len(ids)} images "
            f"(an image: {records[0].image_id}; a ground-truth id: {boxes.image_ids[0]})"
        )
    notes = []
    if len(known) < len(records):
        unknown = counted(len(records) - len(known), "image")
        notes.append(f"without ground truth, left out: {unknown}")
    if boxes.labels is not None:
        # Class folders number classes by their names; the ground truth may have another order.
        paired = [(replace(r, label=boxes.labels[i]), i) for r, i in paired]
    return [r for r, _ in paired], [i for _, i in paired], notes


def _labelled(
    resolved: ResolvedRun,
    records: list[ImageRecord],
    images: ImageSet,
    boxes: Boxes,
    maps: MapConfig,
) -> tuple[list[ImageRecord], list[str]]:
    """Return the records of `match_images` with the model's labels, and notes.

    If the labels cannot be known, the records have none and a note says why.

    Raises:
        InputError: the labels cannot be known, and the maps need them.
    """
    truth = None if boxes.labels is None else {r.image_id: r.label for r in records}
    try:
        return resolved.labelled(records, images, truth), []
    except InputError as e:
        if maps.target == "label":
            raise
        return [replace(r, label=None) for r in records], [f"no top-1: {e}"]


def _classification(
    evaluator: BoxEvaluator,
    result: BoxResult,
    top5: dict[str, np.ndarray],
    labels: dict[str, int] | None,
) -> dict | None:
    if labels is None:
        return None
    correct = correct_classes(list(evaluator.table.index), top5, labels)
    return classification_scores(evaluator, result, correct)


def _erf_summary(
    model: nn.Module,
    records: list[ImageRecord],
    data: DataConfig,
    run: Runtime,
    config: SizeConfig,
    progress: Callable | None,
    ranks: Ranks,
) -> tuple[dict | None, list[str]]:
    """Return the ERF summary and notes, measured as ``erf-compute`` does by default.

    That is one image at a time and in float32. If it is not possible, the summary is None and a
    note says why, because the scores of the boxes are valid without it.
    """
    options: dict[str, Any] = {"progress": progress} if progress else {}
    try:
        found = measure_sizes(model, records, data, run, config, ranks=ranks, **options)
    except RankError:
        raise
    except CbaError as e:
        return None, [f"the ERF size could not be measured: {e}"]
    summary = {
        "num_samples": len(found.sizes),
        "p": config.shares[0],
        "seed": config.seed,
        "mean": float(np.mean(found.sizes)),
        "std": float(np.std(found.sizes)),
    }
    return summary, [n if n.startswith(" ") else f"ERF: {n}" for n in found.notes]
