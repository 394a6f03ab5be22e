"""Measure ERF size, localization and quality of the feature maps on the same images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import locks, ops, resume
from ..data import ImageDataset
from ..data.reading import Report, transform
from ..data.textlines import counted
from ..erf import Partial, Walk, input_gradient
from ..erf.gradients import images_of
from ..erf.walk import State, with_finite_gradient
from ..errors import ImageError
from ..runs.erf.shared import deal
from ..runs.inference import check_target, load_model, report_on
from ..runs.outputs import describe_run, read_arrays, write_arrays
from ..runs.ranks import ALONE, Ranks
from ..runs.resolve import resolve
from ..runs.runtime import Runtime
from ..runs.settings import RunConfig, SizeConfig
from ..shapes import pair
from ..short import Short
from ..wsol import cam_from_features, finish_maps
from ..wsol.device_maps import NOT_FINITE
from ..wsol.heatmap import is_constant
from ..wsol.map_quality import active_pixels, box_coverage, box_mask, map_quality, object_channels
from ..wsol.methods import classify, method_named
from .per_image_sample import Sample, Subject, measured_settings, scores_cam
from .settings import Settings

# The column that tells how many channels chance and the objects' usual places explain.
CONTROL = "other_box_channels"
# Number of images whose results leave the device together. The network itself gets one image at a
# time, so that the results have the bits of the single commands.
GROUP = 8


@dataclass(repr=False)
class Measurement(Short):
    """The measurements of one model, one row per image in the order of the sample.

    Attributes:
        index: (n,) int64, positions in the sample.
        iou: (n, T) float64, best IoU at each score threshold (largest contour).
        active: (n, T) int64, pixels of the CAM above each threshold.
        object_pixels: (n,) int64, pixels of the CAM in the union of the boxes.
        erf_size: (n,) float64, pixels.
        object_channels, pc1_explained, pc1_cam_iou: (n,) float64, see `MapQuality`.
        other_box_channels: (n,) float64, ``object_channels`` with the boxes of the sample's next
            image (cyclically), as a control for the usual places of objects. NaN where that image's
            size cannot be read.
        constant: (n,) bool, whether the CAM has no positive value and became a map of zeros.
        notes: lines to print at the end.
    """

    index: np.ndarray
    iou: np.ndarray
    active: np.ndarray
    object_pixels: np.ndarray
    erf_size: np.ndarray
    object_channels: np.ndarray
    pc1_explained: np.ndarray
    pc1_cam_iou: np.ndarray
    other_box_channels: np.ndarray
    constant: np.ndarray
    notes: list[str]


@locks.released()
def measure(
    subject: Subject,
    sample: Sample,
    folder: Path,
    *,
    score: str = SizeConfig.score,
    overwrite: bool = False,
    progress: Callable = lambda steps, count: steps,
    ranks: Ranks = ALONE,
) -> Measurement:
    """Measure one model on the sample, or read what the same run measured earlier.

    The measurement is written to ``<folder>/<name>.npz``. Beside it lie the record of the run and,
    until it has ended, its finished part.

    Args:
        subject: the model.
        sample: from `draw_sample`.
        folder: where measurements are kept.
        score: the score whose gradient the ERF size is measured on, see `input_gradient`.
        overwrite: measure anew and replace what an earlier run wrote. Otherwise a run with the same
            settings, weights, images and boxes is continued, and any other is refused.
        progress: called with the iterable of steps and their number, returns an iterable.
        ranks: from `cba_fast.runs.ranks.join` where several processes share the images; each of
            them returns the result, and the first writes it.

    Raises:
        OtherRunError: another run wrote there; see `resume.Outputs.check`.
        CbaError: the weights cannot be loaded, an image or the model lacks the target, no image
            could be measured, or, with the setting `strict`, one image could not.
    """
    path = folder / f"{subject.name}.npz"
    ranks.agree(sample.records, subject.weights)
    outputs = resume.beside(path, _described(subject, sample, score))
    ended = ranks.from_first(lambda: resume.claim([outputs], ranks.anew(overwrite, [outputs])))
    if ended is None:
        stored = _run(subject, sample, score, Partial(path, ranks.rank), progress, ranks)
        if ranks.leads:
            write_arrays(path, stored)
            outputs.finish()
    else:
        stored = read_arrays(path)
    arrays = {k: v for k, v in stored.items() if k != "report"}
    report = report_on(sample.records, subject.settings.strict)
    report.loads(str(stored["report"]))
    if report.strict and report.failed:  # an earlier run, which was not strict, went on
        report.fail(*report.failed[0])
    return Measurement(**arrays, notes=_notes(arrays, report))


def thresholds_of(settings: Settings) -> np.ndarray:
    """Return the score thresholds of the protocol, (T,) float64."""
    return np.arange(0, 1, settings.cam_curve_interval)


def _run(
    subject: Subject,
    sample: Sample,
    score: str,
    partial: Partial,
    progress: Callable,
    ranks: Ranks,
) -> dict[str, np.ndarray]:
    settings, run = subject.settings, Runtime.of(_how(subject.settings))
    if settings.target == "label":
        sample = labelled(subject, sample)
    model = load_model(settings.model_of(subject.weights), run, settings.input_size)
    check_target(model, sample.records, settings.maps())
    report = report_on(sample.records, settings.strict)
    step = _Step(model, sample, settings, score, report)
    size = settings.input_size
    walk = Walk(
        ImageDataset(sample.records, size, transform(size, settings.preprocessing())),
        range(len(sample.records)),
        batch_size=GROUP,
        num_workers=run.config.num_workers,
        device=run.device,
        memory_format=run.memory_format,
        progress=progress,
        report=report,
    )
    deal(walk, partial, ranks)
    parts = ranks.share(walk.run(step, step.first()))
    rows = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
    order = rows["index"].argsort()
    report = ranks.merged(report)
    report.check_any(len(order))
    return {k: v[order].numpy() for k, v in rows.items()} | {"report": np.array(report.dumps())}


def labelled(subject: Subject, sample: Sample) -> Sample:
    """Return the sample with labels in the numbering of the model's classes."""
    resolved = resolve(subject.settings.model_of(subject.weights), subject.settings.data())
    truth = sample.boxes.labels
    if truth is not None:
        truth = {r.image_id: truth[i] for r, i in zip(sample.records, sample.ids, strict=True)}
    return replace(sample, records=resolved.labelled(sample.records, sample.images, truth))


@dataclass
class _Step:
    """The step of the walk: measures a group of images and adds their rows to the state."""

    model: nn.Module
    sample: Sample
    settings: Settings
    score: str
    report: Report

    def first(self) -> State:
        columns = len(thresholds_of(self.settings))
        floats = ("erf_size", "object_channels", "pc1_explained", "pc1_cam_iou")
        return {
            "index": torch.empty(0, dtype=torch.int64),
            "iou": torch.empty(0, columns, dtype=torch.float64),
            "active": torch.empty(0, columns, dtype=torch.int64),
            "object_pixels": torch.empty(0, dtype=torch.int64),
            **{name: torch.empty(0, dtype=torch.float64) for name in (*floats, CONTROL)},
            "constant": torch.empty(0, dtype=torch.bool),
        }

    def __call__(self, state: State, images: Tensor, indices: list[int]) -> State:
        passes = zip(*self._passes(images, indices), strict=True)
        grad, features, rows, maps = map(torch.cat, passes)
        finite = maps.isfinite().flatten(1).all(1).tolist()
        good = []
        for i in with_finite_gradient(self.report, grad, indices):
            if finite[i]:
                good.append(i)
            else:
                self.report.fail(indices[i], NOT_FINITE)
        if not good:
            return state
        kept = [indices[i] for i in good]
        new = self._rows(features[good], rows[good], maps[good], kept)
        new["erf_size"] = ops.erf_size(images_of(grad, good), self.settings.p).double().cpu()
        new["index"] = torch.tensor(kept)
        return {k: torch.cat([v, torch.as_tensor(new[k])]) for k, v in state.items()}

    def _passes(self, images: Tensor, indices: list[int]) -> Iterator[tuple[Tensor, ...]]:
        """Yield each image's gradient, features, row and map; a GPU is not waited for."""
        for image, index in zip(images.split(1), indices, strict=True):
            grad = input_gradient(self.model, image, score=self.score)
            with torch.no_grad():
                features, logits, weight = classify(self.model, image)
                row = self._row(weight, logits, index)
                if scores_cam(self.settings):
                    small = cam_from_features(features, row)
                else:
                    small = self._other_map(image, index)
            yield grad, features, row, small

    def _target(self, index: int) -> int | None:
        """Return the class to explain of one image; None for the top-1."""
        target = self.settings.target
        if target == "predicted":
            return None
        return self.sample.records[index].label if target == "label" else int(target)

    def _row(self, weight: Tensor, logits: Tensor, index: int) -> Tensor:
        """Return the classifier's row of one image's target, (1, C)."""
        target = self._target(index)
        if target is None:
            # `topk` chooses among equal logits as `localize` does.
            return weight[logits.float().topk(min(5, logits.shape[1])).indices[:, 0]]
        return weight[target : target + 1]

    def _other_map(self, image: Tensor, index: int) -> Tensor:
        """Return the map by the method and of the layer that the plan file names, (1, h, w)."""
        method, wanted = method_named(self.settings.localization_method), self._target(index)
        target = None if wanted is None else torch.tensor(wanted)
        found = method.gather(self.model, image, target=target, layer=self.settings.layer)
        return method.small_maps(found)

    def _rows(self, features: Tensor, weights: Tensor, small: Tensor, indices: list[int]) -> dict:
        shape, thresholds = self.settings.map_shape(), thresholds_of(self.settings)
        gt = [self.sample.boxes.scaled(self.sample.ids[i], shape[::-1]) for i in indices]
        grid = pair(features.shape[2:])
        method = method_named(
            "cam" if scores_cam(self.settings) else self.settings.localization_method
        )
        maps = finish_maps(small.cpu().numpy(), shape, method.value_range)
        u = ops.quantize(maps)
        coverage = np.stack([box_coverage(b, shape, grid) for b in gt])
        others = np.stack([self._other_coverage(i, grid) for i in indices])
        quality = map_quality(features, weights, coverage, shape)
        return {
            "iou": ops.best_box_iou(u, gt, thresholds, contours="largest"),
            "active": active_pixels(u.numpy(), thresholds),
            "object_pixels": np.array([box_mask(b, shape).sum() for b in gt]),
            "constant": is_constant(maps),
            CONTROL: object_channels(features, weights, others),
            **vars(quality),
        }

    def _other_coverage(self, index: int, grid: tuple[int, int]) -> np.ndarray:
        """Return the coverage by the boxes of the sample's next image; zeros if there is none."""
        ids, shape = self.sample.ids, self.settings.map_shape()
        other = (index + 1) % len(ids)
        if other == index:
            return np.zeros(grid)
        try:
            boxes = self.sample.boxes.scaled(ids[other], shape[::-1])
        except ImageError:  # the image is reported when it is measured itself
            return np.zeros(grid)
        return box_coverage(boxes, shape, grid)


def _how(settings: Settings) -> RunConfig:
    """Return how to compute: one image at a time in float32, the defaults of ``erf-compute``."""
    return settings.run().for_erf()


def _described(subject: Subject, sample: Sample, score: str) -> dict:
    """Return the record of everything that the numbers depend on."""
    settings = {
        **measured_settings(subject.settings),
        "score": score,
        "arrays": [f.name for f in fields(Measurement)],
        "device": str(Runtime.of(_how(subject.settings)).device),
    }
    described = describe_run(settings, subject.weights, sample.records)
    labels = [r.label for r in sample.records]
    boxes = [sample.boxes.boxes[image_id].tolist() for image_id in sample.ids]
    described["inputs"]["boxes"] = resume.values_fingerprint((labels, boxes))
    return described


def _notes(arrays: dict[str, np.ndarray], report: Report) -> list[str]:
    notes = []
    if count := int((arrays["erf_size"] == 0).sum()):
        notes.append(
            f"zero gradient (ERF size 0) of {counted(count, 'image')}: the score is saturated;"
            " `score` logit does not saturate"
        )
    if count := int(arrays["constant"].sum()):
        notes.append(f"{counted(count, 'CAM')} without a positive value: counted as maps of zeros")
    return notes + report.lines()
