"""Training runs: equal weights after any kill, what is kept and replaced, when a run ends."""

import copy
import math
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from checkpoint_factory import make_checkpoint
from data_factory import cub_folder, edit_lines, image_folder
from PIL import Image
from training_runs import (
    MODEL,
    RUN,
    STEPS,
    Killed,
    assert_same_files,
    kill_in_save,
    killer,
    model_config,
    quiet,
    trainer_of,
)

from cba_fast import resume
from cba_fast.data import study_transform
from cba_fast.errors import CheckpointError, InputError
from cba_fast.models import build_model, load_state_dict_file
from cba_fast.resume import OtherRunError
from cba_fast.training import train as train_module
from cba_fast.training.data import open_splits
from cba_fast.training.state import load_state
from cba_fast.training.train import best_path, exp_name, log_folder, train
from cba_fast.training.trainer import EpochFigures, Trainer

VARIANTS = {
    "replknet onecycle": (
        model_config("replknet"),  # batch norms, drop path 0.3
        {"schedule": "onecycle", "input_size": 64},
    ),
    "convnext cosine strong": (
        model_config("convnext"),
        {"schedule": "cosine", "aug_mode": "strong", "drop_path": 0.2, "ls_init": 1.0},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_ends_with_the_same_weights(variant, config, tmp_path, monkeypatch):
    model, options = VARIANTS[variant]
    config = replace(config, **options)
    whole = quiet(replace(config, save_dir=tmp_path / "whole"), model)
    assert whole.epochs == 3
    with pytest.raises(Killed):
        quiet(config, model, progress=killer(1, 2))  # in the first epoch
    with pytest.raises(Killed):
        quiet(config, model, progress=killer(2, 1))  # after the first
    with pytest.raises(Killed):
        quiet(config, model, progress=killer(1, STEPS))  # in the second
    with kill_in_save(monkeypatch, 3):
        quiet(config, model)
    assert_same_files(quiet(config, model), whole)


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
import torch
from cba_fast.files import atomic_path
from cba_fast.runs.settings import ModelConfig, RunConfig
from cba_fast.training.train import TrainConfig, train

def progress(batches, total, epochs=iter((1, 2))):
    epoch = next(epochs)
    for step, batch in enumerate(batches, 1):
        if (epoch, step) == (2, 3):
            with atomic_path(Path(sys.argv[2]) / "x_last.pth") as tmp:  # as if while it is written
                tmp.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        yield batch

torch.set_num_threads(int(sys.argv[3]))
train(
    ModelConfig("slak_flex", name="slak_flex_nano"),
    TrainConfig(Path(sys.argv[1]), epochs=3, lr=1e-3, batch_size=5, input_size=32,
                save_dir=Path(sys.argv[2]), exp_name="x"),
    RunConfig(num_workers=0, device="cpu"),
    progress=progress,
)
"""


def test_a_run_ended_by_sigkill_continues_to_the_same_weights(config, tmp_path):
    threads = torch.get_num_threads()  # equal weights need equal threads
    command = [sys.executable, "-c", KILLED_RUN, config.data_root, config.save_dir, threads]
    ended = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stdout.splitlines()[4].startswith("epoch 1/3")
    assert len(list(config.save_dir.glob(".tmp-*"))) == 1
    resumed = quiet(config)
    assert not list(config.save_dir.glob(".tmp-*"))
    assert_same_files(resumed, quiet(replace(config, save_dir=tmp_path / "whole")))
    assert scalars(config)["test/top1"][0] == [1, 2, 3]


def scalars(config):
    """Return {tag: (steps, values)} of the run's TensorBoard log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log_folder(MODEL, config))).Reload()
    return {
        tag: ([e.step for e in events.Scalars(tag)], [e.value for e in events.Scalars(tag)])
        for tag in events.Tags()["scalars"]
    }


def test_the_log_has_every_epoch_once_after_kills(config, monkeypatch):
    with kill_in_save(monkeypatch, 2):
        quiet(config)
    assert scalars(config)["train/loss"][0] == [1, 2]  # the second epoch will be repeated
    lines = []
    result = train(MODEL, config, RUN, log=lines.append)
    logged = scalars(config)
    tags = {"train/loss", "train/top1", "train/lr", "train/images_per_s", "test/top1"}
    assert logged.keys() == tags
    assert all(steps == [1, 2, 3] for steps, _ in logged.values())
    assert max(logged["test/top1"][1]) == pytest.approx(result.best_top1)
    assert logged["train/lr"][1] == pytest.approx([1e-3] * 3)
    assert [line.split()[1] for line in lines[-2:]] == ["2/3", "3/3"]
    quiet(config, overwrite=True)  # anew: the old log is gone
    assert scalars(config)["train/loss"][0] == [1, 2, 3]


def test_neither_workers_nor_cache_change_the_weights(config, tmp_path):
    config = replace(config, epochs=1, aug_mode="strong")
    plain = quiet(config)
    cached = replace(config, cache_images=True, save_dir=tmp_path / "cached")
    assert_same_files(quiet(cached), plain)
    assert_same_files(
        quiet(replace(config, save_dir=tmp_path / "w"), run=replace(RUN, num_workers=2)), plain
    )
    light = replace(config, aug_mode="light", save_dir=tmp_path / "light")
    light_cached = replace(light, cache_images=True, save_dir=tmp_path / "light_cached")
    assert_same_files(quiet(light_cached), quiet(light))


def test_the_seed_changes_the_weights(config, tmp_path):
    a = quiet(replace(config, epochs=1))
    b = quiet(replace(config, epochs=1, seed=1, save_dir=tmp_path / "b"))
    a, b = (load_state(r.last_path)["model"] for r in (a, b))
    assert not torch.equal(a["1.fc.weight"], b["1.fc.weight"])


def test_the_best_weights_are_saved_when_top1_strictly_improves(config, monkeypatch):
    top1 = {1: 0.0, 2: 50.0, 3: 50.0, 4: 75.0, 5: 25.0}
    weights = {}

    def test(self, epoch):
        weights[epoch] = copy.deepcopy(self.model.state_dict())
        return top1[epoch]

    monkeypatch.setattr(Trainer, "test", test)
    saved = []
    real = train_module.save_state_dict_file

    def save(state, path, description):
        saved.append(path)
        real(state, path, description)

    monkeypatch.setattr(train_module, "save_state_dict_file", save)
    result = quiet(replace(config, epochs=5))
    assert len(saved) == 3
    assert (result.best_top1, result.best_epoch, result.epochs) == (75.0, 4, 5)
    best = load_state_dict_file(result.best_path)
    assert all(torch.equal(best[k], v) for k, v in weights[4].items())


def test_top1_is_that_of_the_saved_weights(config):
    result = quiet(config)
    model = build_model("slak_flex", model="slak_flex_nano", checkpoint=result.best_path)
    records = open_splits(config.data_root).test.records
    images = torch.stack([study_transform(32)(Image.open(r.path)) for r in records])
    with torch.no_grad():
        right = model(images).argmax(1) == torch.tensor([r.label for r in records])
    assert result.best_top1 == 100 * right.double().mean().item()


def test_a_continued_run_does_not_need_its_first_weights(config, tmp_path):
    weights = make_checkpoint(tmp_path / "w.pth", "slak_flex", "slak_flex_nano", num_classes=7)
    config = replace(config, init_weights=weights)
    whole = quiet(replace(config, save_dir=tmp_path / "whole"))
    with pytest.raises(Killed):
        quiet(config, progress=killer(2, 2))
    weights.unlink()
    assert_same_files(quiet(config), whole)


def test_a_finished_run_is_left_alone(config):
    first = quiet(config)
    times = [p.stat().st_mtime_ns for p in (first.best_path, first.last_path)]
    lines = []
    again = train(MODEL, config, RUN, log=lines.append)
    assert "finished" in lines[0]
    assert len(lines) == 1
    assert replace(again, seconds=0) == replace(first, seconds=0)
    assert [p.stat().st_mtime_ns for p in (first.best_path, first.last_path)] == times


def test_the_settings_that_differ_are_named(config):
    quiet(replace(config, epochs=1))
    for other, text in (
        (replace(config, lr=0.5), r"lr was 0\.001, is 0\.5"),
        (replace(config, seed=1, batch_size=4), "batch_size was 5, is 4; seed was 0, is 1"),
        (replace(config, schedule="cosine"), "schedule was 'constant', is 'cosine'"),
    ):
        with pytest.raises(OtherRunError, match=text):
            quiet(other)
    with pytest.raises(OtherRunError, match="precision was 'fp32'"):
        quiet(config, run=replace(RUN, precision="bf16"))
    with pytest.raises(OtherRunError, match="family was 'slak_flex'"):
        quiet(config, model_config("slak"))


def test_another_start_or_version_is_noticed(config, tmp_path, monkeypatch):
    def start(seed):
        name = "slak_flex_nano"
        return make_checkpoint(tmp_path / "w.pth", "slak_flex", name, num_classes=7, seed=seed)

    config = replace(config, init_weights=start(0), epochs=1)
    result = quiet(config)
    start(1)
    with pytest.raises(OtherRunError, match=r"the init_weights .*w\.pth are other bytes"):
        quiet(config)
    start(0)
    quiet(config)
    with monkeypatch.context() as patch:
        patch.setattr(resume, "__version__", "99.0")
        with pytest.raises(OtherRunError, match=r"written by cba_fast .*, this is 99\.0"):
            quiet(config)
    state = load_state(result.last_path)
    settings = state.pop("record")["settings"]
    torch.save({**state, "written_by": "cba_fast train-wsol 1", "settings": settings},
               result.last_path)  # fmt: skip
    with pytest.raises(OtherRunError, match="written by an earlier version of cba_fast"):
        quiet(config)
    quiet(config, overwrite=True)


def test_other_images_are_noticed(config, tmp_path):
    root = image_folder(
        tmp_path / "d", [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in "12"]
    )
    config = replace(config, data_root=root, epochs=1)
    quiet(config)
    image_folder(root, ["train/a/3.png"])
    with pytest.raises(InputError, match=r"the images are not those that were used.* \(8, now 9\)"):
        quiet(config)


def test_other_labels_of_the_same_images_are_noticed(config, tmp_path):
    root = cub_folder(tmp_path / "cub")
    config = replace(config, data_root=root, epochs=1)
    quiet(config)
    edit_lines(root / "image_class_labels.txt", lambda lines: ["1 3", *lines[1:]])
    with pytest.raises(OtherRunError, match="run: the labels are not those that were used"):
        quiet(config)


def test_a_constant_schedule_can_be_extended(config, tmp_path):
    quiet(replace(config, epochs=2))
    extended = quiet(config)
    assert_same_files(extended, quiet(replace(config, save_dir=tmp_path / "whole")))
    with pytest.raises(InputError, match="has 3 epochs already, more than the 2"):
        quiet(replace(config, epochs=2))
    other = replace(config, schedule="cosine", exp_name="cosine", epochs=1)
    quiet(other)
    with pytest.raises(InputError, match="epochs was 1, is 3"):
        quiet(replace(other, epochs=3))


def test_lost_best_weights_are_noticed(config):
    quiet(config).best_path.unlink()
    with pytest.raises(InputError, match="best weights .* are gone"):
        quiet(config)


def test_a_run_of_the_same_name_is_replaced_on_request(config):
    first = quiet(config)
    kept = first.last_path.read_bytes()
    other = replace(config, lr=0.5)
    with pytest.raises(OtherRunError):
        quiet(other)
    assert first.last_path.read_bytes() == kept
    lines = []
    with pytest.raises(Killed):
        train(MODEL, other, RUN, overwrite=True, progress=killer(1, 1), log=lines.append)
    assert lines[0].startswith("replacing the run")
    assert not best_path(MODEL, config).exists()  # no weights that belong to another run
    assert quiet(other).epochs == 3


def test_the_default_name(config):
    config = replace(config, exp_name=None, epochs=1)
    assert exp_name(MODEL, config) == "slak_flex_r32_e1_lr0.001_auglight"
    result = quiet(config)
    assert result.best_path.name == "slak_flex_r32_e1_lr0.001_auglight_best.pth"


def test_foreign_files_are_not_replaced(config):
    config.save_dir.mkdir()
    best = best_path(MODEL, config)
    best.write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"x_best\.pth exists"):
            quiet(config, overwrite=overwrite)
    last = best.with_name("x_last.pth")
    for content in ({"epoch": 3}, [1], {"written_by": "someone"}):
        torch.save(content, last)
        with pytest.raises(InputError, match=r"x_last\.pth"):
            quiet(config)
    last.write_bytes(b"also mine")
    with pytest.raises(InputError, match=r"x_last\.pth: damaged"):
        quiet(config, overwrite=True)
    assert best.read_bytes() == b"mine"
    best.unlink()
    last.unlink()
    log = config.save_dir / "x_tb" / "events.out.tfevents.1"
    log.parent.mkdir()
    log.write_bytes(b"another program's")
    with pytest.raises(InputError, match=r"events\.out\.tfevents\.1 exists"):
        quiet(config, overwrite=True)
    assert log.exists()


def test_a_last_state_without_its_keys_is_refused(config):
    last = quiet(replace(config, epochs=1)).last_path
    whole = load_state(last)
    for missing in ("progress", "model", "optimizer", "scaler"):
        torch.save({k: v for k, v in whole.items() if k != missing}, last)
        with pytest.raises(CheckpointError, match=rf"x_last\.pth: .* no '{missing}'"):
            quiet(config)
    for changes, message in (
        ({"progress": {"epoch": 1, "age": 3}}, "its 'progress'"),
        ({"progress": whole["progress"] | {"epoch": "1"}}, "its 'progress'"),
        ({"optimizer": {"state": {}}}, r"its state does not fit the run"),
        ({"model": {"a": torch.ones(1)}}, "not a checkpoint of slak_flex"),
    ):
        torch.save(whole | changes, last)
        with pytest.raises(CheckpointError, match=rf"x_last\.pth: .*{message}"):
            quiet(config)


def test_a_loss_that_is_not_finite_ends_the_run(config):
    with pytest.raises(InputError, match=r"epoch \d+, step \d+: the loss is .*1e\+30"):
        quiet(replace(config, lr=1e30))


def test_divergence_leaves_the_last_good_epoch(config, monkeypatch, tmp_path):
    good = quiet(replace(config, epochs=1, save_dir=tmp_path / "good"))
    step, calls = Trainer._step, iter(range(100))

    def diverging(self, *args):
        loss, hits = step(self, *args)
        return (loss * math.nan if next(calls) == STEPS + 1 else loss), hits

    monkeypatch.setattr(Trainer, "_step", diverging)
    with pytest.raises(InputError, match=r"epoch 2, step 2: the loss is nan; try a lower `lr`"):
        quiet(config)
    left = replace(
        good, best_path=config.save_dir / "x_best.pth", last_path=config.save_dir / "x_last.pth"
    )
    assert_same_files(left, good)


def test_test_outputs_that_are_not_finite_end_the_run(config):
    trainer = trainer_of(MODEL, config)
    trainer.model.get_classifier().weight.data[0, 0] = math.nan
    with pytest.raises(InputError, match="epoch 4: test outputs are not finite"):
        trainer.test(4)


def test_a_loss_of_guessing_is_warned_of_once(config, monkeypatch):
    figures = EpochFigures(loss=1.019 * math.log(2), top1=50.0, lr=1e-3, images_per_s=1.0)
    monkeypatch.setattr(Trainer, "train_epoch", lambda self, epoch, progress: figures)
    lines = []
    train(model_config("slak_flex"), replace(config, epochs=6), RUN, log=lines.append)
    (warning,) = [line for line in lines if line.startswith("Warning")]
    assert lines[lines.index(warning) - 1].startswith("epoch 5/6")
    assert "guessing among 2 classes" in warning
    assert "ls_init 1" in warning


def test_what_counts_as_guessing(config):
    trainer = trainer_of(model_config("slak_flex"), replace(config, ls_init=1.0))
    assert "ls_init" not in trainer.guessing_warning(math.log(2))
    assert trainer.guessing_warning(0.97 * math.log(2)) is None
    assert trainer.guessing_warning(1.03 * math.log(2)) is None
