"""The YAML file of collect-erf-wsol: grids, names, defaults, errors, names of trainings."""

import re
from pathlib import Path

import pytest
import yaml

from cba_fast.errors import InputError
from cba_fast.experiments.plan import load_experiments
from cba_fast.experiments.settings import Settings

pytestmark = pytest.mark.usefixtures("here")

NANO = {"model_family": "replknet", "model": "replknet_nano"}
A = {"name": "a", "model_family": "replknet"}
DOCS = Path(__file__).parents[2] / "docs" / "experiments.md"


def load(content):
    """Load a YAML text, or values to be written as one."""
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    Path("e.yaml").write_text(text)
    return load_experiments(Path("e.yaml"))


def names(content):
    return [e.name for e in load(content).experiments]


def test_the_example_of_the_docs_is_valid():
    text = DOCS.read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    plan = load(example)
    assert len(plan.experiments) == 2 + 8
    trained = [e.settings for e in plan.experiments if e.settings.weight_path is None]
    assert len({s.training().exp_name for s in trained}) == 1 + 4
    assert plan.experiments[1].settings.ls_init == 1
    assert plan.experiments[-1].name == "replknet_nano_lr0.004_augstrong_pc1"


def test_the_docs_name_every_key():
    text = DOCS.read_text()
    assert [k for k in Settings.model_fields if f"`{k}`" not in text] == []


def test_a_cub_folder_is_trained_and_scored():
    for folder in ("synth/images", "datasets/birds", "birds/images"):
        Path(folder).mkdir(parents=True)
    for folder in ("synth", "birds"):
        Path(folder, "images.txt").touch()
    found = load({"grid": {"model_family": "replknet", "data_root": ["synth", "birds", "other"]}})
    wanted = ["synth", str(Path("birds").absolute()), Settings.model_fields["test_dataset"].default]
    assert [e.settings.test_dataset for e in found.experiments] == wanted
    own = {"model_family": "replknet", "data_root": "synth", "test_dataset": "mine"}
    assert load({"grid": own}).experiments[0].settings.test_dataset == "mine"


def test_lists_multiply_and_other_keys_are_constant():
    plan = load(
        {
            "defaults": {"lr": 0.5, "epochs": 7},
            "grid": {
                "model_family": ["replknet", "convnext"],
                "lr": [1e-3, 0.01],
                "localization_method": ["cam", "pc1"],
                "batch_size": 5,
            },
        }
    )
    assert [e.name for e in plan.experiments] == [
        f"{family}_lr{lr}_{method}"
        for family in ("replknet", "convnext")
        for lr in ("0.001", "0.01")
        for method in ("cam", "pc1")
    ]
    assert {e.settings.batch_size for e in plan.experiments} == {5}
    assert {e.settings.epochs for e in plan.experiments} == {7}
    assert [e.settings.lr for e in plan.experiments[:4]] == [1e-3, 1e-3, 0.01, 0.01]


def test_names_come_from_what_an_experiment_gives_itself():
    entries = [
        {"model_family": "slak_flex", "beta": 0.5, "alpha": 1},
        {"model_family": "replknet", "weight_path": "w/Rep 1.pth"},
    ]
    grids = [{"name": "big", "model_family": "replknet", "input_size": [512]}]
    assert names({"experiments": entries, "grid": grids}) == [
        "slak_flex_alpha1_beta0.5",
        "replknet_rep-1",
        "big_replknet_r512",
    ]


def test_numbers_as_yaml_1_2_writes_them():
    text = "experiments: [{name: a, model_family: convnext, lr: 1e-4, weight_decay: 5E-2}]"
    settings = load(text).experiments[0].settings
    assert (settings.lr, settings.weight_decay) == (1e-4, 0.05)


def test_maps_have_the_size_of_the_input_a_side_or_a_height_and_width():
    sizes = [{}, {"map_size": "input"}, {"map_size": 64}, {"map_size": "40x72"}]
    sizes.append({"map_size": [40, 72]})
    entries = [{**A, "name": str(n), "input_size": 96, **s} for n, s in enumerate(sizes)]
    found = [e.settings.map_shape() for e in load({"experiments": entries}).experiments]
    assert found == [(96, 96), (96, 96), (64, 64), (40, 72), (40, 72)]


def test_defaults_hold_where_they_have_a_meaning():
    plan = load(
        {
            "defaults": {"alpha": 0.5, "pc1_range": "clip", "epochs": 3, "ls_init": 1.0},
            "experiments": [
                {"name": "a", "model_family": "replknet", "weight_path": "w.pth"},
                {"name": "b", "model_family": "slak_flex", "localization_method": "pc1"},
            ],
        }
    )
    a, b = (e.settings for e in plan.experiments)
    assert (a.alpha, a.pc1_range, a.ls_init) == (None, "wrap", None)
    assert (b.alpha, b.pc1_range, b.ls_init, b.epochs) == (0.5, "clip", 1.0, 3)
    assert "epochs" not in a.described()


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ({"experiments": [{**A, "learning_rat": 1}]}, ["experiment 1 (a): learning_rat: unknown"]),
        ({"experiments": [{**A, "epoch": 1}]}, ["epoch: unknown key; did you mean epochs?"]),
        ({"experiment": [A]}, ["e.yaml: experiment: unknown key; did you mean experiments?"]),
        ({"defaults": {"lrr": 1}, "experiments": [A]}, ["defaults: lrr: unknown key"]),
        ({"defaults": {"epochs": "x"}, "experiments": [A]}, ["defaults: epochs: ", "got 'x'"]),
        ({"experiments": [{**A, "epochs": True}]}, ["(a): epochs: ", "got True"]),
        ({"experiments": [{**A, "epochs": 1.5}]}, ["(a): epochs: ", "got 1.5"]),
        ({"experiments": [{**A, "lr": [1.0]}]}, ["(a): lr: ", "got [1.0]"]),
        ({"experiments": [{**A, "lr": -1}]}, ["(a): lr: ", "got -1"]),
        ({"experiments": [{**A, "pretrained": "yes"}]}, ["(a): pretrained: ", "got 'yes'"]),
        ({"experiments": [{**A, "map_size": "9x"}]}, ["(a): map_size: ", "got '9x'"]),
        ({"experiments": [{**A, "map_size": 0}]}, ["(a): map_size: ", "got 0"]),
        ({"experiments": [{**A, "model_family": "vgg"}]}, ["(a): model_family: ", "got 'vgg'"]),
        ({"experiments": [{"name": "a"}]}, ["(a): model_family: must be given"]),
        ({"experiments": [{**A, "alpha": 1}]}, ["(a): alpha: belongs to slak_flex, not to rep"]),
        ({"experiments": [{**A, "ls_init": 1}]}, ["(a): ls_init: replknet has no layer scale"]),
        ({"experiments": [{**A, "pretrained": True}]}, ["(a): pretrained: belongs to convnext"]),
        ({"experiments": [{**A, "pc1_range": "clip"}]}, ["(a): pc1_range: belongs to"]),
        ({"experiments": [{**A, "model": "slak_tiny"}]}, ["'slak_tiny' is no model of replknet"]),
        ({"experiments": [{**A, "input_size": 16}]}, ["(a): ", "input_size must be at least 32"]),
        (
            {"experiments": [{**A, "input_size": 96, "localization_method": "pc1"}]},
            ["(a): localization_method: pc1 needs feature maps of 4x4", "gives 3x3"],
        ),
        (
            {"experiments": [{**A, "weight_path": "w.pth", "epochs": 3}]},
            ["(a): epochs: nothing is trained where weight_path is given"],
        ),
        (
            {"experiments": [{**A, "cub_root": "a", "metadata_root": "b"}]},
            ["(a): cub_root: cannot be combined with metadata_root"],
        ),
        (
            {"grid": {"model_family": ["replknet", "slak_flex"], "alpha": [0, 1]}},
            ["grid 1: alpha: belongs to slak_flex, not to replknet"],
        ),
        ({"grid": {**A, "lr": []}}, ["grid 1: lr: the list is empty"]),
        ({"grid": {**A, "name": ["a", "b"]}}, ["grid 1: name: must be text"]),
        ({"experiments": [A, A]}, ["experiment 2 (a): name: 'a' is also", "experiment 1 (a)"]),
        ({"grid": {"model_family": "slak", "lr": [1.0, 1.0]}}, ["name: 'slak_lr1' is also"]),
        ({"experiments": [{**A, "name": "a/b"}]}, ["name: 'a/b' cannot be part of a file name"]),
        ({"experiments": [{**A, "name": ".a"}]}, ["name: '.a' cannot"]),
        ({"experiments": [{**A, "name": 3}]}, ["name: must be text, got 3"]),
        ({"defaults": {"lr": 1.0}}, ["no experiment: give 'experiments' or 'grid'"]),
        ({"experiments": [{**A, 1: 2}]}, ["e.yaml: experiments: ", "got 1"]),
        ("? [a]\n: b\n", ["e.yaml, line 1: found unhashable key"]),
        ({"experiments": "a"}, ["e.yaml: experiments: ", "got 'a'"]),
        ("- a", ["must hold keys such as"]),
        ("experiments:\n  - {name: a\n", ["e.yaml, line 3"]),
        ("experiments:\n- lr: 1\n  lr: 2\n", ["e.yaml, line 3: the key 'lr' is given twice"]),
    ],
)
def test_errors_name_file_experiment_and_key(content, messages):
    with pytest.raises(InputError) as caught:
        load(content)
    text = str(caught.value)
    assert text.startswith("e.yaml")
    for message in messages:
        assert message in text


def test_all_problems_are_told_at_once():
    entries = [{**A, "epochs": "x", "foo": 1}, {"name": "b", "model_family": "vgg"}]
    with pytest.raises(InputError) as caught:
        load({"experiments": entries})
    assert len(str(caught.value).splitlines()) == 3


def training_names(*entries):
    plan = load({"experiments": [{"name": str(n), **e} for n, e in enumerate(entries)]})
    return [e.settings.training().exp_name for e in plan.experiments]


def test_trainings_are_called_as_by_train_wsol():
    (name,) = training_names({"model_family": "convnext"})
    assert name == "convnext_r384_e100_lr0.0001_auglight"


def test_trainings_share_a_name_only_if_all_is_equal():
    flex = {"model_family": "slak_flex"}
    same = training_names(
        NANO, {**NANO, "localization_method": "pc1"}, {**NANO, "num_samples": 9, "num_workers": 1}
    )
    assert len(set(same)) == 1
    others = training_names(
        *(flex, {**flex, "alpha": 0.1}, {**flex, "alpha": 0.1000001}, {**flex, "beta": 0.1}),
        *({**flex, "weight_decay": 0.1}, {**flex, "seed": 1}, {**flex, "init_weights": "w.pth"}),
        *({**flex, "output_stride": 16}, {**flex, "model": "slak_flex_nano"}, {**flex, "lr": 1.0}),
    )
    assert len(set(others)) == len(others)
