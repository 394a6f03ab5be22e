"""Inference forms: equal outputs, fewer modules; and the command that writes merged files."""

import copy
import subprocess
import sys

import pytest
import torch
from checkpoint_factory import SMALL_MODELS, make_checkpoint, make_images, make_model
from click.testing import CliRunner
from torch import nn

from cba_fast.cli.main import cli
from cba_fast.cli.tools.merge import command
from cba_fast.errors import CheckpointError, InputError
from cba_fast.models import FAMILIES, build_model, load_state_dict_file, merge, mergeable

VARIANTS = [
    ("convnext", {}),
    ("convnext", {"layout": "timm"}),
    ("replknet", {}),
    ("replknet", {"small_kernel": None, "dw_ratio": 1.5}),
    ("slak", {}),
    ("slak", {"bn": False}),
    ("slak", {"Decom": False}),
    ("slak", {"Decom": False, "bn": False, "layer_scale_init_value": None}),
    ("slak", {"kernel_size": (13, 11, 9, 5, 5)}),  # a stage without small kernel
    ("slak_flex", {"alpha": 1.0, "beta": 0.0}),
    ("slak_flex", {"alpha": 0.0, "beta": 1.0}),
    ("slak_flex", {"alpha": 0.7, "beta": -1.3}),
    ("slak_flex", {"alpha": 0.0, "beta": 0.0}),
]


@pytest.fixture(params=VARIANTS, ids=lambda v: "-".join([v[0], *map(str, v[1].values())]))
def model(request):
    family, options = request.param
    return make_model(family, SMALL_MODELS[family], num_classes=5, **options)


def _input(dtype, size=64):
    return make_images(2, size, dtype)


def _error(y, expected):
    return ((y.double() - expected).abs().max() / expected.abs().max()).item()


def test_merged_outputs_agree(model):
    x = _input(torch.float64)
    wide = copy.deepcopy(model).double()
    features, logits = wide.forward_features(x), wide(x)
    merged = merge(wide)
    assert _error(merged.forward_features(x), features) < 1e-12
    assert _error(merged(x), logits) < 1e-12
    # In float32 the merged form must be as close to the float64 outputs as the training form is,
    # up to the rounding of the merged weights, which errs like that of the weights they replace.
    narrow = _error(model(x.float()), logits)
    assert _error(merge(model)(x.float()), logits) < 4 * narrow + 8 * torch.finfo(torch.float32).eps


def test_merged_input_gradients_agree_and_weights_are_frozen(model):
    merged = merge(model.double())
    assert not any(p.requires_grad for p in merged.parameters())
    grads = []
    for m in (model, merged):
        x = _input(torch.float64, 32).requires_grad_()
        grads.append(torch.autograd.grad(m(x)[:, 1].sum(), x)[0])
    assert _error(grads[1], grads[0]) < 1e-11


def test_the_original_is_left_as_it_is(model):
    model.train()
    before = copy.deepcopy(model.state_dict())
    merged = merge(model)
    assert not merged.training
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_merging_twice_changes_nothing(model):
    once = merge(model)
    twice = merge(once)
    assert list(once.state_dict()) == list(twice.state_dict())
    assert all(torch.equal(v, once.state_dict()[k]) for k, v in twice.state_dict().items())


def test_what_is_left_after_merging(model):
    merged = merge(model)
    norms = [n for n, m in merged.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == (["norm"] if getattr(model, "family", "") == "replknet" else [])
    assert not mergeable(merged)
    assert not any(n.endswith("gamma") for n in merged.state_dict())


def test_merged_channels_last(model):
    x = _input(torch.float64)
    merged = merge(model.double())
    y = merged.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert _error(y, model(x)) < 1e-11


def test_one_wrong_tap_shows():
    # The bounds above must be able to fail: here one tap of each channel is off by 1 %.
    model = make_model("replknet", "replknet_nano", num_classes=5).double()
    x, merged = _input(torch.float64), merge(model)
    with torch.no_grad():
        merged.stages[3].blocks[0].large_kernel.lkb_reparam.weight[:, :, 3, 3] *= 1.01
    assert _error(merged(x), model(x)) > 1e-6


def test_merge_refuses_other_models():
    with pytest.raises(TypeError, match="Linear"):
        merge(nn.Linear(2, 2))


def test_structural_reparam_gives_the_official_merged_layout():
    model = make_model("replknet", "replknet_nano", num_classes=5)
    entries, x = len(model.state_dict()), _input(torch.float32)
    expected = model(x)
    model.structural_reparam()
    state = model.state_dict()
    # Per block two branches of 1 + 5 entries become a weight and a bias.
    assert len(state) == entries - 4 * (12 - 2)
    assert state["stages.0.blocks.0.large_kernel.lkb_reparam.weight"].shape == (16, 1, 13, 13)
    assert "stages.0.blocks.0.prelkb_bn.weight" in state
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def run(tmp_path, family, *args, source="in.pth", **kwargs):
    if not (tmp_path / source).exists():
        make_checkpoint(tmp_path / source, family, SMALL_MODELS[family], num_classes=5, **kwargs)
    argv = ["merge", "--model_family", family, "--model", SMALL_MODELS[family]]
    argv += ["--fine_tuned_weight_name", str(tmp_path / source), "--input_size", "64"]
    return CliRunner().invoke(cli, [*argv, "--output", str(tmp_path / "out.pth"), *args])


@pytest.mark.parametrize(
    ("family", "args", "options"),
    [
        ("replknet", [], {}),
        ("slak", [], {}),
        ("slak", ["--num-classes", "5"], {"Decom": False}),
        ("slak_flex", [], {}),
        ("slak_flex", ["--alpha", "0.5", "--beta", "0.25"], {}),
    ],
)
def test_command(family, args, options, tmp_path):
    result = run(tmp_path, family, *args, **options)
    assert result.exit_code == 0, result.output
    assert "entries merged into" in result.output
    # The largest difference is printed, and small.
    words = result.output.split("Largest difference of the outputs: ")[1].split()
    assert float(words[0]) < 1e-5
    assert float(words[2]) < 1e-5
    mixing = {"alpha": 0.5, "beta": 0.25} if "--alpha" in args else {}
    name = SMALL_MODELS[family]
    before = build_model(family, model=name, checkpoint=tmp_path / "in.pth", **mixing)
    after = build_model(family, model=name, checkpoint=tmp_path / "out.pth")
    assert not mergeable(after)
    x = _input(torch.float32)
    torch.testing.assert_close(after(x), before(x), rtol=1e-4, atol=1e-5)
    assert len(load_state_dict_file(tmp_path / "out.pth")) < len(before.state_dict())


def test_command_prints_the_difference_of_what_it_wrote(tmp_path, monkeypatch):
    # A file that went wrong between merging and writing must show in the printed difference.
    def save_wrong(state, path, description):
        torch.save({k: v * 1.5 if "lkb_reparam" in k else v for k, v in state.items()}, path)

    monkeypatch.setattr("cba_fast.models.save_state_dict_file", save_wrong)
    result = run(tmp_path, "replknet")
    words = result.output.split("Largest difference of the outputs: ")[1].split()
    assert float(words[0]) > 1e-3


def test_command_refuses(tmp_path):
    result = run(tmp_path, "convnext", source="convnext.pth")
    assert isinstance(result.exception, InputError)
    assert "no branches" in str(result.exception)
    result = run(tmp_path, "replknet", source="merged.pth", layout="merged")
    assert "merged already" in str(result.exception)
    result = run(tmp_path, "slak", source="merged.pth")
    assert isinstance(result.exception, CheckpointError)
    assert "looks like a replknet" in str(result.exception)
    result = run(tmp_path, "replknet", "--alpha", "1", source="in.pth")
    assert "alpha belong to slak_flex" in str(result.exception)
    assert not (tmp_path / "out.pth").exists()
    result = run(tmp_path, "replknet", "--output", str(tmp_path / "in.pth"), source="in.pth")
    assert "would replace" in str(result.exception)
    result = run(tmp_path, "replknet", "--num_samples", "0", source="in.pth")
    assert result.exit_code == 2


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "out.pth").write_bytes(b"old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    make_checkpoint(tmp_path / "in.pth", "replknet", "replknet_nano", num_classes=5)
    monkeypatch.setattr(torch, "save", fail)
    result = run(tmp_path, "replknet")
    assert isinstance(result.exception, OSError)
    assert "out.pth" in str(result.exception)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pth", "out.pth"]
    assert (tmp_path / "out.pth").read_bytes() == b"old"


def test_families_of_the_option_are_those_of_the_package():
    option = next(p for p in command.params if p.name == "model_family")
    assert tuple(option.type.choices) == FAMILIES


def test_the_command_s_module_imports_no_torch():
    code = "import sys, cba_fast.cli.tools.merge; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
