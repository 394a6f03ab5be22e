"""What checkpoints say about their models: written, read, contradicted; and files of others."""

import argparse
import json
import re
import zipfile
from dataclasses import replace

import pytest
import timm
import torch
from checkpoint_factory import make_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cba_fast.errors import CheckpointError, InputError
from cba_fast.models import (
    ModelDescription,
    build_model,
    load_state_dict_file,
    read_checkpoint,
    save_state_dict_file,
)

FLEX = ModelDescription(
    "slak_flex", "slak_flex_nano", 3, ("a", "b", "c"), 16, 96, "study", 0.25, 0.75
)
SUFFIXES = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


@pytest.fixture(scope="module")
def flex():
    return make_model("slak_flex", "slak_flex_nano", num_classes=3, alpha=0.25, beta=0.75)


def write(path, state, **changes):
    save_state_dict_file(state, path, replace(FLEX, **changes))
    return path


# What is written is read, and disturbs nobody


@SUFFIXES
def test_a_description_is_read_as_it_was_written(suffix, tmp_path, flex):
    path = write(tmp_path / f"c{suffix}", flex.state_dict())
    for mapped in (False, True):
        found = read_checkpoint(path, mapped=mapped)
        assert found.description == FLEX
        assert found.taken == ""
        assert all(torch.equal(v, found.state[k]) for k, v in flex.state_dict().items())
    partial = ModelDescription("slak_flex", "slak_flex_nano")
    save_state_dict_file(flex.state_dict(), path, partial)
    assert read_checkpoint(path).description == partial
    save_state_dict_file(flex.state_dict(), path)
    assert read_checkpoint(path).description is None


@SUFFIXES
@pytest.mark.parametrize("name", ["replknet_nano", "test_convnext"])
def test_others_load_a_described_file_strictly(suffix, name, tmp_path):
    source, theirs = (timm.create_model(name, num_classes=3) for _ in range(2))
    path = write(tmp_path / f"c{suffix}", source.state_dict(), family="x", model=name)
    if suffix == ".pth":
        state = torch.load(path, weights_only=True)
    else:
        state = load_file(path)
        with safe_open(path, framework="pt") as f:
            assert json.loads(f.metadata()["cba_fast"])["class_names"] == ["a", "b", "c"]
    theirs.load_state_dict(state, strict=True)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in source.state_dict().items())


def test_a_wrapped_description_is_found(tmp_path, flex):
    path = write(tmp_path / "c.pth", flex.state_dict())
    state = torch.load(path, weights_only=True)
    torch.save({"epoch": 3, "model": state}, path)
    assert read_checkpoint(path).description == FLEX


# What a model is built from


def test_the_checkpoint_says_what_to_build(tmp_path, flex):
    path = write(tmp_path / "c.pth", flex.state_dict())
    built, x = build_model(checkpoint=path), torch.randn(1, 3, 64, 64)
    assert built.description == FLEX
    known = {"model": "slak_flex_nano", "alpha": 0.25, "beta": 0.75, "output_stride": 16}
    plain = tmp_path / "plain.pth"
    save_state_dict_file(flex.state_dict(), plain)
    expected = build_model("slak_flex", checkpoint=plain, **known)(x)
    assert torch.equal(built(x), expected)
    # What is given wins over what is recorded.
    asked = build_model(checkpoint=path, alpha=1, beta=0, output_stride=32)
    assert (asked.description.alpha, asked.description.output_stride) == (1, 32)
    assert not torch.allclose(asked(x), expected)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"family": "replknet"}, "looks like a slak_flex checkpoint .* not replknet"),
        ({"model": "slak_flex_base"}, "is a slak_flex_nano, and the model slak_flex_base was"),
        ({"num_classes": 4}, r"has 3 classes \(1.fc.weight\), but num_classes is 4"),
    ],
)
def test_contradictions_are_refused_and_name_both(asked, message, tmp_path, flex):
    path = write(tmp_path / "c.pth", flex.state_dict())
    with pytest.raises(InputError, match=message):
        build_model(checkpoint=path, **asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "slak"}, "says that it is of slak, and has the keys of slak_flex"),
        ({"num_classes": 4, "class_names": None}, "3 classes .* its description says 4"),
        ({"num_classes": 2}, "names 3 classes in 3 entries of 'class_names' and has .* 2"),
        ({"class_names": ("a", "a", "b")}, "names 2 classes in 3 entries"),
        ({"class_names": (1, 2, 3)}, "'class_names' is .*, not a list of names"),
        ({"family": 3}, "'family' is 3, not text"),
        ({"model": None}, "lacks 'model'"),
        ({"output_stride": 8}, "'output_stride' is 8, not 16 or 32"),
        ({"input_size": 10**9}, "'input_size' is 1000000000, not a whole number from 1 to"),
        ({"input_size": "96"}, "'input_size' is '96', not"),
        ({"num_classes": True}, "'num_classes' is True, not a whole number"),
        ({"alpha": float("nan")}, "'alpha' is nan, not a finite number"),
        ({"preprocessing": "clip"}, "'preprocessing' is 'clip', not 'study'"),
    ],
    ids=str,
)
def test_descriptions_that_cannot_be_right(changes, message, tmp_path, flex):
    path = write(tmp_path / "c.pth", flex.state_dict(), **changes)
    with pytest.raises(CheckpointError, match=rf"c\.pth.* {message}"):
        build_model(checkpoint=path)
    assert load_state_dict_file(path).keys() == flex.state_dict().keys()


def test_keys_of_later_versions_are_passed_over(tmp_path):
    state = torch.nn.Linear(1, 1).state_dict()
    said = FLEX.as_json() | {"teacher": {"name": "x"}}
    save_file(state, tmp_path / "c.safetensors", {"cba_fast": json.dumps(said)})
    assert read_checkpoint(tmp_path / "c.safetensors").description == FLEX
    for text in ("{", "[1]", "[" * 100_000):
        save_file(state, tmp_path / "c.safetensors", {"cba_fast": text})
        with pytest.raises(CheckpointError, match=r"c\.safetensors: its description"):
            read_checkpoint(tmp_path / "c.safetensors")


# How others keep their weights


ONE, TWO = {"a": torch.ones(1)}, {"a": torch.zeros(1)}


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        ({"ema": ONE}, "its 'ema'"),
        ({"net": ONE}, "its 'net'"),
        ({"state_dict_ema": ONE, "epoch": 3}, "its 'state_dict_ema'"),
        ({"state_dict_ema": TWO, "state_dict": ONE}, "its 'state_dict', not 'state_dict_ema'"),
        ({"ema": TWO, "net": ONE, "model_ema": TWO}, "its 'net', not 'model_ema' or 'ema'"),
        ({"model": {"name": "x"}, "state_dict": ONE}, "its 'state_dict'"),
        ({"model": {"ema": ONE}}, "its 'model', its 'ema'"),
        ({"model.a": torch.ones(1)}, ""),
        ({"_orig_mod.net.a": torch.ones(1)}, ""),
        ({"state_dict": {"model.module.a": torch.ones(1)}, "lr": 1}, "its 'state_dict'"),
        ({"model": ONE, "args": argparse.Namespace(lr=0.1, name="x")}, "its 'model'"),
    ],
    ids=str,
)
def test_wrappers_of_others(content, taken, tmp_path):
    torch.save(content, tmp_path / "c.pth")
    found = read_checkpoint(tmp_path / "c.pth")
    assert found.taken == taken
    assert list(found.state) == ["a"]
    assert found.state["a"].item() == 1


def test_lightnings_model_is_taken_and_the_rest_said(tmp_path, flex):
    state = {f"model.{k}": v for k, v in flex.state_dict().items()}
    state |= {"loss.weight": torch.ones(3), "ema_model.x": torch.ones(1)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.4"}, tmp_path / "c.pth")
    found = read_checkpoint(tmp_path / "c.pth")
    assert found.taken == "its 'state_dict', its 'model.', not the 2 other keys"
    assert found.state.keys() == flex.state_dict().keys()


def in_facebooks_names(state):
    """Rename timm's ConvNeXt as facebookresearch/ConvNeXt and ConvNeXt-V2 call it."""
    pairs = [
        (r"^stem\.(\d)", r"downsample_layers.0.\1"),
        (r"^stages\.(\d)\.downsample\.(\d)", r"downsample_layers.\1.\2"),
        (r"^stages\.(\d)\.blocks\.(\d+)", r"stages.\1.\2"),
        (r"\.conv_dw\.", ".dwconv."),
        (r"mlp\.fc(\d)", r"pwconv\1"),
        (r"mlp\.grn\.weight", "grn.gamma"),
        (r"mlp\.grn\.bias", "grn.beta"),
        (r"^head\.(norm|fc)\.", lambda m: {"norm": "norm.", "fc": "head."}[m[1]]),
    ]
    renamed = {}
    for key, value in state.items():
        for pattern, name in pairs:
            key = re.sub(pattern, name, key)
        value = value.flatten(1) if "pwconv" in key and value.ndim == 4 else value
        renamed[key] = value.reshape(1, 1, 1, -1) if ".grn." in key else value
    return renamed


@pytest.mark.parametrize("name", ["test_convnext", "test_convnext2", "test_convnext3"])
def test_facebooks_convnext_is_timms(name, tmp_path):
    source = make_model("convnext", name, num_classes=3, layout="timm")
    theirs = in_facebooks_names(source.state_dict())
    assert not theirs.keys() & source.state_dict().keys()
    torch.save({"model": theirs}, tmp_path / "c.pth")
    built = build_model("convnext", model=name, checkpoint=tmp_path / "c.pth")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(built(x), source.eval()(x))


# Files made to do harm


def quantized():
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.eye(3).to_sparse(), "a sparse tensor"),
        (lambda: torch.ones(3, device="meta"), "a meta tensor"),
        (quantized, "a quantized tensor"),
        (lambda: torch.ones(1, 1).expand(10**7, 10**6), "an expanded tensor: its shape"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_are_not_dense(make, kind, tmp_path):
    torch.save({"model": {"head.weight": make()}}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=rf"c\.pth: entry 'head.weight' is {kind}"):
        load_state_dict_file(tmp_path / "c.pth")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_nested_tensor(tmp_path):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save({"model": {"head.weight": nested}}, tmp_path / "c.pth")
    # PyTorch 2.15 takes them for objects that could run code.
    refused = "entry 'head.weight' is a nested tensor|holds pickled objects .*rebuild_nested"
    with pytest.raises(CheckpointError, match=rf"c\.pth: ({refused})"):
        load_state_dict_file(tmp_path / "c.pth")


def test_a_wrapper_that_contains_itself(tmp_path):
    content = {}
    content["model"] = {"state_dict": content}
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"c\.pth: its 'model' contains itself"):
        load_state_dict_file(tmp_path / "c.pth")


@pytest.mark.parametrize("family", ["replknet", "convnext"])
def test_a_head_of_ten_million_classes(family, tmp_path):
    name, key = {
        "replknet": ("replknet_nano", "head.weight"),
        "convnext": ("test_convnext", "head.fc.weight"),
    }[family]
    state = timm.create_model(name, num_classes=3).state_dict()
    torch.save(state | {key: torch.zeros(10**7, 1, dtype=torch.uint8)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=rf"c\.pth has 10000000 classes \({key}\), more than"):
        build_model(model=name, checkpoint=tmp_path / "c.pth")


def test_an_archive_that_unpacks_to_more_than_itself(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as source,
        zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    with pytest.raises(CheckpointError, match=r"c\.pth: \d+ bytes that would unpack to 4\d{6}"):
        load_state_dict_file(tmp_path / "c.pth")
