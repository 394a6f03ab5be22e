"""The files of a training run, and how a run is continued or replaced."""

import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..errors import CheckpointError, InputError
from ..files import atomic_path, open_regular, remove_leftovers
from ..models.checkpoints import check_archive
from ..resume import OtherRunError, describe, differences, file_fingerprint, is_record
from ..runs.settings import ModelConfig, RunConfig, settings
from ..short import Short
from .config import TrainConfig, best_path, drop_path_rate, last_path, log_folder

WRITTEN_BY = "cba_fast train-wsol"


@dataclass(repr=False)
class Progress(Short):
    """How far a run has come.

    Attributes:
        epoch: epochs done.
        best_top1, best_epoch: in percent, -1 before the first epoch, and when it was.
        history: what was logged of each epoch: ``epoch``, ``time`` and ``scalars`` by name.
    """

    epoch: int = 0
    best_top1: float = -1.0
    best_epoch: int = 0
    history: list[dict] = field(default_factory=list)


class RunFiles:
    """The best weights, the last state and the log of one run.

    The last state is written before anything else of a run, and last in every epoch: whatever
    a killed run leaves belongs to a state that says so, and a continued run repeats the epoch that
    had not been finished, with the same result.

    Args:
        model_config, config: settings, which name the files.
        record: what a continued run must share, see `run_record`; it lies in the last state.
    """

    def __init__(self, model_config: ModelConfig, config: TrainConfig, record: dict):
        self.best = best_path(model_config, config)
        self.last = last_path(model_config, config)
        self.log = log_folder(model_config, config)
        self.record = {**record, "files": [self.best.name, self.last.name, self.log.name]}

    def open(self, overwrite: bool, log: Callable[[str], None]) -> dict | None:
        """Return the state to continue from, or None for a fresh start; change nothing.

        Raises:
            InputError: the files there are not a run's; best weights are missing.
            OtherRunError: without `overwrite`, a run that differs from this one.
        """
        if not self.last.exists():
            for path in (self.best, *self.log.glob("events.out.tfevents.*")):
                if path.exists():
                    raise InputError(
                        f"{path} exists, and {self.last.name}, which train-wsol would have "
                        "written with it, does not; choose another exp_name or move it away"
                    )
            return None
        state = load_state(self.last)
        if overwrite:
            log(f"replacing the run in {self.last}: {state['progress']['epoch']} epochs")
            return None
        self._check_continuable(state)
        return state

    def begin(self, state: dict) -> None:
        """Replace what an earlier run left by the state before the first epoch."""
        self.save(state)
        self.remove_leftovers()
        self.best.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove what a killed run of this name left of files that it was writing."""
        remove_leftovers([self.best, self.last])

    def save(self, state: dict) -> None:
        """Write the last state in one step, with the run's settings."""
        state = {"written_by": WRITTEN_BY, "record": self.record, **state}
        # Not through save_state_dict_file, which makes tensors contiguous: the optimizer's must
        # keep the strides of their parameters.
        with atomic_path(self.last) as tmp, open(tmp, "wb") as f:
            torch.save(state, f)

    def _check_continuable(self, state: dict) -> None:
        old, new = state.get("record"), self.record
        old = old if is_record(old) else {}
        epochs, done = new["settings"]["epochs"], state["progress"]["epoch"]
        if new["settings"]["schedule"] == "constant":
            # Nothing before the end depends on where the end is.
            old = {**old, "settings": {**old.get("settings", {}), "epochs": epochs}}
        if changes := differences(old, new):
            raise OtherRunError(self.last, changes)
        if done > epochs:
            raise InputError(f"{self.last}: has {done} epochs already, more than the {epochs}")
        if state["progress"]["best_epoch"] and not self.best.exists():
            raise InputError(
                f"{self.last}: the best weights {self.best} are gone; `overwrite` starts anew"
            )


def run_record(
    model_config: ModelConfig, config: TrainConfig, run: RunConfig, images: dict
) -> dict:
    """Return what a continued run must have in common with its beginning.

    That is whatever changes the weights, the device apart: where files lie, how many processes read
    them, and whether they are cached or activations recomputed does not.

    Args:
        model_config, config, run: settings.
        images: the fingerprint of the images, see `Splits.fingerprint`.
    """
    kept = settings(model_config, config)
    kept["drop_path"] = drop_path_rate(model_config, config)
    kept["output_stride"] = kept["output_stride"] or 32
    # Where files lie, how they are read, what is computed twice, what the images say themselves.
    places = ("data_root", "save_dir", "exp_name", "weights")
    for key in (*places, "cache_images", "checkpoint", "num_classes"):
        kept.pop(key)
    kept |= {"precision": run.precision, "channels_last": run.channels_last}
    inputs = {"init_weights": file_fingerprint(config.init_weights), "images": images}
    return describe(kept, inputs, torch=torch.__version__)


def load_state(path: Path) -> dict:
    """Read a training state onto the CPU, without unpickling code.

    Raises:
        CheckpointError: the file is damaged or not the state of a training run.
    """
    try:
        with open_regular(path) as f:
            if zipfile.is_zipfile(f):
                check_archive(path)
            f.seek(0)
            state = torch.load(f, map_location="cpu", weights_only=True)
        written_by = state["written_by"]
    except OSError:
        raise
    except Exception as e:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"{path}: damaged, or not the state of a training run") from e
    if written_by not in (WRITTEN_BY, f"{WRITTEN_BY} 1"):  # of an earlier version: without record
        raise CheckpointError(f"{path}: written by {written_by!r}, not by {WRITTEN_BY!r}")
    for key in ("progress", "model", "optimizer", "scaler"):
        if not isinstance(state.get(key), dict):
            raise CheckpointError(f"{path}: not the state of a training run: it has no {key!r}")
    try:
        progress = Progress(**state["progress"])
        progress.epoch + progress.best_epoch + progress.best_top1
        state["progress"] = asdict(progress)
    except TypeError as e:
        raise CheckpointError(f"{path}: its 'progress' is not that of a training run") from e
    return state
