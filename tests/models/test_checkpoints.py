"""Checkpoint files: every layout and wrapper loads, everything else is refused by name."""

import collections
import itertools
import pickle

import pytest
import timm
import torch
from checkpoint_factory import (
    SMALL_MODELS,
    make_checkpoint,
    make_images,
    make_model,
    write_checkpoint,
)
from safetensors.torch import save_file
from torch import nn

from cba_fast.errors import CheckpointError, InputError
from cba_fast.models import (
    FAMILIES,
    build_model,
    detect_layout,
    load_state_dict_file,
    read_checkpoint,
    save_state_dict_file,
)
from cba_fast.models.build import _is_unwidened
from cba_fast.training.state import load_state

# family, layout, constructor options: every form that a checkpoint of a small model can have.
FORMS = [
    ("convnext", "training", {}),
    ("convnext", "timm", {}),
    ("replknet", "training", {}),
    ("replknet", "training", {"small_kernel": None}),
    ("replknet", "merged", {}),
    ("slak", "training", {}),
    ("slak", "training", {"Decom": False}),
    ("slak", "training", {"bn": False}),
    ("slak", "training", {"Decom": False, "bn": False}),
    ("slak", "merged", {}),
    ("slak", "merged", {"Decom": False}),
    ("slak_flex", "training", {}),
    ("slak_flex", "merged", {}),
    ("slak_flex", "merged", {"alpha": 0.5, "beta": 0.5}),
]


def _ids(form):
    family, layout, options = form
    return "-".join([family, layout, *(f"{k}={v}" for k, v in options.items())])


@pytest.fixture
def x():
    return make_images(dtype=torch.float32)


@pytest.mark.parametrize("form", FORMS, ids=_ids)
def test_round_trip_of_every_form(form, tmp_path, x):
    family, layout, options = form
    source = make_model(family, SMALL_MODELS[family], num_classes=7, layout=layout, **options)
    path = write_checkpoint(tmp_path / "c.pth", source.state_dict())
    # What the keys cannot show has to be said, as for training.
    said = {k: v for k, v in options.items() if k == "small_kernel"}
    model = build_model(family, model=SMALL_MODELS[family], checkpoint=path, **said)
    assert model.num_classes == 7
    assert model.family == family
    assert model.study_softmax == (layout != "timm" and family in ("convnext", "slak_flex"))
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(x), source(x), rtol=0, atol=0)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "module"])
@pytest.mark.parametrize("family", FAMILIES)
def test_wrappers(wrapper, family, tmp_path):
    name = SMALL_MODELS[family]
    bare = make_checkpoint(tmp_path / "bare.pth", family, name)
    path = make_checkpoint(tmp_path / "c.pth", family, name, wrapper=wrapper)
    a, b = load_state_dict_file(bare), load_state_dict_file(path)
    assert list(a) == list(b)
    assert all(torch.equal(a[k], b[k]) for k in a)
    build_model(family, model=name, checkpoint=path)


def test_nested_wrappers_and_prefixes(tmp_path):
    inner = {"module._orig_mod.a": torch.ones(2), "module._orig_mod.b": torch.zeros(())}
    path = tmp_path / "c.pt"
    torch.save({"epoch": 1, "model": {"state_dict": inner, "best": 0.5}}, path)
    assert list(load_state_dict_file(path)) == ["a", "b"]
    torch.save({"model_ema": {"a": torch.ones(1)}, "model": {"b": torch.ones(1)}}, path)
    assert list(load_state_dict_file(path)) == ["b"]
    # A prefix is taken off only where all keys have it.
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, path)
    assert list(load_state_dict_file(path)) == ["module.a", "b"]


def test_safetensors_both_ways(tmp_path):
    source = make_model("slak", "slak_nano", num_classes=7)
    save_file(source.state_dict(), tmp_path / "theirs.safetensors")
    save_state_dict_file(source.state_dict(), tmp_path / "ours.safetensors")
    for name in ("theirs", "ours"):
        path = tmp_path / f"{name}.safetensors"
        model = build_model("slak", model="slak_nano", checkpoint=path)
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())


def test_half_precision_files_become_the_default_dtype(tmp_path):
    state = make_model("replknet", "replknet_nano").half().state_dict()
    path = write_checkpoint(tmp_path / "c.pth", state)
    model = build_model("replknet", model="replknet_nano", checkpoint=path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.norm.num_batches_tracked.dtype == torch.int64


def test_saved_views_do_not_drag_their_storage_along(tmp_path):
    big = torch.zeros(1_000_000)
    save_state_dict_file({"a": big[:10]}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 10_000


def test_strips_of_slak_s_earlier_code(tmp_path, x):
    source = make_model("slak", "slak_nano")
    state = {k.replace(".LoRA", ".Decom"): v for k, v in source.state_dict().items()}
    assert any(".Decom1.bn.weight" in k for k in state)
    path = write_checkpoint(tmp_path / "c.pth", state)
    model = build_model("slak", model="slak_nano", checkpoint=path)
    torch.testing.assert_close(model(x), source(x), rtol=0, atol=0)


def test_slak_without_width_factor_is_recognized():
    with torch.device("meta"):
        state = {f: timm.create_model("slak_tiny", width_factor=f).state_dict() for f in (1.0, 1.3)}
    assert _is_unwidened("slak_tiny", state[1.0])
    assert not _is_unwidened("slak_tiny", state[1.3])
    assert not _is_unwidened("slak_base", state[1.0])


def test_width_factor_given_by_hand(tmp_path):
    path = make_checkpoint(tmp_path / "c.pth", "slak", "slak_nano", num_classes=3)
    wide = make_checkpoint(tmp_path / "w.pth", "slak", "slak_nano", width_factor=1.3)
    assert build_model("slak", model="slak_nano", checkpoint=path).num_features == 128
    model = build_model("slak", model="slak_nano", checkpoint=wide, width_factor=1.3)
    assert model.num_features == 166
    with pytest.raises(CheckpointError, match="mis-shaped"):
        build_model("slak", model="slak_nano", checkpoint=path, width_factor=1.3)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("replknet_31b", {}, ("replknet", "official")),
        ("replknet_xl", {}, ("replknet", "official")),
        ("replknet_31l", {"merged": True}, ("replknet", "merged")),
        ("slak_tiny", {}, ("slak", "official")),
        ("slak_tiny", {"Decom": False, "bn": False}, ("slak", "official")),
        ("slak_tiny", {"merged": True}, ("slak", "merged")),
        ("slak_flex_base", {}, ("slak_flex", "study")),
        ("slak_flex_base", {"merged": "square"}, ("slak_flex", "merged")),
        ("slak_flex_base", {"merged": "cross"}, ("slak_flex", "merged")),
    ],
)
def test_full_size_layouts_are_recognized(name, options, expected):
    with torch.device("meta"):
        state = timm.create_model(name, **options).state_dict()
    layout = detect_layout(state)
    assert (layout.family, layout.name) == expected
    assert layout.classifier in state
    assert all(layout.options[k] == v for k, v in options.items())


@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_other_architectures_are_not_recognized(name):
    assert detect_layout(timm.create_model(name).state_dict()) is None


@pytest.mark.parametrize(("family", "other"), list(itertools.permutations(FAMILIES, 2)))
def test_wrong_family(family, other, tmp_path):
    path = make_checkpoint(tmp_path / "c.pth", other, SMALL_MODELS[other])
    with pytest.raises(CheckpointError, match=rf"c\.pth: looks like a {other} .*not {family}"):
        build_model(family, model=SMALL_MODELS[family], checkpoint=path)


def test_no_family(tmp_path):
    path = write_checkpoint(tmp_path / "c.pth", nn.Linear(2, 2).state_dict())
    with pytest.raises(CheckpointError, match=r"not a checkpoint of slak, .*weight, bias.* 2 in"):
        build_model("slak", checkpoint=path)


def test_wrong_size_names_the_model_that_fits(tmp_path):
    path = make_checkpoint(tmp_path / "c.pth", "replknet", "replknet_nano", num_classes=3)
    with pytest.raises(CheckpointError, match=r"not fit replknet_31b: .*it fits replknet_nano"):
        build_model("replknet", checkpoint=path)


def _edited(tmp_path, family, edit):
    """Write a small checkpoint after edit(state) and return what build_model says of it."""
    state = make_model(family, SMALL_MODELS[family], num_classes=7).state_dict()
    edit(state)
    path = write_checkpoint(tmp_path / "c.pth", state)
    with pytest.raises(CheckpointError) as caught:
        build_model(family, model=SMALL_MODELS[family], checkpoint=path)
    assert str(path) in str(caught.value)
    return str(caught.value)


KEYS = {
    "convnext": "0.1.1.blocks.0.mlp.fc1.weight",
    "replknet": "stages.1.blocks.0.large_kernel.small_conv.bn.running_var",
    "slak": "stages.1.0.large_kernel.LoRA2.conv.weight",
    "slak_flex": "0.stages.1.0.dwconv.conv_square.weight",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_unexpected_and_misshaped_keys_are_listed(family, tmp_path):
    key = KEYS[family]
    message = _edited(tmp_path, family, lambda s: s.pop(key))
    assert f"1 missing key: {key}" in message
    message = _edited(tmp_path, family, lambda s: s.update({"extra": torch.ones(1)}))
    assert "1 unexpected key: extra" in message
    message = _edited(tmp_path, family, lambda s: s.update({key: s[key][:-1]}))
    assert f"1 mis-shaped key: {key} is (" in message
    message = _edited(tmp_path, family, lambda s: s.update({key: s[key].int()}))
    assert f"{key} is torch.int32" in message


def test_long_lists_are_shortened(tmp_path):
    def edit(state):
        for key in [k for k in state if "num_batches_tracked" in k]:
            del state[key]

    message = _edited(tmp_path, "replknet", edit)
    assert message.count("num_batches_tracked") == 5
    assert "43 missing keys" in message
    assert "and 38 more" in message


@pytest.mark.parametrize("key", ["head.weight", "head.bias"])
def test_a_file_without_classifier(key, tmp_path):
    assert f"missing key: {key}" in _edited(tmp_path, "replknet", lambda s: s.pop(key))


def test_num_classes_must_agree(tmp_path):
    path = make_checkpoint(tmp_path / "c.pth", "slak_flex", "slak_flex_nano", num_classes=7)
    assert build_model("slak_flex", model="slak_flex_nano", checkpoint=path, num_classes=7)
    with pytest.raises(InputError, match=r"c\.pth has 7 classes \(1\.fc\.weight\).* 200"):
        build_model("slak_flex", model="slak_flex_nano", checkpoint=path, num_classes=200)


def test_alpha_and_beta_are_inside_a_merged_file(tmp_path):
    options = {"layout": "merged", "alpha": 0.2, "beta": 0.4}
    path = make_checkpoint(tmp_path / "c.pth", "slak_flex", "slak_flex_nano", **options)
    with pytest.raises(InputError, match=r"c\.pth: the mixture is merged"):
        build_model("slak_flex", model="slak_flex_nano", checkpoint=path, alpha=0.2)
    model = build_model("slak_flex", model="slak_flex_nano", checkpoint=path)
    with pytest.raises(ValueError, match="merged into the weights"):
        model.set_mixing(1, 0)


class Payload:
    """What a hostile checkpoint would hold: unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_pickled_code_is_refused_and_not_run(tmp_path, legacy, suffix):
    path, ran = tmp_path / f"c{suffix}", tmp_path / "ran"
    state = {"model": {"a": torch.ones(1)}, "args": Payload(ran)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=rf"c{suffix}: holds pickled objects .*open.*"):
        load_state_dict_file(path)
    assert not ran.exists()


def test_pickled_modules_and_plain_pickles_are_refused(tmp_path):
    path = tmp_path / "c.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"pickled objects.*\(torch\.nn\..*Linear\)"):
        load_state_dict_file(path)
    path.write_bytes(pickle.dumps({"a": Payload(tmp_path / "ran")}))
    with pytest.raises(CheckpointError, match=r"c\.pth: "):
        load_state_dict_file(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(3),
        [torch.ones(3)],
        {"a": 1.0},
        {"a": torch.ones(1), "b": "text"},
        {0: torch.ones(1)},
        {},
        {"model": {}},
        {"epoch": 3, "model": 4},
    ],
    ids=repr,
)
def test_files_that_hold_something_else(value, tmp_path):
    torch.save(value, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"c\.pth: .*(state dict)"):
        load_state_dict_file(tmp_path / "c.pth")


def test_ordered_dicts_load(tmp_path):
    torch.save(collections.OrderedDict(a=torch.ones(1)), tmp_path / "c.pth")
    assert list(load_state_dict_file(tmp_path / "c.pth")) == ["a"]


def test_a_file_of_another_kind_is_shown_and_no_unpickling_advised(tmp_path):
    path = tmp_path / "page.pth"
    path.write_text("<!DOCTYPE html><html>")
    with pytest.raises(CheckpointError, match=r"page\.pth: .*begins with b'<!DOCTYPE html><'") as e:
        load_state_dict_file(path)
    assert "weights_only" not in str(e.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(suffix, tmp_path):
    path = tmp_path / f"c{suffix}"
    save_state_dict_file(make_model("slak", "slak_nano").state_dict(), path)
    whole = path.read_bytes()
    contents = [
        b"",
        b"\0",
        whole[:100],
        whole[: len(whole) // 2],
        whole[:-10],
        b"<!DOCTYPE html>\n",
    ]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"c\{suffix}: damaged, or not a "):
            load_state_dict_file(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match=r"nope\.pth: no such file"):
        build_model("slak", checkpoint=tmp_path / "nope.pth")
    with pytest.raises(CheckpointError, match="not a file"):
        build_model("slak", checkpoint=tmp_path)


@pytest.mark.parametrize("read", [read_checkpoint, load_state])
def test_changed_bytes_are_damage(tmp_path, read):
    path = tmp_path / "m.pth"
    torch.save({"w": torch.arange(1000.0)}, path)
    data = path.read_bytes()
    at = data.index(torch.tensor([500.0, 501.0]).numpy().tobytes())
    path.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    torch.load(path, weights_only=True)  # PyTorch looks at no checksum
    with pytest.raises(CheckpointError, match=r"m\.pth: damaged, or not") as caught:
        read(path)
    assert "Bad CRC-32 for file 'm/data/0'" in f"{caught.value} {caught.value.__cause__}"


def test_a_checkpoint_without_checksums_is_read(tmp_path):
    path = tmp_path / "m.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path).state["w"].tolist() == [1, 1, 1]


def test_keys_that_are_no_text_are_named(tmp_path):
    torch.save({1: torch.ones(3)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="not a state dict: its key 1 is no text"):
        read_checkpoint(tmp_path / "m.pth")
