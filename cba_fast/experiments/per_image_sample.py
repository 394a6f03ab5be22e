"""The models and the images of a study image by image: read the models, draw the images."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..data import ImageRecord, ImageSet
from ..data.boxes import Boxes
from ..data.textlines import some
from ..erf import sample_indices
from ..errors import InputError
from ..runs.evaluate import match_images, with_own_boxes
from ..runs.inference import open_images
from ..runs.scoring.boxes import open_boxes
from ..shapes import shape_text
from ..short import Short
from .plan import load_experiments
from .progress import weights_of
from .settings import TRAINING, Settings

# Settings that models must have in common to be compared image by image.
_SHARED = (
    *("test_dataset", "split", "cub_root", "metadata_root", "dataset_name", "target"),
    *("cam_curve_interval", "num_samples", "p", "erf_seed"),
)
# Settings of a plan file that are not used here: all is measured in float32, one image at a time
# and not compiled.
_UNUSED = {*TRAINING, "pc1_range", "precision", "eval_batch_size", "compile"}


@dataclass(frozen=True)
class Subject:
    """A model to measure: its name, its settings and the file of its weights."""

    name: str
    settings: Settings
    weights: Path


@dataclass(frozen=True, repr=False)
class Sample(Short):
    """The images that are measured.

    Attributes:
        records: the sampled images that have boxes and a file, in the order of the sample.
        ids: their ids in the ground truth.
        boxes: the ground truth.
        drawn: number of sampled images, with those that are left out.
        without_box: ids of the sampled images that are not in the ground truth.
        missing: ids of the sampled images whose file does not exist.
        images: the data set from which the sample was drawn.
    """

    records: list[ImageRecord]
    ids: list[str]
    boxes: Boxes
    drawn: int
    without_box: list[str]
    missing: list[str]
    images: ImageSet

    def notes(self) -> list[str]:
        """Return lines on the images that are left out."""
        left = (
            (self.without_box, "have no ground truth"),
            (self.missing, "have ground truth and no file"),
        )
        return [
            f"{len(ids)} of {self.drawn} sampled images {what} and are left out: {some(ids)}"
            for ids, what in left
            if ids
        ]


def load_subjects(
    path: Path, num_samples: int | None = None, seed: int | None = None
) -> tuple[list[Subject], list[str]]:
    """Read the models of a plan file (YAML or JSON, see docs/experiments.md).

    Args:
        path: the file.
        num_samples, seed: number of sampled images and seed; None takes those of the file.

    Returns:
        The models, and lines to print. Experiments that differ only in settings that are not used
        here, such as the localization method, are one model under the name of the first.

    Raises:
        InputError: as `load_experiments`; weights do not exist; images, boxes or protocol differ
            between the models, so that their rows could not be compared.
    """
    update = {k: v for k, v in (("num_samples", num_samples), ("erf_seed", seed)) if v is not None}
    found: dict[str, Subject] = {}
    notes = []
    for experiment in load_experiments(path).experiments:
        settings = experiment.settings.model_copy(update=update)
        subject = Subject(experiment.name, settings, weights_of(settings))
        key = json.dumps([measured_settings(settings), str(subject.weights)], sort_keys=True)
        if key in found:
            notes.append(f"{subject.name} is the model {found[key].name} and is measured once")
        found.setdefault(key, subject)
    subjects = list(found.values())
    problems = [f"{s.name}: no weights {s.weights}" for s in subjects if not s.weights.is_file()]
    first = subjects[0]
    for s in subjects[1:]:
        for key in _SHARED:
            a, b = getattr(first.settings, key), getattr(s.settings, key)
            if a != b:
                problems.append(f"{key} must be one for all models: {first.name} {a}, {s.name} {b}")
        sizes = [shape_text(x.settings.map_shape()) for x in (first, s)]
        if sizes[0] != sizes[1]:
            problems.append(
                f"map_size must be one for all models: {first.name} {sizes[0]}, {s.name} {sizes[1]}"
            )
    if problems:
        raise InputError("\n".join(f"{path}: {line}" for line in problems))
    return subjects, notes


def draw_sample(settings: Settings) -> Sample:
    """Draw images as ``erf-compute`` does and keep those that have boxes.

    Raises:
        InputError: no images, no ground truth, or none of the sampled images has boxes.
    """
    images = open_images(settings.data())
    boxes = open_boxes(with_own_boxes(settings.boxes(), images))
    paired, ids, _ = match_images(images.records, boxes)
    known = {r.image_id: (r, i) for r, i in zip(paired, ids, strict=True)}
    chosen = sample_indices(len(images.records), settings.num_samples, settings.erf_seed)
    drawn = [images.records[i] for i in chosen]
    kept = [known[r.image_id] for r in drawn if r.image_id in known]
    if not kept:
        raise InputError(f"none of the {len(drawn)} sampled images has a box and a file")
    left = [r for r in drawn if r.image_id not in known]
    return Sample(
        [r for r, _ in kept],
        [i for _, i in kept],
        boxes,
        len(drawn),
        [r.image_id for r in left if r.path.is_file()],
        [r.image_id for r in left if not r.path.is_file()],
        images,
    )


def measured_settings(settings: Settings) -> dict:
    """Return the settings that a model's measurement depends on, as JSON values."""
    unused = _UNUSED | ({"localization_method", "layer"} if scores_cam(settings) else set())
    return {k: v for k, v in settings.described().items() if k not in unused}


def scores_cam(settings: Settings) -> bool:
    """Say whether the CAM is scored: also for PC1, which is measured beside it for each model."""
    return settings.localization_method in ("cam", "pc1") and settings.layer is None
