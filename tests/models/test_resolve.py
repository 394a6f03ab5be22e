"""Commands take from the checkpoint what it was trained with, say so, and check labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from checkpoint_factory import make_model
from cli_runner import run_cli
from data_factory import image_folder, metadata_folder

from cba_fast.errors import InputError
from cba_fast.experiments import per_image
from cba_fast.experiments.per_image_sample import draw_sample, load_subjects
from cba_fast.experiments.plan import load_experiments
from cba_fast.models import (
    ModelDescription,
    build_model,
    read_checkpoint,
    save_state_dict_file,
)
from cba_fast.runs.resolve import resolve
from cba_fast.runs.settings import DataConfig, ModelConfig

NANO = ModelDescription("replknet", "replknet_nano", 3, ("owl", "auk", "jay"), 16, 96, "study")
FLEX = ModelDescription("slak_flex", "slak_flex_nano", 3, None, 16, 64, "study", 0.25, 0.75)
IMAGES = [f"{c}/{i}.png" for c, n in (("auk", 3), ("jay", 2), ("owl", 1)) for i in range(n)]
BOX = (2, 2, 20, 20)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images with metadata, and two models in files that describe them and in files that do not."""
    root = tmp_path_factory.mktemp("made")
    image_folder(root / "images", IMAGES)
    boxes, sizes = {i: [BOX] for i in IMAGES}, dict.fromkeys(IMAGES, (32, 24))
    labels = {i: ("auk", "jay", "owl").index(i.split("/")[0]) for i in IMAGES}
    metadata_folder(root / "meta", boxes, sizes, labels)
    for said in (NANO, FLEX):
        state = make_model(said.family, said.model, num_classes=3, output_stride=16).state_dict()
        save_state_dict_file(state, root / f"{said.family}.pth", said)
        save_state_dict_file(state, root / f"{said.family}_foreign.pth")
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMON = ("--test_dataset", "images", "--num_workers", 0, "--device", "cpu")
SCORED = ("--metadata_root", "meta", "--num_samples", 0, "--json", "s.json")
FLAGS = ("--model_family", "replknet", "--model", "replknet_nano", "--input_size", 96)
FLAGS += ("--output_stride", 16)


def line(done):
    assert done.status == 0, done.err
    (found,) = [text for text in done.err.splitlines() if text.startswith("Model ")]
    return found.removeprefix("Model        : ")


def test_weights_and_images_are_enough(here, capsys):
    def counts(*args):
        done = run_cli(capsys, "evaluate", *args, *COMMON, *SCORED)
        return json.loads(Path("s.json").read_text())["largest"], line(done)

    short = counts("--weights", "replknet.pth")
    assert short[1] == (
        "replknet replknet_nano, 3 classes, input 96, stride 16, weights replknet.pth "
        "(recorded in the checkpoint)"
    )
    full = counts("--fine_tuned_weight_name", "replknet_foreign.pth", *FLAGS)
    assert full[1].endswith("input 96, stride 16, weights replknet_foreign.pth")
    assert short[0] == full[0]
    assert counts("--weights", "replknet.pth", "--output_stride", 32)[0] != full[0]


def test_what_differs_or_is_assumed_is_said(here):
    def told(weights, size=None, **settings):
        model = ModelConfig(weights=Path(weights), **settings)
        return resolve(model, DataConfig("", input_size=size)).line

    assert "input 128 (recorded: 96), stride 32 (recorded: 16)" in told(
        "replknet.pth", 128, output_stride=32
    )
    assert "alpha 1 (recorded: 0.25), beta 0.75," in told("slak_flex.pth", alpha=1)
    assert told("replknet_foreign.pth", name="replknet_nano").endswith(
        "(input 384, stride 32: assumed, the checkpoint does not say)"
    )
    assert told("slak_flex_foreign.pth", name="slak_flex_nano", output_stride=16).endswith(
        "(input 384, alpha 1, beta 0: assumed, the checkpoint does not say)"
    )


def test_resolved_settings_stay_as_they_are(here):
    first = resolve(ModelConfig(weights=Path("slak_flex.pth")), DataConfig("images"))
    assert (first.model.alpha, first.data.input_size) == (0.25, 64)
    again = resolve(first.model, first.data)
    assert (again.model, again.data) == (first.model, first.data)


@pytest.mark.parametrize(
    "command", ["generate-heatmap", "evaluate", "erf-compute", "erf-map", "erf-shape"]
)
def test_contradictions_end_every_command(command, here, capsys):
    done = run_cli(
        capsys, command, "--weights", "slak_flex.pth", "--model", "slak_flex_base", *COMMON
    )
    assert done.status == 1
    assert "is a slak_flex_nano, and the model slak_flex_base was asked for" in done.err
    done = run_cli(capsys, command, "--weights", "slak_flex.pth", "--model_family", "slak", *COMMON)
    assert "looks like a slak_flex checkpoint" in done.err


def test_erf_commands_tell_their_settings(here, capsys):
    done = run_cli(capsys, "erf-compute", "--weights", "slak_flex.pth", *COMMON, "--num_samples", 2)
    assert "input 64, stride 16, alpha 0.25, beta 0.75, weights slak_flex.pth" in line(done)
    assert Path("erf_sizes_slak_flex.npy").exists()
    more = ("--num_samples", 1, "--steps", 2)
    done = run_cli(capsys, "erf-shape", "--weights", "slak_flex.pth", *COMMON, *more)
    assert line(done) == (
        "slak_flex slak_flex_nano, 3 classes, input 64, stride 16, weights slak_flex.pth "
        "(recorded in the checkpoint)"
    )
    assert np.load("erf_shape.npy").shape == (2, 64, 64)


@pytest.mark.parametrize("given", [(), ("--alpha", 0.5, "--beta", 0.5)])
def test_merge_takes_the_recorded_mixture(given, here, capsys):
    done = run_cli(capsys, "merge", "--weights", "slak_flex.pth", "--output", "m.pth", *given)
    mixing = {"alpha": 0.5, "beta": 0.5} if given else {"alpha": 0.25, "beta": 0.75}
    assert f"alpha {mixing['alpha']}" in line(done)
    assert float(done.out.split("outputs: ")[1].split()[0]) < 1e-5
    said = read_checkpoint("m.pth").description
    assert said == ModelDescription("slak_flex", "slak_flex_nano", 3, None, 16, 64, "study")
    x = torch.randn(1, 3, 64, 64)
    expected = build_model(checkpoint="slak_flex.pth", **mixing)(x)
    assert (build_model(checkpoint="m.pth")(x) - expected).abs().max() < 1e-4
    done = run_cli(
        capsys,
        "merge",
        "--weights",
        "slak_flex_foreign.pth",
        "--output",
        "f.pth",
        "--model",
        "slak_flex_nano",
    )
    assert "alpha 1, beta 0: assumed" in line(done)
    # What was assumed is not recorded as known.
    assert read_checkpoint("f.pth").description.output_stride is None


def test_labels_are_those_of_the_class_names(here, capsys):
    def maps(target, name, *more):
        args = ("--target", target, "--heatmap_output", name, *more)
        done = run_cli(capsys, "generate-heatmap", *COMMON, "--no_overlay", *args)
        assert done.status == 0, done.err
        return {p.parent.name: np.load(p) for p in Path(f"np_{name}").glob("*/0.npy")}

    by_name = maps("label", "a", "--weights", "replknet.pth")
    for label, folder in enumerate(NANO.class_names):
        expected = maps(label, f"t{label}", "--weights", "replknet.pth")
        assert np.array_equal(by_name[folder], expected[folder])
    Path("classes.txt").write_text("owl\nauk\njay\n")
    foreign = ("--weights", "replknet_foreign.pth", *FLAGS)
    listed = maps("label", "b", *foreign, "--classes", "classes.txt")
    assert all(np.array_equal(by_name[k], listed[k]) for k in by_name)
    # As many folders as classes, and no names: their order, which is another.
    assert not np.array_equal(maps("label", "c", *foreign)["owl"], by_name["owl"])


def test_evaluate_counts_classes_by_their_names(here, capsys):
    # Three auks, two jays, one owl: to take one class for another changes the share.
    scored = (*COMMON, *SCORED[:-2], "--predictions", "p.json", "--json", "s.json")
    done = run_cli(capsys, "evaluate", "--weights", "replknet.pth", *scored)
    assert done.status == 0, done.err
    found = json.loads(Path("s.json").read_text())["classification"]
    best = {i: classes[0] for i, classes in json.loads(Path("p.json").read_text()).items()}
    right = [NANO.class_names[best[i]] == i.split("/")[0] for i in IMAGES]
    assert found["top1"] == pytest.approx(100 * np.mean(right))
    by_folder = [("auk", "jay", "owl")[best[i]] == i.split("/")[0] for i in IMAGES]
    assert sum(by_folder) != sum(right)


def test_the_per_image_study_counts_classes_by_their_names(here):
    data = {"test_dataset": "images", "metadata_root": "meta", "target": "label"}
    text = yaml.safe_dump({"experiments": [{"name": "a", "weight_path": "replknet.pth", **data}]})
    Path("e.yaml").write_text(text)
    (subject,), _ = load_subjects(Path("e.yaml"))
    sample = draw_sample(subject.settings)
    labels = {r.image_id: r.label for r in per_image.labelled(subject, sample).records}
    assert labels == {i: NANO.class_names.index(i.split("/")[0]) for i in IMAGES}


@pytest.mark.parametrize("command", ["evaluate", "generate-heatmap"])
def test_a_file_of_classes_that_is_missing_ends_the_run(here, capsys, command):
    data = COMMON + SCORED if command == "evaluate" else COMMON
    done = run_cli(capsys, command, "--weights", "replknet.pth", *data, "--classes", "none.txt")
    assert (done.status, done.err.strip()) == (1, "Error: no file none.txt")


def test_labels_outside_of_the_classes_cost_the_top1_alone(here, capsys):
    labels = {i: n for n, i in enumerate(IMAGES)}
    metadata_folder(Path("m"), {i: [BOX] for i in IMAGES}, dict.fromkeys(IMAGES, (32, 24)), labels)
    args = ("evaluate", "--weights", "replknet.pth", *COMMON, *SCORED, "--metadata_root", "m")
    done = run_cli(capsys, *args)
    assert f"no top-1: image {IMAGES[3]} has label 3, which is outside the model's 3 classes" in (
        done.err
    )
    found = json.loads(Path("s.json").read_text())
    assert found["classification"] is None
    assert found["num_images"] == len(IMAGES)
    done = run_cli(capsys, *args, "--target", "label")
    assert done.status == 1
    assert "has label 3, which is outside" in done.err


def test_plans_take_what_the_checkpoint_says(here):
    def settings(**experiment):
        text = yaml.safe_dump({"experiments": [{"name": "a", **experiment}]})
        Path("e.yaml").write_text(text)
        return load_experiments(Path("e.yaml")).experiments[0].settings

    found = settings(weight_path="slak_flex.pth", input_size=96)
    assert (found.model_family, found.model) == ("slak_flex", "slak_flex_nano")
    assert (found.output_stride, found.alpha, found.beta) == (16, 0.25, 0.75)
    assert found.input_size == 96
    foreign = settings(weight_path="replknet_foreign.pth")
    assert (foreign.model_family, foreign.model, foreign.input_size) == ("replknet", None, 384)
    with pytest.raises(InputError, match="weight_path: .*looks like a slak_flex checkpoint"):
        settings(weight_path="slak_flex.pth", model_family="replknet")
