"""analysis-per-image: equal to the single commands, resumed, and said in words."""

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from checkpoint_factory import make_checkpoint
from cli_runner import run_cli
from data_factory import metadata_folder

from cba_fast.analysis import plots
from cba_fast.datasets.synth import generate
from cba_fast.errors import ImageError, InputError
from cba_fast.experiments import per_image
from cba_fast.experiments.per_image_answer import answer_lines, forest_groups
from cba_fast.experiments.per_image_report import COLUMNS, ModelColumns, find, model_columns
from cba_fast.experiments.per_image_sample import Sample, draw_sample, load_subjects
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
    done = run(capsys, write(), "--save_fig", "mine.png")
    assert done.status == 0, done.err
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
    for picture in ("out/scatter.png", "out/forest.png", "mine.png"):
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
    done = run(capsys, write(test_dataset="flat", cub_root="cub"), "--num_samples", 11)
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


# The analysis, on made-up figures


def made_up(name, n=80, seed=0, maps=0.8, erf=0.0, input_size=96, **change):
    """A model whose IoU follows the object channels by `maps` and the ERF size by `erf`."""
    rng = np.random.default_rng(seed)
    columns = {c: rng.normal(size=n) for c in COLUMNS}
    noise = rng.normal(size=n)
    columns["iou"] = maps * columns["object_channels"] + erf * columns["erf_size"] + 0.5 * noise
    ids = [f"{i}.jpg" for i in range(n)]
    return ModelColumns(name, "f", input_size, ids, columns | change, 50.0, 0.3, [])


SAMPLE = Sample([], [], None, 80, [], [], None)


def answer(*models):
    return "\n".join(answer_lines(find(models, SAMPLE, num_resamples=200)))


def test_the_answer_follows_the_data():
    text = answer(made_up("a"), made_up("b", seed=1))
    assert "the feature maps explain more of the IoU than the ERF size does" in text
    assert "the ERF size shows no clear relation" in text
    assert "too narrow" not in text
    text = answer(made_up("a", maps=0, erf=1), made_up("b", seed=1, maps=0, erf=1))
    assert "the ERF size explains more" in text
    assert "the ERF size still goes with a higher IoU" in text
    assert "clearly rises with the ERF size in 2 of 2 models and falls in 0; given" in text
    text = answer(made_up("a", maps=0), made_up("b", seed=1, maps=0))
    assert "do not tell which" in text


def test_measures_that_a_model_lacks_are_left_out():
    nan = np.full(80, np.nan)
    models = [made_up("a", pc1_cam_iou=nan), made_up("b", seed=1)]
    found = find(models, SAMPLE, num_resamples=10)
    assert found.quality == ["object_channels", "pc1_explained"]
    assert found.correlations.num_rows == 160
    assert found.notes == ["PC1-CAM IoU is undefined for a: left out"]
    assert answer_lines(found)
    hole = np.arange(80.0)
    hole[:3] = np.nan
    found = find([made_up("a", object_channels=hole)], SAMPLE, num_resamples=10)
    assert (found.left_out_rows, found.correlations.num_rows) == (3, 77)
    none = {"object_channels": nan, "pc1_explained": nan, "pc1_cam_iou": nan}
    found = find([made_up("a", **none)], SAMPLE, num_resamples=10)
    assert found.quality == []
    assert answer_lines(found)
    even, odd = np.where(np.arange(80) % 2, [[1], [np.nan]], [[np.nan], [1]])
    with pytest.raises(InputError, match="no image has all measures"):
        find([made_up("a", erf_size=even, object_channels=odd)], SAMPLE)


def test_ids_that_a_spreadsheet_would_run_are_told():
    model = made_up("a")
    model.image_ids[3] = "=1+1.jpg"
    (note,) = find([model], SAMPLE, num_resamples=10).notes
    assert note.endswith("run these ids as formulas: =1+1.jpg")


def test_constant_columns_are_undefined_in_words():
    text = answer(made_up("a", erf_size=np.zeros(80)), made_up("b", erf_size=np.zeros(80)))
    assert "IoU with ERF size, within models: undefined (a variable does not vary)" in text
    assert "nan" not in text.lower()


def test_erf_sizes_of_several_input_sizes_count_as_shares():
    a, b = made_up("a"), made_up("b", seed=1, input_size=48)
    b.columns["erf_size"] = b.columns["erf_size"] / 4
    found = find([a, b], SAMPLE, num_resamples=10)
    b.columns["erf_size"] = b.columns["erf_size"] * 4
    b.input_size = 96
    same = find([a, b], SAMPLE, num_resamples=10)
    assert "input sizes differ" in found.notes[0]
    value, expected = (f.correlations.find("pooled", "erf_size").pearson for f in (found, same))
    assert value.estimate == pytest.approx(expected.estimate)


def test_the_threshold_is_the_lowest_best_one():
    found = per_image.Measurement(
        index=np.array([1, 0]),
        iou=np.array([[0.2, 0.6, 0.5, 0.1], [0.5, 0.4, 0.7, 0.8]]),
        active=np.array([[4, 3, 2, 1], [40, 30, 20, 10]]),
        object_pixels=np.array([8, 0]),
        **{k: np.zeros(2) for k in ("erf_size", "object_channels", "pc1_explained")},
        **{k: np.zeros(2) for k in ("pc1_cam_iou", "other_box_channels", "constant")},
        notes=[],
    )
    subject = subject_stub(cam_curve_interval=0.25, map_shape=lambda: (4, 4))
    columns = model_columns(subject, Sample([], ["a", "b"], None, 2, [], [], None), found)
    assert (columns.threshold, columns.max_box_acc) == (0.5, 100.0)
    assert columns.image_ids == ["b", "a"]
    assert columns.columns["iou"].tolist() == [0.5, 0.7]
    np.testing.assert_array_equal(columns.columns["activated_area"], [2 / 8, np.nan])
    np.testing.assert_array_equal(columns.columns["object_area"], [8 / 16, np.nan])


def subject_stub(**settings):
    settings = SimpleNamespace(model_family="f", input_size=4, **settings)
    return SimpleNamespace(name="m", settings=settings)


# Pictures


def test_scatter_has_a_line_within_each_model():
    a, b = made_up("a", erf=1), made_up("b", seed=1, erf_size=np.zeros(80))
    columns = {m.name: (m.columns["erf_size"], m.columns["iou"]) for m in (a, b)}
    fig = plots.plot_images(columns, "x", "y")
    ax = fig.axes[0]
    assert [len(c.get_offsets()) for c in ax.collections] == [80, 80]
    x, y = ax.lines[0].get_xydata().T
    slope, intercept = np.polyfit(*columns["a"], 1)
    np.testing.assert_allclose(y, slope * x + intercept)
    texts = [t.get_text() for t in fig.legends[0].get_texts()]
    assert texts[0].startswith("a (80 images), r +")
    assert texts[1] == "b (80 images), no line"


def test_forest_shows_every_model_and_the_intervals():
    found = find([made_up("a"), made_up("b", seed=1)], SAMPLE, num_resamples=50)
    groups, labels = forest_groups(found)
    assert labels == ["a", "b", "within models"]
    assert "ERF size | feature maps" in groups
    fig = plots.plot_forest(groups, labels)
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(groups)
    bars = [bar for group in groups.values() for bar in group]
    drawn = {tuple(line.get_xdata()) for line in ax.lines}
    assert {(b.low, b.high) for b in bars} <= drawn
    assert {(b.estimate,) for b in bars} <= drawn
    assert [t.get_text() for t in fig.legends[0].get_texts()] == labels
