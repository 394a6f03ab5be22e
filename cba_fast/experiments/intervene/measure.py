"""Measures localization, class, ERF size and ERF area of one network, image by image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ... import ops
from ...data import ImageDataset, ImageRecord
from ...data.reading import transform
from ...erf import Walk, center_gradient, input_gradient, sample_indices
from ...erf.gradients import images_of
from ...erf.walk import State, with_finite_gradient
from ...errors import InputError
from ...runs.evaluate import ScoredImages, score_images
from ...runs.inference import report_on
from ...runs.runtime import Runtime
from ...runs.settings import InterveneConfig
from ...shapes import Size, map_shape
from ...short import Short
from ...wsol import BoxEvaluator, correct_classes

PROBES = 8  # images on which the change of the feature maps is measured
HALF = 0.5  # share of an ERF map inside the square whose area is the ERF area


@dataclass(repr=False)
class Measured(Short):
    """What was measured of one network; images that failed are missing.

    Attributes:
        ids: (n,) ids of the localized images in the ground truth.
        rows: (n, 2, T) uint8, the rows of the evaluator, see `BoxEvaluator`.
        right: (n,) whether the class is right; empty where labels are not known.
        erf_ids: (m,) ids of the images of the ERF.
        erf_size: (m,) float64, ERF sizes in pixels.
        squares: (m, K+1) float64, from :func:`central_squares`.
        change: relative change of the feature maps, see `cba_fast.experiments.intervene.features`.
        dose: what was done: the share of the kernels' energy that was taken, the blur's standard
            deviation in cells of the feature map, or the share of channels that was dropped.
        notes, erf_notes: lines to print.
    """

    ids: np.ndarray
    rows: np.ndarray
    right: np.ndarray
    erf_ids: np.ndarray
    erf_size: np.ndarray
    squares: np.ndarray
    change: np.ndarray
    dose: np.ndarray
    notes: np.ndarray
    erf_notes: np.ndarray

    def evaluator(self, what: ScoredImages, ids: Sequence[str]) -> BoxEvaluator:
        """Return the evaluator of these images alone, in this order."""
        at = {image_id: i for i, image_id in enumerate(self.ids.tolist())}
        rows = self.rows[[at[i] for i in ids]]
        evaluator = what.evaluator()
        each = {mode: torch.from_numpy(rows[:, m]) for m, mode in enumerate(evaluator.modes)}
        evaluator.load_state_dict({**evaluator.state_dict(), "image_ids": list(ids), "rows": each})
        return evaluator


def drawn(what: ScoredImages, config: InterveneConfig) -> tuple[ScoredImages, list[ImageRecord]]:
    """Return the images to localize, in the order of the data set, and those of the ERF."""
    order = sample_indices(len(what.records), config.num_images, config.seed)
    kept = sorted(order)  # with all images the batches are those of `evaluate`, bit for bit
    some = replace(
        what,
        records=[what.records[i] for i in kept],
        image_ids=[what.image_ids[i] for i in kept],
    )
    return some, [what.records[i] for i in order[: config.num_samples]]


def localize(form: nn.Module, what: ScoredImages, run: Runtime) -> dict[str, np.ndarray]:
    """Return the arrays of `Measured` that tell how a network localizes and classifies.

    Args:
        form: the network in its form for the run.
        what: the images.
        run: how to compute.

    Raises:
        ImageError: no image could be used, or, in a strict run, one could not.
    """
    evaluator = what.evaluator()
    seen, report = score_images(form, what, run, [evaluator])
    report.check_any(len(evaluator))
    ids = list(evaluator.table.index)
    right = np.zeros(0, bool)
    if what.labels() is not None:
        right = correct_classes(ids, seen.top5, what.labels())["top1"]
    return {
        "ids": np.array(ids),
        "rows": evaluator.table.take(ids),
        "right": right,
        "notes": np.array(report.lines(), str),
    }


def measure_fields(
    form: nn.Module,
    what: ScoredImages,
    records: Sequence[ImageRecord],
    run: Runtime,
    config: InterveneConfig,
    level: str,
) -> dict[str, np.ndarray]:
    """Return the arrays of `Measured` that tell a network's ERF sizes and areas.

    Args:
        form: the network in its form for the run.
        what: the localized images, which give the ids of `records`.
        records: the images of the ERF.
        run: how to compute, in float32.
        config: settings.
        level: which activations are recomputed, see `cba_fast.erf.input_gradient`.

    Raises:
        ImageError: no image could be used, or, in a strict run, one could not.
    """
    size, report = what.data.input_size, report_on(records, run.config.strict)

    def step(state: State, images: Tensor, indices: list[int]) -> State:
        grad = input_gradient(form, images, score=config.score, checkpoint=level)
        good = with_finite_gradient(report, grad, indices)
        if not good:
            return state
        center = center_gradient(form, images[good], checkpoint=level)
        new = {
            "index": torch.tensor([indices[i] for i in good]),
            "size": ops.erf_size(images_of(grad, good), config.share).double().cpu().flatten(),
            "squares": central_squares(center.double().relu().sum(1).cpu()),
        }
        return {k: torch.cat([v, new[k]]) for k, v in state.items()}

    walk = Walk(
        ImageDataset(records, size, transform(size, what.data.preprocessing)),
        range(len(records)),
        num_workers=run.config.num_workers,
        device=run.device,
        memory_format=run.memory_format,
        report=report,
    )
    first = {
        "index": torch.empty(0, dtype=torch.int64),
        "size": torch.empty(0, dtype=torch.float64),
        "squares": torch.empty(0, min(map_shape(size)) // 2 + 1, dtype=torch.float64),
    }
    state = walk.run(step, first)
    report.check_any(len(state["index"]))
    of_record = {r.image_id: i for r, i in zip(what.records, what.image_ids, strict=True)}
    return {
        "erf_ids": np.array([of_record[records[i].image_id] for i in state["index"].tolist()]),
        "erf_size": state["size"].numpy(),
        "squares": state["squares"].numpy(),
        "erf_notes": np.array([f"ERF: {n}" for n in report.lines()], str),
    }


def central_squares(maps: Tensor) -> Tensor:
    """Return how much of each map lies in its central squares.

    Args:
        maps: (N, H, W) float64, >= 0.

    Returns:
        (N, K+1), K = min(H, W) // 2: the sums over [H//2-i : H//2+1+i, W//2-i : W//2+1+i] for i = 0
        to K-1, and the sum over the whole map. The squares of a mean map are the means of these, so
        that its area can be resampled without the maps.
    """
    n, h, w = maps.shape
    y, x = ((torch.arange(side) - side // 2).abs() for side in (h, w))
    ring = torch.maximum(y[:, None], x).flatten()
    sums = torch.zeros(n, int(ring.max()) + 1, dtype=maps.dtype)
    sums.index_add_(1, ring, maps.flatten(1))
    inside = sums.cumsum(1)
    return torch.cat([inside[:, : min(h, w) // 2], inside[:, -1:]], 1)


def area_of(squares: np.ndarray, input_size: Size) -> np.ndarray:
    """Return the ERF area of maps in percent of the input: that of the square with half of a map.

    It is the `scale_free_area_ratio` at 50 %, but the side is interpolated linearly between the
    largest square with at most half and the next one, which is two pixels wider. Whole sides would
    hide small changes.

    Args:
        squares: (R, K+1), means or sums from :func:`central_squares`.
        input_size: of the maps, a side or (H, W).

    Returns:
        (R,) float64; NaN where no square inside the map holds half.
    """
    share = squares[:, :-1] / np.where(squares[:, -1:] > 0, squares[:, -1:], np.nan)
    beyond = share > HALF
    at = beyond.argmax(axis=1)
    rows = np.arange(len(squares))
    before = np.where(at > 0, share[rows, at - 1], 0)
    side = np.where(at > 0, 2 * at - 1, 0) + np.where(at > 0, 2, 1) * (HALF - before) / (
        share[rows, at] - before
    )
    return np.where(beyond.any(axis=1), 100.0 * side**2 / math.prod(map_shape(input_size)), np.nan)


def probe_images(what: ScoredImages, records: Sequence[ImageRecord], run: Runtime) -> Tensor:
    """Return the first readable images of `records` on the run's device, at most `PROBES`.

    Raises:
        InputError: none can be read.
    """
    size = what.data.input_size
    data = ImageDataset(records, size, transform(size, what.data.preprocessing))
    images = []
    for i in range(len(data)):
        item = data[i]
        if not item["error"]:
            images.append(torch.as_tensor(item["image"]))
        if len(images) == PROBES:
            break
    if not images:
        raise InputError(f"none of the {len(records)} images of the ERF can be read")
    batch = torch.stack(images).to(run.device)
    return batch.contiguous(memory_format=run.memory_format)
