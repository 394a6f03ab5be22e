"""synth-cub: the folder, the split that training reads, the baselines, bad input."""

import pytest
from cli_runner import run_cli

from cba_fast.data import load_boxes, open_image_set
from cba_fast.experiments.baselines import fixed_box_baselines

SMALL = ("--classes", 3, "--images_per_class", 4, "--test_per_class", 1, "--size", 48)


def names(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*.jpg")}


def test_makes_the_set_and_its_split(here, capsys):
    done = run_cli(capsys, "synth-cub", "--root", "set", *SMALL, "--num_workers", 1)
    assert done.status == 0, done.err
    assert "set (3 classes, 9 train + 3 test)" in done.out
    train, test = (names(here / "set" / "images_splitted" / s) for s in ("train", "test"))
    assert (len(train), len(test)) == (9, 3)
    assert train | test == names(here / "set" / "images")
    assert {r.image_id for r in open_image_set("set").records} == test
    # What training reads: the same classes in both folders.
    splits = [open_image_set(here / "set" / "images_splitted" / s) for s in ("train", "test")]
    assert splits[0].class_names == splits[1].class_names


def test_prints_the_baselines_of_the_test_images(here, capsys):
    done = run_cli(capsys, "synth-cub", "--root", "set", *SMALL, "--no_split")
    assert done.status == 0, done.err
    assert not (here / "set" / "images_splitted").exists()
    expected = fixed_box_baselines(load_boxes(cub_root="set"))
    assert f"centred box: {expected.centred_box:.2f}%" in done.out
    assert f"full image : {expected.full_image:.2f}%" in done.out


def test_runs_again_and_links_what_is_missing(here, capsys):
    assert run_cli(capsys, "synth-cub", "--root", "set", *SMALL, "--no_split").status == 0
    before = {p: p.stat().st_mtime_ns for p in (here / "set" / "images").rglob("*.jpg")}
    for _ in range(2):
        done = run_cli(capsys, "synth-cub", "--root", "set", *SMALL)
        assert done.status == 0, done.err
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for path in before:
        assert path.stat().st_nlink == 2


def test_another_set_replaces_the_first_on_request(here, capsys):
    assert run_cli(capsys, "synth-cub", "--root", "set", *SMALL).status == 0
    (here / "set" / "masks").mkdir()
    (here / "set" / "masks" / "mine.png").write_text("mine")
    first = names(here / "set")
    other = ("--classes", 2, "--images_per_class", 3, "--test_per_class", 1, "--size", 48)
    assert run_cli(capsys, "synth-cub", "--root", "set", *other).status == 1
    assert names(here / "set") == first
    done = run_cli(capsys, "synth-cub", "--root", "set", *other, "--overwrite")
    assert done.status == 0, done.err
    assert run_cli(capsys, "synth-cub", "--root", "new", *other).status == 0
    assert names(here / "set") == names(here / "new")
    assert (here / "set" / "masks" / "mine.png").read_text() == "mine"


def test_a_set_without_test_images_has_the_baselines_of_all(here, capsys):
    args = ("--classes", 2, "--images_per_class", 2, "--test_per_class", 0, "--size", 32)
    done = run_cli(capsys, "synth-cub", "--root", "set", *args)
    assert done.status == 0, done.err
    assert "IoU 0.5, all images" in done.out


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ((), 2, "root"),
        (("--root", "set", "--classes", 0), 2, "classes"),
        (("--root", "set", "--classes", 1000), 1, "--classes must be 1 to 999, got 1000"),
        (("--root", "set", "--size", 16), 1, "--size must be 32 to 2048, got 16"),
        (("--root", "set", "--test_per_class", 61), 1, "--test_per_class must be 0 to 60, got 61"),
        (
            ("--root", "full", *SMALL),
            1,
            "full holds files that no earlier run wrote",
        ),
        (
            ("--root", "other", *SMALL),
            1,
            "other belongs to another run: seed was 7, is 0",
        ),
    ],
)
def test_bad_input_is_named(here, capsys, args, status, message):
    (here / "full").mkdir()
    (here / "full" / "mine.txt").write_text("keep")
    if "other" in args:
        run_cli(capsys, "synth-cub", "--root", "other", *SMALL, "--seed", 7)
    done = run_cli(capsys, "synth-cub", *args)
    assert done.status == status
    assert message in done.err
    assert (here / "full" / "mine.txt").read_text() == "keep"
