"""The report of stored maps: its figures are the evaluator's, and names are text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from cli_runner import run_cli
from evaluate_setup import images_and_metadata, model_arguments, read
from report_factory import EVIL, report_data

from cba_fast.data.boxes import Boxes
from cba_fast.errors import InputError
from cba_fast.ops import best_box_iou, box_sweep
from cba_fast.report import MapKeeper, collect, render
from cba_fast.report.causes import DEFINITIONS, ELSEWHERE, HIT, MANY, MORE, PART, judge
from cba_fast.report.claims import _compared, find_claims
from cba_fast.report.collect import class_names
from cba_fast.runs.evaluate import evaluate
from cba_fast.runs.ranks import Ranks
from cba_fast.runs.settings import (
    BoxConfig,
    DataConfig,
    MapConfig,
    ModelConfig,
    ReportConfig,
    RunConfig,
)
from cba_fast.wsol.scoring.bootstrap import Difference

N = 12


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and what its data block holds."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self._inside = [], "", None
        self.feed(html)
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
        self.data = json.loads(data[1])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, text):
        if self._inside not in ("script", "style"):
            self.text += text

    def all(self, tag, **having):
        return [a for t, a in self.tags if t == tag and having.items() <= a.items()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return report_data(tmp_path_factory.mktemp("report"), N)


def collected_of(root, runs=("sharp", "<wide>"), **report):
    config = BoxConfig(metadata_root=root / "meta")
    report = ReportConfig(**{"num_resamples": 50, "thumbnail": 48, **report})
    return collect({name: root / name for name in runs}, config, report)


@pytest.fixture(scope="module")
def collected(root):
    return collected_of(root)


@pytest.fixture(scope="module")
def page(root, collected):
    return Page(render(collected, root / "images"))


def map_of(root, run, image_id):
    return np.load(root / run / f"{image_id}.npy")[None]


def test_every_image_is_judged_as_the_evaluator_counts_it(root, collected):
    for run in collected.runs:
        hits = run.evaluator.localized("largest", 0.5, run.threshold)
        assert {i: j.cause == HIT for i, j in run.judged.items()} == hits
        assert 0 < sum(hits.values()) < N
        for image_id, judged in run.judged.items():
            u = map_of(root, run.name, image_id)
            truth = [collected.boxes.scaled(image_id, u.shape[:0:-1])]
            assert judged.iou == best_box_iou(u, truth, [run.threshold]).item()


def test_the_gallery_holds_the_boxes_of_the_sweep(root, collected, page):
    thresholds = collected.runs[0].evaluator.thresholds
    assert page.data["thresholds"] == pytest.approx(thresholds.tolist())
    cards = page.all("li", **{"class": "card"})
    assert len(cards) == len(page.data["cards"]) == N
    for card, shown in zip(cards, page.data["cards"]):
        for run, one in zip(collected.runs, shown):
            sweep = box_sweep(map_of(root, run.name, card["data-name"]), thresholds)[0].tolist()
            starts = [step[0] for step in one["steps"]] + [len(thresholds)]
            boxes = [
                s[1:] for s, a, b in zip(one["steps"], starts, starts[1:]) for _ in range(a, b)
            ]
            assert boxes == sweep
            assert starts[0] == 0
    assert page.data["best"] == [list(thresholds).index(r.threshold) for r in collected.runs]


def test_names_are_text_and_nothing_is_loaded(page, collected):
    assert EVIL in page.text
    assert "<wide>" in page.text
    assert not any("onerror" in attributes for _, attributes in page.tags)
    sources = [a[k] for _, a in page.tags for k in ("src", "href") if k in a]
    assert all(s.startswith(("data:", "#")) for s in sources)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "default-src 'none'" in policy
    stages = page.all("div", **{"class": "stage"})
    assert len(stages) == 2 * N
    assert all(a["role"] == "img" and a["aria-label"] for a in stages)
    assert len(page.all("h1")) == 1
    assert all("alt" in a for a in page.all("img"))


def test_headline_and_classes_are_those_of_the_scores(page, collected):
    for run in collected.runs:
        assert f"{run.result.max_box_acc:.2f}" in page.text
        assert f"{run.result.max_box_acc_v2:.2f}" in page.text
    difference = collected.differences["<wide>"].find("max_box_acc_v2")
    assert f"{difference.estimate:+.2f}" in page.text
    assert class_names(collected.boxes, [0, 1, 2]) == {0: "001.Auk", 1: EVIL, 2: "003.Owl"}
    for _, definition in DEFINITIONS.items():
        assert definition in page.text


def test_classes_without_folders_of_their_own_are_numbered():
    labels = {"val/1.jpg": 0, "val/2.jpg": 1}
    assert class_names(Boxes(tuple(labels), {}, {}, labels), [0, 1]) == {0: "class 0", 1: "class 1"}


@pytest.mark.parametrize(
    ("box", "truth", "cause"),
    [
        ((0, 0, 9, 9), [(0, 0, 9, 9)], HIT),
        ((0, 0, 3, 3), [(0, 0, 9, 9)], PART),
        ((0, 0, 29, 29), [(0, 0, 9, 9)], MORE),
        ((20, 20, 29, 29), [(0, 0, 9, 9)], ELSEWHERE),
        ((0, 0, 0, 0), [(5, 5, 9, 9)], ELSEWHERE),
        ((0, 0, 29, 9), [(0, 0, 9, 9), (20, 0, 29, 9)], MANY),
        ((0, 0, 29, 9), [(0, 0, 9, 9), (28, 0, 39, 9)], MORE),  # 2 of 12 columns of the second
    ],
)
def test_causes(box, truth, cause):
    assert judge(np.array(box), np.array(truth), 0.5).cause == cause


def test_a_sample_is_stated_and_holds_best_and_worst(root):
    collected = collected_of(root, gallery=6)
    page = Page(render(collected))
    shown = {card["data-name"] for card in page.all("li", **{"class": "card"})}
    iou = {i: j.iou for i, j in collected.runs[0].judged.items()}
    assert len(shown) == 6
    assert min(iou, key=iou.get) in shown
    assert max(iou, key=iou.get) in shown
    assert "6 images of 12, by the IoU of sharp" in page.text
    assert "--photo" not in str(page.tags)  # no images were given
    assert Page(render(collected_of(root, ("sharp",), gallery=0))).data["cards"] == []


@pytest.mark.parametrize(
    ("difference", "low", "high", "text"),
    [
        (
            -6.5,
            -10.5,
            -1.5,
            "B has a higher MaxBoxAcc than A .*, by 6.50 points, interval 1.50 to 10",
        ),
        (6.5, 1.5, 10.5, "A has a higher MaxBoxAcc than B .*, by 6.50 points, interval 1.50 to 10"),
        (
            -1.0,
            -4.0,
            2.0,
            r"open: the difference A \u2212 B \(-1.00 points, interval -4.00 to \+2.00\)",
        ),
    ],
)
def test_a_claim_on_two_runs_names_the_better_one_first(difference, low, high, text):
    found = Difference("box_acc", "largest", 0.5, difference, low, high, 1.0, 0.0, 60, 60, 0.1)
    assert re.search(text, _compared("A", "B", found).text)


def test_runs_over_other_images_are_not_compared(root, tmp_path):
    some = [p for p in sorted((root / "sharp").rglob("*.npy")) if "img_3." not in p.name]
    for path in some:
        target = tmp_path / "some" / path.relative_to(root / "sharp")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    config = BoxConfig(metadata_root=root / "meta")
    report = ReportConfig(num_resamples=20, thumbnail=32)
    collected = collect({"all": root / "sharp", "some": tmp_path / "some"}, config, report)
    page = Page(render(collected))
    assert "Not compared: the two runs must hold the same images" in page.text
    assert "no map" in page.text
    opened = [claim.text for claim in find_claims(collected) if not claim.shown]
    assert any("has no map of" in text for text in opened)
    with pytest.raises(InputError, match="holds none of the images"):
        render(collected, tmp_path)


def test_the_command_writes_one_file(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["report", "--metadata_root", root / "meta", "--bootstrap", 20, "--gallery", 3]
    maps = ["--scoremaps", f"first={root / 'sharp'}", "--scoremaps", root / "<wide>"]
    done = run_cli(capsys, *arguments, *maps, "--images", root / "images", "--output", "r.html")
    assert done.status == 0, done.err
    assert "first: MaxBoxAcc" in done.out
    assert "<wide>: MaxBoxAcc" in done.out
    assert [p.name for p in Path().iterdir()] == ["r.html"]
    twice = run_cli(
        capsys, *arguments, "--scoremaps", root / "sharp", "--scoremaps", root / "sharp"
    )
    assert twice.status == 2
    assert "two runs are called 'sharp'" in twice.err


def test_evaluate_ends_with_the_report_of_its_own_maps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images_and_metadata(tmp_path)
    weights = make_checkpoint(
        tmp_path / "r.pth", "replknet", SMALL_MODELS["replknet"], num_classes=3
    )
    boxes = ["--metadata_root", "meta", "--num_samples", 0, "--json", "scores.json"]
    before = {p.name for p in tmp_path.iterdir()}
    done = run_cli(capsys, "evaluate", *model_arguments(weights), *boxes, "--report", "r.html")
    assert done.status == 0, done.err
    assert {p.name for p in tmp_path.iterdir()} - before == {"r.html", "scores.json"}
    page, scores = Page(Path("r.html").read_text()), read(Path("scores.json"))
    assert f"{scores['max_box_acc_v2']:.2f}" in page.text
    assert len(page.all("li", **{"class": "card"})) == 7  # two of nine images have no file
    assert "--photo: url(data:" in page.all("li", **{"class": "card"})[0]["style"]
    assert SMALL_MODELS["replknet"] in page.text  # the model is among the settings
    assert ".tmp-" not in page.text  # so that the same command makes the same page


def test_several_processes_keep_no_maps_for_a_report(tmp_path):
    configs = ModelConfig(), DataConfig("x"), RunConfig(), MapConfig(), BoxConfig()
    with pytest.raises(InputError, match="made by one process"):
        evaluate(*configs, keeper=MapKeeper(tmp_path / "r.html"), ranks=Ranks(0, 2))
