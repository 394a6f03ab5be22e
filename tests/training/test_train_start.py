"""Before the first epoch: what is said, the memory that is estimated, what is refused; parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoint_factory import SMALL_MODELS
from cli_runner import run_cli
from training_runs import (
    MODEL,
    RUN,
    Killed,
    assert_same_files,
    initial,
    model_config,
    quiet,
    trainer_of,
)

from cba_fast.erf import LEVELS
from cba_fast.erf.recompute import kept_in_training, recomputing
from cba_fast.errors import InputError
from cba_fast.runs.runtime import Runtime
from cba_fast.training import start
from cba_fast.training import train as training_train
from cba_fast.training.data import cut_batches, open_splits

SHAPE = (3, 3, 64, 64)


def lines_of(config, model=MODEL, run=RUN):
    lines = []
    training_train.train(model, replace(config, epochs=1), run, log=lines.append)
    return lines


def autograd_keeps(model, x):
    """Return the bytes that autograd really keeps, weights left out, and the output."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    return sum(t.untyped_storage().nbytes() for a, t in seen.items() if a not in own), y


@pytest.mark.parametrize("family", SMALL_MODELS)
def test_the_estimate_is_what_a_training_step_keeps(family, config):
    model = initial(family, replace(config, drop_path=0.2)).train()
    torch.manual_seed(0)
    assert kept_in_training(model, SHAPE).peak == autograd_keeps(model, torch.ones(SHAPE))[0]
    for level in ("block", "stage"):
        with recomputing(model, level, between=True):
            outside, _ = autograd_keeps(model, torch.ones(SHAPE))
        assert outside <= kept_in_training(model, SHAPE, level).peak

    def halved(m, x):
        with torch.autocast("cpu", torch.bfloat16):
            return m(x)

    assert kept_in_training(model, SHAPE, run=halved).peak < kept_in_training(model, SHAPE).peak


@pytest.mark.parametrize(
    ("family", "level"), [*((f, "block") for f in SMALL_MODELS), ("replknet", "stage")]
)
def test_recomputed_training_ends_with_the_same_bits(family, level, config, tmp_path):
    """Weights, moments, running statistics of batch norms: all equal, with drop path."""
    config = replace(config, epochs=1, input_size=64, drop_path=0.3)
    model = model_config(family)
    plain = quiet(replace(config, checkpoint="none", save_dir=tmp_path / "plain"), model)
    assert_same_files(quiet(replace(config, checkpoint=level), model), plain)


def test_a_run_may_be_continued_with_another_checkpoint(config):
    quiet(replace(config, epochs=1, checkpoint="block"))
    assert quiet(replace(config, checkpoint="none")).epochs == 3


def test_parts_add_up_to_the_gradient_of_the_batch(config):
    """Of 12 images in parts of 5, 5 and 2, weighted by their sizes."""
    config = replace(config, batch_size=12, ls_init=1.0)
    whole, parts = (trainer_of(MODEL, replace(config, micro_batch=m)) for m in (None, 5))
    a, b = whole.train_epoch(1), parts.train_epoch(1)
    assert b.loss == pytest.approx(a.loss, rel=1e-6)
    assert b.top1 == a.top1
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-7)


def test_parts_are_settings_of_a_run_and_are_said(config):
    lines = lines_of(replace(config, micro_batch=2), model_config("slak"))
    assert "in batches of 5 at 32x32, computed in parts of 2, which is what batch norms" in lines[2]
    assert "norms" not in "".join(lines_of(replace(config, micro_batch=2, exp_name="y")))
    with pytest.raises(InputError, match="micro_batch was 2, is None"):
        quiet(config, model_config("slak"))
    with pytest.raises(InputError, match="`micro_batch` must be in 1 to `batch_size` 5, got 6"):
        quiet(replace(config, micro_batch=6))


@pytest.mark.parametrize(
    ("count", "size", "join", "lengths"),
    [
        (9, 4, True, [4, 5]),
        (9, 4, False, [4, 4, 1]),
        (8, 4, True, [4, 4]),
        (1, 4, True, [1]),
        (3, 1, True, [1, 1, 1]),
    ],
)
def test_a_last_batch_of_one_image_joins_the_one_before(count, size, join, lengths):
    batches = cut_batches(np.arange(count), size, join_last=join)
    assert [len(b) for b in batches] == lengths
    assert np.array_equal(np.concatenate(batches), np.arange(count))


def test_a_joined_batch_trains_and_continues(config, tmp_path):
    config = replace(config, batch_size=11, epochs=2, schedule="onecycle")  # of 12 images
    model = model_config("replknet")
    lines = lines_of(replace(config, exp_name="y"), model)
    assert "the last image joins the batch before it" in lines[2]
    whole = quiet(replace(config, save_dir=tmp_path / "whole"), model)

    epochs = iter((1, 2))

    def dies_in_the_second_epoch(batches, total):
        assert total == 1
        if next(epochs) == 2:
            raise Killed
        return batches

    with pytest.raises(Killed):
        quiet(config, model, progress=dies_in_the_second_epoch)
    assert_same_files(quiet(config, model), whole)


def test_models_without_batch_norm_keep_their_batches(config):
    assert "joins" not in "".join(lines_of(replace(config, batch_size=11)))


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 4, "micro_batch": 1}])
def test_one_image_alone_is_refused_first_where_maps_are_1x1(changes, config):
    name = "micro_batch" if "micro_batch" in changes else "batch_size"
    with pytest.raises(InputError, match=f"`{name}` leaves an image alone at `input_size` 32"):
        quiet(replace(config, **changes), model_config("replknet"))
    assert not config.save_dir.exists()
    quiet(replace(config, epochs=1, input_size=64, **changes), model_config("replknet"))


def test_the_run_is_described_before_its_first_epoch(config):
    lines = lines_of(config, model_config("replknet"))
    assert [line.split(":")[0].strip() for line in lines[:4]] == [
        "Device",
        "Model",
        "Images",
        "Memory",
    ]
    assert lines[0].endswith("fp32")
    assert "replknet_nano" in lines[1]
    assert lines[1].endswith("2 classes")
    assert "12 for training, 12 for the test, in batches of 5 at 32x32" in lines[2]
    assert "GiB are free" in lines[3]
    assert lines[4].startswith("epoch 1/1")


def test_activations_are_recomputed_where_memory_is_short_and_else_refused(config, monkeypatch):
    config = replace(config, input_size=64)
    model = initial("replknet", config)
    shape = (5, 3, 64, 64)
    needed = {level: kept_in_training(model, shape, level).peak for level in LEVELS}
    assert needed["block"] < needed["none"]
    weights = sum(p.nbytes for p in model.parameters())

    def with_free(count, **changes):
        monkeypatch.setattr(training_train, "free_bytes", lambda device: count)
        return lines_of(
            replace(config, exp_name=f"{count}{len(changes)}", **changes), model_config("replknet")
        )

    assert "recomputed" not in with_free(20 * needed["none"])[3]
    assert "recomputed by block" in with_free(5 * weights + needed["none"])[3]
    assert "recomputed by stage" in with_free(20 * needed["none"], checkpoint="stage")[3]
    assert "recomputed" not in with_free(None)[3]
    little = 4 * weights + needed["block"] // 2
    with pytest.raises(InputError, match=r"GiB are free; try `micro_batch` 2 .*or a smaller") as e:
        with_free(little)
    assert "training needs about 0.0" in str(e.value)
    with pytest.raises(InputError, match="`checkpoint` auto or a smaller"):
        with_free(weights, checkpoint="none")
    assert not (config.save_dir / f"{little}0_last.pth").exists()


def test_cached_images_count(config):
    model, splits = initial("slak_flex", config), open_splits(config.data_root)
    run = Runtime.of(RUN)
    plain, cached = (
        start._fitting(model, splits, replace(config, cache_images=c), run, 5, None).state
        for c in (False, True)
    )
    assert cached - plain == 24 * 32 * 32 * 3


def test_the_command_takes_both_settings(config, capsys):
    done = run_cli(
        capsys,
        *("train-wsol", "--model_family", "slak", "--model", "slak_nano", "--epochs", 1),
        *("--data_root", config.data_root, "--save_dir", config.save_dir, "--input_size", 32),
        *("--num_workers", 0, "--device", "cpu", "--batch_size", 6, "--micro_batch", 3),
        *("--checkpoint", "block"),
    )
    assert done.status == 0, done.err
    assert "in parts of 3" in done.out
    assert "recomputed by block" in done.out
