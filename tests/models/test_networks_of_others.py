"""Networks outside of the study: timm's by name, users' own functions, and their checkpoints."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from checkpoint_factory import randomize
from cli_runner import run_cli
from foreign_networks import IMAGES, NET, write_networks
from torchvision.transforms.functional import InterpolationMode, resize, to_tensor

from cba_fast.data import read_image
from cba_fast.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, STUDY, Preprocessing
from cba_fast.errors import CheckpointError, InputError
from cba_fast.experiments.plan import load_experiments
from cba_fast.models import (
    ModelDescription,
    build_model,
    read_checkpoint,
    save_state_dict_file,
)
from cba_fast.runs.resolve import preprocessing_of, resolve
from cba_fast.runs.settings import DataConfig, ModelConfig
from cba_fast.training.config import exp_name
from cba_fast.training.model import completed
from cba_fast.wsol import cam

BICUBIC = Preprocessing("bicubic", IMAGENET_MEAN, IMAGENET_STD)
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("made"))


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network(name="test_resnet", **options):
    return randomize(timm.create_model(name, num_classes=5, **options)).eval()


def saved(value, name="w.pth"):
    torch.save(value, name)
    return Path(name)


# Which network is meant


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("resnet18", "resnet"),
        ("resnet18.a1_in1k", "resnet"),
        ("test_vit", "vision_transformer"),
        ("edgenext_xx_small", "edgenext"),  # whose keys look like those of a ConvNeXt
        ("test_convnext", "convnext"),
        ("replknet_nano", "replknet"),
    ],
)
def test_a_name_is_enough(name, family):
    found = resolve(ModelConfig(name=name), DataConfig("")).model
    assert (found.family, found.name) == (family, name)
    assert resolve(found, DataConfig("")).model == found
    assert found.title == (family if family in ("convnext", "replknet") else name)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model": "resnet_18"}, "unknown model 'resnet_18'; did you mean .*resnet18"),
        ({"model": "qqqq"}, "unknown model 'qqqq'; see timm.list_models"),
        ({"model": "resnet18.a7_in1k"}, "unknown weights 'resnet18.a7_in1k'; timm has resnet18.a"),
        ({"family": "slak", "model": "resnet18"}, "belongs to the family resnet, not to slak"),
        ({"family": "vgg"}, "unknown model family 'vgg'"),
        ({}, "`model` or `model_family` must be given"),
        ({"model": "resnet18", "alpha": 1.0}, "alpha belong to slak_flex, not to resnet"),
        ({"model": "test_vit", "output_stride": 16}, "test_vit does not take output_stride 16"),
        ({"model": "test_resnet", "no_such": 1}, "test_resnet does not take no_such 1"),
        (
            {"factory": "net.py"},
            "package.module:function or path/to/file.py:function, got 'net.py'",
        ),
        ({"factory": "none.py:build"}, "there is no file none.py"),
        ({"factory": "no_such_module:build"}, "no_such_module cannot be imported: ModuleNotFound"),
        ({"factory": "net.py:buidl"}, "has no function 'buidl'; did you mean build"),
        ({"factory": "net.py:number"}, "must return a torch.nn.Module, got int .one that maps"),
        ({"factory": "net.py:nothing"}, r"logits \(N, num_classes\) .*, but returned NoneType"),
        ({"factory": "net.py:broken"}, r"raised NameError: name 'undefined' .*net\.py:\d+\)"),
        ({"factory": "net.py:fixed", "num_classes": 7}, "gives 5 logits, but num_classes is 7"),
        ({"factory": "net.py:build", "model": "resnet18"}, "leave `model_family` and `model` out"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_in_one_sentence(asked, message, here):
    with pytest.raises(InputError, match=message) as caught:
        build_model(**asked)
    assert "\n" not in str(caught.value)


def test_output_stride_is_timms():
    plain, dense = (build_model(model="resnet18", output_stride=s) for s in (32, 16))
    assert [m.forward_features(X).shape[-1] for m in (plain, dense)] == [2, 4]
    assert plain.description.output_stride is None
    assert dense.description.output_stride == 16


def test_fixed_sizes_are_the_models_own_or_what_is_asked():
    def size(name, asked=None):
        return resolve(ModelConfig(name=name), DataConfig("", input_size=asked)).data.input_size

    assert (size("test_vit"), size("resnet18"), size("replknet_nano")) == (160, 224, 384)
    assert size("test_vit", 64) == 64
    assert build_model(model="test_vit", input_size=64)(X).shape == (2, 1000)


# Checkpoints


def wrapped(state):
    bare = dict(state)
    lightning = {f"model.{k}": v for k, v in bare.items()}
    other = {k: v + 1 if v.is_floating_point() else v for k, v in bare.items()}
    return [
        (bare, ""),
        ({"state_dict": bare, "epoch": 3}, "its 'state_dict'"),
        ({"net": {f"module.{k}": v for k, v in bare.items()}}, "its 'net'"),
        ({"model_ema": bare}, "its 'model_ema'"),
        (
            {"state_dict_ema": other, "state_dict": bare},
            "its 'state_dict', not 'state_dict_ema'",
        ),
        ({"model": {f"_orig_mod.{k}": v for k, v in bare.items()}}, "its 'model'"),
        ({f"net.{k}": v for k, v in bare.items()}, ""),
        (
            {"state_dict": {**lightning, "loss.weight": torch.ones(3), "fc.bias": torch.ones(5)}},
            "its 'state_dict', its 'model.', not the 2 other keys",
        ),
        (
            {"n_averaged": torch.ones(()), **{f"module.{k}": v for k, v in bare.items()}},
            "its 'module.', not the 1 other key",
        ),
    ]


@pytest.mark.parametrize("index", range(9))
def test_checkpoints_are_found_in_their_wrappers(index, here):
    model = network()
    value, taken = wrapped(model.state_dict())[index]
    path = saved(value)
    assert torch.equal(build_model(model="test_resnet", checkpoint=path)(X), model(X))
    line = resolve(ModelConfig(name="test_resnet", weights=path), DataConfig("")).line
    assert "5 classes" in line
    assert (f"weights w.pth, {taken} (" if taken else "weights w.pth (") in line


def test_torchvisions_resnet_has_timms_names(here):
    theirs = randomize(torchvision.models.resnet18(num_classes=5)).eval()
    state = theirs.state_dict()
    path = saved({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})
    assert torch.allclose(build_model(model="resnet18", checkpoint=path)(X), theirs(X), atol=1e-5)


def test_timms_own_filters_convert_what_timm_knows(here):
    """DeiT's published files, and the position embeddings of another input size."""
    model = network("test_vit", img_size=64)
    path = saved({"model": model.state_dict()})
    assert torch.allclose(
        build_model(model="test_vit", checkpoint=path, input_size=64)(X), model(X), atol=1e-6
    )
    large = build_model(model="test_vit", checkpoint=path)
    assert large.pos_embed.shape[1] > model.pos_embed.shape[1]


def test_facebooks_convnext_loads_and_a_users_own_keeps_its_names(here):
    (here / "fb.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.stages = nn.ModuleList([nn.ModuleList([nn.ModuleDict({'dwconv':"
        " nn.Conv2d(3, 3, 3, groups=3)})])])\n"
        "        self.head = nn.Linear(3, 4)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.stages[0][0]['dwconv'](x).mean((2, 3)))\n"
    )
    net = build_model(factory="fb.py:Net")
    path = saved(randomize(net).state_dict())
    assert torch.equal(build_model(factory="fb.py:Net", checkpoint=path)(X), net(X))


def test_what_does_not_fit_is_listed(here):
    path = saved(network().state_dict())
    for asked, message in (
        ({"model": "resnet18"}, r"w\.pth does not fit resnet18: .*missing"),
        ({"model": "test_resnet", "num_classes": 6}, "has 5 classes .*, but num_classes is 6"),
        ({}, "not a checkpoint of a known family .*; name its `model`, such as resnet50"),
        ({"factory": "net.py:build"}, "does not fit the network of net.py:build: .*missing"),
        ({"model": "test_resnet", "pretrained": True}, "two sources of weights"),
    ):
        with pytest.raises(InputError, match=message):
            build_model(checkpoint=path, **asked)


def test_a_factory_gets_its_weights_with_or_without_prefixes(here):
    net = randomize(build_model(factory="net.py:build", num_classes=5))
    for prefix in ("", "module.", "_orig_mod.module."):
        state = {f"{prefix}{k}": v for k, v in net.state_dict().items()}
        again = build_model(factory="net.py:build", checkpoint=saved(state))
        assert torch.equal(again(X), net(X))


def test_the_number_of_classes_is_that_of_the_file(here):
    net = randomize(build_model(factory="net.py:build", num_classes=9))
    path = saved(net.state_dict())
    again = build_model(factory="net.py:build", checkpoint=path)
    assert torch.equal(again(X), net(X))
    assert again.description.num_classes == 9
    with pytest.raises(CheckpointError, match=r"fc.weight is \(9, 96\), expected \(4, 96\)"):
        build_model(factory="net.py:build", checkpoint=path, num_classes=4)


# Pretrained weights


def test_pretrained_weights_come_from_timm(here):
    model = timm.create_model("test_resnet").eval()
    file = {"pretrained_cfg_overlay": {"file": str(saved(randomize(model).state_dict()))}}
    built = build_model(model="test_resnet", pretrained=True, **file)
    assert torch.equal(built(X), model(X))
    assert built.description.model == "test_resnet.r160_in1k"
    with pytest.raises(InputError, match="have 1000 classes, but num_classes is 5"):
        build_model(model="test_resnet", pretrained=True, num_classes=5, **file)
    fresh = build_model(model="test_resnet", pretrained="features", num_classes=5, **file)
    assert torch.equal(fresh.forward_features(X), model.forward_features(X))
    assert fresh(X).shape == (2, 5)


def test_pretrained_convnexts_keep_the_norm_of_timms_head(here):
    model = randomize(timm.create_model("test_convnext")).eval()
    file = {"pretrained_cfg_overlay": {"file": str(saved(model.state_dict()))}}
    assert torch.equal(
        build_model("convnext", model="test_convnext", pretrained=True, **file)(X), model(X)
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model": "test_resnet"}, r"r160_in1k cannot be loaded from timm/.* give a file"),
        ({"model": "replknet_nano"}, "give a file of replknet as `weights`"),
        ({"factory": "net.py:build"}, "the function net.py:build may load weights itself"),
        ({"model": "resnet10t_nope"}, "unknown model"),
    ],
    ids=str,
)
def test_weights_that_cannot_be_had(asked, message, here, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here))
    with pytest.raises(InputError, match=message) as caught:
        build_model(pretrained=True, **asked)
    assert "\n" not in str(caught.value)


# Preprocessing


def test_preprocessing_is_timms_for_its_models_and_never_crops():
    assert preprocessing_of(None, "resnet", "resnet18") == BICUBIC
    assert preprocessing_of(None, "factory", "net.py:build") == BICUBIC
    assert preprocessing_of("model", "convnext", None) == BICUBIC
    assert (
        preprocessing_of(None, "convnext", None)
        == preprocessing_of("study", "resnet", "resnet18")
        == STUDY
    )
    half = timm.get_pretrained_cfg("test_resnet")
    assert preprocessing_of("model", "resnet", "test_resnet").mean == half.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("preprocess", ["study", "model"])
def test_maps_are_those_of_the_preprocessed_images(preprocess, here, capsys):
    model = network("resnet18")
    path = saved(model.state_dict())
    args = ("--model", "resnet18", "--weights", path, "--preprocess", preprocess)
    args += ("--input_size", 64, "--test_dataset", "images", "--heatmap_output", "h")
    done = run_cli(capsys, "generate-heatmap", *args, "--num_workers", 0, "--device", "cpu")
    assert done.status == 0, done.err
    assert ("Warning: --preprocess study gives resnet18" in done.err) == (preprocess == "study")
    how = STUDY if preprocess == "study" else BICUBIC
    image = read_image(Path("images") / IMAGES[0])[0]
    x = to_tensor(resize(image, [64, 64], InterpolationMode(how.interpolation), antialias=True))
    x = (x - torch.tensor(how.mean)[:, None, None]) / torch.tensor(how.std)[:, None, None]
    want = cam(model, x[None]).numpy()[0]
    found = np.load(f"np_h/{IMAGES[0].replace('.png', '.npy')}")
    assert np.abs(found - want).max() <= 1.5 / 255
    record = json.loads(Path("np_h/manifest.json").read_text())
    settings = record["settings"]
    assert settings["preprocess"] == preprocess
    assert settings["preprocessing"]["interpolation"] == how.interpolation
    other = {"study": "model", "model": "study"}[preprocess]
    done = run_cli(capsys, "generate-heatmap", *args, "--preprocess", other, "--num_workers", 0)
    assert f"preprocess was '{preprocess}', is '{other}'" in done.err


# Commands

COMMON = ("--test_dataset", "images", "--num_workers", 0, "--device", "cpu")
SCORED = ("--metadata_root", "meta", "--num_samples", 1, "--json", "s.json")


@pytest.mark.parametrize("model", [("--model", "test_resnet"), ("--model_factory", "net.py:build")])
def test_commands_take_any_network(model, here, capsys):
    done = run_cli(capsys, "evaluate", *model, "--input_size", 64, *COMMON, *SCORED)
    assert done.status == 0, done.err
    assert "random weights" in done.err
    said = json.loads(Path("s.json").read_text())["settings"]["model"]
    title = "build" if "net.py:build" in model else "test_resnet"
    assert re.fullmatch("[0-9a-f]{64}", str(said["factory_sha256"])) or title == "test_resnet"
    done = run_cli(capsys, "erf-compute", *model, "--input_size", 64, *COMMON, "--num_samples", 1)
    assert done.status == 0, done.err
    assert Path(f"erf_sizes_{title}.npy").exists()
    done = run_cli(capsys, "erf-map", *model, "--input_size", 64, *COMMON, "--num_images", 1)
    assert done.status == 0, done.err
    used = json.loads(Path(f"erf_map_{title}.json").read_text())["settings"]
    assert used["preprocessing"]["mean"] == list(IMAGENET_MEAN)
    assert used["preprocess"] is None


@pytest.mark.parametrize("function", ["in_dict", "pair"])
def test_commands_take_logits_in_dicts_and_tuples(function, here, capsys):
    """The tuple's network is in `DataParallel` and bfloat16, too."""
    model = ("--model_factory", f"net.py:{function}", "--input_size", 32)
    for command in (
        ("evaluate", *SCORED, "--method", "grad-cam", *COMMON),
        ("erf-map", "--num_images", 1, *COMMON),
        ("train-wsol", "--data_root", "split", "--epochs", 1, "--batch_size", 2, *COMMON[2:]),
    ):
        done = run_cli(capsys, *command, *model)
        assert done.status == 0, done.err


def test_maps_have_an_erf_but_no_scores(here, capsys):
    model = ("--model_factory", "net.py:segments", "--input_size", 32, *COMMON)
    done = run_cli(capsys, "erf-compute", *model, "--num_samples", 1, "--output", "e.npy")
    assert done.status == 0, done.err
    assert 1 <= np.load("e.npy") <= 9
    for target in ((), ("--target", 2)):
        done = run_cli(capsys, "generate-heatmap", *model, *target, "--heatmap_output", "h")
        assert done.status == 1
        assert re.search(r"Error: .*must return \(N, K\) logits", done.err)


def test_a_changed_factory_is_another_run(here, capsys):
    (here / "own.py").write_text(NET)
    args = ("erf-compute", "--model_factory", "own.py:build", "--input_size", 64, *COMMON)
    assert run_cli(capsys, *args).status == 0
    (here / "own.py").write_text(NET + "\n")
    assert "factory_sha256 was" in run_cli(capsys, *args).err


@pytest.mark.parametrize(
    "model",
    [("--model", "test_resnet"), ("--model", "test_vit"), ("--model_factory", "net.py:build")],
)
def test_what_is_trained_says_what_it_is(model, here, capsys):
    args = ("train-wsol", *model, "--data_root", "split", "--epochs", 1, "--batch_size", 2)
    args += ("--num_workers", 0, "--device", "cpu", "--exp_name", "x")
    args += () if "test_vit" in model else ("--input_size", 64)
    done = run_cli(capsys, *args)
    assert done.status == 0, done.err
    said = read_checkpoint("weights/x_best.pth").description
    size = 160 if "test_vit" in model else 64
    assert said.num_classes == 2
    assert said.class_names == ("a", "b")
    assert (said.input_size, said.preprocessing) == (size, "model")
    assert run_cli(capsys, *args, "--epochs", 2).status == 0  # the factory is known again
    weights = ("erf-compute", "--weights", "weights/x_best.pth", *COMMON, "--num_samples", 1)
    done = run_cli(capsys, *weights)
    if "--model_factory" in model:
        assert "was made by net.py:build, and a checkpoint alone never runs code" in done.err
        done = run_cli(capsys, *weights, *model)
    assert done.status == 0, done.err
    assert f"2 classes, input {size}, preprocess model, weights weights/x_best.pth (recorded" in (
        done.err
    )


def test_a_checkpoint_of_another_network_is_refused(here):
    said = ModelDescription("resnet", "test_resnet", 5)
    save_state_dict_file(network().state_dict(), "w.pth", said)
    assert torch.equal(build_model(checkpoint="w.pth")(X), network()(X))
    for asked in ({"model": "resnet18"}, {"factory": "net.py:build"}):
        with pytest.raises(CheckpointError, match=r"w\.pth: is a test_resnet"):
            build_model(checkpoint="w.pth", **asked)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            ("--model", "test_resnet"),
            "except the head of 5 classes, replaced by a random one of 2: fc.weight, fc.bias",
        ),
        (
            ("--model_factory", "net.py:build"),
            "all keys but model.fc.bias, model.fc.weight, which are random",
        ),
    ],
)
def test_training_replaces_a_head_of_other_classes(model, told, here, capsys):
    own = build_model(factory="net.py:build") if "net.py:build" in model else network()
    args = ("train-wsol", *model, "--init_weights", saved(own.state_dict()), "--exp_name", "x")
    args += ("--data_root", "split", "--epochs", 1, "--batch_size", 2, "--input_size", 64)
    done = run_cli(capsys, *args, "--num_workers", 0, "--device", "cpu", "--lr", 1e-9)
    assert done.status == 0, done.err
    assert told in done.out
    trained = read_checkpoint("weights/x_best.pth")
    key = "conv1.0.weight"
    key = f"model.{key}" if "net.py:build" in model else key
    stored = trained.stored[key]
    assert torch.allclose(stored, own.state_dict()[key], atol=1e-6)


# Plan files


def planned(**experiment):
    Path("e.yaml").write_text(json.dumps({"experiments": [{"name": "a", **experiment}]}))
    return load_experiments(Path("e.yaml")).experiments[0].settings


def test_plans_take_any_network(here):
    found = planned(model="resnet18", epochs=2)
    assert (found.model_family, found.input_size) == ("resnet", 224)
    model, training = completed(found.model_of(None), found.training())
    assert training.preprocessing == found.data().preprocessing != STUDY
    assert training == replace(found.training(), preprocess="model", preprocessing=BICUBIC)
    assert exp_name(model, training).startswith("resnet18_r224_e2")
    assert planned(model="test_vit").input_size == 160
    assert planned(model="test_vit", input_size=64).input_size == 64
    own = planned(model_factory="net.py:build", preprocess="study")
    assert own.model_of(None).build(num_classes=3).description.num_classes == 3
    assert own.data().preprocessing == STUDY
    path = saved(network().state_dict())
    scored = planned(model="test_resnet", weight_path=str(path))
    assert scored.model_of(path).build()(X).shape == (2, 5)


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        ({"model": "resnet81"}, "model: unknown model 'resnet81'; did you mean"),
        ({"model": "resnet18", "ls_init": 1.0}, "ls_init: resnet has no layer scale to set"),
        ({"model": "resnet18", "alpha": 1.0}, "alpha: belongs to slak_flex, not to resnet"),
        ({"model": "resnet18", "model_family": "slak"}, "'resnet18' is no model of slak"),
        ({"model_family": "resnet"}, "model_family: must be convnext or .*, got 'resnet'"),
    ],
    ids=str,
)
def test_plans_name_what_cannot_be(experiment, message, here):
    with pytest.raises(InputError, match=message) as caught:
        planned(**experiment)
    assert len(str(caught.value).splitlines()) == 1
