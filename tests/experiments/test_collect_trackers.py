"""collect-erf-wsol and trackers: each experiment's scores, once, and no run that ends for them."""

import os

import pytest
from collect_runs import THREE, collect, three

from cba_fast.analysis.points import read_points
from cba_fast.training import loggers


def test_a_tracker_gets_the_scores_of_each_experiment(here, calls, capsys, monkeypatch):
    opened = {}

    class Tracker(loggers.Logger):
        def __init__(self, name, run_id, settings, folder):
            self.got = opened.setdefault((name, run_id), [])
            self.last = len(self.got)

        def log(self, scalars, epoch, when):
            self.got.append(scalars)

        def close(self, failed):
            assert not failed

    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(loggers._TRACKERS, "mlflow", Tracker)
    assert collect(capsys, three(tracker="mlflow")).status == 0
    assert sorted(name for name, _ in opened) == THREE
    assert all(len(got) == 1 for got in opened.values())
    (scores,) = next(got for (name, _), got in opened.items() if name == "replknet_pc1")
    row = next(p for p in read_points("erf_wsol_points.csv") if p.model_name == "replknet_pc1")
    assert scores["max_box_acc"] == pytest.approx(100 * row.wsol)
    assert scores["erf/mean"] == 100.5
    # A tracker that refuses costs nothing but itself, and a change of it is no other experiment.
    monkeypatch.setitem(loggers._TRACKERS, "wandb", lambda *args: 1 / 0)
    os.remove("erf_wsol_points.csv")
    done = collect(capsys, three(tracker="wandb"))
    assert done.status == 0
    assert done.out.count("Warning: tracker wandb: division by zero") == 3
    assert [r.model_name for r in read_points("erf_wsol_points.csv")] == THREE
