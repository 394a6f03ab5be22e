"""Trackers beside TensorBoard: what they get, once each, and that none of them ends a run."""

import importlib.util
import time
from dataclasses import replace

import pytest
from training_runs import MODEL, RUN, kill_in_save, quiet

from cba_fast.errors import InputError
from cba_fast.training import loggers
from cba_fast.training.config import last_path
from cba_fast.training.state import load_state
from cba_fast.training.train import train

FIGURES = {"train/loss", "train/top1", "train/lr", "train/images_per_s", "test/top1"}


class Fake(loggers.Logger):
    """A tracker that keeps runs as a server does."""

    runs: dict = {}  # noqa: RUF012 (emptied by each test)
    broken = 0  # how many of the next calls fail

    def __init__(self, name, run_id, settings, folder):
        self.run = self.runs.setdefault(run_id, {"name": name, "epochs": [], "ends": []})
        self.run["settings"] = settings
        self.last = max((epoch for epoch, _ in self.run["epochs"]), default=0)

    def log(self, scalars, epoch, when):
        if Fake.broken:
            Fake.broken -= 1
            raise ConnectionError("no route to the tracker")
        self.run["epochs"].append((epoch, dict(scalars)))

    def close(self, failed):
        if Fake.broken:
            raise ConnectionError("gone")
        self.run["ends"].append("failed" if failed else "finished")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(loggers._TRACKERS, "wandb", Fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(Fake, "runs", {})
    monkeypatch.setattr(Fake, "broken", 0)
    return Fake


def test_a_killed_run_goes_on_in_its_run_of_the_tracker(config, fake, monkeypatch):
    config = replace(config, tracker="wandb")
    with kill_in_save(monkeypatch, 2):
        quiet(config)
    ((run_id, run),) = fake.runs.items()
    assert run["ends"] == ["failed"]
    quiet(config)
    assert list(fake.runs) == [run_id]
    assert [epoch for epoch, _ in run["epochs"]] == [1, 2, 3]
    assert all(scalars.keys() == FIGURES for _, scalars in run["epochs"])
    assert run["name"] == "x"
    assert run["settings"]["lr"] == config.lr
    assert run["ends"][-1] == "finished"
    assert load_state(last_path(MODEL, config))["progress"]["run_id"] == run_id
    quiet(config, overwrite=True)  # anew, so another run
    assert len(fake.runs) == 2


def test_a_tracker_given_later_gets_all_epochs(config, fake, monkeypatch):
    quiet(replace(config, epochs=2))
    quiet(replace(config, tracker="wandb"))
    (run,) = fake.runs.values()
    assert [epoch for epoch, _ in run["epochs"]] == [1, 2, 3]


def test_a_tracker_that_cannot_be_reached_gets_the_figures_later(config, fake):
    fake.broken = 2
    lines = []
    result = train(MODEL, replace(config, tracker="wandb"), RUN, log=lines.append)
    assert result.epochs == 3
    (run,) = fake.runs.values()
    assert [epoch for epoch, _ in run["epochs"]] == [1, 2, 3]
    warnings = [line for line in lines if "Warning" in line]
    assert warnings == ["Warning: Fake did not take the figures: no route to the tracker"]


def test_a_tracker_that_cannot_be_closed_ends_no_run_and_keeps_no_other_open(fake):
    lines = []
    one, other = (Fake("x", run_id, {}, None) for run_id in "ab")
    fake.broken = 1
    with loggers.sending([one, other], lines.append):
        other.close = lambda failed: other.run["ends"].append(failed)
    assert other.run["ends"] == [False]
    assert lines == ["Warning: Fake did not take the figures: gone"]


def test_a_missing_package_and_a_tracker_that_refuses_are_said_before_anything(
    config, fake, monkeypatch
):
    monkeypatch.setattr(Fake, "__init__", lambda *args: (_ for _ in ()).throw(OSError("no login")))
    with pytest.raises(InputError, match=r"^`tracker` wandb: no login$"):
        quiet(replace(config, tracker="wandb"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="`tracker` mlflow: its package is missing; pip install"):
        quiet(replace(config, tracker="mlflow"))


HISTORY = [
    {"epoch": e, "time": 1.7e9 + e, "scalars": {"train/loss": 1 / e, "test/top1": 10.0 * e}}
    for e in (1, 2, 3)
]
SETTINGS = {"lr": 0.1, "factory": None, "shares": [0.5], "note": "x" * 900}


def send(tracker, history, folder):
    logger = loggers.open_tracker(tracker, "named", "a1b2", SETTINGS, folder)
    with loggers.sending([logger], pytest.fail) as give:
        give(history)
    return logger


def test_mlflow_has_each_epoch_once(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions want a database
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.chdir(tmp_path)
    send("mlflow", HISTORY[:2], tmp_path)
    send("mlflow", HISTORY, tmp_path)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("cba_fast")
    (run,) = client.search_runs([experiment.experiment_id])
    points = client.get_metric_history(run.info.run_id, "test/top1")
    assert [(p.step, p.value) for p in points] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert points[0].timestamp == 1_700_000_001_000
    assert run.info.run_name == "named"
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.1"
    assert run.data.params["shares"] == "[0.5]"


def test_wandb_keeps_a_run_without_network(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = send("wandb", HISTORY, tmp_path)._run
    assert (run.name, run.config["shares"], run.config["lr"]) == ("named", [0.5], 0.1)
    (stored,) = tmp_path.glob("wandb/offline-run-*/run-a1b2.wandb")
    end = time.monotonic() + 20  # its own process writes the file, sometimes after `finish`
    while not all(name in stored.read_bytes() for name in (b"test/top1", b"train/loss")):
        assert time.monotonic() < end  # in blocks, whose ends may cut one of several equal words
        time.sleep(0.05)
    assert wandb.run is None  # closed
