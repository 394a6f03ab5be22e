"""The files of a training run, and how a run is continued or replaced."""

import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from .. import locks
from ..errors import CheckpointError, InputError
from ..files import open_regular, remove_leftovers
from ..models import FAMILIES
from ..models.checkpoints import check_archive, save_pickled
from ..resume import OtherRunError, describe, differences, file_fingerprint, is_record
from ..runs.settings import ModelConfig, RunConfig, settings
from ..short import Short
from .config import TrainConfig, best_path, drop_path_rate, last_path, log_folder

WRITTEN_BY = "cba_fast train-wsol"


@dataclass(repr=False)
class Progress(Short):
    """How far a run has come.

    Attributes:
        epoch: number of finished epochs.
        best_top1, best_epoch: the best test top-1 in percent, -1 before the first epoch, and the
            epoch that reached it.
        history: the log of each epoch: ``epoch``, ``time`` and ``scalars`` by name.
        run_id: tells the run from others in a tracker; empty if there is none.
    """

    epoch: int = 0
    best_top1: float = -1.0
    best_epoch: int = 0
    history: list[dict] = field(default_factory=list)
    run_id: str = ""


class RunFiles:
    """The best weights, the last state and the log of one run.

    The last state is the first file that a run writes, and the last one in every epoch. So a killed
    run never leaves files without a state, and a continued run repeats the unfinished epoch, with
    the same result.

    Args:
        model_config, config: settings, from which the names of the files follow.
        record: from `run_record`; it is part of the last state.
    """

    def __init__(self, model_config: ModelConfig, config: TrainConfig, record: dict):
        self.best = best_path(model_config, config)
        self.last = last_path(model_config, config)
        self.log = log_folder(model_config, config)
        self.record = {**record, "files": [self.best.name, self.last.name, self.log.name]}

    def open(self, overwrite: bool, log: Callable[[str], None]) -> dict | None:
        """Lock the files; return the state to continue from, or None for a fresh start.

        Raises:
            BusyError: another run is writing them.
            InputError: files of these names were not written by a run, the best weights of the run
                are missing, or it has more epochs than are asked for.
            OtherRunError: the earlier run differs from this one, and `overwrite` is False.
            CheckpointError: the last state cannot be read.
        """
        locks.hold(self.last)
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
        """Replace the files of an earlier run by `state`, the one before the first epoch."""
        self.save(state)
        self.remove_leftovers()
        self.best.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove the unfinished files that a killed run of this name has left."""
        remove_leftovers([self.best, self.last])

    def save(self, state: dict) -> None:
        """Write the last state with the run's record, whole or not at all."""
        state = {"written_by": WRITTEN_BY, "record": self.record, **state}
        # `save_state_dict_file` would make tensors contiguous, but those of the optimizer must keep
        # the strides of their parameters.
        save_pickled(state, self.last)

    def _check_continuable(self, state: dict) -> None:
        old, new = state.get("record"), self.record
        old = old if is_record(old) else {}
        epochs, done = new["settings"]["epochs"], state["progress"]["epoch"]
        if new["settings"]["schedule"] == "constant":
            # With a constant schedule no epoch depends on the number of epochs.
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
    model_config: ModelConfig, config: TrainConfig, run: RunConfig, inputs: dict[str, dict]
) -> dict:
    """Return the record of a run, which a continued run must have as well.

    It holds everything that changes the weights, except for the device. The places of files, the
    number of processes that read them, caching and recomputing change nothing.

    Args:
        model_config, config, run: settings.
        inputs: fingerprints of the images, see `Splits.inputs`.
    """
    kept = settings(model_config, config)
    kept["drop_path"] = drop_path_rate(model_config, config)
    if model_config.family in FAMILIES:
        kept["output_stride"] = kept["output_stride"] or 32
    # These settings change no weights, except for `num_classes`, which the images determine.
    places = ("data_root", "save_dir", "exp_name", "weights")
    for key in (*places, "cache_images", "checkpoint", "num_classes", "tracker"):
        kept.pop(key)
    kept |= {"precision": run.precision, "channels_last": run.channels_last}
    weights = {"init_weights": file_fingerprint(config.init_weights)}
    return describe(kept, weights | inputs, torch=torch.__version__)


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
    if written_by not in (WRITTEN_BY, f"{WRITTEN_BY} 1"):  # an earlier version wrote "1", no record
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
