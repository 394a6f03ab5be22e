"""The files of a training run, and how a run is continued or replaced."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from ..errors import InputError
from ..files import atomic_path
from ..runs.settings import ModelConfig
from .config import TrainConfig, best_path, last_path, log_folder

WRITTEN_BY = "cba_fast train-wsol 1"  # the number changes with the entries of the state


@dataclass
class Progress:
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


_ENTRIES = ("settings", "progress", "model", "optimizer", "scheduler", "scaler")
_PROGRESS = {f.name for f in fields(Progress)}


class RunFiles:
    """The best weights, the last state and the log of one run.

    The last state is written before anything else of a run, and last in every epoch: whatever
    a killed run leaves belongs to a state that says so, and a continued run repeats the epoch that
    had not been finished, with the same result.

    Args:
        model_config, config: settings, which name the files.
        settings: what a continued run must share, see `run_settings`.
    """

    def __init__(self, model_config: ModelConfig, config: TrainConfig, settings: dict):
        self.best = best_path(model_config, config)
        self.last = last_path(model_config, config)
        self.log = log_folder(model_config, config)
        self._settings = settings
        self._is_default_name = config.exp_name is None

    def open(self, resume: bool, log: Callable[[str], None]) -> dict | None:
        """Return the state to continue from, or None for a fresh start; change nothing.

        Raises:
            InputError: the files there are not a run's; a run with other settings, if it is to be
                continued or if only its default name says what it is; best weights are missing.
        """
        if not self.last.exists():
            if self.best.exists():
                raise InputError(
                    f"{self.best} exists, and {self.last.name}, which train-wsol would have "
                    "written with it, does not; choose another exp_name or move it away"
                )
            return None
        state = load_state(self.last)
        if not resume:
            self._check_replaceable(state, log)
            return None
        self._check_continuable(state)
        return state

    def begin(self, state: dict) -> None:
        """Replace what an earlier run left by the state before the first epoch."""
        self.save(state)
        self.best.unlink(missing_ok=True)

    def save(self, state: dict) -> None:
        """Write the last state in one step, with the run's settings."""
        state = {"written_by": WRITTEN_BY, "settings": self._settings, **state}
        # Not through save_state_dict_file, which makes tensors contiguous: the optimizer's must
        # keep the strides of their parameters.
        with atomic_path(self.last) as tmp, open(tmp, "wb") as f:
            torch.save(state, f)

    def _check_replaceable(self, state: dict, log: Callable[[str], None]) -> None:
        differs = _differences(state["settings"], self._settings)
        if differs and self._is_default_name:
            raise InputError(
                f"{self.last} is a run of this default name with other settings "
                f"({', '.join(differs)}); choose an exp_name, or move it away"
            )
        what = f" ({', '.join(differs)})" if differs else ""
        log(f"replacing the run in {self.last}: {state['progress']['epoch']} epochs{what}")

    def _check_continuable(self, state: dict) -> None:
        old, new = dict(state["settings"]), dict(self._settings)
        if new["schedule"] == "constant":
            # Nothing before the end depends on where the end is.
            old.pop("epochs"), new.pop("epochs")
        differs = _differences(old, new)
        if differs:
            raise InputError(
                f"{self.last}: cannot resume a run with other settings: {', '.join(differs)}"
            )
        if state["progress"]["epoch"] > self._settings["epochs"]:
            raise InputError(
                f"{self.last}: has {state['progress']['epoch']} epochs already, more than the "
                f"{self._settings['epochs']} asked for"
            )
        if state["progress"]["best_epoch"] and not self.best.exists():
            raise InputError(
                f"{self.last}: cannot resume: the best weights {self.best} are gone; start anew"
            )


def load_state(path: Path) -> dict:
    """Read a training state onto the CPU, without unpickling code.

    Raises:
        InputError: the file is damaged or not the state of a training run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        written_by = state["written_by"]
    except OSError:
        raise
    except Exception as e:  # a damaged pickle can raise nearly anything
        raise InputError(f"{path}: damaged, or not the state of a training run") from e
    if written_by != WRITTEN_BY:
        raise InputError(f"{path}: written by {written_by!r}, not by {WRITTEN_BY!r}")
    missing = [key for key in _ENTRIES if key not in state]
    progress = state.get("progress")
    if not missing and not (isinstance(progress, dict) and progress.keys() >= _PROGRESS):
        missing = [f"parts of progress ({', '.join(sorted(_PROGRESS))})"]
    if missing or not isinstance(state["settings"], dict):
        what = f"lacks {', '.join(missing)}" if missing else "settings are no settings"
        raise InputError(f"{path}: not the whole state of a training run: {what}")
    return state


def _differences(old: dict, new: dict) -> list[str]:
    keys = sorted({*old, *new})
    return [f"{k}={old.get(k)!r} (now {new.get(k)!r})" for k in keys if old.get(k) != new.get(k)]
