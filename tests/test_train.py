"""Training runs: equal weights after any kill, what is written and replaced, what is refused."""

import contextlib
import copy
import functools
import math
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoint_factory import SMALL_MODELS, make_checkpoint, make_model
from cli_runner import run_cli
from data_factory import cub_folder, image_folder
from PIL import Image

from cba_fast.data import study_transform
from cba_fast.errors import CheckpointError, ImageError, InputError
from cba_fast.models import build_model, load_state_dict_file, save_state_dict_file
from cba_fast.study import train as train_module
from cba_fast.study import training_model
from cba_fast.study.config import ModelConfig, RunConfig
from cba_fast.study.train import TrainConfig, best_path, exp_name, log_folder, train
from cba_fast.study.train_state import RunFiles, load_state
from cba_fast.study.trainer import EpochFigures, Trainer
from cba_fast.study.training_data import open_splits, plan_epoch
from cba_fast.study.training_model import initial_model

RUN = RunConfig(num_workers=0, device="cpu")
# The quickest to train; the others take their turn where they matter.
MODEL = ModelConfig("slak_flex", name="slak_flex_nano")
STEPS = 3  # 12 images in batches of 5


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    names = [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(6)]
    image_folder(root, names)
    for path in root.glob("*/b/*.png"):  # one class is brighter, so that something can be learnt
        image = Image.open(path)
        image.point(lambda v: 128 + v // 2).save(path)
    return root


@pytest.fixture
def config(data_root, tmp_path):
    return TrainConfig(
        data_root,
        epochs=3,
        lr=1e-3,
        batch_size=5,
        input_size=32,
        save_dir=tmp_path / "weights",
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
        quiet(config, model, resume=True, progress=killer(2, 1))  # after the first
    with pytest.raises(Killed):
        quiet(config, model, resume=True, progress=killer(1, STEPS))  # in the second
    with kill_in_save(monkeypatch, 3):
        quiet(config, model, resume=True)
    assert_same_files(quiet(config, model, resume=True), whole)


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from cba_fast.study.config import ModelConfig, RunConfig
from cba_fast.study.train import TrainConfig, train

def progress(batches, total, epochs=iter((1, 2))):
    epoch = next(epochs)
    for step, batch in enumerate(batches, 1):
        if (epoch, step) == (2, 3):
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

train(
    ModelConfig("slak_flex", name="slak_flex_nano"),
    TrainConfig(Path(sys.argv[1]), epochs=3, lr=1e-3, batch_size=5, input_size=32,
                save_dir=Path(sys.argv[2]), exp_name="x"),
    RunConfig(num_workers=0, device="cpu"),
    progress=progress,
)
"""


def test_a_run_ended_by_sigkill_continues_to_the_same_weights(config, tmp_path):
    command = [sys.executable, "-c", KILLED_RUN, config.data_root, config.save_dir]
    ended = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stdout.startswith("epoch 1/3")
    resumed = quiet(config, resume=True)
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
    result = train(MODEL, config, RUN, resume=True, log=lines.append)
    logged = scalars(config)
    tags = {"train/loss", "train/top1", "train/lr", "train/images_per_s", "test/top1"}
    assert logged.keys() == tags
    assert all(steps == [1, 2, 3] for steps, _ in logged.values())
    assert max(logged["test/top1"][1]) == pytest.approx(result.best_top1)
    assert logged["train/lr"][1] == pytest.approx([1e-3] * 3)
    assert [line.split()[1] for line in lines] == [lines[0].split()[1], "2/3", "3/3"]
    quiet(config)  # anew: the old log is gone
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

    def save(state, path):
        saved.append(path)
        real(state, path)

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


@pytest.mark.parametrize("family", SMALL_MODELS)
def test_each_family_trains_and_its_weights_make_heatmaps(family, config, tmp_path, capsys):
    config = replace(config, epochs=1, input_size=64)
    result = quiet(config, model_config(family))
    state, before = load_state_dict_file(result.best_path), initial(family, config).state_dict()
    assert state.keys() == before.keys()
    assert any(not torch.equal(state[k], before[k]) for k in state)
    done = run_cli(
        capsys,
        "generate-heatmap",
        *("--model_family", family, "--model", SMALL_MODELS[family]),
        *("--fine_tuned_weight_name", result.best_path, "--input_size", 64, "--map_size", 64),
        *("--test_dataset", config.data_root / "test", "--heatmap_output", tmp_path / "heat"),
        *("--no_overlay", "--num_workers", 0, "--device", "cpu"),
    )
    assert done.status == 0, done.err
    assert np.load(tmp_path / "np_heat/a/0.npy").shape == (64, 64)


def initial(family, config):
    return initial_model(model_config(family), config, 2, log=lambda line: None)


def trainer_of(model, config, run=RUN):
    splits = open_splits(config.data_root)
    return Trainer(initial_model(model, config, 2, log=lambda line: None), splits, config, run)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("family", SMALL_MODELS)
def test_gradients_lie_in_memory_as_their_weights(family, channels_last, config):
    """PyTorch's fused AdamW on CPUs pairs the values by their place in memory, unchecked."""
    config = replace(config, input_size=64)
    run = replace(RUN, channels_last=channels_last)
    trainer = trainer_of(model_config(family), config, run)
    trainer.train_epoch(1)
    for p in trainer.model.parameters():
        tensors = [p, p.grad, trainer.optimizer.state.get(p, {}).get("exp_avg")]
        strides = [
            [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1]
            for t in tensors
            if t is not None
        ]
        assert all(s == strides[0] for s in strides)


@pytest.mark.parametrize("mix", [(1.0, 0.0), (0.5, 0.5)])
def test_slak_flex_trains_the_parts_of_its_mixture(mix, config):
    model = model_config("slak_flex", alpha=mix[0], beta=mix[1])
    before = initial_model(model, config, 2).state_dict()
    after = load_state_dict_file(quiet(replace(config, epochs=1), model).best_path)
    key = "0.stages.0.0.dwconv.conv_{}.weight"
    assert not torch.equal(before[key.format("h")], after[key.format("h")])
    assert torch.equal(before[key.format("square")], after[key.format("square")]) == (mix[1] == 0)


@pytest.mark.parametrize("study_softmax", [False, True])
def test_the_loss_takes_logits_or_what_the_study_gives_it(study_softmax, config):
    model = model_config("convnext")
    config = replace(config, batch_size=12, study_softmax=study_softmax, ls_init=1.0)
    trainer = trainer_of(model, config)
    fresh = initial_model(model, config, 2)
    plan = plan_epoch(config.seed, 1, 12, 12)
    records = open_splits(config.data_root).train.records
    images = [study_transform(32)(Image.open(records[i].path)) for i in plan.batches[0]]
    flips = plan.flips[plan.batches[0]]
    x = torch.stack([i.flip(2) if f else i for i, f in zip(images, flips, strict=True)])
    logits = fresh.train()(x)
    labels = torch.tensor([records[i].label for i in plan.batches[0]])
    want = F.cross_entropy(logits.softmax(1) if study_softmax else logits, labels)
    assert trainer.train_epoch(1).loss == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "key"), [("convnext", "ls_init"), ("slak", "ls_init"), ("slak_flex", "ls_init")]
)
def test_layer_scale_and_drop_path_reach_the_model(family, key, config):
    model = initial(family, replace(config, drop_path=0.25, **{key: 0.5}))
    gammas = [p for name, p in model.named_parameters() if name.endswith("gamma")]
    assert gammas
    assert all((p == 0.5).all() for p in gammas)
    assert max(getattr(m, "drop_prob", 0) for m in model.modules()) == pytest.approx(0.25)


def test_drop_path_is_the_studys(config):
    def rate(family):
        return max(getattr(m, "drop_prob", 0) for m in initial(family, config).modules())

    assert [rate(f) for f in SMALL_MODELS] == pytest.approx([0, 0.3, 0, 0])


def test_bf16_trains(config):
    result = quiet(replace(config, epochs=2), run=replace(RUN, precision="bf16"))
    assert all(v.isfinite().all() for v in load_state(result.last_path)["model"].values())


# --- starts ---------------------------------------------------------------------------------------


def test_init_weights_replaces_a_head_of_another_size(config, tmp_path):
    weights = make_checkpoint(tmp_path / "w.pth", "slak_flex", "slak_flex_nano", num_classes=7)
    config = replace(config, init_weights=weights)
    lines = []
    model = initial_model(MODEL, config, 2, lines.append)
    given, state = load_state_dict_file(weights), model.state_dict()
    replaced = [k for k in given if not torch.equal(given[k], state[k])]
    assert replaced == ["1.fc.weight", "1.fc.bias"]
    assert state["1.fc.weight"].shape == (2, 128)
    assert "head of 7 classes" in lines[0]
    assert lines[0].endswith("1.fc.weight, 1.fc.bias")
    quiet(replace(config, epochs=1))


@pytest.mark.parametrize("layout", ["training", "timm"])
def test_init_weights_of_convnext_in_both_layouts(layout, config, tmp_path):
    name = SMALL_MODELS["convnext"]
    for classes in (2, 5):
        path = make_checkpoint(
            tmp_path / f"{classes}.pth", "convnext", name, num_classes=classes, layout=layout
        )
        model = initial("convnext", replace(config, init_weights=path))
        state, given = model.state_dict(), load_state_dict_file(path)
        assert state.keys() == given.keys()
        equal = [k for k in given if torch.equal(given[k], state[k])]
        assert len(equal) == len(given) - (0 if classes == 2 else 2)
        assert model.get_classifier().out_features == 2


def test_init_weights_must_fit_else(config, tmp_path):
    merged = make_checkpoint(tmp_path / "m.pth", "replknet", "replknet_nano", layout="merged")
    with pytest.raises(CheckpointError, match="merged for inference"):
        initial("replknet", replace(config, init_weights=merged))
    state = make_model("replknet", "replknet_nano").state_dict()
    del state["norm.weight"]
    save_state_dict_file(state, tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match=r"missing.*norm\.weight"):
        initial("replknet", replace(config, init_weights=tmp_path / "missing.pth"))
    with pytest.raises(CheckpointError, match="no such file"):
        initial("replknet", replace(config, init_weights=tmp_path / "none.pth"))


def test_a_continued_run_does_not_need_its_first_weights(config, tmp_path):
    weights = make_checkpoint(tmp_path / "w.pth", "slak_flex", "slak_flex_nano", num_classes=7)
    config = replace(config, init_weights=weights)
    whole = quiet(replace(config, save_dir=tmp_path / "whole"))
    with pytest.raises(Killed):
        quiet(config, progress=killer(2, 2))
    weights.unlink()
    assert_same_files(quiet(config, resume=True), whole)


def test_pretrained_weights_come_from_timm(config, tmp_path, monkeypatch):
    name = SMALL_MODELS["convnext"]
    path = make_checkpoint(tmp_path / "w.pth", "convnext", name, layout="timm", num_classes=1000)
    from_file = functools.partial(build_model, pretrained_cfg_overlay={"file": str(path)})
    monkeypatch.setattr(training_model, "build_model", from_file)
    state = initial("convnext", replace(config, pretrained=True)).state_dict()
    given = load_state_dict_file(path)
    assert torch.equal(state["0.0.0.weight"], given["stem.0.weight"])
    assert state["1.fc.weight"].shape[0] == 2


def test_pretrained_weights_that_cannot_be_got_are_a_user_error(config, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(config.save_dir))
    with pytest.raises(InputError, match=r"test_convnext cannot be loaded .*init_weights"):
        quiet(replace(config, pretrained=True), model_config("convnext"))
    assert not list(config.save_dir.glob("*.pth"))


# --- continuing and replacing ---------------------------------------------------------------------


def test_a_finished_run_is_left_alone_by_resume(config):
    first = quiet(config)
    times = [p.stat().st_mtime_ns for p in (first.best_path, first.last_path)]
    lines = []
    again = train(MODEL, config, RUN, resume=True, log=lines.append)
    assert "finished" in lines[0]
    assert len(lines) == 1
    assert replace(again, seconds=0) == replace(first, seconds=0)
    assert [p.stat().st_mtime_ns for p in (first.best_path, first.last_path)] == times


def test_resume_names_the_settings_that_differ(config):
    quiet(replace(config, epochs=1))
    for other, text in (
        (replace(config, lr=0.5), r"lr=0\.001 \(now 0\.5\)"),
        (replace(config, seed=1), "seed=0"),
        (replace(config, schedule="cosine"), "schedule='constant'"),
    ):
        with pytest.raises(InputError, match=text):
            quiet(other, resume=True)
    with pytest.raises(InputError, match="precision='fp32'"):
        quiet(config, run=replace(RUN, precision="bf16"), resume=True)
    with pytest.raises(InputError, match="family='slak_flex'"):
        quiet(config, model_config("slak"), resume=True)


def test_resume_notices_other_images(config, tmp_path):
    root = image_folder(
        tmp_path / "d", [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in "12"]
    )
    config = replace(config, data_root=root, epochs=1)
    quiet(config)
    image_folder(root, ["train/a/3.png"])
    with pytest.raises(InputError, match=r"train_images=4 \(now 5\)"):
        quiet(config, resume=True)


def test_a_constant_schedule_can_be_extended(config, tmp_path):
    quiet(replace(config, epochs=2))
    extended = quiet(config, resume=True)
    assert_same_files(extended, quiet(replace(config, save_dir=tmp_path / "whole")))
    with pytest.raises(InputError, match="has 3 epochs already, more than the 2"):
        quiet(replace(config, epochs=2), resume=True)
    other = replace(config, schedule="cosine", exp_name="cosine", epochs=1)
    quiet(other)
    with pytest.raises(InputError, match=r"epochs=1 \(now 3\)"):
        quiet(replace(other, epochs=3), resume=True)


def test_lost_best_weights_are_noticed(config):
    quiet(config).best_path.unlink()
    with pytest.raises(InputError, match="best weights .* are gone"):
        quiet(config, resume=True)


def test_resume_without_a_run_starts_one(config):
    assert quiet(replace(config, epochs=1), resume=True).epochs == 1


def test_a_run_of_the_same_name_is_replaced(config):
    quiet(config)
    lines = []
    with pytest.raises(Killed):
        train(MODEL, replace(config, lr=0.5), RUN, progress=killer(1, 1), log=lines.append)
    assert lines[0].startswith("replacing the run")
    assert "lr=0.001 (now 0.5)" in lines[0]
    assert not best_path(MODEL, config).exists()  # no weights that belong to another run
    assert quiet(replace(config, lr=0.5), resume=True).epochs == 3


def test_a_default_name_does_not_replace_other_settings(config):
    config = replace(config, exp_name=None, epochs=1)
    assert exp_name(MODEL, config) == "slak_flex_r32_e1_lr0.001_auglight"
    result = quiet(config)
    assert result.best_path.name == "slak_flex_r32_e1_lr0.001_auglight_best.pth"
    quiet(config)
    with pytest.raises(InputError, match=r"batch_size=5 \(now 4\).*choose an exp_name"):
        quiet(replace(config, batch_size=4))


def test_foreign_files_are_not_replaced(config):
    config.save_dir.mkdir()
    best = best_path(MODEL, config)
    best.write_bytes(b"mine")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"x_best\.pth exists"):
            quiet(config, resume=resume)
    last = best.with_name("x_last.pth")
    for content in ({"epoch": 3}, [1], {"written_by": "someone"}):
        torch.save(content, last)
        with pytest.raises(InputError, match=r"x_last\.pth"):
            quiet(config)
    last.write_bytes(b"also mine")
    with pytest.raises(InputError, match=r"x_last\.pth: damaged"):
        quiet(config)
    assert best.read_bytes() == b"mine"


# --- divergence -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run(config):
    with pytest.raises(InputError, match=r"epoch \d+, step \d+: the loss is .*1e\+30"):
        quiet(replace(config, lr=1e30))


def test_divergence_leaves_the_last_good_epoch(config, monkeypatch, tmp_path):
    good = quiet(replace(config, epochs=1, save_dir=tmp_path / "good"))
    step, calls = Trainer._step, iter(range(100))

    def diverging(self, batch, flips):
        loss, hits = step(self, batch, flips)
        return (loss * math.nan if next(calls) == STEPS + 1 else loss), hits

    monkeypatch.setattr(Trainer, "_step", diverging)
    with pytest.raises(InputError, match=r"epoch 2, step 2: the loss is nan; try a lower lr"):
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
    assert lines.index(warning) == 5  # after the fifth epoch's line
    assert "guessing among 2 classes" in warning
    assert "ls_init 1" in warning


def test_what_counts_as_guessing(config):
    trainer = trainer_of(model_config("slak_flex"), replace(config, ls_init=1.0))
    assert "ls_init" not in trainer.guessing_warning(math.log(2))
    assert trainer.guessing_warning(0.97 * math.log(2)) is None
    assert trainer.guessing_warning(1.03 * math.log(2)) is None


# --- refused --------------------------------------------------------------------------------------


def test_both_splits_must_have_the_same_classes(config, tmp_path):
    root = image_folder(
        tmp_path / "d", ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"]
    )
    with pytest.raises(InputError, match="b only in train; c only in test"):
        quiet(replace(config, data_root=root))
    with pytest.raises(InputError, match=r"no folder .*none/train and no folder .*none/test"):
        quiet(replace(config, data_root=tmp_path / "none"))
    with pytest.raises(InputError, match="has 2 classes, but num_classes is 3"):
        quiet(config, replace(MODEL, num_classes=3))


def test_a_cub_folder_gives_its_own_splits(tmp_path):
    splits = open_splits(cub_folder(tmp_path / "cub"))
    assert [r.image_id.split("/")[1] for r in splits.train.records] == [
        "Finch_0002.jpg",
        "Jay_0007.jpg",
    ]
    assert len(splits.test) == 3
    assert len(splits.train.class_names) == 3


@pytest.mark.parametrize(
    ("changes", "family", "text"),
    [
        ({"epochs": 0}, "replknet", "epochs must be at least 1"),
        ({"lr": math.inf}, "replknet", "lr must be positive and finite, got inf"),
        ({"weight_decay": -1.0}, "replknet", "weight_decay"),
        ({"input_size": 16}, "replknet", "input_size must be at least 32, got 16"),
        ({"aug_mode": "heavy"}, "replknet", "aug_mode 'heavy'"),
        ({"schedule": "step"}, "replknet", "schedule 'step'"),
        ({"drop_path": 1.0}, "replknet", "drop_path must be in"),
        ({"seed": -1}, "replknet", "seed"),
        ({"ls_init": 1.0}, "replknet", "replknet has no layer scale"),
        ({"pretrained": True}, "slak", "come with convnext alone"),
        ({"study_softmax": True}, "slak", "in the study slak has none"),
        ({"exp_name": "a/b"}, "slak", "without folders"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused_first(changes, family, text, config):
    with pytest.raises(InputError, match=text):
        quiet(replace(config, **changes), model_config(family))
    assert not config.save_dir.exists()


def test_fp16_needs_a_gpu(config):
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        quiet(config, run=replace(RUN, precision="fp16"))


# --- command line ---------------------------------------------------------------------------------


def test_the_command_trains_resumes_and_says_where_things_are(config, tmp_path, capsys):
    weights = make_checkpoint(
        tmp_path / "w.pth", "slak_flex", "slak_flex_nano", num_classes=7, stem_stride=2
    )
    args = [
        *("train-wsol", "--model-family", "slak_flex", "--model", "slak_flex_nano"),
        *("--alpha", 0.5, "--beta", 0.5, "--output_stride", 16, "--data-root", config.data_root),
        *("--epochs", 2, "--lr", 1e-3, "--batch-size", 5, "--input-size", 64, "--ls_init", 1),
        *("--save_dir", tmp_path / "out", "--aug-mode", "strong", "--study_softmax"),
        *("--init_weights", weights, "--num_workers", 0, "--device", "cpu"),
    ]
    done = run_cli(capsys, *args)
    assert done.status == 0, done.err
    name = tmp_path / "out/slak_flex_r64_e2_lr0.001_augstrong"
    assert "1.fc.weight, 1.fc.bias" in done.out
    assert "epoch 2/2" in done.out
    assert f"Best weights : {name}_best.pth" in done.out
    assert f"Log          : {name}_tb" in done.out
    assert "Best top-1   : " in done.out
    done = run_cli(capsys, *args, "--resume")
    assert done.status == 0
    assert "nothing to do" in done.out


def test_the_command_reports_errors(config, tmp_path, capsys):
    done = run_cli(capsys, "train-wsol", "--data_root", tmp_path)
    assert done.status == 2
    assert "--model_family" in done.err
    done = run_cli(capsys, "train-wsol", "--model_family", "replknet", "--data_root", tmp_path)
    assert done.status == 1
    assert done.err.startswith("Error: no folder")
    assert "Traceback" not in done.err


def test_too_many_unreadable_images_end_the_run(config, tmp_path):
    names = [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in "12"]
    root = image_folder(tmp_path / "d", names)
    (root / "train/a/1.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="1 of 4 images cannot be read"):
        quiet(replace(config, data_root=root))
