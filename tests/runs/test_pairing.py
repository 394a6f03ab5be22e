"""Which image, map and box belong together."""

from dataclasses import replace

import pytest
from cli_runner import run_cli
from data_factory import metadata_folder, write_image
from evaluate_setup import BOXES, IDS, LABELS, SIZES, images_and_metadata, save_maps

from cba_fast.data import load_boxes, open_image_set
from cba_fast.errors import InputError
from cba_fast.runs.evaluate import match_images


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return images_and_metadata(tmp_path)


TWINS = ("x/auk/auk_0.v1.jpg", "y/auk/auk_0.v1.jpg")


def test_a_map_that_two_images_could_have_is_refused(here, capsys):
    boxes = {**{i: BOXES[i] for i in IDS[1:]}, **dict.fromkeys(TWINS, BOXES[IDS[0]])}
    sizes = {i: SIZES.get(i, SIZES[IDS[0]]) for i in boxes}
    metadata_folder(here / "meta", boxes, sizes, {i: LABELS.get(i, 0) for i in boxes})
    save_maps(here / "maps", IDS)
    args = ["wsol-eval", "--np_root", "maps", "--metadata_root", "meta"]
    done = run_cli(capsys, *args)
    assert done.status == 1
    assert all(twin in done.err for twin in TWINS)
    (here / "maps" / "auk" / "auk_0.npy").unlink()
    assert run_cli(capsys, *args).status == 0


def test_an_image_that_could_be_two_of_the_ground_truth_is_refused(here):
    records = open_image_set(here / "images").records
    boxes = load_boxes(metadata_root=here / "meta")
    ids = (*boxes.image_ids, "x/other/a.jpg", "y/other/a.jpg", *TWINS)
    assert len(match_images(records[1:], replace(boxes, image_ids=ids))[0]) == 6
    with pytest.raises(InputError, match=rf"auk/auk_0\.v1\.jpg could be .* {TWINS[0]}"):
        match_images(records, replace(boxes, image_ids=ids))


def test_names_that_differ_behind_their_first_dot_are_paired_by_the_whole_id(here):
    twin = write_image(here / "images" / "auk" / "auk_0.v2.jpg")
    records = open_image_set(here / "images").records
    boxes = load_boxes(metadata_root=here / "meta")
    assert len(match_images(records, boxes)[0]) == 7  # the twin has no ground truth
    with pytest.raises(InputError, match=r"`map_names` official keeps the whole name"):
        match_images(records, boxes, "study")
    twin.unlink()
