"""The study's augmentations: the pixels of torchvision's pipeline, whatever is cached or shared."""

import numpy as np
import pytest
import torch
from data_factory import image_bytes, image_folder, write_file
from PIL import Image
from torchvision.transforms import ColorJitter, RandomResizedCrop

from cba_fast.data import open_image_set, read_image, study_transform
from cba_fast.errors import ImageError
from cba_fast.runs.runtime import Runtime
from cba_fast.runs.settings import RunConfig
from cba_fast.training.augment import CropAndJitter, resize, to_floats
from cba_fast.training.data import PixelReader, plan_epoch

SIZE = 40


@pytest.fixture
def images(tmp_path):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(5)]
    return open_image_set(image_folder(tmp_path / "images", names))


def reader(images, mode, *, cached=False, **run):
    vary = CropAndJitter(SIZE) if mode == "strong" else None
    run = Runtime.of(RunConfig(device="cpu", **{"num_workers": 0, **run}))
    return PixelReader(images, resize(SIZE, mode), vary, run, cached=cached)


def read(images, mode, epoch=1, **kwargs):
    plan = plan_epoch(0, epoch, len(images), 4)
    return list(reader(images, mode, **kwargs).batches(plan.batches, plan.seeds))


def assert_same(a, b):
    assert [x.indices for x in a] == [x.indices for x in b]
    assert all(torch.equal(x.pixels, y.pixels) for x, y in zip(a, b, strict=True))


def test_floats_of_resized_pixels_are_the_study_transform(images):
    (batch,) = reader(images, "light").batches([range(10)])
    want = torch.stack([study_transform(SIZE)(read_image(r.path)[0]) for r in images.records])
    assert torch.equal(to_floats(batch.pixels), want)
    flips = torch.arange(10) % 3 == 0
    flipped = torch.stack([x.flip(2) if f else x for x, f in zip(want, flips, strict=True)])
    assert torch.equal(to_floats(batch.pixels, flips), flipped)


def test_strong_resizes_to_1_1_times_the_size_first():
    image = Image.new("RGB", (30, 50))
    assert resize(384, "strong")(image).size == (422, 422)
    assert resize(384, "light")(image).size == resize(384)(image).size == (384, 384)


@pytest.mark.parametrize("seed", range(4))
def test_strong_is_torchvisions_pipeline_and_may_flip_last(images, seed):
    image = resize(SIZE, "strong")(read_image(images.records[0].path)[0])
    got = np.array(CropAndJitter(SIZE)(image, seed))
    torch.manual_seed(seed)
    crop = RandomResizedCrop(SIZE, scale=(0.6, 1.0))(image)
    flipped = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # where the study flips
    want = np.array(ColorJitter(0.2, 0.2, 0.2, 0.1)(flipped))
    assert np.array_equal(got[:, ::-1], want)
    assert not np.array_equal(got, np.array(crop))


def test_an_image_varies_with_its_seed_alone_and_leaves_the_generator(images):
    image = resize(SIZE, "strong")(read_image(images.records[0].path)[0])
    vary = CropAndJitter(SIZE)
    before = torch.get_rng_state()
    a, b, again = (np.array(vary(image, s)) for s in (1, 2, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("mode", ["light", "strong"])
def test_batches_do_not_depend_on_workers_or_cache(images, mode):
    plain = read(images, mode)
    assert_same(plain, read(images, mode, cached=True))
    assert_same(plain, read(images, mode, num_workers=2))
    assert sorted(i for b in plain for i in b.indices) == list(range(10))


def test_workers_kept_between_epochs_give_the_new_epochs_images(images):
    kept = reader(images, "strong", num_workers=1)
    for epoch in (1, 2):
        plan = plan_epoch(0, epoch, len(images), 4)
        assert_same(list(kept.batches(plan.batches, plan.seeds)), read(images, "strong", epoch))


def test_reading_leaves_the_models_random_numbers_alone(images):
    before = torch.get_rng_state()
    read(images, "strong")
    read(images, "strong", num_workers=1)
    read(images, "light", cached=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plan_follows_from_seed_and_epoch():
    a, again = plan_epoch(3, 7, 50, 8), plan_epoch(3, 7, 50, 8)
    assert np.array_equal(a.seeds, again.seeds)
    assert all(np.array_equal(x, y) for x, y in zip(a.batches, again.batches, strict=True))
    assert [len(b) for b in a.batches] == [8] * 6 + [2]
    assert sorted(np.concatenate(a.batches)) == list(range(50))
    for other in (plan_epoch(3, 8, 50, 8), plan_epoch(4, 7, 50, 8)):
        assert not np.array_equal(a.seeds, other.seeds)
        assert not np.array_equal(a.flips, other.flips)
        assert not np.array_equal(a.batches[0], other.batches[0])
    flips = plan_epoch(0, 1, 10_000, 32).flips
    assert abs(flips.mean() - 0.5) < 0.02  # four standard deviations


@pytest.fixture
def one_bad(tmp_path):
    """21 images, one of which is no image."""
    root = image_folder(tmp_path / "images", [f"a/{i:02d}.png" for i in range(20)])
    write_file(root / "a/20.png", "not an image")
    return open_image_set(root)


@pytest.mark.parametrize("mode", ["light", "strong"])
@pytest.mark.parametrize("cached", [False, True])
def test_an_unreadable_image_is_left_out_and_reported_once(one_bad, mode, cached):
    source = reader(one_bad, mode, cached=cached)
    for epoch in (1, 2):
        plan = plan_epoch(0, epoch, 21, 1)  # batches of one: the bad image's is empty
        batches = list(source.batches(plan.batches, plan.seeds))
        assert sorted(i for b in batches for i in b.indices) == list(range(20))
        assert sum(b.pixels is None for b in batches) == 1
    assert [i for i, _ in source.report.failed] == [20]


def test_a_strict_run_ends_at_an_unreadable_image(one_bad):
    with pytest.raises(ImageError, match=r"a/20\.png"):
        read(one_bad, "light", strict=True)


def test_many_unreadable_images_end_any_run(one_bad):
    write_file(one_bad.root / "a/19.png", "not an image")
    with pytest.raises(ImageError, match=r"2 of 21 images cannot be read, more than 5%"):
        read(one_bad, "light")


def test_a_truncated_jpeg_is_used_and_reported_once(tmp_path):
    root = image_folder(tmp_path / "images", ["a/0.jpg", "a/1.jpg"])
    data = image_bytes((64, 48))
    write_file(root / "a/2.jpg", data[: len(data) // 2])
    source = reader(open_image_set(root), "light")
    for _ in range(2):
        (batch,) = source.batches([range(3)])
        assert batch.indices == [0, 1, 2]
    assert source.report.truncated == [2]
