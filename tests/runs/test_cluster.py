"""A Ray cluster runs the experiments of a plan and the shards of a data set; workers die."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from cli_runner import run_cli
from data_factory import write_file
from evaluate_setup import IDS, images_and_metadata, model_arguments

from cba_fast.datasets.prepare import split_images
from cba_fast.datasets.synth import generate
from cba_fast.runs.cluster import pool
from cba_fast.runs.settings import ClusterConfig

# While a file "kill" is there, the third step of a training kills its process, unless that is the
# one which the file names.
NET = """
import os
from pathlib import Path
from torch import nn

class Net(nn.Sequential):
    steps = 0

    def forward(self, x):
        self.steps += self.training
        kill = Path("kill")
        if self.steps >= 3 and kill.exists() and kill.read_text() != str(os.getpid()):
            if not Path("always").exists():
                kill.unlink()
            os.kill(os.getpid(), 9)
        return super().forward(x)

def net(num_classes=2):
    body = (nn.Conv2d(3, 12, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Net(*body, nn.Linear(12, num_classes))
"""
HOW = {"batch_size": 2, "epochs": 2, "num_workers": 0, "device": "cpu", "num_samples": 2}
DATA = {"test_dataset": "cub", "data_root": "cub/images_splitted", "input_size": 64, "map_size": 32}
GRID = {"name": "x", "lr": [1e-3, 2e-3, 4e-3], "localization_method": ["cam", "grad-cam"]}


@pytest.fixture(scope="module")
def ray():
    """A cluster of this machine for this module; the runs use the connection that they find."""
    ray = pytest.importorskip("ray")
    with pool.connected(ClusterConfig("ray"), print):
        yield ray


@pytest.fixture
def planned(here):
    """Six experiments of three trainings."""
    generate("cub", classes=2, images_per_class=4, test_per_class=2, size=64)
    split_images("cub")
    (here / "net.py").write_text(NET)
    plan = {"defaults": {**HOW, **DATA, "model_factory": "net.py:net"}, "grid": GRID}
    (here / "e.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))


def change_grid(**axes):
    plan = yaml.safe_load(Path("e.yaml").read_text())
    plan["grid"] |= axes
    Path("e.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))


def collect(capsys, *args):
    return run_cli(capsys, "collect-erf-wsol", "--config", "e.yaml", *args)


def results():
    """Return what a run left, without times, and take it away."""
    found = {}
    for path in [Path("erf_wsol_points.csv"), *sorted(Path("erf_wsol").iterdir())]:
        found[path.name] = path.read_bytes()
        if path.suffix == ".json" and path.name.startswith("x"):
            result = json.loads(found[path.name])
            del result["seconds"], result["training"]["seconds"]
            found[path.name] = result
        path.unlink()
    for path in Path("weights").rglob("*"):
        path.is_file() and path.unlink()
    return found


def test_plans_end_with_the_same_files_whoever_dies(ray, planned, capsys):
    done = collect(capsys)
    assert done.status == 0, done.err
    table = done.out[done.out.index("┃ name ") :].splitlines()
    wanted = results()
    assert len(wanted["erf_wsol_points.csv"].splitlines()) == 7
    Path("kill").write_text(str(os.getpid()))
    done = collect(capsys, "--engine", "ray")
    assert done.status == 0, done.err
    assert not Path("kill").exists()
    assert done.out.count("its worker died; again on ") == 1
    assert "after epoch 1" in done.out
    assert "grad-cam: done, " in done.out
    assert "6 of 6" in done.out
    assert done.out[done.out.index("┃ name ") :].splitlines()[:8] == table[:8]
    assert results() == wanted


def test_an_experiment_whose_workers_die_fails_and_the_others_go_on(ray, planned, capsys):
    change_grid(lr=[1e-3], epochs=[1, 2])  # two epochs have a third step
    Path("kill").write_text(str(os.getpid()))
    Path("always").touch()
    done = collect(capsys, "--engine", "ray", "--retries", 0)
    assert done.status == 1
    assert "2 of 4 failed" in done.err
    assert done.out.count("its worker died at every try (") == 4
    assert len(Path("erf_wsol_points.csv").read_text().splitlines()) == 3
    Path("kill").unlink()
    assert collect(capsys, "--engine", "ray").status == 0
    assert not list(Path("erf_wsol").glob("*.error.txt"))
    done = collect(capsys, "--engine", "ray")
    assert done.out.count("kept") == 4


def test_what_no_machine_has_is_refused(ray, planned, capsys):
    done = collect(capsys, "--engine", "ray", "--cpus", 9999)
    assert done.status == 1
    assert "this machine has not 9999 CPUs and 0 GPUs (--cpus, --gpus)" in done.err
    done = collect(capsys, "--engine", "ray", "--gpus", 1.5)
    assert "--gpus above 1 must be a whole number, got 1.5" in done.err
    assert "--retries belongs to --engine ray" in collect(capsys, "--retries", 1).err


def test_a_worker_says_now_and_then_how_far_it_is(monkeypatch):
    said = []
    progress = pool.spoken(said.append)("evaluating")
    assert list(progress(range(8), 8)) == [*range(8)]
    assert said == []
    monkeypatch.setattr(pool, "_SAY_S", 0)
    assert list(progress("abc", 3)) == [*"abc"]
    assert said == ["evaluating: 33 %", "evaluating: 66 %", "evaluating: 100 %"]


def test_without_ray_one_line_says_how_to_get_it(planned, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = collect(capsys, "--engine", "ray")
    assert done.status == 1
    assert done.err.startswith("Error: --engine ray needs Ray (")
    assert done.err.endswith('pip install "cba_fast[ray]"\n')
    assert len(done.err.splitlines()) == 1


def test_a_cluster_that_does_not_answer_is_named_at_once(planned, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    done = collect(capsys, "--engine", "ray", "--address", "127.0.0.1:1")
    assert done.status == 1
    assert done.err.startswith("Error: --address 127.0.0.1:1: no Ray cluster answers: ")
    assert len(done.err.splitlines()) == 1


def test_three_shards_score_as_one_process(ray, here, capsys):
    images_and_metadata(here)
    for image_id in IDS[3:6]:  # one of three shards has no map at all
        write_file(here / "images" / image_id, b"no image")
    make_checkpoint(here / "r.pth", "replknet", SMALL_MODELS["replknet"], num_classes=3)
    args = ["evaluate", *model_arguments("r.pth"), "--metadata_root", "meta", "--threshold", 0.4]
    args += ["--num_samples", 3, "--json", "s.json", "--predictions", "p.csv"]
    files = (here / "s.json", here / "p.csv")
    one = run_cli(capsys, *args)
    assert one.status == 0, one.err
    wanted = [path.read_bytes() for path in files]
    shards = run_cli(capsys, *args, "--engine", "ray", "--shards", 3)
    assert shards.status == 0, shards.err
    assert shards.err == one.err
    assert shards.out.endswith(one.out)
    assert "shard 3 of 3: on " in shards.out
    assert [path.read_bytes() for path in files] == wanted
    refused = run_cli(capsys, *args, "--engine", "ray", "--strict")
    assert refused.status == 1
    assert refused.err.splitlines()[-1].startswith("Error: jay/jay_0.v1.jpg: cannot read")
    assert (
        "--report, --tables and --sheets need one process"
        in run_cli(capsys, *args, "--engine", "ray", "--report", "r.html").err
    )
