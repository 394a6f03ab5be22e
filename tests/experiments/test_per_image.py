"""analysis-per-image: equal to the single commands, resumed, and said in words."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from checkpoint_factory import make_checkpoint
from cli_runner import run_cli
from data_factory import metadata_folder

from cba_fast.datasets.synth import generate
from cba_fast.errors import ImageError, InputError
from cba_fast.experiments import per_image
from cba_fast.experiments.per_image_report import COLUMNS
from cba_fast.experiments.per_image_sample import draw_sample, load_subjects
from cba_fast.runs.erf.sizes import measure_sizes
from cba_fast.runs.evaluate import evaluate
from cba_fast.runs.inference import load_model, open_images

DEFAULTS = {
    "test_dataset": "cub",
    "input_size": 64,
    "map_size": 64,
    "output_stride": 16,
    "num_workers": 0,
    "device": "cpu",
}
FLEX = {"model_family": "slak_flex", "model": "slak_flex_nano", "alpha": 1, "beta": 0}
MODELS = [
    {"name": "rep", "model_family": "replknet", "model": "replknet_nano", "weight_path": "rep.pth"},
    {"name": "flex", **FLEX, "weight_path": "flex.pth"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Ten test images of two classes, and two small networks of random weights."""
    root = tmp_path_factory.mktemp("made")
    generate(root / "cub", classes=2, images_per_class=6, test_per_class=5, size=64)
    make_checkpoint(root / "rep.pth", "replknet", "replknet_nano", num_classes=2)
    make_checkpoint(root / "flex.pth", "slak_flex", "slak_flex_nano", num_classes=2)
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(models=MODELS, **defaults):
    content = {"defaults": DEFAULTS | defaults, "experiments": models}
    Path("models.yaml").write_text(yaml.safe_dump(content))
    return Path("models.yaml")


def run(capsys, config, *args):
    args = ("--config", config, "--output", "out", "--resamples", 50, *args)
    return run_cli(capsys, "analysis-per-image", *args)


def rows_of(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def test_one_command_measures_correlates_and_answers(here, capsys):
    done = run(capsys, write(), "--save_fig", "mine.pdf", "--tables", "t")
    assert done.status == 0, done.err
    assert Path("mine.pdf").read_bytes().startswith(b"%PDF")
    tables = ("means", "correlations", "correlations_by_model")
    assert {p.name for p in Path("t").iterdir()} == {
        f"{name}.{suffix}" for name in tables for suffix in ("csv", "md", "tex")
    }
    rows = rows_of("out/per_image.csv")
    assert [r["model"] for r in rows] == ["rep"] * 10 + ["flex"] * 10
    assert list(rows[0]) == ["model", "family", "image_id", *COLUMNS]
    # models see the same images in the same order
    assert [r["image_id"] for r in rows[:10]] == [r["image_id"] for r in rows[10:]]
    found = json.loads(Path("out/per_image.json").read_text())
    assert found["images"] == {"drawn": 10, "without_box": 0, "missing_file": 0, "measured": 10}
    assert [m["name"] for m in found["models"]] == ["rep", "flex"]
    assert {r["level"] for r in found["relations"]} == {"model", "within", "pooled", "between"}
    between = [r for r in found["relations"] if r["level"] == "between"]
    assert all(r["r2"]["estimate"] is None and r["reason"] for r in between)
    for line in found["answer"]:
        assert line in done.out
    assert "2 models allow no correlation of their means" in done.out
    for picture in ("out/scatter.png", "out/forest.png", "mine.pdf"):
        assert Path(picture).stat().st_size > 0


def test_figures_are_those_of_evaluate_and_erf_compute(here, capsys):
    run(capsys, write(target="label"))
    subjects, _ = load_subjects(Path("models.yaml"))
    for subject in subjects:
        s, how = subject.settings, per_image._how(subject.settings)
        model = s.model_of(subject.weights)
        scored = evaluate(model, s.data(), how, s.maps(), s.boxes(), num_samples=0)
        document = json.loads(Path("out/per_image.json").read_text())
        mine = next(m for m in document["models"] if m["name"] == subject.name)
        assert mine["max_box_acc"] == scored.result.max_box_acc
        at_half = scored.result.iou_thresholds.index(0.5)
        assert mine["threshold"] == scored.result.modes["largest"].optimal_threshold[at_half]
        records = open_images(s.data()).records
        sizes = measure_sizes(load_model(model, how), records, s.data(), how, s.sizes()).sizes
        rows = [r for r in rows_of("out/per_image.csv") if r["model"] == subject.name]
        assert [float(r["erf_size"]) for r in rows] == sizes.tolist()
        hits = sum(float(r["iou"]) >= 0.5 for r in rows)
        assert 10 * hits == mine["max_box_acc"]


def test_the_map_of_any_method_is_scored(here, capsys):
    other = {"name": "rep_grad", "localization_method": "layer-cam", "layer": "stages.2"}
    run(capsys, write([MODELS[0], MODELS[0] | other], target="label"))
    _, subject = load_subjects(Path("models.yaml"))[0]
    s = subject.settings
    how = per_image._how(s)
    scored = evaluate(
        s.model_of(subject.weights), s.data(), how, s.maps(), s.boxes(), num_samples=0
    )
    _, mine = json.loads(Path("out/per_image.json").read_text())["models"]
    assert mine["max_box_acc"] == scored.result.max_box_acc
    best = scored.result.modes["largest"].optimal_threshold
    assert mine["threshold"] == best[scored.result.iou_thresholds.index(0.5)]
    cams, mine = (
        [r for r in rows_of("out/per_image.csv") if r["model"] == n] for n in ("rep", "rep_grad")
    )
    assert [r["iou"] for r in cams] != [r["iou"] for r in mine]
    assert [r["pc1_explained"] for r in cams] == [r["pc1_explained"] for r in mine]


@pytest.mark.parametrize(("which", "target"), [(0, "predicted"), (1, "label"), (0, 1)])
def test_images_leave_the_device_in_groups_and_none_changes(here, monkeypatch, which, target):
    subject = load_subjects(write(target=target))[0][which]
    sample = draw_sample(subject.settings)
    sizes, calls = per_image.ops.erf_size, []

    def counted(grad, p):
        calls.append(len(grad))
        return sizes(grad, p)

    monkeypatch.setattr(per_image.ops, "erf_size", counted)
    found = []
    for group in (8, 1):
        monkeypatch.setattr(per_image, "GROUP", group)
        found.append(vars(per_image.measure(subject, sample, Path("out"), overwrite=True)))
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)
    assert calls == [8, 2, *[1] * 10]


def test_images_without_finite_numbers_are_told_and_left_out(here, monkeypatch):
    (subject, _), _ = load_subjects(write())
    sample = draw_sample(subject.settings)
    whole = per_image.measure(subject, sample, Path("whole"))
    gradient, classify, calls = per_image.input_gradient, per_image.classify, []

    def bad_gradient(model, image, **options):
        calls.append(image)
        return gradient(model, image, **options) * (np.nan if len(calls) == 3 else 1)

    def bad_features(model, image):
        features, *others = classify(model, image)
        return features / (0 if len(calls) == 9 else 1), *others

    monkeypatch.setattr(per_image, "input_gradient", bad_gradient)
    monkeypatch.setattr(per_image, "classify", bad_features)
    found = per_image.measure(subject, sample, Path("out"))
    left = [0, 1, 3, 4, 5, 6, 7, 9]
    assert found.index.tolist() == left
    np.testing.assert_array_equal(found.erf_size, whole.erf_size[left])
    np.testing.assert_array_equal(found.iou, whole.iou[left])
    notes = "\n".join(found.notes)
    assert f"{sample.records[2].image_id}: its input gradient is not finite" in notes
    assert f"{sample.records[8].image_id}: its features, logits or map hold NaN or inf" in notes


def test_the_same_command_measures_nothing_again(here, capsys, monkeypatch):
    config = write()
    first = run(capsys, config)
    files = {p: p.read_bytes() for p in Path("out").glob("per_image.*")}
    monkeypatch.setattr(per_image, "load_model", lambda *args: pytest.fail("measured again"))
    again = run(capsys, config)
    assert {p: p.read_bytes() for p in files} == files
    assert again.out.rsplit("Results", 1)[0] == first.out.rsplit("Results", 1)[0]


def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(here):
    class Killed(BaseException):
        pass

    def killing(steps, count):
        for i, step in enumerate(steps):
            if i == 1:
                raise Killed
            yield step

    (subject, _), _ = load_subjects(write())
    sample = draw_sample(subject.settings)
    whole = per_image.measure(subject, sample, Path("whole"))
    with pytest.raises(Killed):
        per_image.measure(subject, sample, Path("out"), progress=killing)
    assert not Path("out/rep.npz").exists()
    visited = []

    def counting(steps, count):
        for step in steps:
            visited.append(count)
            yield step

    again = per_image.measure(subject, sample, Path("out"), progress=counting)
    assert visited == [1]  # the two images after the first group
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert Path("out/rep.npz").read_bytes() == Path("whole/rep.npz").read_bytes()
    assert sorted(p.name for p in Path("out").iterdir()) == [".rep.npz.run.json", "rep.npz"]


@pytest.mark.parametrize("change", ["settings", "weights", "boxes", "broken", None])
def test_a_measurement_of_something_else_is_refused_or_replaced(here, change):
    (subject, _), _ = load_subjects(write())
    sample = draw_sample(subject.settings)
    first = per_image.measure(subject, sample, Path("out"))
    score = "logit" if change == "settings" else "prob"
    if change == "weights":
        (subject.weights).unlink()
        make_checkpoint(subject.weights, "replknet", "replknet_nano", num_classes=2, seed=1)
    if change == "boxes":
        sample.boxes.boxes[sample.ids[0]] += 1
    if change == "broken":
        Path("out/rep.npz").write_bytes(b"no archive")
    text = {
        "settings": "score was 'prob', is 'logit'",
        "weights": "the weights rep.pth are other bytes",
        "boxes": "the boxes are not those that were used",
        "broken": "not what its run wrote",
    }
    if change is not None:
        with pytest.raises(InputError, match=text[change]):
            per_image.measure(subject, sample, Path("out"), score=score)
    steps = []

    def counting(items, count):
        steps.append(count)
        return items

    again = per_image.measure(
        subject, sample, Path("out"), score=score, overwrite=True, progress=counting
    )
    assert steps == [2]
    same = np.array_equal(first.erf_size, again.erf_size)
    assert same == (change in ("boxes", "broken", None))


def test_another_file_of_experiments_does_not_replace_the_table(here, capsys, monkeypatch):
    assert run(capsys, write(MODELS[:1])).status == 0
    done = run(capsys, write())  # it has grown
    assert done.status == 0, done.err
    assert len(rows_of("out/per_image.csv")) == 20
    table = Path("out/per_image.csv").read_bytes()
    done = run(capsys, write(MODELS[1:]))
    assert done.status == 1
    assert "models was ['rep', 'flex'], is ['flex'] (--overwrite starts anew" in done.err
    assert Path("out/per_image.csv").read_bytes() == table
    monkeypatch.setattr(per_image, "_run", lambda *args: pytest.fail("measured"))
    assert run(capsys, write(), "--score", "logit").status == 1
    assert run(capsys, write(), "--resamples", 60).status == 0
    Path("out/.per_image.json.run.json").unlink()  # somebody's table, as it seems
    done = run(capsys, write())
    assert "no record says that an earlier run wrote it" in done.err


def test_one_unreadable_image_is_told_and_does_not_end_the_run(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rep.pth", "flex.pth"):
        (tmp_path / name).symlink_to(made / name)
    generate(tmp_path / "cub", classes=2, images_per_class=6, test_per_class=5, size=64)
    victim = open_images(load_subjects(write())[0][0].settings.data()).records[3]
    victim.path.write_bytes(b"not an image")
    done = run(capsys, write())
    assert done.status == 0, done.err
    assert victim.image_id in done.err
    found = json.loads(Path("out/per_image.json").read_text())
    assert found["images"]["measured"] == 9
    assert any(victim.image_id in note for note in found["notes"])
    assert len(rows_of("out/per_image.csv")) == 18
    # the image before it has no other box to be held against; nothing else is missing
    cells = [r for r in rows_of("out/per_image.csv") if "" in r.values()]
    assert {k for r in cells for k, v in r.items() if v == ""} <= {"other_box_channels"}
    subjects, _ = load_subjects(write(strict=True))
    for folder in ("strict", "out"):  # measured now, and read from the run before
        with pytest.raises(ImageError, match=re.escape(victim.image_id)):
            per_image.measure(subjects[0], draw_sample(subjects[0].settings), Path(folder))


def test_images_without_a_box_are_left_out_and_counted(here, capsys):
    """Class folders of all 12 images, of which the test split of the boxes knows 10."""
    for path in (here / "cub/images").glob("*/*"):
        target = here / "flat" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    done = run(
        capsys, write(test_dataset="flat", cub_root="cub", follow_links=True), "--num_samples", 11
    )
    assert done.status == 0, done.err
    found = json.loads(Path("out/per_image.json").read_text())["images"]
    assert (found["drawn"], found["missing_file"]) == (11, 0)
    assert 0 < found["without_box"] == 11 - found["measured"]
    assert f"{found['without_box']} of 11 sampled images have no ground truth" in done.err


def test_images_that_are_not_there_are_left_out_and_counted(here):
    (subject, _), _ = load_subjects(write())
    ids = [*draw_sample(subject.settings).ids[:4], "not/there.jpg"]
    boxes = {i: [(5, 5, 40, 50)] for i in ids}
    metadata_folder(here / "meta", boxes, dict.fromkeys(ids, (64, 64)), dict.fromkeys(ids, 0))
    (subject, _), _ = load_subjects(write(metadata_root="meta", test_dataset="cub/images"))
    sample = draw_sample(subject.settings)
    assert sample.missing == ["not/there.jpg"]
    assert sorted(sample.ids) == sorted(ids[:4])
    assert "1 of 5 sampled images have ground truth and no file" in sample.notes()[0]


def test_one_model_says_so(here, capsys):
    done = run(capsys, write(MODELS[:1]))
    assert done.status == 0, done.err
    assert "1 model, 10 rows" in done.out
    assert "over the images" in done.out
    assert "somewhat too narrow" in done.out
    assert "within" not in done.out


def test_settings_that_measure_nothing_new_are_one_model(here):
    models = [*MODELS, MODELS[0] | {"name": "rep_pc1", "localization_method": "pc1"}]
    subjects, notes = load_subjects(write(models), num_samples=7, seed=3)
    assert [s.name for s in subjects] == ["rep", "flex"]
    assert "rep_pc1 is the model rep" in notes[0]
    assert {(s.settings.num_samples, s.settings.erf_seed) for s in subjects} == {(7, 3)}


def test_json_is_a_configuration_too(here):
    text = json.dumps({"defaults": DEFAULTS, "experiments": MODELS})
    Path("models.json").write_text(text)
    subjects, _ = load_subjects(Path("models.json"))
    assert [s.name for s in subjects] == ["rep", "flex"]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([MODELS[0], MODELS[1] | {"p": 0.5}], "p must be one for all models: rep 0.2, flex 0.5"),
        (
            [MODELS[0], MODELS[1] | {"map_size": "64x32"}],
            "map_size must be one for all models: rep 64x64, flex 64x32",
        ),
        ([MODELS[0] | {"weight_path": "gone.pth"}], "rep: no weights gone.pth"),
        ([MODELS[0] | {"wieghts": "x"}], "unknown key"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(here, models, message):
    with pytest.raises(InputError, match=message):
        load_subjects(write(models))


def test_the_earlier_spelling_says_what_replaces_it(here, capsys):
    Path("c.json").write_text("[]")
    args = ["--config", "c.json", "--num_samples", "3"]
    assert run_cli(capsys, "analysis-erf-vs-wsol", *args).status == 2
    done = run_cli(capsys, "analysis-erf-vs-wsol", "--per-image", *args)
    assert f"--per_image is now: cba-fast analysis-per-image {' '.join(args)}\n" in done.err
    assert (
        done.err.splitlines()[1:] == run_cli(capsys, "analysis-per-image", *args).err.splitlines()
    )
