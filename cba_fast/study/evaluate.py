"""``evaluate``: images in, metrics out, without intermediate files."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from cba_fast.data import ImageRecord, check_map_names, map_name
from cba_fast.data.boxes import Boxes
from cba_fast.errors import InputError, ScoreMapError
from cba_fast.wsol import BoxEvaluator, BoxResult
from cba_fast.wsol.score_maps import resize_score_map

from .config import BoxConfig, DataConfig, MapConfig, ModelConfig, RunConfig
from .erf_runs import SizeConfig, measure_sizes
from .generate import constant_lines
from .inference import iter_localizations, load_model, open_images, report_on
from .score import make_evaluator, open_boxes


@dataclass
class EvaluateResult:
    """Scores of one model.

    Attributes:
        result: the box scores.
        classification: ``top1`` and ``top5`` (shares of images, percent) and ``top1_localization``
            and ``top5_localization`` (the class is right and the box is, at the optimal threshold
            of MaxBoxAcc, IoU 0.5, largest contour); None without labels.
        erf: ``num_samples``, ``p``, ``mean``, ``std`` (ddof 0) of the ERF size in pixels; None if
            not asked for.
        unreadable: why each image that could not be read has no map, by id.
        constant: ids of the images whose map is constant and counts as zeros.
        notes: what to tell at the end of the run.
    """

    result: BoxResult
    classification: dict | None
    erf: dict | None
    unreadable: dict[str, str]
    constant: list[str]
    notes: list[str]


def evaluate(
    model_config: ModelConfig,
    data: DataConfig,
    run: RunConfig,
    maps: MapConfig,
    box_config: BoxConfig,
    *,
    num_samples: int = 200,
    p: float = 0.2,
    seed: int = 0,
    progress: Callable | None = None,
) -> EvaluateResult:
    """Make the maps of all images with boxes and score them in both contour modes.

    For the same images, batch size, precision and threads the counts equal those of
    ``generate-heatmap`` followed by ``wsol-eval``.

    Args:
        model_config, data, run, maps, box_config: settings. Without `cub_root` and `metadata_root`
            the images must be a CUB_200_2011 folder, whose own boxes are taken.
        num_samples: images of the ERF measurement; 0 leaves it out.
        p, seed: share of the gradient and sampling seed of the ERF size.
        progress: called with an iterable and its length, returns an iterable.

    Raises:
        InputError, CheckpointError, ImageError, BoxError: as the two commands.
    """
    images = open_images(data)
    check_map_names(images.records)
    if box_config.cub_root is None and box_config.metadata_root is None and images.kind == "cub":
        box_config = replace(box_config, cub_root=images.root)
    box_config = replace(box_config, contours="both")
    boxes = open_boxes(box_config)
    records, image_ids, notes = match_images(images.records, boxes)
    if box_config.eval_size not in (None, maps.map_size) and not box_config.resize_maps:
        raise ScoreMapError(
            f"the maps are {maps.map_size}x{maps.map_size}, but --eval_size asks for "
            f"{box_config.eval_size} (give --resize_maps or another --map_size)"
        )
    model = load_model(model_config, run)
    evaluator = make_evaluator(boxes, box_config)
    report = report_on(records, run)
    constant: list[str] = []
    top5: dict[str, np.ndarray] = {}
    found = iter_localizations(model, records, data, run, maps, report)
    batches = -(-len(records) // run.batch_size)
    for indices, batch in progress(found, batches) if progress else found:
        ids = [image_ids[i] for i in indices]
        score_maps = batch.maps
        if box_config.eval_size not in (None, maps.map_size):
            score_maps = np.stack([resize_score_map(m, box_config.eval_size) for m in score_maps])
        evaluator.update(score_maps, ids)
        top5.update(zip(ids, batch.top5))
        constant += [i for i, empty in zip(ids, batch.constant) if empty]
    report.check_any(len(evaluator))
    result = evaluator.compute(missing_as_miss=box_config.missing_as_miss)
    labels = _labels(records, image_ids, boxes)
    return EvaluateResult(
        result,
        classification_scores(evaluator, result, top5, labels),
        _erf_summary(model, records, data, run, SizeConfig(num_samples, (p,), seed)),
        {records[i].image_id: reason for i, reason in report.failed},
        constant,
        notes + constant_lines(constant) + report.lines(),
    )


def match_images(
    records: Iterable[ImageRecord], boxes: Boxes
) -> tuple[list[ImageRecord], list[str], list[str]]:
    """Pair images with ground truth by the name of their map, as ``wsol-eval`` does.

    Returns:
        The records that have boxes and exist, their ids in the ground truth, and notes on images
        without boxes. Ground truth without an image stays for the evaluator's list of missing.

    Raises:
        InputError: no image has boxes.
    """
    ids = {map_name(i): i for i in boxes.image_ids}
    records = list(records)
    known = [r for r in records if r.map_name in ids]
    paired = [r for r in known if r.path.is_file()]
    if not paired:
        raise InputError(
            f"none of the {len(records)} images is in the ground truth of {len(ids)} images "
            f"(an image: {records[0].image_id}; a ground-truth id: {boxes.image_ids[0]})"
        )
    notes = []
    if len(known) < len(records):
        notes.append(f"{len(records) - len(known)} images have no ground truth and were left out")
    return paired, [ids[r.map_name] for r in paired], notes


def _labels(records: list[ImageRecord], ids: list[str], boxes: Boxes) -> dict[str, int] | None:
    labels = {i: r.label for i, r in zip(ids, records)}
    if boxes.labels is not None:
        labels = {i: boxes.labels[i] for i in ids}
    return None if any(label is None for label in labels.values()) else labels


def classification_scores(
    evaluator: BoxEvaluator,
    result: BoxResult,
    top5: dict[str, np.ndarray],
    labels: dict[str, int] | None,
) -> dict | None:
    """Return top-1 and top-5 accuracy and localization in percent; see `EvaluateResult`."""
    if labels is None:
        return None
    at_half = result.iou_thresholds.index(0.5)
    threshold = result.modes["largest"].optimal_threshold[at_half]
    localized = evaluator.localized("largest", 0.5, threshold)
    counts = dict.fromkeys(("top1", "top5", "top1_localization", "top5_localization"), 0)
    for image_id, classes in top5.items():
        for k in (1, 5):
            right = labels[image_id] in classes[:k]
            counts[f"top{k}"] += right
            counts[f"top{k}_localization"] += right and localized[image_id]
    return {key: 100.0 * count / result.num_images for key, count in counts.items()}


def _erf_summary(
    model: nn.Module,
    records: list[ImageRecord],
    data: DataConfig,
    run: RunConfig,
    config: SizeConfig,
) -> dict | None:
    """Measure as ``erf-compute`` does by default: one image at a time, in float32."""
    if config.num_samples == 0:
        return None
    run = replace(run, batch_size=1, precision="fp32")
    sizes = measure_sizes(model, records, data, run, config).sizes
    return {
        "num_samples": len(sizes),
        "p": config.shares[0],
        "seed": config.seed,
        "mean": float(np.mean(sizes)),
        "std": float(np.std(sizes)),
    }
