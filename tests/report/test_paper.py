"""Tables, rows of images and contact sheets of a report."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from cli_runner import run_cli
from evaluate_setup import images_and_metadata, model_arguments
from PIL import Image
from report_factory import EVIL, report_data

from cba_fast.errors import InputError
from cba_fast.ops import best_box_iou
from cba_fast.report import collect, write_report
from cba_fast.report.gallery import ranked
from cba_fast.report.sheets import _Pictures, _stems, plot_strips, write_sheets
from cba_fast.report.tables import make_tables
from cba_fast.runs.settings import BoxConfig, ReportConfig

N = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return report_data(tmp_path_factory.mktemp("report"), N)


def config_of(root, **report):
    report = {"num_resamples": 20, "sheet_images": 1, **report}
    return BoxConfig(metadata_root=root / "meta"), ReportConfig(**report)


@pytest.fixture(scope="module")
def collected(root):
    return collect({n: root / n for n in ("sharp", "<wide>")}, *config_of(root))


@pytest.fixture(scope="module")
def written(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    runs = {n: f"{root}/{n}" for n in ("sharp", "<wide>")}
    made = write_report(  # paths may be text
        *(runs, f"{out}/r", *config_of(root)),
        **{"images": f"{root}/images", "tables": f"{out}/t", "sheets": f"{out}/s"},
    )
    assert (out / "r" / "report.html").is_file()
    return out, made


def test_tables_hold_the_scores_with_their_parts_and_differences(collected):
    tables = {t.name: t for t in make_tables(collected)}
    assert set(tables) == {"scores", "differences", "failures", "classes"}
    run = collected.runs[1]
    row = tables["scores"].rows[1]
    assert row[0] == "<wide>"
    for cell, metric in zip(row[1:3], ("max_box_acc", "max_box_acc_v2")):
        s = run.intervals.find(metric)
        assert cell == f"{s.estimate:.2f} [{s.low:.2f}, {s.high:.2f}]"
    parts = [float(cell.split()[0]) for cell in row[3:6]]
    assert np.mean(parts) == pytest.approx(run.result.max_box_acc_v2, abs=0.01)
    rows = {row[1]: row for row in tables["differences"].rows}
    assert set(rows) >= {"MaxBoxAcc", "MaxBoxAccV2", "accuracy at IoU 0.3, all contours"}
    d = collected.differences["<wide>"].find("max_box_acc_v2")
    assert rows["MaxBoxAccV2"][2:4] == (f"{d.a:.2f}", f"{d.b:.2f}")
    assert rows["MaxBoxAccV2"][4].startswith(f"{d.estimate:+.2f} [")
    assert [sum(int(r[n].split()[0]) for r in tables["failures"].rows) for n in (1, 2)] == [N, N]
    assert EVIL in {row[0] for row in tables["classes"].rows}


def test_every_image_has_a_row(root, written):
    out, made = written
    with open(out / "t" / "per_image.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert Counter(row["run"] for row in rows) == {"sharp": N, "<wide>": N}
    for row in rows:
        run = made.runs[[r.name for r in made.runs].index(row["run"])]
        u = np.load(root / row["run"] / f"{row['image_id']}.npy")[None]
        truth = [tuple(map(int, box.split())) for box in row["true_boxes"].split(";")]
        iou = best_box_iou(u, [np.array(truth)], [run.threshold]).item()
        assert float(row["iou"]) == pytest.approx(iou, abs=1e-6)
        assert float(row["threshold"]) == pytest.approx(run.threshold)
        assert (row["localized"] == "1") == (iou >= 0.5)
        box = tuple(int(row[k]) for k in ("x0", "y0", "x1", "y1"))
        assert box == run.judged[row["image_id"]].box
        assert (row["map_width"], row["map_height"]) == ("32", "32")


def test_sheets_hold_the_images_of_each_kind(written):
    out, made = written
    orders = ranked(made)
    assert set(orders) == {"worst", "best", "changed"}
    iou = {i: j.iou for i, j in made.runs[0].judged.items()}
    other = {i: j.iou for i, j in made.runs[1].judged.items()}
    assert orders["worst"][0] == min(iou, key=iou.get)
    assert orders["best"][0] == max(iou, key=iou.get)
    changes = [abs(iou[i] - other[i]) for i in orders["changed"]]
    assert changes == sorted(changes, reverse=True)
    for kind, ids in orders.items():
        (picture,) = (out / "s" / kind).glob("*.png")
        folder, name = ids[0].rsplit("/", 1)
        assert picture.stem == f"{folder.replace('/', '__')}__{name.removesuffix('.jpg')}"
        assert Image.open(picture).size[0] > 1000
        for suffix in (".png", ".pdf"):
            assert (out / "s" / f"{kind}{suffix}").stat().st_size > 5000
            assert picture.with_suffix(suffix).is_file()
    assert (out / "s" / "best.pdf").read_bytes().startswith(b"%PDF")


def test_a_strip_shows_boxes_where_they_are(root, collected):
    image_id = ranked(collected)["best"][0]
    pictures = _Pictures(collected, [image_id], root / "images")
    axes = plot_strips(collected, [image_id], pictures).axes[:3]
    size = collected.boxes.sizes[image_id]
    for ax in axes:
        assert ax.get_xlim() == (0, size[0])
        assert ax.get_ylim() == (size[1], 0)
    assert [len(ax.images) for ax in axes] == [1, 2, 2]  # the photo, and a map over it
    for ax, run in zip(axes[1:], collected.runs):
        x0, y0, x1, y1 = run.judged[image_id].box
        scale = np.array([size[0] / 32, size[1] / 32] * 2)
        expected = np.array([x0, y0, x1 + 1, y1 + 1]) * scale
        np.testing.assert_allclose(ax.patches[-1].get_bbox().extents, expected)
        assert f"IoU {run.judged[image_id].iou:.2f}" in ax.get_title()
        assert run.name in ax.get_title()
    assert len(plot_strips(collected, [image_id], pictures).axes) == 4  # the colour bar


def test_sheets_of_an_earlier_call_are_replaced_and_other_files_stay(root, collected, tmp_path):
    first = write_sheets(tmp_path, collected)  # without images the maps stand alone
    (tmp_path / "mine.txt").write_text("mine")
    config, report = config_of(root, sheet_images=1)
    again = write_sheets(tmp_path, collect({"sharp": root / "sharp"}, config, report))
    assert set(tmp_path.rglob("*.p*")) == set(again)
    assert len(first) > len(again)
    assert not (tmp_path / "changed.png").exists()
    assert (tmp_path / "mine.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "best.png").write_text("mine")
    with pytest.raises(InputError, match=r"best\.png exists"):
        write_sheets(tmp_path / "other", collected)


def test_two_images_never_share_a_file():
    ids = ["a/b__c.jpg", "a__b/c.jpg", "a/b__c.png", "x" * 300 + "/1.jpg", "../up.jpg"]
    ids += ["鳥" * 80 + "/" + "鳥" * 80 + ".jpg"]
    stems = _stems(ids)
    assert len(set(stems.values())) == len(ids)
    assert all("/" not in s and len(s.encode()) < 200 for s in stems.values())


def test_wsol_eval_writes_all_for_maps_of_any_method(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ["wsol-eval", "--np_root", root / "sharp", "--metadata_root", root / "meta"]
    args += ["--images", root / "images", "--compare", root / "<wide>", "--bootstrap", 20]
    done = run_cli(capsys, *args, "--report", "r", "--tables", "t")
    assert done.status == 0, done.err
    assert "Report       : r/report.html" in done.out
    page = Path("r/report.html").read_text()
    assert "sharp − &lt;wide&gt;" in page  # noqa: RUF001
    assert "--photo: url(data:" in page
    assert Path("t/differences.tex").is_file()
    assert run_cli(capsys, *args).status == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r", "t"]


def test_evaluate_writes_tables_and_sheets_without_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images_and_metadata(tmp_path)
    name = SMALL_MODELS["replknet"]
    weights = make_checkpoint(tmp_path / "r.pth", "replknet", name, num_classes=3)
    boxes = ["--metadata_root", "meta", "--num_samples", 2]
    done = run_cli(capsys, "evaluate", *model_arguments(weights), *boxes, "--tables", "t")
    assert done.status == 0, done.err
    assert "Tables       : t" in done.out
    found = {p.name for p in (tmp_path / "t").iterdir()}
    assert {"scores.tex", "failures.md", "erf.csv", "per_image.csv"} <= found
    assert not any(name.startswith(".") for name in found)
    assert not list(tmp_path.glob("*.html"))
