"""collect-erf-wsol without stand-ins: two tiny networks are trained, scored and drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from cli_runner import run_cli

from cba_fast.analysis.points import read_points
from cba_fast.datasets.prepare import split_images
from cba_fast.datasets.synth import generate


def test_two_tiny_experiments_for_real(here, capsys):
    generate("cub", classes=2, images_per_class=4, test_per_class=2, size=64)
    split_images("cub")
    grid = {"model_family": "replknet", "model": "replknet_nano", "lr": [1e-3, 4e-3]}
    how = {"batch_size": 4, "num_samples": 2, "map_size": 32, "epochs": 1, "channels_last": False}
    data = {"test_dataset": "cub", "data_root": "cub/images_splitted", "input_size": 64}
    run = {"output_stride": 16, "num_workers": 0, "device": "cpu"}
    content = {"defaults": data | run | how, "grid": grid}
    Path("e.yaml").write_text(yaml.safe_dump(content))
    done = run_cli(capsys, "collect-erf-wsol", "--config", "e.yaml")
    assert done.status == 0, done.err
    rows = read_points("erf_wsol_points.csv")
    assert [r.model_name for r in rows] == ["replknet_lr0.001", "replknet_lr0.004"]
    for row in rows:
        result = json.loads(Path(f"erf_wsol/{row.model_name}.json").read_text())
        assert result["num_images"] == 4
        assert result["classification"]["top1"] == result["training"]["best_top1"]
        assert np.load(row.erf_path).shape == (2,)
    done = run_cli(
        capsys, "plot-erf-vs-wsol", "--csv", "erf_wsol_points.csv", "--save_fig", "p.png"
    )
    assert done.status == 0, done.err
    # The same numbers as by the single command.
    args = ["--model_family", "replknet", "--model", "replknet_nano", "--test_dataset", "cub"]
    args += ["--fine_tuned_weight_name", result["weights"]["path"], "--output_stride", 16]
    args += ["--input_size", 64, "--map_size", 32, "--num_samples", 2, "--num_workers", 0]
    done = run_cli(capsys, "evaluate", *args, "--no_channels_last", "--json", "one.json")
    assert done.status == 0, done.err
    one = json.loads(Path("one.json").read_text())
    assert one["max_box_acc"] == result["max_box_acc"]
    assert one["erf"]["mean"] == pytest.approx(result["erf"]["mean"])
