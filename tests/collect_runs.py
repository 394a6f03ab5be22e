"""Plans of experiments for tests, and fast stand-ins for the training and scores of them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from cli_runner import run_cli
from data_factory import CUB_IMAGES, cub_folder

from cba_fast import files
from cba_fast.experiments import collect as study
from cba_fast.experiments.plan import load_experiments
from cba_fast.training import config as train_config
from cba_fast.training import state as train_state

DEFAULTS = {
    "test_dataset": "cub",
    "data_root": "split",
    "epochs": 2,
    "input_size": 64,
    "output_stride": 16,
    "num_workers": 0,
    "device": "cpu",
}
NANO = {"model_family": "replknet", "model": "replknet_nano"}


def write(content):
    Path("e.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Path("e.yaml")


def load(content):
    return load_experiments(write(content))


# Runs, with fast stand-ins for training and scores


@pytest.fixture
def calls(here, monkeypatch):
    """Images and folders, and the names of what the stand-ins were asked for."""
    calls = []
    cub_folder(here / "cub", CUB_IMAGES)
    for split in ("train", "test"):
        (here / "split" / split).mkdir(parents=True)

    def train(model, config, run, *, progress, log, overwrite=False):
        assert model.weights is None
        name = config.exp_name
        calls.append(("train", name))
        last = train_config.last_path(model, config)
        # As the trainer: a state first, the weights, then the state that says they are complete.
        for epoch in (0, config.epochs):
            with files.atomic_path(last) as tmp:
                torch.save(state_after(epoch), tmp)
            if epoch == 0:
                files.write_text(train_config.best_path(model, config), f"weights of {name}")
        fields = {"best_top1": 50.0, "best_epoch": 1, "epochs": config.epochs, "seconds": 0.5}
        return SimpleNamespace(**fields, notes=[])

    def evaluate(model, data, run, maps, boxes, *, num_samples, progress):
        calls.append(("evaluate", maps.method))
        box = {"largest": SimpleNamespace(optimal_threshold=[0.1, 0.2, 0.3])}
        size = Path(model.weights).stat().st_size  # a score that depends on the weights
        score = 25.0 + size % 7 + (maps.method == "pc1")
        result = SimpleNamespace(
            max_box_acc=score,
            max_box_acc_v2=1.0,
            iou_thresholds=[0.3, 0.5, 0.7],
            modes=box,
            num_images=3,
        )
        more = {"notes": ["a note"], "unreadable": {}}
        return SimpleNamespace(result=result, classification={"top1": 75.0}, **more)

    def compute_sizes(
        model, images, config, data, run, sizes, output, *, progress, overwrite=False
    ):
        assert (run.config.batch_size, run.config.precision) == (1, "fp32")
        calls.append(("erf", Path(output).name))
        values = np.arange(1, sizes.num_samples + 1, dtype=np.float32)
        files.write_npy(output, values)
        stats = SimpleNamespace(count=len(values), mean=float(values.mean()), std=1.0)
        history = ["continued after 1 image"]
        return SimpleNamespace(stats={0.2: stats}, notes=[], history=history)

    stand_ins = {"train": train, "evaluate": evaluate, "compute_sizes": compute_sizes}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(study, name, stand_in)
    monkeypatch.setattr(study, "load_model", lambda *args: None)
    monkeypatch.setattr(study, "resolve", lambda *configs: SimpleNamespace(line="Model"))
    return calls


def state_after(epoch):
    """Return a state of training without weights."""
    state = {k: {} for k in ("settings", "model", "optimizer", "scaler")}
    return {**state, "written_by": train_state.WRITTEN_BY, "progress": {"epoch": epoch}}


def write_given(value):
    """Write weights that are told from others, and no more than the plan reads of them."""
    torch.save({"stem.0.conv.weight": torch.full((1,), value)}, "given.pth")


def three(**changes):
    """Two experiments that share a training, and one of given weights."""
    write_given(1.0)
    grid = {**NANO, "localization_method": ["cam", "pc1"]}
    given = {"name": "given", "model_family": "replknet", "weight_path": "given.pth"}
    return {"defaults": DEFAULTS | changes, "experiments": [given], "grid": grid}


THREE = ["given", "replknet_cam", "replknet_pc1"]


def collect(capsys, content, *args):
    return run_cli(capsys, "collect-erf-wsol", "--config", write(content), *args)


def trainings(calls):
    return [name for what, name in calls if what == "train"]
