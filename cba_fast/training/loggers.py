"""Where the figures of a run go: TensorBoard, and a tracker such as Weights & Biases or MLflow."""

import importlib.util
import json
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from .config import Tracker

PROJECT = "cba_fast"  # where the user names no project of W&B and no experiment of MLflow
_LONGEST = 500  # of a setting's text in MLflow


class Logger(ABC):
    """Takes the figures of a run, epoch by epoch.

    Attributes:
        last: the last epoch it has.
    """

    last = 0

    @abstractmethod
    def log(self, scalars: Mapping[str, float], epoch: int, when: float) -> None:
        """Take figures by name, of an epoch that ended at `when` in seconds since 1970."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """Say that the run has ended."""


class TensorBoardLogger(Logger):
    """A TensorBoard log that is written anew.

    So a continued run loses what a killed one logged of an epoch that will be repeated, and has one
    file: TensorBoard orders several by their names, which hold whole seconds, the host and the
    process.
    """

    def __init__(self, folder: Path):
        # The import takes a second, so it is left to commands that train.
        from torch.utils.tensorboard import SummaryWriter

        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer = SummaryWriter(str(folder))

    def log(self, scalars: Mapping[str, float], epoch: int, when: float) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, epoch, walltime=when)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class WandbLogger(Logger):
    """A run of Weights & Biases; its environment variables, such as WANDB_MODE, hold."""

    def __init__(self, name: str, run_id: str, settings: Mapping[str, Any], folder: Path):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=run_id,
            resume="allow",
            config=dict(settings),
            dir=str(folder),
        )
        self.last = max(self._run.step - 1, 0)  # `step` is the one that it would log next

    def log(self, scalars: Mapping[str, float], epoch: int, when: float) -> None:
        self._run.log({**scalars, "time": when}, step=epoch)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MlflowLogger(Logger):
    """A run of MLflow; its environment variables, such as MLFLOW_TRACKING_URI, hold."""

    def __init__(self, name: str, run_id: str, settings: Mapping[str, Any], folder: Path):
        from mlflow import MlflowClient, entities

        self._client = MlflowClient()
        self._metric = entities.Metric
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else self._client.create_experiment(project)
        runs = self._client.search_runs([experiment], f"tags.`{PROJECT}.run` = '{run_id}'")
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            for key in list(runs[0].data.metrics)[:1]:
                self.last = max(p.step for p in self._client.get_metric_history(self._id, key))
            return
        tags = {f"{PROJECT}.run": run_id}
        self._id = self._client.create_run(experiment, tags=tags, run_name=name).info.run_id
        texts = {key: value if isinstance(value, str) else json.dumps(value)
                 for key, value in settings.items()}  # fmt: skip
        params = [entities.Param(key, text[:_LONGEST]) for key, text in texts.items()]
        self._client.log_batch(self._id, params=params)

    def log(self, scalars: Mapping[str, float], epoch: int, when: float) -> None:
        stamp = int(when * 1e3)
        metrics = [self._metric(key, value, stamp, epoch) for key, value in scalars.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


_TRACKERS: dict[str, type] = {"wandb": WandbLogger, "mlflow": MlflowLogger}


def check_tracker(tracker: Tracker | None) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        InputError: the message says how to install it.
    """
    if tracker and not importlib.util.find_spec(tracker):
        raise InputError(f"`tracker` {tracker}: its package is missing; pip install {tracker}")


@contextmanager
def sending(
    loggers: Iterable[Logger], say: Callable[[str], None]
) -> Iterator[Callable[[list[dict]], None]]:
    """Return a function that gives the loggers what they lack of a run's history; close them after.

    A tracker that cannot be reached is said once and gets what it lacks with the next epoch, so
    that it never ends a run. An error of TensorBoard's is one of writing files, and is raised.

    Args:
        loggers: open.
        say: gets the warnings.
    """
    loggers, told, failed = list(loggers), set[Logger](), True

    @contextmanager
    def going_on(logger: Logger) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # the trackers have errors of many kinds
            if isinstance(logger, TensorBoardLogger):
                raise
            if logger not in told:
                say(f"Warning: {type(logger).__name__} did not take the figures: {e}")
            told.add(logger)

    def send(history: list[dict]) -> None:
        for logger in loggers:
            with going_on(logger):
                for entry in history:
                    if entry["epoch"] > logger.last:
                        logger.log(entry["scalars"], entry["epoch"], entry["time"])
                        logger.last = entry["epoch"]

    try:
        yield send
        failed = False
    finally:
        for logger in loggers:
            with going_on(logger):
                logger.close(failed)


def new_run_id() -> str:
    """Return what tells a new run from all others."""
    return uuid.uuid4().hex


def open_tracker(
    tracker: Tracker, name: str, run_id: str, settings: Mapping[str, Any], folder: Path
) -> Logger:
    """Return the logger of a run of a tracker; a run of this identity is continued.

    Args:
        tracker: which one.
        name: what users see.
        run_id: tells the run from all others, with letters, digits and ``-_``.
        settings: JSON values, which the tracker shows beside the figures.
        folder: for files that the tracker keeps.

    Raises:
        InputError: the package is missing, or the tracker cannot be used.
    """
    check_tracker(tracker)
    try:
        return _TRACKERS[tracker](name, run_id, settings, folder)
    except Exception as e:  # the trackers have errors of many kinds
        raise InputError(f"`tracker` {tracker}: {str(e).strip() or type(e).__name__}") from e
