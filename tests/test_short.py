"""Results print as a few lines, however much they hold."""

import dataclasses
import importlib
import pkgutil
import re

import numpy as np
import pytest
import torch

import cba_fast
from cba_fast.data.boxes import Boxes
from cba_fast.data.masks import Masks
from cba_fast.erf import ErfMap
from cba_fast.errors import CbaWarning
from cba_fast.short import LONG, Short, shown
from cba_fast.wsol import BoxEvaluator, Localization, PixelEvaluator, bootstrap

N = 3000
# Settings, and what holds few things by its nature.
SMALL = {"SizeConfig", "Species", "Tube", "View", "Drawing"}


def dataclasses_of_the_package():
    for found in pkgutil.walk_packages(cba_fast.__path__, "cba_fast."):
        if found.name.startswith(("cba_fast._C", "cba_fast.__main__")):
            continue
        module = importlib.import_module(found.name)
        for name, cls in vars(module).items():
            if dataclasses.is_dataclass(cls) and cls.__module__ == found.name:
                yield name, cls


def test_every_result_with_arrays_or_lists_has_a_short_repr():
    found = {}
    for name, cls in dataclasses_of_the_package():
        types = " ".join(str(f.type) for f in dataclasses.fields(cls))
        if re.search(r"ndarray|Tensor|list\[|dict\[|tuple\[\w+, \.\.\.\]", types):
            found[name] = cls.__repr__ is Short.__repr__  # not the one that @dataclass would write
    long = [name for name, short in found.items() if not short and name not in SMALL]
    assert not [name for name in long if not name.startswith("_")]
    assert len(found) > 20


@pytest.fixture(scope="module")
def evaluator():
    ids = tuple(f"c/{n:04d}.jpg" for n in range(N))
    box, size = np.array([[2, 2, 20, 25]]), (40, 30)
    boxes = Boxes(ids, dict.fromkeys(ids, box), dict.fromkeys(ids, size), dict.fromkeys(ids, 0))
    made = BoxEvaluator(boxes, cam_curve_interval=0.001)
    made.update(np.random.default_rng(0).random((40, 9, 9)), ids[:40])
    return made


def test_results_of_thousands_are_a_few_lines_with_the_figures(evaluator):
    with pytest.warns(
        CbaWarning, match=f"{N - 40} of {N} images .* have no score map, such as c/00"
    ):
        result = evaluator.compute()
    intervals = bootstrap(evaluator, num_resamples=20)
    masks = Masks(None, evaluator.boxes.image_ids, dict.fromkeys(evaluator.boxes.image_ids))
    maps = np.zeros((5, 384, 384))
    for value, figure in (
        (result, f"max_box_acc={result.max_box_acc}"),
        (intervals, f"<max_box_acc_v2: {result.max_box_acc_v2:.2f} ["),
        (evaluator, "images=40"),
        (evaluator.boxes, f"image_ids=<{N}, such as 'c/0000.jpg'>"),
        (PixelEvaluator(masks), f"paths=<{N} by key>"),
        (
            ErfMap(np.zeros((1024, 1024)), 50, list(range(N))),
            f"skipped=<{N} numbers from 0 to {N - 1}",
        ),
        (Localization(maps, maps, maps, torch.zeros(3)), "maps=<(5, 384, 384) float64>"),
    ):
        text = repr(value)
        assert figure in text
        assert str(value) == text
        assert len(text) < 1500
        assert len(text.splitlines()) < 25


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *(([], "[]"), ({}, "{}"), ((1, 2.5), "[1, 2.5]"), ("a", "'a'"), (None, "None")),
        (list(range(13)), "<13 numbers from 0 to 12>"),
        ({"a": 1}, "{'a': 1}"),
        ({n: n for n in range(5)}, "<5 by key>"),
        ([["x" * 80, "y" * 80]] * 13, f"<13, such as [ '{'x' * 47}...>"),
        (["x" * 300] * 13, f"<13, such as '{'x' * (LONG // 2 - 1)}...>"),
        (np.zeros((2, 3), np.uint8), "<(2, 3) uint8>"),
        (np.float64(2), repr(np.float64(2))),
        ("y" * 999, "'" + "y" * (2 * LONG - 1) + "..."),
    ],
)
def test_what_is_shown(value, text):
    assert shown(value) == text


def test_the_interval_of_max_box_acc_is_found_by_its_name(evaluator):
    intervals = bootstrap(evaluator, num_resamples=20)
    found = intervals.find("max_box_acc")
    assert found is intervals.find("box_acc", "largest", 0.5)
    with pytest.warns(CbaWarning):
        assert found.estimate == evaluator.compute().max_box_acc
    with pytest.raises(KeyError, match="no interval of .*'max_box_ac'.* there are "):
        intervals.find("max_box_ac")
