"""What of a file of experiments is done, and what is left to do: read from the files alone."""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..analysis.points import Point, read_points
from ..data import cub, resolve_test_dataset
from ..errors import InputError
from ..files import read_json
from ..runs.inference import choose_device, open_images
from ..runs.settings import DataConfig
from ..training.config import best_path, last_path
from ..training.state import load_state
from .plan import Experiment, Plan
from .settings import Settings, json_default

# What an experiment needs: nothing, its row in the CSV, or everything.
DONE, ROW, RUN = "done", "row", "run"


@dataclass(frozen=True)
class Step:
    """An experiment and what it needs.

    Attributes:
        experiment: the experiment.
        need: `DONE`, `ROW` or `RUN`.
        result: the stored result, for `DONE` and `ROW`.
        change: how a stored result of this name differs; None if it does not, or there is none.
    """

    experiment: Experiment
    need: str
    result: dict | None = None
    change: str | None = None


def result_path(plan: Plan, name: str) -> Path:
    """Return the file of an experiment's result: what makes it done."""
    return plan.output_dir / f"{name}.json"


def erf_path(plan: Plan, name: str) -> Path:
    """Return the file of an experiment's ERF sizes."""
    return plan.output_dir / f"erf_{name}.npy"


def error_path(plan: Plan, name: str) -> Path:
    """Return the file that tells why an experiment failed; it goes when the experiment succeeds."""
    return plan.output_dir / f"{name}.error.txt"


def weights_of(settings: Settings) -> Path:
    """Return the experiment's weights, whether they exist or not."""
    if settings.weight_path is not None:
        return settings.weight_path
    return best_path(settings.model_of(None), settings.training())


def weights_are_given(settings: Settings) -> bool:
    """Tell whether the weights are used as they are, not trained.

    They are if `weight_path` names them, or if they have a training's name and no state beside them
    that a training would continue from.
    """
    if settings.weight_path is not None:
        return True
    last = last_path(settings.model_of(None), settings.training())
    return weights_of(settings).exists() and not last.exists()


def find_steps(plan: Plan) -> list[Step]:
    """Compare each experiment with the files of earlier runs.

    An experiment is done if its result has the same settings (and its weights, if they still exist,
    are those that were scored), its ERF sizes exist, and the CSV has its row. A result without its
    row, as a kill between the two leaves it, lacks the row alone.

    Raises:
        InputError: a result or the CSV cannot be read.
    """
    rows = {p.model_name: p for p in read_points(plan.csv)} if plan.csv.exists() else {}
    return [_step(plan, experiment, rows.get(experiment.name)) for experiment in plan.experiments]


def point_of(plan: Plan, experiment: Experiment, result: dict) -> Point:
    """Return the experiment's row of the CSV."""
    path = str(erf_path(plan, experiment.name))
    family = experiment.settings.model_family
    return Point(experiment.name, family, path, result["max_box_acc"] / 100)


def describe(steps: Sequence[Step], redo: bool) -> Iterator[str]:
    """Yield for each step what a run would do, in words."""
    trained: dict[str, str] = {}
    for step in steps:
        name, settings = step.experiment.name, step.experiment.settings
        if step.need == DONE:
            yield "nothing: done"
        elif step.need == ROW:
            yield "add its row to the CSV"
        elif step.change and not redo:
            yield f"refuse: {step.change}"
        elif weights_are_given(settings) or (left := _epochs_left(settings)) == 0:
            yield f"score {weights_of(settings)}"
        elif (training := settings.training().exp_name) in trained:
            yield f"score the weights that {trained[training]} trains"
        else:
            trained[training] = name
            yield f"train {training} ({left} epochs), score"


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
            "give other names, or `redo` to run them again"
        )


def check_inputs(steps: Sequence[Step]) -> None:
    """Make sure that what the experiments to be run need is there, before the first one runs.

    Raises:
        InputError: one line per missing file, folder or device, with the experiment's name.
    """
    problems: dict[str, str] = {}
    images = functools.cache(_image_problem)  # experiments mostly share them
    for step in steps:
        if step.need == RUN:
            settings = step.experiment.settings
            own_boxes = settings.cub_root is None and settings.metadata_root is None
            found = [*_input_problems(settings), images(settings.data(), own_boxes)]
            for problem in found:
                if problem:
                    problems.setdefault(problem, step.experiment.name)
    if problems:
        raise InputError("\n".join(f"{name}: {text}" for text, name in problems.items()))


def _input_problems(s: Settings) -> Iterator[str]:
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
        choose_device(s.run())
    except InputError as e:
        yield f"device: {e}"


def _image_problem(data: DataConfig, own_boxes: bool) -> str | None:
    try:
        if own_boxes and open_images(data).kind != "cub":
            return f"test_dataset: {data.test_dataset} has no boxes; give cub_root or metadata_root"
        resolve_test_dataset(data.test_dataset)
    except InputError as e:
        return f"test_dataset: {e}"
    return None


def _step(plan: Plan, experiment: Experiment, row: Point | None) -> Step:
    path = result_path(plan, experiment.name)
    if not path.exists():
        # Nobody's row but the user's: a result is written before its row.
        change = f"{plan.csv} has a row of this name, but there is no {path}" if row else None
        return Step(experiment, RUN, change=change)
    result = _read_result(path)
    changes = differences(result["settings"], experiment.settings.described())
    changes += weights_change(result["weights"], weights_of(experiment.settings))
    if changes:
        return Step(experiment, RUN, change="; ".join(changes))
    if not erf_path(plan, experiment.name).exists():
        return Step(experiment, RUN)
    need = DONE if row == point_of(plan, experiment, result) else ROW
    return Step(experiment, need, result)


def _read_result(path: Path) -> dict:
    try:
        result = read_json(path)
        for key in ("settings", "weights", "max_box_acc", "erf"):
            result[key]
    except InputError:
        raise
    except (KeyError, TypeError) as e:
        raise InputError(f"{path}: not a result of collect-erf-wsol: {e!r}") from e
    return result


def differences(old: dict, new: dict) -> list[str]:
    """Return what differs between two settings; a key that one of them lacks has its default."""
    found = []
    for key in Settings.model_fields:
        was, now = (
            s.get(key, json_default(key) if key != "model_family" else None) for s in (old, new)
        )
        if was != now:
            found.append(f"{key} was {was!r}, is {now!r}")
    return found


def stamp(path: Path) -> dict:
    """Return what identifies a file of weights."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        found = os.fstat(f.fileno())
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return {
        "path": str(path),
        "bytes": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "sha256": digest.hexdigest(),
    }


def weights_change(stored: dict, path: Path) -> list[str]:
    """Tell whether the weights are others than the stored ones; removed ones are not."""
    if not path.exists():
        return []
    found = path.stat()
    # Copying changes the time, so content decides; hashing 350 MB for each experiment is left to
    # the files that were touched.
    if (found.st_size, found.st_mtime_ns) == (stored["bytes"], stored["mtime_ns"]):
        return []
    same = found.st_size == stored["bytes"] and stamp(path)["sha256"] == stored["sha256"]
    return [] if same else [f"the weights {path} are others than those that were scored"]
