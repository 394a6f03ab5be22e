"""Hostile files that no other test has: links out of the data, formulas, tags, names, headers.

Beside their readers are tested: checkpoints (`models/test_checkpoints.py`), ``.npy`` headers
(`broken_npy.py`), images and bombs (`data/test_data_images.py`), archives
(`datasets/test_prepare_cub.py`), JSON, YAML and names of experiments
(`experiments/test_documents.py`), labels and annotations (`data/test_boxes.py`).
"""

import csv
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from broken_npy import BROKEN
from cli_runner import run_cli
from data_factory import cub_folder, image_folder, metadata_folder, write_image

from cba_fast.analysis.points import Point, append_points, put_points, read_points
from cba_fast.data import open_image_set
from cba_fast.data.boxes import load_boxes
from cba_fast.data.images import read_image
from cba_fast.data.metadata import read_labels
from cba_fast.data.predictions import read_predictions, write_predictions
from cba_fast.data.records import ImageRecord, map_names
from cba_fast.data.textlines import read_lines
from cba_fast.erf.partial import Partial
from cba_fast.errors import BoxError, ImageError, InputError, ScoreMapError
from cba_fast.experiments.plan import load_experiments
from cba_fast.files import csv_text, from_cell
from cba_fast.runs.boxes import predict_boxes, threshold_rule
from cba_fast.runs.erf.shared import read_array
from cba_fast.runs.outputs import read_arrays
from cba_fast.runs.settings import BoxConfig
from cba_fast.training.data import open_splits
from cba_fast.wsol import open_maps

OUT = "leads out of the data folder .*, to .*elsewhere.*; allow that with `follow_links`"


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    return image_folder(tmp_path / "elsewhere", ["a/1.jpg"])


@pytest.mark.parametrize("link", ["a", "a/b", "a/2.jpg"])
def test_links_out_of_class_folders_are_refused(tmp_path, elsewhere, link):
    root = image_folder(tmp_path / "root", ["c/0.jpg", *(["a/0.jpg"] if "/" in link else [])])
    goal = elsewhere / ("a/1.jpg" if link.endswith("jpg") else "a")
    (root / link).symlink_to(goal)
    with pytest.raises(InputError, match=f"^{root / link} {OUT}"):
        open_image_set(root)
    found = [r.image_id for r in open_image_set(root, follow_links=True).records]
    assert (link if link.endswith("jpg") else f"{link}/1.jpg") in found


def test_data_folders_may_be_links_themselves(tmp_path):
    kept = cub_folder(tmp_path / "kept")
    (tmp_path / "images").symlink_to(kept / "images")
    (tmp_path / "CUB").mkdir()
    for path in kept.iterdir():
        (tmp_path / "CUB" / path.name).symlink_to(path)
    assert len(open_image_set(tmp_path / "CUB", split="all")) == 5
    assert len(open_image_set(tmp_path / "images")) == 5


@pytest.mark.parametrize("kind", ["cub", "metadata", "train"])
def test_links_out_of_listed_images_are_refused(tmp_path, elsewhere, kind):
    root = cub_folder(tmp_path / "cub")
    first = next(r for r in open_image_set(root, split="train").records)
    first.path.unlink()
    first.path.symlink_to(elsewhere / "a/1.jpg")
    ids = {r.image_id: [(0, 0, 5, 5)] for r in open_image_set(root, split="test").records}
    ids[first.image_id] = [(0, 0, 5, 5)]
    sizes, labels = dict.fromkeys(ids, (32, 24)), dict.fromkeys(ids, 0)
    metadata_folder(tmp_path / "meta", ids, sizes, labels)
    openers = {
        "cub": lambda **how: open_image_set(root, split="train", **how),
        "train": lambda **how: open_splits(root, **how),
        "metadata": lambda **how: open_image_set(
            root / "images", metadata_root=tmp_path / "meta", **how
        ),
    }
    with pytest.raises(InputError, match=f"^{first.path} {OUT}"):
        openers[kind]()
    openers[kind](follow_links=True)


def test_boxes_of_linked_images_are_told_by_the_commands_flag(tmp_path, elsewhere, capsys):
    root = image_folder(tmp_path / "root", ["a/0.jpg"])
    (root / "a/2.jpg").symlink_to(elsewhere / "a/1.jpg")
    (tmp_path / "maps/a").mkdir(parents=True)
    np.save(tmp_path / "maps/a/0.npy", np.eye(8))
    np.save(tmp_path / "maps/a/2.npy", np.eye(8))
    config, rule = BoxConfig(contours="largest"), threshold_rule("0.5")
    with pytest.raises(InputError, match=OUT):
        predict_boxes(tmp_path / "maps", rule, config, test_dataset=root)
    args = ["boxes", "--np_root", tmp_path / "maps", "--test_dataset", root]
    args += ["--output", tmp_path / "b.csv"]
    done = run_cli(capsys, *args)
    assert done.status == 1
    assert "allow that with --follow_links" in done.err
    assert run_cli(capsys, *args, "--follow_links").status == 0


def test_links_to_themselves_hide_nothing(tmp_path):
    root = image_folder(tmp_path / "root", ["a/0.jpg"])
    for path in (root / "loop", root / "a/loop", root / "a/loop.jpg"):
        path.symlink_to(path)
    with pytest.raises(ImageError, match=r"a/loop\.jpg: .*symbolic links"):
        read_image(root / "a/loop.jpg")
    (root / "a/loop.jpg").unlink()
    assert [r.image_id for r in open_image_set(root).records] == ["a/0.jpg"]
    (tmp_path / "maps/a").mkdir(parents=True)
    (tmp_path / "maps/a/loop.npy").symlink_to(tmp_path / "maps/a/loop.npy")
    np.save(tmp_path / "maps/a/0.npy", np.eye(8))
    assert open_maps(tmp_path / "maps").find("a/0.jpg") is not None
    loop = tmp_path / "maps2"
    loop.symlink_to(loop)
    with pytest.raises(ScoreMapError, match="maps2"):
        open_maps(loop)
    with pytest.raises(InputError, match="maps2"):
        open_image_set(loop)


RUN = ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "\na", "=", "-1+1", "+1/2", "'=1", "''@a"]
PLAIN = ["a=1", "-1", "+1.5", "-1e-5", "'a", "", "1", "ü", "-.5"]


def test_no_cell_is_run_by_a_spreadsheet_and_numbers_stay(tmp_path):
    text = csv_text([[*RUN, *PLAIN, -1, -0.5, None]])
    (row,) = csv.reader(io.StringIO(text, newline=""))
    assert row[: len(RUN)] == [f"'{cell}" for cell in RUN]
    assert row[len(RUN) :] == [*PLAIN, "-1", "-0.5", ""]
    assert [from_cell(cell) for cell in row] == [*RUN, *PLAIN, "-1", "-0.5", ""]


def test_files_with_such_cells_come_back(tmp_path):
    found = {f"{cell}/1.jpg": [3, 1] for cell in ("=1", "@a", "-5", "'=1", "a")}
    write_predictions(tmp_path / "p.csv", found)
    assert "\n'=1/1.jpg,3,1\n'@a/1.jpg" in (tmp_path / "p.csv").read_text()
    assert read_predictions(tmp_path / "p.csv") == found
    points = [Point("=1", "@f", "-e.npy", 0.5), Point("b", "slak", "=e.npy", 0.25)]
    append_points(tmp_path / "p.csv.points", points)
    assert read_points(tmp_path / "p.csv.points") == points
    changed = [Point("=1", "@f", "-e.npy", 0.75)]
    for _ in range(2):
        put_points(tmp_path / "p.csv.points", changed, ["=1"])
        assert read_points(tmp_path / "p.csv.points") == [*changed, points[1]]


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system [true]",
        "!!python/name:os.system",
        "!!python/object/new:type [a]",
        "!anything x",
    ],
)
def test_yaml_tags_run_nothing(tmp_path, tag, monkeypatch):
    monkeypatch.setattr(os, "system", lambda *a: pytest.fail("run"))
    path = tmp_path / "x.yaml"
    path.write_text(f"experiments:\n- name: {tag}\n")
    with pytest.raises(InputError, match=r"x\.yaml, line 2: "):
        load_experiments(path)


@pytest.mark.parametrize("label", [2**31 - 1, 2**31, 2**63, 2**64, 10**6])
def test_labels_near_and_beyond_2_31_make_no_lists_of_that_length(tmp_path, label):
    metadata_folder(tmp_path, {"a/1.jpg": [(0, 0, 1, 1)]}, {"a/1.jpg": (5, 5)}, {"a/1.jpg": label})
    with pytest.raises(InputError, match=r"class_labels\.txt, line 1: "):
        read_labels(tmp_path, ["a/1.jpg"])


def _read_all(folder: Path) -> None:
    load_boxes(metadata_root=folder / "m")
    open_image_set(folder / "i", metadata_root=folder / "m")


@pytest.mark.parametrize("name", ["image_ids", "class_labels", "image_sizes", "localization"])
def test_a_line_without_end_is_shown_in_part(tmp_path, name):
    write_image(tmp_path / "i/a/1.jpg")
    one = {"a/1.jpg": (5, 5)}
    metadata_folder(tmp_path / "m", {"a/1.jpg": [(0, 0, 1, 1)]}, one, {"a/1.jpg": 0})
    (tmp_path / f"m/{name}.txt").write_bytes(b"a/1.jpg," + b"9" * 3_000_000)
    with pytest.raises((InputError, BoxError), match=r"\.txt") as caught:
        _read_all(tmp_path)
    assert len(str(caught.value)) < 600
    assert len(list(read_lines(tmp_path / f"m/{name}.txt"))) == 1


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\x1b[2J.jpg", os.fsdecode(b"a\xff.jpg")])
def test_names_that_would_break_lines_or_files_are_refused(tmp_path, name):
    write_image(tmp_path / "c/0.jpg")
    os.link(tmp_path / "c/0.jpg", tmp_path / "c" / name)
    with pytest.raises(InputError, match=r"image id .* holds .*; rename the file") as caught:
        open_image_set(tmp_path)
    assert str(caught.value).isprintable()


def test_names_of_html_and_of_255_bytes_are_names(tmp_path):
    names = ["<script>alert(1)<", "ü" * 125 + "x", "&amp;'\""]
    for name in names:
        write_image(tmp_path / f"c/{name}.jpg")
    images = open_image_set(tmp_path)
    assert sorted(r.stem for r in images.records) == sorted(names)
    assert max(len(n.encode()) for n in map_names(images.records)) == 2 + 255
    with pytest.raises(InputError, match=r"would have a name of 259 bytes"):
        map_names(images.records, "official")
    with pytest.raises(InputError, match=r"would have a name of 259 bytes"):
        map_names([ImageRecord("c/" + "n" * 255, tmp_path, None)])


@pytest.mark.parametrize("name", ["large", "beyond integers", "deep", "short", "unclosed"])
def test_headers_inside_the_files_of_a_run(tmp_path, name, caplog):
    path = tmp_path / "x.npy"
    path.write_bytes(BROKEN[name])
    with pytest.raises(InputError, match=r"x\.npy: not what its run wrote"):
        read_array(path)
    partial = Partial(tmp_path / "y.npy")
    with zipfile.ZipFile(partial.path, "w") as archive:
        archive.writestr("sums.npy", BROKEN[name])
    assert partial.load() is None
    assert "cannot be read" in caplog.text
    with pytest.raises(InputError, match=r"y\.npy.*: not what its run wrote"):
        read_arrays(partial.path)
