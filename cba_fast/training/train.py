"""The command ``train-wsol``: train a classifier as the study does.

A run that was killed can be continued, with the weights of an uninterrupted one. This needs no
saved generator states: everything random in epoch e is drawn from (seed, e) alone, so repeating an
epoch gives the same result.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .. import locks
from ..data.textlines import counted
from ..erf.memory import free_bytes
from ..errors import CheckpointError, first_line
from ..models import save_state_dict_file
from ..runs.ranks import ALONE, Ranks
from ..runs.runtime import Runtime
from ..runs.settings import ModelConfig, RunConfig
from ..short import Short
from .config import TrainConfig, best_path, check_config, exp_name, log_folder
from .data import open_splits
from .loggers import (
    Logger,
    TensorBoardLogger,
    check_tracker,
    new_run_id,
    open_tracker,
    sending,
)
from .model import completed, initial_model
from .start import prepare
from .state import Progress, RunFiles, load_state, run_record
from .trainer import Trainer

__all__ = ["TrainConfig", "TrainResult", "best_path", "exp_name", "log_folder", "train"]

# After this many epochs, a loss as of guessing is worth a warning.
_PATIENCE = 5


@dataclass(repr=False)
class TrainResult(Short):
    """The result of a run.

    Attributes:
        best_top1: test top-1 in percent of the weights in `best_path`, which are from `best_epoch`.
        best_path, last_path: the files of the best weights and the last state.
        epochs: number of epochs of the run, with those of earlier calls.
        seconds: duration of this call.
        notes: lines on unreadable and truncated images.
    """

    best_top1: float
    best_epoch: int
    best_path: Path
    last_path: Path
    epochs: int
    seconds: float
    notes: list[str] = field(default_factory=list)


@locks.released()
def train(
    model_config: ModelConfig,
    config: TrainConfig,
    run: RunConfig,
    *,
    overwrite: bool = False,
    progress: Callable | None = None,
    log: Callable[[str], None] = print,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train with AdamW and cross-entropy; after each epoch measure the top-1 on the test split.

    The files are ``<save_dir>/<exp_name>_best.pth`` (the state dict with its `ModelDescription`,
    written when the test top-1 strictly improves), ``_last.pth`` (the state after each epoch) and
    ``_tb/`` (TensorBoard).

    Args:
        model_config: the model; its `weights` must be None. Gaps are filled by `completed`.
        config: how to train.
        run: how to compute; its `batch_size` is not used.
        overwrite: start anew and replace a run of this name. Otherwise a run with the same settings
            and images is continued, and any other is refused. On a CPU with the same number of
            threads a continued run ends with the weights of an uninterrupted one.
        progress: called in each epoch with an iterable of batches and their number, returns an
            iterable.
        log: gets lines on the model, the images and the estimated memory, then one per epoch.
        ranks: from `cba_fast.runs.ranks.join` where several processes train the model together.
            Each computes a part of every batch; the first writes the files and gets `progress` and
            `log`. A run may be continued by another number of processes.

    Raises:
        InputError: settings or folders cannot be used, the memory does not suffice, or a loss or a
            test output is not finite (the files of the epoch before stay).
        OtherRunError: the run of this name differs from this one; the message says how.
        CheckpointError: `init_weights` or the last state cannot be loaded.
        ImageError: too many images are unreadable, or one is in a strict run.
        OSError: a file cannot be written; what was written before stays.
        RankError: another process has ended early.
    """
    started = time.perf_counter()
    if not ranks.leads:
        progress, log = None, _say_nothing
    model_config, config = completed(model_config, config)
    check_config(model_config, config)
    check_tracker(config.tracker)
    runtime = Runtime.of(run)
    free = _free(runtime, ranks)  # before the model takes its share
    splits = open_splits(config.data_root, model_config.num_classes, config.follow_links)
    ranks.agree(splits.train.records + splits.test.records, config.init_weights)
    record = run_record(model_config, config, run, splits.inputs)
    files = RunFiles(model_config, config, record)
    state = _open(files, overwrite, log, ranks)
    if state is not None and state["progress"]["epoch"] == config.epochs:
        log(f"{files.last}: the run is finished ({counted(config.epochs, 'epoch')}), nothing to do")
        return _result(files, Progress(**state["progress"]), started, [])
    names = splits.train.class_names
    continued = None if state is None else files.last
    model = initial_model(
        model_config, config, len(names), log, continued=continued, class_names=names
    )
    checkpoint = prepare(model.description.model, model, splits, config, runtime, free, log, ranks)
    trainer = Trainer(model, splits, config, runtime, checkpoint=checkpoint, ranks=ranks)
    if state is None:
        trainer.progress.run_id = new_run_id() if config.tracker else ""
        if ranks.leads:
            files.begin(trainer.state())
    else:
        if ranks.leads:
            files.remove_leftovers()
        try:
            trainer.load(state)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as e:
            reason = f"its state does not fit the run ({first_line(e)})"
            raise CheckpointError(f"{files.last}: {reason}") from e
        log(f"continuing {files.last} after epoch {trainer.progress.epoch}")
    del state
    loggers = _loggers(files, config, trainer.progress) if ranks.leads else []
    with sending(loggers, log) as send:
        send(trainer.progress.history)
        while trainer.progress.epoch < config.epochs:
            _run_epoch(trainer, files, send if ranks.leads else None, progress, log)
    return _result(files, trainer.progress, started, trainer.notes())


def _say_nothing(line: str) -> None:
    pass


def _free(run: Runtime, ranks: Ranks) -> int | None:
    """Return how much memory this process may take; those on one CPU share its memory."""
    free = free_bytes(run.device)
    return free if free is None or run.device.type != "cpu" else free // ranks.here


def _open(
    files: RunFiles, overwrite: bool, log: Callable[[str], None], ranks: Ranks
) -> dict | None:
    """Return the state that all processes go on from, or None; see `RunFiles.open`."""
    # What processes that torchrun has started again find was written by this run.
    state = files.open(overwrite and not ranks.restarted, log) if ranks.leads else None
    going_on = ranks.from_first(lambda: state is not None)
    return load_state(files.last) if going_on and not ranks.leads else state


def _loggers(files: RunFiles, config: TrainConfig, progress: Progress) -> list[Logger]:
    loggers: list[Logger] = [TensorBoardLogger(files.log)]
    if config.tracker:
        name, settings = files.last.name.removesuffix("_last.pth"), files.record["settings"]
        progress.run_id = progress.run_id or new_run_id()  # an earlier call had no tracker
        loggers.append(
            open_tracker(config.tracker, name, progress.run_id, settings, files.last.parent)
        )
    return loggers


def _run_epoch(trainer: Trainer, files: RunFiles, send, progress, log) -> None:
    started = time.perf_counter()
    done = trainer.progress
    epoch = done.epoch + 1
    figures = trainer.train_epoch(epoch, progress)
    top1 = trainer.test(epoch)
    done.epoch = epoch
    better = top1 > done.best_top1
    if better:
        done.best_top1, done.best_epoch = top1, epoch
    scalars = {
        "train/loss": figures.loss,
        "train/top1": figures.top1,
        "train/lr": figures.lr,
        "train/images_per_s": figures.images_per_s,
        "test/top1": top1,
    }
    done.history.append({"epoch": epoch, "time": time.time(), "scalars": scalars})
    if send is None:  # another process writes the files
        return
    if better:
        model = trainer.model
        save_state_dict_file(model.state_dict(), files.best, model.description)
    send(done.history)
    files.save(trainer.state())  # written last, because it vouches for the epoch's other files
    epochs = trainer.config.epochs
    log(
        f"epoch {epoch:{len(str(epochs))}d}/{epochs}  lr {figures.lr:.3e}  "
        f"loss {figures.loss:.4f}  train {figures.top1:6.2f} %  test {top1:6.2f} %  "
        f"best {done.best_top1:6.2f} % ({done.best_epoch})  "
        f"{time.perf_counter() - started:.1f} s  {figures.images_per_s:.0f} images/s"
    )
    warning = trainer.guessing_warning(figures.loss) if epoch == _PATIENCE else None
    if warning is not None:
        log(f"Warning: {warning}")


def _result(files: RunFiles, done: Progress, started: float, notes: list[str]) -> TrainResult:
    return TrainResult(
        best_top1=done.best_top1,
        best_epoch=done.best_epoch,
        best_path=files.best,
        last_path=files.last,
        epochs=done.epoch,
        seconds=time.perf_counter() - started,
        notes=notes,
    )
