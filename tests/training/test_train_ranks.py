"""Several processes of torchrun train one model: equal steps, exact top-1, any number of them."""

import contextlib
import os
import signal

import numpy as np
import pytest
import torch
import torch.utils.tensorboard  # the processes are forked with it
from checkpoint_factory import SMALL_MODELS
from data_factory import image_folder, write_file
from PIL import Image
from rank_runner import run
from training_runs import curves, initial

from cba_fast.data import study_transform
from cba_fast.models import build_model
from cba_fast.training import trainer
from cba_fast.training.data import open_splits
from cba_fast.training.many import parts_of_step, shares
from cba_fast.training.state import load_state
from cba_fast.training.trainer import Trainer


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """25 training images, of which one is unreadable, and 13 test images, of two classes."""
    root = tmp_path_factory.mktemp("data")
    counts = {"train/a": 13, "train/b": 12, "test/a": 7, "test/b": 6}
    names = [f"{folder}/{i}.png" for folder, count in counts.items() for i in range(count)]
    for path in image_folder(root, names).glob("*/b/*.png"):
        image = Image.open(path)
        image.point(lambda v: 64 + 3 * v // 4).save(path)
    write_file(root / "train/a/5.png", b"no image")
    return root


@pytest.fixture
def trained(data_root, tmp_path, monkeypatch):
    """Return a function that trains in several processes and returns the last state."""
    monkeypatch.chdir(tmp_path)

    def train(count, name, *more, family="convnext", statuses=None, told="", **env):
        args = ["--model_family", family, "--model", SMALL_MODELS[family], "--exp_name", name]
        args += ["--data_root", data_root, "--input_size", 32, "--num_workers", 0]
        args += ["--batch_size", 8, "--lr", 1e-3, "--epochs", 1, "--device", "cpu"]
        args += ["--ls_init", 1] if family == "convnext" else []
        found = run(count, "train-wsol", *args, *more, **env)
        assert [status for status, *_ in found] == (statuses or [0] * count), found
        assert told in found[0][1] + found[0][2]
        for _, out, err in found[1:]:
            assert (out, err if statuses is None else "") == ("", "")
        return load_state(tmp_path / "weights" / f"{name}_last.pth")

    return train


def first_moments(state):
    """Return AdamW's sums of gradients, by their sizes tell errors in the gradients' weights."""
    return {k: v["exp_avg"] for k, v in state["optimizer"]["state"].items()}


def assert_close(state, wanted, share=1e-4):
    for key, moment in first_moments(wanted).items():
        error = (first_moments(state)[key] - moment).abs().max()
        assert error <= share * moment.abs().max(), (key, error)


def assert_equal(state, wanted):
    assert curves(state["progress"]) == curves(wanted["progress"])
    assert all(torch.equal(v, wanted["model"][k]) for k, v in state["model"].items())
    moments = first_moments(wanted)
    assert all(torch.equal(v, moments[k]) for k, v in first_moments(state).items())


def right_answers(family, path, data_root):
    """Return how many of the test images a checkpoint gets right, counted in this process."""
    model = build_model(family, model=SMALL_MODELS[family], checkpoint=path)
    records = open_splits(data_root).test.records
    images = torch.stack([study_transform(32)(Image.open(r.path)) for r in records])
    with torch.no_grad():
        return (model(images).argmax(1) == torch.tensor([r.label for r in records])).sum().item()


def test_the_gradients_are_those_of_one_process(trained):
    """The last batch of the epoch has one image, so that most processes have none."""
    slow = ["--lr", 1e-8]  # AdamW's steps would turn rounding of small gradients into larger errors
    one = trained(1, "one", *slow)
    scalars = one["progress"]["history"][0]["scalars"]
    for count, micro in ((2, []), (3, []), (3, ["--micro_batch", 2])):
        more = trained(count, f"of{count}{len(micro)}", *slow, *micro, told="1 image could not")
        assert_close(more, one)
        found = more["progress"]["history"][0]["scalars"]
        for key in ("train/loss", "train/top1", "train/lr"):
            assert found[key] == pytest.approx(scalars[key], rel=1e-5)


def test_weights_that_no_step_uses_do_not_stop_the_others(trained, config):
    """slak_flex at the ends of its mixture does not use the weights of one branch."""
    one, two = (trained(n, str(n), "--lr", 1e-8, "--epochs", 2, family="slak_flex") for n in (1, 2))
    assert len(first_moments(one)) < len(list(initial("slak_flex", config).parameters()))
    assert first_moments(two).keys() == first_moments(one).keys()


def test_the_same_run_has_the_same_weights(trained):
    first, again = (trained(2, name, "--drop_path", 0.3) for name in "ab")
    assert_equal(first, again)
    alone = trained(1, "c", "--drop_path", 0.3)
    assert not torch.equal(first_moments(alone)[0], first_moments(first)[0])  # draws of their own


@pytest.mark.parametrize(("family", "count"), [("convnext", 3), ("replknet", 2)])
def test_each_test_image_counts_once(trained, data_root, tmp_path, family, count):
    told = "no synchronized ones for CPUs" if family == "replknet" else "3, with 2 or 3 images"
    state = trained(count, "x", family=family, told=told)
    right = right_answers(family, tmp_path / "weights/x_best.pth", data_root)
    assert 0 < right < 13
    assert state["progress"]["best_top1"] == pytest.approx(100 * right / 13)


def test_a_run_goes_on_with_other_numbers_of_processes(trained):
    whole = trained(1, "whole", "--epochs", 3)
    trained(2, "x")
    trained(3, "x", "--epochs", 2, told="continuing weights/x_last.pth after epoch 1")
    last = trained(1, "x", "--epochs", 3)
    losses, wanted = (
        [entry["scalars"]["train/loss"] for entry in state["progress"]["history"]]
        for state in (last, whole)
    )
    assert losses == pytest.approx(wanted, rel=1e-2)
    assert trained(2, "x", "--epochs", 3, told="finished")["progress"] == last["progress"]


def test_a_killed_process_ends_the_run_and_torchrun_may_start_it_again(trained, monkeypatch):
    whole = trained(2, "whole", "--epochs", 2)
    step = Trainer._step

    def dying(self, *args):
        if self.progress.epoch == 1 and self.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", dying)
        two = ["--epochs", 2, "--overwrite"]
        told = "another process of this run has ended early; torchrun tells"
        trained(2, "x", *two, statuses=[1, -signal.SIGKILL], told=told)
    told = "continuing weights/x_last.pth after epoch 1"
    again = trained(2, "x", *two, told=told, TORCHELASTIC_RESTART_COUNT="1")
    assert_equal(again, whole)


@pytest.mark.parametrize("name", ["joined", "average_norms"])
def test_a_process_that_dies_beside_a_step_is_told_too(trained, monkeypatch, name):
    real = getattr(trainer, name)

    def dying(*args):
        return os.kill(os.getpid(), signal.SIGKILL) if os.environ["RANK"] == "1" else real(*args)

    monkeypatch.setattr(trainer, name, dying)
    told = "another process of this run has ended early; torchrun tells"
    with contextlib.suppress(FileNotFoundError):  # no state before the first epoch
        trained(2, "x", family="replknet", statuses=[1, -signal.SIGKILL], told=told)


def test_a_process_that_cannot_read_ends_the_run(trained):
    # In the first epoch, image 5 of class a is in the second process's half of a batch.
    told = "Error (rank 0): rank 1 of this run has ended early"
    trained(2, "x", "--strict", statuses=[1, 1], told=told)


def test_more_processes_than_images_of_a_batch_are_refused(trained, tmp_path):
    args = ["--batch_size", 2, "--epochs", 1]
    with pytest.raises(FileNotFoundError):
        trained(3, "x", *args, statuses=[1] * 3, told="--batch_size 2 is the images of a step over")


def test_shares_and_parts_hold_every_image_once():
    batch = np.arange(11)
    for count in (1, 2, 3, 4):
        mine = shares(batch, count)
        assert np.concatenate(mine).tolist() == batch.tolist()
        assert max(map(len, mine)) - min(map(len, mine)) <= 1
        counts = [len(share) for share in mine]
        parts = [parts_of_step(counts, rank, 2, join_last=False) for rank in range(count)]
        assert len({len(p) for p in parts}) == 1  # all average their gradients equally often
        assert [len(np.concatenate(p)) for p in parts] == counts
        assert max(len(part) for p in parts for part in p) <= 2
