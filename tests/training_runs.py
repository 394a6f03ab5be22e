"""Small training runs for tests, the ways to kill them, and what equal runs have in common."""

import contextlib
from pathlib import Path

import pytest
import torch
from checkpoint_factory import SMALL_MODELS
from data_factory import image_folder
from PIL import Image

from cba_fast.models import load_state_dict_file
from cba_fast.runs.runtime import Runtime
from cba_fast.runs.settings import ModelConfig, RunConfig
from cba_fast.training.data import open_splits
from cba_fast.training.model import initial_model
from cba_fast.training.state import RunFiles, load_state
from cba_fast.training.train import TrainConfig, train
from cba_fast.training.trainer import Trainer

RUN = RunConfig(num_workers=0, device="cpu")
# The quickest to train; the others take their turn where they matter.
MODEL = ModelConfig("slak_flex", name="slak_flex_nano")
STEPS = 3  # 12 images in batches of 5


def training_data(root: Path) -> Path:
    """Write two classes of six training and six test images; one is brighter than the other."""
    names = [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(6)]
    for path in image_folder(root, names).glob("*/b/*.png"):
        image = Image.open(path)
        image.point(lambda v: 128 + v // 2).save(path)
    return root


def small_config(data_root: Path, save_dir: Path) -> TrainConfig:
    """Return the settings of a run of three epochs of `STEPS` steps."""
    return TrainConfig(
        data_root,
        epochs=3,
        lr=1e-3,
        batch_size=5,
        input_size=32,
        save_dir=save_dir,
        exp_name="x",
    )


def model_config(family, **kwargs):
    return ModelConfig(family, name=SMALL_MODELS[family], **kwargs)


def quiet(config, model=MODEL, run=RUN, **kwargs):
    return train(model, config, run, log=lambda line: None, **kwargs)


def assert_same_files(a, b):
    """Best weights, last weights and optimizer state of two runs are equal to the last bit."""
    best_a, best_b = (load_state_dict_file(r.best_path) for r in (a, b))
    assert best_a.keys() == best_b.keys()
    assert all(torch.equal(best_a[k], best_b[k]) for k in best_a)
    last_a, last_b = (load_state(r.last_path) for r in (a, b))
    assert curves(last_a["progress"]) == curves(last_b["progress"])
    assert all(torch.equal(v, last_b["model"][k]) for k, v in last_a["model"].items())
    moments_a, moments_b = (s["optimizer"]["state"] for s in (last_a, last_b))
    assert moments_a.keys() == moments_b.keys()
    for key, moment in moments_a.items():
        assert all(torch.equal(v, moments_b[key][k]) for k, v in moment.items())


def curves(progress):
    """Return a run's progress without times and speeds."""
    history = [
        {k: v for k, v in entry["scalars"].items() if k != "train/images_per_s"}
        for entry in progress["history"]
    ]
    return {**progress, "history": history}


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


def killer(epoch, step):
    """Return a `progress` that kills in `epoch` before `step` (both from 1)."""
    calls = iter(range(1, 1000))

    def progress(batches, total):
        assert total == STEPS
        now = next(calls)
        for i, batch in enumerate(batches, 1):
            if (now, i) == (epoch, step):
                raise Killed
            yield batch

    return progress


@contextlib.contextmanager
def kill_in_save(monkeypatch, epoch):
    """Kill after the epoch's best weights and log are written, before its last state is."""
    save = RunFiles.save

    def killing(self, state):
        if state["progress"]["epoch"] == epoch:
            raise Killed
        save(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(RunFiles, "save", killing)
        with contextlib.suppress(Killed):
            yield
            pytest.fail("the run was not killed")


def initial(family, config, **kwargs):
    return initial_model(model_config(family, **kwargs), config, 2, log=lambda line: None)


def trainer_of(model, config, run=RUN):
    splits, run = open_splits(config.data_root), Runtime.of(run)
    return Trainer(initial_model(model, config, 2, log=lambda line: None), splits, config, run)
