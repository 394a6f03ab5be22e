"""Find out from their files which experiments of a plan are finished and what the others need."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import resume
from ..analysis.points import Point, read_points
from ..data import cub, resolve_test_dataset
from ..data.boxes import truth_files
from ..data.textlines import counted
from ..errors import InputError
from ..files import read_json
from ..models.factory import source_digest
from ..runs.inference import open_images
from ..runs.runtime import Runtime
from ..runs.settings import DataConfig
from ..training.config import best_path, last_path
from ..training.loggers import check_tracker
from ..training.state import load_state
from .plan import Experiment, Plan
from .settings import Settings

# An experiment needs nothing, only its row in the CSV, or everything.
DONE, ROW, RUN = "done", "row", "run"


@dataclass(frozen=True)
class Step:
    """An experiment and what it needs.

    Attributes:
        experiment: the experiment.
        need: `DONE`, `ROW` or `RUN`.
        result: the stored result, for `DONE` and `ROW`.
        change: how a stored result of this name differs; None if it does not differ or exist.
    """

    experiment: Experiment
    need: str
    result: dict | None = None
    change: str | None = None


def result_path(plan: Plan, name: str) -> Path:
    """Return the file of an experiment's result; an experiment is finished when it is written."""
    return plan.output_dir / f"{name}.json"


def erf_path(plan: Plan, name: str) -> Path:
    """Return the file of an experiment's ERF sizes."""
    return plan.output_dir / f"erf_{name}.npy"


def error_path(plan: Plan, name: str) -> Path:
    """Return the file that tells why an experiment failed; success removes it."""
    return plan.output_dir / f"{name}.error.txt"


def weights_of(settings: Settings) -> Path:
    """Return the experiment's weights, whether they exist or not."""
    if settings.weight_path is not None:
        return settings.weight_path
    return best_path(settings.model_of(None), settings.training())


def weights_are_given(settings: Settings) -> bool:
    """Tell whether the weights are used as they are, without a training.

    That is the case if `weight_path` names them, or if the weights of the training exist without
    the state from which it would continue.
    """
    if settings.weight_path is not None:
        return True
    last = last_path(settings.model_of(None), settings.training())
    return weights_of(settings).exists() and not last.exists()


def find_steps(plan: Plan) -> list[Step]:
    """Compare each experiment with the files of earlier runs.

    An experiment is done if its result has the same record (settings, versions, images, and the
    weights, if they still exist), its ERF sizes exist, and the CSV has its row. If only the row is
    missing, as after a kill between the two, only the row is needed.

    Raises:
        InputError: a result or the CSV cannot be read.
    """
    rows = {p.model_name: p for p in read_points(plan.csv)} if plan.csv.exists() else {}
    images = functools.cache(_images)  # most experiments share their images
    return [_step(plan, e, rows.get(e.name), images) for e in plan.experiments]


def record_of(plan: Plan, experiment: Experiment, images: dict | None) -> dict:
    """Return the record of an experiment, with which its result is compared.

    Args:
        plan, experiment: the experiment and its plan.
        images: the fingerprint of the images; None if they do not exist, which counts as unchanged.
    """
    settings, name = experiment.settings, experiment.name
    factory = settings.model_factory
    inputs = {
        "weights": resume.file_fingerprint(weights_of(settings)),
        "classes": resume.file_fingerprint(settings.classes),
        "model_factory": {"path": factory, "sha256": factory and source_digest(factory)},
        "images": images or {"sha256": None},
        "boxes": _truth(settings),
    }
    record = resume.describe(settings.described(), inputs, torch=torch.__version__)
    return {**record, "files": [result_path(plan, name).name, erf_path(plan, name).name]}


def _truth(settings: Settings) -> dict:
    """Return the fingerprint of the ground truth; if there is none, it counts as unchanged."""
    boxes, root = settings.boxes(), settings.cub_root
    try:
        if root is None and boxes.metadata_root is None:
            root = resolve_test_dataset(settings.test_dataset)  # a CUB folder has its own boxes
        paths = truth_files(
            cub_root=root,
            metadata_root=boxes.metadata_root,
            dataset_name=boxes.dataset_name,
            split=boxes.split,
        )
        known = [resume.file_fingerprint(path) for path in paths]
    except (InputError, OSError):
        return {"sha256": None}
    return resume.values_fingerprint([each and each["sha256"] for each in known])


def _images(data: DataConfig) -> dict | None:
    try:
        records = open_images(data).records
    except (InputError, OSError):
        return None
    return resume.list_fingerprint((r.image_id, r.path) for r in records)


def point_of(plan: Plan, experiment: Experiment, result: dict) -> Point:
    """Return the experiment's row of the CSV."""
    path = str(erf_path(plan, experiment.name))
    family = experiment.settings.model_family
    return Point(experiment.name, family, path, result["max_box_acc"] / 100)


def describe(steps: Sequence[Step], overwrite: bool) -> Iterator[str]:
    """Yield in words what a run would do at each step."""
    trained: dict[str, str] = {}
    for step in steps:
        name, settings = step.experiment.name, step.experiment.settings
        if step.need == DONE:
            yield "nothing: done"
        elif step.need == ROW:
            yield "add its row to the CSV"
        elif step.change and not overwrite:
            yield f"refuse: {step.change}"
        elif weights_are_given(settings) or (left := _epochs_left(settings)) == 0:
            yield f"score {weights_of(settings)}"
        elif (training := settings.training().exp_name) in trained:
            yield f"score the weights that {trained[training]} trains"
        else:
            trained[training] = name
            yield f"train {training} ({counted(left, 'epoch')}), score"


def _epochs_left(settings: Settings) -> int:
    config = settings.training()
    last = last_path(settings.model_of(None), config)
    return config.epochs - (load_state(last)["progress"]["epoch"] if last.exists() else 0)


def refuse_changes(steps: Sequence[Step]) -> None:
    """Refuse to replace results of other settings.

    Raises:
        InputError: one line per experiment, with the difference.
    """
    changes = [f"{s.experiment.name}: {s.change}" for s in steps if s.change]
    if changes:
        lines = "\n  ".join(changes)
        raise InputError(
            f"these names have results of something else:\n  {lines}\n"
            "give other names, or `overwrite` to run them again"
        )


def check_inputs(steps: Sequence[Step], devices: bool = True) -> None:
    """Make sure that everything the experiments need exists, before the first one runs.

    Without `devices` these are not looked at, because the experiments run on other machines.

    Raises:
        InputError: one line per missing file, folder or device, with the experiment's name.
    """
    problems: dict[str, str] = {}
    images = functools.cache(_image_problem)  # most experiments share their images
    for step in steps:
        if step.need == RUN:
            settings = step.experiment.settings
            own_boxes = settings.cub_root is None and settings.metadata_root is None
            found = [*_input_problems(settings, devices), images(settings.data(), own_boxes)]
            for problem in found:
                if problem:
                    problems.setdefault(problem, step.experiment.name)
    if problems:
        raise InputError("\n".join(f"{name}: {text}" for text, name in problems.items()))


def _input_problems(s: Settings, devices: bool) -> Iterator[str]:
    files = {"weight_path": s.weight_path}
    if not weights_are_given(s):
        files["init_weights"] = s.init_weights
        for split in () if cub.is_cub(s.data_root) else ("train", "test"):
            if not (s.data_root / split).is_dir():
                yield f"data_root: no folder {s.data_root / split}"
    for key, path in files.items():
        if path is not None and not path.is_file():
            yield f"{key}: no file {path}"
    for key in ("cub_root", "metadata_root"):
        folder = getattr(s, key)
        if folder is not None and not folder.is_dir():
            yield f"{key}: no folder {folder}"
    try:
        if devices:
            Runtime.of(s.run())
    except InputError as e:
        yield f"device: {e}"
    try:
        check_tracker(s.tracker)
    except InputError as e:
        yield str(e).replace("`", "")


def _image_problem(data: DataConfig, own_boxes: bool) -> str | None:
    try:
        if own_boxes and open_images(data).kind != "cub":
            return f"test_dataset: {data.test_dataset} has no boxes; give cub_root or metadata_root"
        resolve_test_dataset(data.test_dataset)
    except InputError as e:
        return f"test_dataset: {e}"
    return None


def _step(plan: Plan, experiment: Experiment, row: Point | None, images: Callable) -> Step:
    path = result_path(plan, experiment.name)
    if not path.exists():
        # The user must have written the row, because a run writes the result before its row.
        change = f"{plan.csv} has a row of this name, but there is no {path}" if row else None
        return Step(experiment, RUN, change=change)
    result = _read_result(path)
    found = images(experiment.settings.data())
    changes = resume.differences(result, record_of(plan, experiment, found))
    if changes:
        return Step(experiment, RUN, change="; ".join(changes))
    if not erf_path(plan, experiment.name).exists():
        return Step(experiment, RUN)
    need = DONE if row == point_of(plan, experiment, result) else ROW
    return Step(experiment, need, result)


def _read_result(path: Path) -> dict:
    try:
        result: Any = read_json(path)
        for key in ("settings", "weights", "max_box_acc", "erf"):
            result[key]
        # A result of an earlier version has no record, which is reported as its difference.
        if "format" in result and not resume.is_record(result):
            raise ValueError("its record is damaged")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path}: not a result of collect-erf-wsol: {e!r}") from e
    return result
