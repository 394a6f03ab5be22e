"""The `Example` blocks of the public functions run, each in a folder with a small data set.

Every example begins with an empty namespace, so that it shows its own imports. Public are the names
that the packages below export, and what `cba_fast` itself offers.
"""

import dataclasses
import doctest
import importlib
import inspect
import shutil

import numpy as np
import pytest
import torch
from data_factory import metadata_folder
from mask_factory import write_mask

import cba_fast
from cba_fast.data import load_boxes, map_name, write_predictions
from cba_fast.datasets.synth import draw_image, generate
from cba_fast.files import write_npy
from cba_fast.runs.pack import pack_maps

PACKAGES = ("ops", "nn", "models", "data", "wsol", "wsol.methods", "wsol.metrics", "erf", "report")


def public() -> dict[str, object]:
    """Return the public functions and classes by name, without results, which users do not make."""
    found = {f"cba_fast.{name}": getattr(cba_fast, name) for name in cba_fast._FUNCTIONS}
    found["cba_fast.tune"] = cba_fast.tune
    for package in PACKAGES:
        module = importlib.import_module(f"cba_fast.{package}")
        for name in module.__all__:
            found[f"cba_fast.{package}.{name}"] = getattr(module, name)
    once = {id(value): name for name, value in found.items() if is_made_or_called(value)}
    return {name: found[name] for name in once.values()}


def is_made_or_called(value: object) -> bool:
    if inspect.isfunction(value):
        return True
    return inspect.isclass(value) and not (
        dataclasses.is_dataclass(value) or issubclass(value, tuple | list)
    )


PUBLIC = public()


@pytest.fixture(scope="module")
def example_files(tmp_path_factory):
    """Make the folder that examples speak of: drawn images with maps, masks and metadata."""
    root = tmp_path_factory.mktemp("examples")
    cub = generate(root / "CUB_200_2011", classes=2, images_per_class=6, test_per_class=3, size=64)
    boxes = load_boxes(cub_root=cub)
    sizes = {i: boxes.sizes[i] for i in boxes.image_ids}
    metadata_folder(root / "metadata/CUB/test", boxes.boxes, sizes, boxes.labels)
    y, x = np.mgrid[:64, :64]
    lines = []
    for n, image_id in enumerate(boxes.image_ids):
        x0, y0, x1, y1 = boxes.boxes[image_id][0]
        # The first maps sit on the object, which fails for the last image; the others are wider.
        for folder, spread in (("maps", 2.5 if n < 5 else 9.0), ("other_maps", 1.6)):
            distance = (2 * (x - (x0 + x1) / 2) / (x1 - x0)) ** 2
            distance += (2 * (y - (y0 + y1) / 2) / (y1 - y0)) ** 2
            write_npy(root / folder / map_name(image_id), np.exp(-distance * spread / 2))
        mask = draw_image(0, boxes.labels[image_id], 3 + n % 3, 64).mask
        write_mask(root / "OpenImages" / f"{n}.png", np.uint8(255 * (np.asarray(mask) > 0)))
        lines.append(f"{image_id},{n}.png,\n")
    masks = root / "metadata/OpenImages/test"
    shutil.copytree(root / "metadata/CUB/test", masks)
    (masks / "localization.txt").write_text("".join(lines))
    pack_maps(root / "maps", root / "maps_store")
    (root / "class_names.txt").write_text("001.Wren\n002.Jay\n")
    ranked = {i: [k, 1 - k] for i, k in boxes.labels.items()}
    write_predictions(root / "predictions.csv", ranked | {boxes.image_ids[0]: [1, 0]})
    return root


def examples(value: object) -> list[doctest.DocTest]:
    """Return the examples of a docstring, without those of a class's methods."""
    tests = doctest.DocTestFinder(recurse=False, exclude_empty=True).find(value, "x", globs={})
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("name", PUBLIC)
def test_example_runs(name, example_files, tmp_path, monkeypatch, capsys):
    tests = examples(PUBLIC[name])
    assert tests, f"{name} has no Example"
    assert "Example:" in inspect.getdoc(PUBLIC[name])
    assert any(e.want for e in tests[0].examples), f"the Example of {name} shows no result"
    assert not any(e.options.get(doctest.SKIP) for e in tests[0].examples)
    shutil.copytree(example_files, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(tests[0])
    assert runner.failures == 0, capsys.readouterr().out


def test_a_wrong_result_is_seen():
    def wrong():
        """Return nothing.

        Example:
            >>> 1 + 1
            3
        """

    (test,) = examples(wrong)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1
