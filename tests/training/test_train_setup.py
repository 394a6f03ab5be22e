"""What a training run starts from, what it trains, and what it refuses."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoint_factory import SMALL_MODELS, make_checkpoint, make_model
from cli_runner import run_cli
from data_factory import cub_folder, image_folder
from PIL import Image
from training_runs import (
    MODEL,
    RUN,
    initial,
    model_config,
    quiet,
    trainer_of,
)

from cba_fast.data import study_transform
from cba_fast.errors import CheckpointError, ImageError, InputError
from cba_fast.models import (
    ModelDescription,
    build_model,
    load_state_dict_file,
    read_checkpoint,
    save_state_dict_file,
)
from cba_fast.training.data import open_splits, plan_epoch
from cba_fast.training.model import initial_model
from cba_fast.training.state import load_state


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


def test_the_weights_say_what_they_are_of(config):
    result = quiet(replace(config, epochs=1), replace(MODEL, alpha=0.5, output_stride=16))
    said = ModelDescription("slak_flex", "slak_flex_nano", 2, ("a", "b"), 16, 32, "study", 0.5, 0.0)
    assert read_checkpoint(result.best_path).description == said
    assert read_checkpoint(result.last_path).description == said
    assert build_model(checkpoint=result.best_path).description == said


def test_init_weights_bring_what_they_say(config, tmp_path):
    said = ModelDescription("slak_flex", "slak_flex_nano", 2, ("a", "b"), 16, 96, "study", 0.5, 0.5)
    state = make_model("slak_flex", "slak_flex_nano", num_classes=2).state_dict()
    save_state_dict_file(state, tmp_path / "w.pth", said)
    config, lines = replace(config, init_weights=tmp_path / "w.pth"), []
    model = initial_model(MODEL, config, 2, lines.append, class_names=("a", "b"))
    assert model.description == replace(said, input_size=config.input_size)
    assert lines == [f"weights from {tmp_path / 'w.pth'}, all keys"]
    assert torch.equal(model.get_classifier().weight, state["1.fc.weight"])
    other = replace(MODEL, output_stride=32)
    model = initial_model(other, config, 2, lines.append, class_names=("b", "c"))
    assert "output_stride 32 instead of 16, except the head of 2 other classes" in lines[1]
    assert not torch.equal(model.get_classifier().weight, state["1.fc.weight"])
    with pytest.raises(CheckpointError, match="is a slak_flex_nano, and the model slak_flex_base"):
        initial_model(replace(MODEL, name="slak_flex_base"), config, 2)


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


def test_pretrained_weights_come_from_timm(config, tmp_path, monkeypatch):
    name = SMALL_MODELS["convnext"]
    path = make_checkpoint(tmp_path / "w.pth", "convnext", name, layout="timm", num_classes=1000)
    from_file = functools.partial(build_model, pretrained_cfg_overlay={"file": str(path)})
    monkeypatch.setattr("cba_fast.models.build_model", from_file)
    state = initial("convnext", config, pretrained=True).state_dict()
    given = load_state_dict_file(path)
    assert torch.equal(state["0.0.0.weight"], given["stem.0.weight"])
    assert state["1.fc.weight"].shape[0] == 2


def test_pretrained_weights_that_cannot_be_got_are_a_user_error(config, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(config.save_dir))
    with pytest.raises(InputError, match=r"_in1k cannot be loaded from timm/.*init_weights"):
        quiet(config, model_config("convnext", pretrained=True))
    assert not list(config.save_dir.glob("*.pth"))


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
        ({"epochs": 0}, "replknet", "`epochs` must be at least 1"),
        ({"lr": math.inf}, "replknet", "`lr` must be positive and finite, got inf"),
        ({"weight_decay": -1.0}, "replknet", "`weight_decay`"),
        ({"input_size": 16}, "replknet", "`input_size` must be at least 32, got 16"),
        ({"aug_mode": "heavy"}, "replknet", "`aug_mode` 'heavy'"),
        ({"schedule": "step"}, "replknet", "`schedule` 'step'"),
        ({"drop_path": 1.0}, "replknet", "`drop_path` must be in"),
        ({"seed": -1}, "replknet", "`seed`"),
        ({"ls_init": 1.0}, "replknet", "replknet has no layer scale"),
        ({"study_softmax": True}, "slak", "in the study slak has none"),
        ({"exp_name": "a/b"}, "slak", "without folders"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused_first(changes, family, text, config):
    with pytest.raises(InputError, match=text):
        quiet(replace(config, **changes), model_config(family))
    assert not config.save_dir.exists()


def test_pretrained_weights_are_for_timms_models(config):
    with pytest.raises(InputError, match="give a file of slak as `init_weights`"):
        quiet(config, model_config("slak", pretrained=True))


def test_fp16_needs_a_gpu(config):
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        quiet(config, run=replace(RUN, precision="fp16"))


def test_the_command_trains_resumes_and_says_where_things_are(config, tmp_path, capsys):
    weights = make_checkpoint(
        tmp_path / "w.pth", "slak_flex", "slak_flex_nano", num_classes=7, output_stride=16
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
    assert done.status == 1
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


def test_unreadable_images_are_told_of_at_the_end(config, tmp_path):
    names = [f"{s}/{c}/{i:02d}.png" for s in ("train", "test") for c in "ab" for i in range(11)]
    root = image_folder(tmp_path / "d", names)
    (root / "train/a/03.png").write_bytes(b"no image")
    (root / "test/b/04.png").write_bytes(b"no image")
    result = quiet(replace(config, data_root=root, epochs=2))
    assert [n.strip().split(":")[0] for n in result.notes[1::2]] == ["a/03.png", "b/04.png"]
    with pytest.raises(ImageError, match=r"a/03\.png"):
        quiet(replace(config, data_root=root), run=replace(RUN, strict=True))
