"""Turn measured images into columns, correlate them, and write the files of the results."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .. import files, resume
from ..analysis.correlations import Correlations, Question, correlate
from ..choices import CONFIDENCE, CORRELATION_RESAMPLES
from ..errors import InputError
from ..runs.scoring.boxes import versions
from ..short import Short
from .per_image import CONTROL, Measurement, thresholds_of
from .per_image_sample import Sample, Subject

OUTCOME = "iou"
ERF = "erf_size"
# Measures of the feature maps, which use no score threshold; see docs/analysis.md.
QUALITY = ("object_channels", "pc1_explained", "pc1_cam_iou")
# The measures of the feature maps that do not use the boxes.
BLIND = ("pc1_explained", "pc1_cam_iou")
AREA, OBJECT = "activated_area", "object_area"
PREDICTORS = (ERF, *QUALITY, AREA, OBJECT)
COLUMNS = (OUTCOME, *PREDICTORS, CONTROL)
TITLES = {
    OUTCOME: "IoU",
    ERF: "ERF size",
    "object_channels": "object channels",
    "pc1_explained": "PC1 explained",
    "pc1_cam_iou": "PC1-CAM IoU",
    AREA: "activated area",
    OBJECT: "object area",
    CONTROL: "channels on another box",
}


@dataclass(repr=False)
class ModelColumns(Short):
    """The measures of one model, image by image.

    Attributes:
        name, family: name and family of the model.
        input_size: side of its input in pixels.
        image_ids: n ids, in the order of the sample.
        columns: (n,) float64 by the names in `COLUMNS`; NaN where undefined.
        max_box_acc: percent of these images with IoU >= 0.5 at `threshold` (largest contour).
        threshold: the lowest score threshold at which this percentage is largest.
        notes: notes of the measurement.
    """

    name: str
    family: str
    input_size: int
    image_ids: list[str]
    columns: dict[str, np.ndarray]
    max_box_acc: float
    threshold: float
    notes: list[str]


@dataclass(repr=False)
class Findings(Short):
    """The results of the analysis.

    Attributes:
        models: the measures of each model.
        correlations: correlations of the IoU with the other columns.
        predictors: the columns that could be analysed.
        quality: the predictors that measure feature maps.
        left_out_rows: number of rows that were left out because a measure is undefined.
        images: numbers of images: drawn, without_box, missing_file, measured.
        notes: lines to print with the results.
    """

    models: list[ModelColumns]
    correlations: Correlations
    predictors: list[str]
    quality: list[str]
    left_out_rows: int
    images: dict[str, int]
    notes: list[str] = field(default_factory=list)

    def undefined(self, name: str) -> bool:
        """Whether no model has a value of this column."""
        return all(np.isnan(m.columns[name]).all() for m in self.models)


def model_columns(subject: Subject, sample: Sample, found: Measurement) -> ModelColumns:
    """Return a model's columns at the optimal threshold of its MaxBoxAcc on these images.

    ``iou`` is the best IoU at that threshold, ``activated_area`` the number of pixels of the CAM
    above it divided by those in the boxes, ``object_area`` the boxes' share of the map.
    """
    thresholds = thresholds_of(subject.settings)
    localized = (found.iou >= 0.5).sum(axis=0)
    best = int(localized.argmax())  # the lowest of equal ones, because thresholds ascend
    # Boxes are never clipped, so they may all lie outside of the image and hold no pixel.
    pixels = np.where(found.object_pixels > 0, found.object_pixels, np.nan)
    columns = {
        OUTCOME: found.iou[:, best],
        ERF: found.erf_size,
        **{name: getattr(found, name) for name in (*QUALITY, CONTROL)},
        AREA: found.active[:, best] / pixels,
        OBJECT: pixels / math.prod(subject.settings.map_shape()),
    }
    return ModelColumns(
        subject.name,
        subject.settings.model_family,
        subject.settings.input_size,
        [sample.ids[i] for i in found.index],
        columns,
        100 * float(localized[best]) / len(found.index),
        float(thresholds[best]),
        found.notes,
    )


def find(
    models: Sequence[ModelColumns],
    sample: Sample,
    *,
    num_resamples: int = CORRELATION_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Findings:
    """Relate the IoU to the ERF size and to the quality of the feature maps.

    Rows with an undefined measure are left out. A measure that is undefined for all images of some
    model is left out as a whole. If input sizes differ, the ERF size is taken as a share of the
    input's pixels.

    Args:
        models: at least one, from :func:`model_columns`.
        sample: the images.
        num_resamples, confidence, seed: settings of the bootstrap, see `correlate`.

    Raises:
        InputError: a model has no image with all measures.
    """
    notes = []
    predictors = []
    for name in PREDICTORS:
        without = [m.name for m in models if np.isnan(m.columns[name]).all()]
        if without:
            notes.append(f"{TITLES[name]} is undefined for {', '.join(without)}: left out")
        else:
            predictors.append(name)
    columns = {n: np.concatenate([m.columns[n] for m in models]) for n in (OUTCOME, *predictors)}
    sides = [m.input_size for m in models]
    if len(set(sides)) > 1:
        columns[ERF] = columns[ERF] / np.repeat(
            np.square(sides), [len(m.image_ids) for m in models]
        )
        notes.append("input sizes differ: the ERF size is analysed as a share of the input")
    of_model = np.repeat(np.arange(len(models)), [len(m.image_ids) for m in models])
    ids = np.concatenate([m.image_ids for m in models])
    whole = np.isfinite(np.column_stack(list(columns.values()))).all(axis=1)
    if left_out := int((~whole).sum()):
        notes.append(f"{left_out} of {len(whole)} rows lack a measure and are left out")
    for i, m in enumerate(models):
        if not (whole & (of_model == i)).any():
            raise InputError(f"{m.name}: no image has all measures ({', '.join(predictors)})")
    quality = [q for q in QUALITY if q in predictors]
    questions, contrast = _questions(predictors, quality)
    correlations = correlate(
        {n: c[whole] for n, c in columns.items()},
        of_model[whole],
        np.unique(ids, return_inverse=True)[1][whole],
        [m.name for m in models],
        OUTCOME,
        questions,
        contrast,
        num_resamples=num_resamples,
        confidence=confidence,
        seed=seed,
    )
    images = {
        "drawn": sample.drawn,
        "without_box": len(sample.without_box),
        "missing_file": len(sample.missing),
        "measured": len(np.unique(ids)),
    }
    return Findings(list(models), correlations, predictors, quality, left_out, images, notes)


def _questions(
    predictors: list[str], quality: list[str]
) -> tuple[list[Question], tuple[Question, Question] | None]:
    """Return the questions to answer, and the two whose answers are compared (or None)."""
    asked = [Question((name,)) for name in predictors]
    if not quality:
        return asked, None
    erf, maps = Question((ERF,), tuple(quality)), Question(tuple(quality), (ERF,))
    asked += [erf, *(Question((q,), (ERF,)) for q in quality)]
    if len(quality) > 1:
        asked.append(maps)
    asked.append(Question((ERF,), (*quality, OBJECT)))
    asked.append(Question(tuple(quality), (ERF, OBJECT)))
    if set(BLIND) < set(quality):
        asked += [Question((ERF,), BLIND), Question(BLIND, (ERF,))]
    return asked, (erf, maps)


def check_findings(folder: Path, settings: dict, overwrite: bool) -> resume.Outputs:
    """Check that the table and the pictures can be written; return them as `resume.Outputs`.

    A table of some of the models may be replaced by one of more models, because measurements are
    kept model by model and a plan file may grow.

    Args:
        folder: where the files go.
        settings: JSON values; ``models`` are the models' names.
        overwrite: replace what an earlier run wrote.

    Raises:
        InputError: files of these names were not written by an earlier run.
        OtherRunError: the existing table has other settings, or models that are not among these.
    """
    more = ("per_image.csv", "scatter.png", "forest.png")
    outputs = resume.beside(folder / "per_image.json", resume.describe(settings), *more)
    before = (outputs.recorded() or {}).get("settings", {}).get("models", [])
    if before != settings["models"] and set(before) <= set(settings["models"]):
        grown = resume.describe({**settings, "models": before})
        resume.beside(folder / "per_image.json", grown, *more).check(overwrite)
        overwrite = True
    outputs.check(overwrite)
    return outputs


def write_findings(
    folder: Path, found: Findings, settings: dict, answer: list[str]
) -> tuple[Path, Path]:
    """Write ``per_image.csv`` and ``per_image.json``; return their paths.

    The CSV has one row per image and model; empty cells are undefined measures. The JSON holds
    everything else: settings, versions, models, relations with intervals, and `answer`.
    """
    rows = [["model", "family", "image_id", *COLUMNS]]
    for m in found.models:
        for i, image_id in enumerate(m.image_ids):
            values = [float(m.columns[name][i]) for name in COLUMNS]
            cells = ["" if np.isnan(v) else repr(v) for v in values]
            rows.append([m.name, m.family, image_id, *cells])
    table, document = folder / "per_image.csv", folder / "per_image.json"
    files.write_text(table, files.csv_text(rows))
    files.write_json(
        document,
        {
            "settings": settings,
            "images": found.images,
            "left_out_rows": found.left_out_rows,
            "models": [_summary(m) for m in found.models],
            "quality": found.quality,
            **found.correlations.to_json(),
            "answer": answer,
            "notes": found.notes + [f"{m.name}: {n}" for m in found.models for n in m.notes],
            "versions": versions(),
        },
    )
    return table, document


def _summary(model: ModelColumns) -> dict:
    columns = {}
    for name, values in model.columns.items():
        known = values[np.isfinite(values)]
        columns[name] = {
            "count": len(known),
            "mean": float(known.mean()) if len(known) else None,
            "std": float(known.std()) if len(known) else None,
        }
    shown = asdict(model)
    return {k: v for k, v in shown.items() if k not in ("image_ids", "columns")} | {
        "num_images": len(model.image_ids),
        "columns": columns,
    }
