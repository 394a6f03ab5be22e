"""Draw a data set: a CUB_200_2011 folder of generated animals with tight boxes.

It takes the place of CUB where nothing can be downloaded. It is small, varied enough that a centred
box or the full image scores badly, and drawn so that class activation maps light up a part of the
object.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from .. import locks
from ..choices import SYNTH_CLASSES, SYNTH_IMAGES, SYNTH_SIZE, SYNTH_TEST
from ..data import cub
from ..errors import InputError
from ..files import atomic_path, write_text
from ..resume import Outputs, describe
from .prepare import SPLIT_FOLDER
from .synth_animals import species
from .synth_scene import Drawing, draw

MANIFEST = "synth.json"
# To be raised whenever the same seed gives other pixels, so that old folders are told apart.
GENERATOR = 2
_JPEG_QUALITY = 90


def draw_image(seed: int, label: int, index: int, size: int = SYNTH_SIZE) -> Drawing:
    """Draw image `index` of class `label`, independently of all others.

    Args:
        seed: the data set's seed.
        label: 0-based class.
        index: 0-based number within the class.
        size: side in pixels, at least 32.

    Returns:
        The image before JPEG compression, the object's mask and its tight box.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2, label, index]))
    return draw(species(seed, label), size, rng)


@locks.released()
def generate(
    root: str | os.PathLike,
    *,
    classes: int = SYNTH_CLASSES,
    images_per_class: int = SYNTH_IMAGES,
    test_per_class: int = SYNTH_TEST,
    size: int = SYNTH_SIZE,
    seed: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set in the layout of CUB_200_2011.

    Each image depends on (seed, class, number) only: a set with more images or classes contains the
    smaller one, and the number of workers changes nothing. The same settings and library versions
    give the same files: JPEGs of about 25 kB at 256 pixels, 1,000 per minute and core. In a box,
    x, y is the first visible column and row of the object and x + w, y + h the last, as the
    inclusive IoU counts them. On the test images of the default set the best fixed centred box is
    right (IoU 0.5) for 18 %, the full image for 7 %.

    Args:
        root: the folder to make; an interrupted run in it is continued, a finished one kept.
        classes: number of classes, 1 to 999.
        images_per_class: images of each class, training and test together.
        test_per_class: how many of them are test images.
        size: side of the images in pixels, 32 to 2048.
        seed: 0 or more.
        num_workers: number of threads; None means one per core, 8 at most.
        overwrite: draw anew and replace the set of an earlier run and its split. Other files are
            neither replaced nor removed.
        progress: called as ``progress(done, total)`` after each image.

    Returns:
        `root`.

    Raises:
        InputError: an argument is out of range, or `root` holds other files.
        OtherRunError: `root` holds a set of other settings, and `overwrite` is False.
    """
    root = Path(root)
    settings = {
        "generator": GENERATOR,
        "classes": classes,
        "images_per_class": images_per_class,
        "test_per_class": test_per_class,
        "size": size,
        "seed": seed,
    }
    _check(settings)
    names = _names(settings)
    outputs = Outputs(root / MANIFEST, _files(names, settings), _described(settings), "new")
    outputs.prepare(overwrite)
    if not cub.is_cub(root):
        _write(root, settings, names, num_workers or min(8, os.cpu_count() or 1), progress)
    elif progress:
        progress(len(names), len(names))
    return root


def _described(settings: dict) -> dict:
    # `GENERATOR` stands for all that decides about pixels, so other versions do not count.
    return {**describe(settings), "versions": {}}


def _folders(settings: dict) -> list[str]:
    kinds = [species(settings["seed"], label).name for label in range(settings["classes"])]
    return [f"{label:03d}.{name}" for label, name in enumerate(kinds, 1)]


def _names(settings: dict) -> dict[str, tuple[int, int]]:
    """Return (class, number within the class) of each image by its name."""
    return {
        f"{folder}/{folder[4:]}_{i + 1:04d}.jpg": (label, i)
        for label, folder in enumerate(_folders(settings))
        for i in range(settings["images_per_class"])
    }


def _files(names: dict[str, tuple[int, int]], settings: dict) -> list[str]:
    """Return the files of a set: images, lists, and the links of its split."""
    first_test = settings["images_per_class"] - settings["test_per_class"]
    split = [
        f"{SPLIT_FOLDER}/{'train' if i < first_test else 'test'}/{name}"
        for name, (_, i) in names.items()
    ]
    return [*(f"images/{name}" for name in names), *cub.TEXT_FILES, *split]


def _write(root: Path, settings: dict, names: dict, workers: int, progress) -> None:
    def write(job: tuple[int, int], name: str) -> tuple[int, int, int, int]:
        drawing = draw_image(settings["seed"], *job, settings["size"])
        with atomic_path(root / "images" / name, durable=False) as tmp:
            Image.fromarray(drawing.image).save(tmp, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return drawing.box

    jobs = list(names.values())
    boxes = _run(write, jobs, names, workers, progress)
    first_test = settings["images_per_class"] - settings["test_per_class"]
    _write_lists(root, jobs, names, boxes, _folders(settings), first_test)


def _run(write, jobs, files, workers: int, progress) -> list[tuple[int, int, int, int]]:
    """Write all images with `workers` threads and return their boxes in order."""
    boxes = []
    # Threads suffice, because OpenCV, NumPy and the JPEG encoder release Python's lock.
    with ThreadPoolExecutor(workers) as pool:
        try:
            for box in pool.map(write, jobs, files):
                boxes.append(box)
                if progress:
                    progress(len(boxes), len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return boxes


def _write_lists(root: Path, jobs, files, boxes, names, first_test: int) -> None:
    rows = range(1, len(jobs) + 1)
    lists = {
        "classes.txt": [f"{i} {name}" for i, name in enumerate(names, 1)],
        "image_class_labels.txt": [f"{n} {label + 1}" for n, (label, _) in zip(rows, jobs)],
        "train_test_split.txt": [f"{n} {int(i < first_test)}" for n, (_, i) in zip(rows, jobs)],
        "bounding_boxes.txt": [
            f"{n} {x0:.1f} {y0:.1f} {x1 - x0:.1f} {y1 - y0:.1f}"
            for n, (x0, y0, x1, y1) in zip(rows, boxes)
        ],
        "images.txt": [f"{n} {name}" for n, name in zip(rows, files)],  # last: marks it finished
    }
    for name, lines in lists.items():
        write_text(root / name, "\n".join(lines) + "\n")


def _check(settings: dict) -> None:
    limits = {
        "classes": (1, 999),
        "images_per_class": (1, 9999),
        "test_per_class": (0, settings["images_per_class"]),
        "size": (32, 2048),
        "seed": (0, 2**63 - 1),
    }
    for key, (low, high) in limits.items():
        if not low <= settings[key] <= high:
            raise InputError(f"`{key}` must be {low} to {high}, got {settings[key]}")
