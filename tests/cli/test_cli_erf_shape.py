"""erf-shape as a command, and the search behind it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from click.testing import CliRunner
from data_factory import image_folder
from PIL import Image

from cba_fast import erf
from cba_fast.cli.main import cli
from cba_fast.errors import CbaError, InputError
from cba_fast.experiments.erf_shape import Mixture, SweepConfig, run_sweep
from cba_fast.resume import OtherRunError

SIZE = 64


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory with three images and a checkpoint ``w.pth`` of slak_flex."""
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "datasets" / "birds")
    make_checkpoint(Path("w.pth"), "slak_flex", SMALL_MODELS["slak_flex"], num_classes=5)
    return tmp_path


def arguments(*extra, **options):
    options = {
        "model_family": "slak_flex",
        "fine_tuned_weight_name": "w.pth",
        "model": SMALL_MODELS["slak_flex"],
        "test_dataset": "birds",
        "input_size": SIZE,
        "num_workers": 0,
        "num_images": 2,
        "steps": 3,
        **options,
    }
    return ["erf-shape", *(str(x) for k, v in options.items() for x in (f"--{k}", v)), *extra]


def run(*args, code: int = 0):
    result = CliRunner().invoke(cli, args)
    if code == 0 and result.exception:
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_a_sweep_writes_maps_figures_and_a_picture(work):
    out = run(*arguments()).stdout
    maps = np.load("erf_shape.npy")
    assert maps.shape == (3, SIZE, SIZE)
    told = json.loads(Path("erf_shape.json").read_text())
    assert [(m["alpha"], m["beta"]) for m in told["mixtures"]] == [(1, 0), (0.5, 0.5), (0, 1)]
    for m, stored in zip(told["mixtures"], maps, strict=True):
        assert m["shape"] == erf.erf_shape(stored).as_dict()
    assert "match" not in told
    assert Image.open("erf_shape.png").size[0] > 500
    assert out.splitlines()[1].split()[:2] == ["1.000", "0.000"]
    assert sorted(p.name for p in Path().glob("erf_shape*")) == [
        "erf_shape.json",
        "erf_shape.npy",
        "erf_shape.png",
    ]


def test_each_map_is_that_of_erf_compute(work):
    run(*arguments())
    args = ["--alpha", "0.5", "--beta", "0.5", "--definition", "replknet"]
    common = arguments()[1:]
    steps = common.index("--steps")
    run("erf-compute", *common[:steps], *common[steps + 2 :], *args)
    expected = np.load("erf_map_slak_flex.npy")
    found = np.load("erf_shape.npy")[1]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_mixture_of_its_own_is_found_again(work):
    run(*arguments(steps=5, output="fine"))
    np.save("target.npy", np.load("fine.npy")[1])
    out = run(*arguments(match="target.npy", evaluations=8)).output
    told = json.loads(Path("erf_shape.json").read_text())["match"]
    assert told["target"] == "target.npy"
    assert told["best"]["beta"] == pytest.approx(0.25, abs=0.05)
    assert told["best"]["distance"] == min(m["distance"] for m in told["tried"])
    assert 1 <= len(told["tried"]) <= 8
    assert "Nearest to target.npy" in out


def test_another_model_is_a_target(work):
    make_checkpoint(Path("r.pth"), "replknet", SMALL_MODELS["replknet"], num_classes=5)
    match = ["--match", "r.pth", "--match_family", "replknet"]
    run(*arguments(*match, "--match_model", SMALL_MODELS["replknet"], evaluations=2))
    target = np.load("erf_shape_target.npy")
    told = json.loads(Path("erf_shape.json").read_text())
    for m, stored in zip(told["mixtures"], np.load("erf_shape.npy"), strict=True):
        assert m["distance"] == erf.shape_distance(stored, target)


KILL = """
import os
from cba_fast.erf import Partial
save = Partial.save
def save_and_die(self, arrays, **kwargs):
    save(self, arrays, force=True)
    if len(arrays()["maps"]) == 4:
        os._exit(9)
Partial.save = save_and_die
from cba_fast.cli.main import main
main()
"""


def test_a_killed_search_continues_to_identical_files(work):
    np.save("target.npy", np.ones((SIZE, SIZE)))
    run(*arguments(match="target.npy", evaluations=4, output="whole.npy"))
    args = arguments(match="target.npy", evaluations=4)
    done = subprocess.run([sys.executable, "-c", KILL, *args], check=False)
    assert done.returncode == 9
    assert not Path("erf_shape.npy").exists()
    assert "continued after 4 mixtures" in run(*args).stderr
    for suffix in (".npy", ".json"):
        assert Path(f"erf_shape{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()
    make_checkpoint(Path("w.pth"), "slak_flex", SMALL_MODELS["slak_flex"], num_classes=5, seed=1)
    with pytest.raises(OtherRunError, match=r"the weights w\.pth are other bytes"):
        run(*args)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--alpha", "1"], "leave them out"),
        (["--match", "x.npy"], r"x\.npy: no ERF map"),
        (["--match", "x.pth"], r"x\.pth: no such file"),
        (["--match", "x.npy", "--match_family", "slak"], "describe a checkpoint"),
        (["--match_model", "slak_tiny"], "describe a checkpoint"),
        (["--save_fig", "a.xyz"], "unknown picture format"),
        (["--precision", "fp16"], "fp16"),
    ],
)
def test_bad_combinations_are_input_errors(work, extra, message):
    with pytest.raises(InputError, match=message):
        run(*arguments(*extra))
    assert not Path("erf_shape.npy").exists()


def test_other_families_and_merged_weights_have_no_mixture(work):
    with pytest.raises(InputError, match="not replknet"):
        run(*arguments(model_family="replknet"))
    make_checkpoint("m.pth", "slak_flex", SMALL_MODELS["slak_flex"], layout="merged")
    with pytest.raises(CbaError, match=r"m\.pth: .*merged into the weights"):
        run(*arguments(fine_tuned_weight_name="m.pth"))


def test_steps_below_two_are_a_usage_error(work):
    assert "steps" in run(*arguments(steps=1), code=2).output


def cross_to_round(share: float) -> Mixture:
    """An analytic stand-in for a network: a cross that turns into a disk."""
    y, x = np.meshgrid(*[np.arange(65) - 32.0] * 2, indexing="ij")
    cross = np.exp(-np.abs(np.minimum(np.abs(y), np.abs(x)))) * (np.hypot(y, x) < 30)
    disk = (np.hypot(y, x) < 20).astype(float)
    m = (1 - share) * cross / cross.sum() + share * disk / disk.sum()
    return Mixture(share, m, erf.area_ratio(m), erf.scale_free_area_ratio(m), erf.erf_shape(m))


@pytest.mark.parametrize("share", [0.0, 0.37, 0.9, 1.0])
def test_the_search_finds_an_analytic_mixture(share):
    found = run_sweep(cross_to_round, SweepConfig(evaluations=20), cross_to_round(share).map)
    assert found.best.square_share == pytest.approx(share, abs=0.01)
    assert found.best.distance < 0.01


def test_descriptors_follow_the_mixture():
    found = run_sweep(cross_to_round, SweepConfig(steps=4))
    roundness = [m.shape.roundness for m in found.mixtures]
    on_cross = [m.shape.cross_share for m in found.mixtures]
    assert roundness == sorted(roundness)
    assert on_cross == sorted(on_cross, reverse=True)
    assert found.best is None
