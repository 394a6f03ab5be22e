"""The demo at its smallest: every file it promises, and what it refuses."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import waiting_worker
from cli_runner import run_cli

from cba_fast.analysis.models import ModelScore, SizeStats
from cba_fast.errors import InputError
from cba_fast.experiments.demo import MODELS, DemoRow, DemoScale, measure, run_demo
from cba_fast.experiments.demo import run as demo_module
from cba_fast.experiments.demo.answer import analysis_lines, learned, marked
from cba_fast.resume import OtherRunError

TINY = DemoScale(
    2, 3, 2, most_epochs=2, shown_per_class=1, erf_samples=2, erf_map_images=1, pictures=1
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "out"
    lines = []
    return root, run_demo(root, scale=TINY, step=lines.append), lines


def test_every_model_has_a_row(demo):
    _, result, lines = demo
    assert [row.title for row in result.rows] == [model.title for model in MODELS]
    for row in result.rows:
        assert 0 <= row.top1 <= 100
        assert set(row.max_box_acc) == set(row.max_box_acc_v2) == {"cam", "pc1"}
        assert 1 <= row.erf_mean <= 96 * 96
    for model in MODELS:
        assert any(line.startswith(f"{model.title}: trained in") for line in lines)


def test_the_folder_holds_what_the_demo_promises(demo):
    root, result, _ = demo
    results = json.loads((root / "results.json").read_text())
    assert len(results["models"]) == len(MODELS)
    assert results["baselines"]["full_image"] == result.baselines.full_image
    assert (root / "erf_vs_wsol.png").stat().st_size > 1000
    assert result.report == root / "report.html"
    page = result.report.read_text()
    assert all(f"ERF map of {model.title}" in page for model in MODELS)  # none learned: all
    assert all((result.sheets / f"{kind}.pdf").is_file() for kind in ("worst", "best", "changed"))
    assert (root / "tables" / "erf.tex").is_file()
    assert result.analysis == ["No line is fitted: 0 of 4 models learned. It takes three."]
    for model in MODELS:
        assert (root / "weights" / f"{model.slug}_best.pth").is_file()
        assert (root / f"erf_map_{model.slug}.png").is_file()
        for method in ("cam", "pc1"):
            assert len(list((root / f"heatmap_{model.slug}_{method}").glob("*.png"))) == 2


def test_models_that_did_not_learn_say_nothing():
    tops = dict(zip("abcd", (12.0, 20.0, 50.0, 90.0)))
    rows = [DemoRow(name, top1, {}, {}, 1.0, 0.0, None, 0.0) for name, top1 in tops.items()]
    titles = learned(rows, classes=10)
    assert titles == ["b", "c", "d"]
    sizes = [SizeStats(10.0 * n, 1, 0, 99, 20) for n in range(4)]
    points = [ModelScore(t, s, 50 + s.mean) for t, s in zip("abcd", sizes)]
    lines = analysis_lines(points, titles)
    assert "3 models" in lines[3]
    assert not any(line.startswith("a") for line in lines)
    assert "2 of 4 models learned: b, c" in analysis_lines(points, titles[:2])[0]
    assert [marked(p, titles).name for p in points] == ["a: did not learn", "b", "c", "d"]


def test_the_command_ends_with_what_to_open(demo, monkeypatch, capsys, tmp_path):
    root, result, _ = demo
    monkeypatch.setattr("cba_fast.experiments.demo.run_demo", lambda *args, **options: result)
    out = run_cli(capsys, "demo", "--output", tmp_path).out.splitlines()
    assert out[-1] == f"Open in a browser: {root / 'report.html'}"
    pictures = out[-2].split(": ")[1].split(", ")
    assert all(Path(p).is_file() for p in pictures[:2])


def test_a_second_run_goes_on_and_another_is_refused(demo, monkeypatch):
    root, result, _ = demo
    (root / f"{MODELS[0].slug}.json").unlink()  # as if killed before the model was done
    (root / "weights" / "mine.txt").write_text("mine")
    lines = []
    again = run_demo(root, scale=TINY, step=lines.append)
    assert [replace(r, seconds=0) for r in again.rows] == [
        replace(r, seconds=0) for r in result.rows
    ]
    assert sum(line.endswith("done before") for line in lines) == len(MODELS) - 1
    with pytest.raises(OtherRunError, match="seed was 0, is 1; scale.quick was False, is True"):
        run_demo(root, seed=1, scale=replace(TINY, quick=True))
    stopped, left = RuntimeError("stopped"), []
    written = ["results.json", *(f"{m.slug}.json" for m in MODELS)]
    assert all((root / name).exists() for name in written)

    def stop(task, step):
        left.extend(name for name in written if (root / name).exists())
        assert task.overwrite
        raise stopped

    monkeypatch.setattr(demo_module, "_run_models", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        run_demo(root, scale=replace(TINY, test_per_class=1), overwrite=True)
    assert left == []
    assert len(list((root / "images").rglob("*.jpg"))) == 2
    assert (root / "weights" / "mine.txt").read_text() == "mine"


def test_somebody_elses_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "results.json").write_text("mine")
    with pytest.raises(InputError, match="holds files that no earlier run wrote"):
        run_demo(tmp_path, scale=TINY)
    assert (tmp_path / "results.json").read_text() == "mine"


@pytest.mark.parametrize(("killed", "interrupted"), [(1, 1), (1, 0), (0, 1)])
def test_workers_do_not_delay_the_end(monkeypatch, killed, interrupted):
    def step(pid):
        pids.append(int(pid))
        if len(pids) == 2:
            for each in pids if killed else ():
                os.kill(each, signal.SIGKILL)
            if interrupted:
                raise KeyboardInterrupt

    pids = []
    monkeypatch.setattr(demo_module, "MODELS", ["a", "b"])  # import nothing
    monkeypatch.setattr(demo_module, "begin_worker", waiting_worker.begin)
    monkeypatch.setattr(demo_module, "run_model", waiting_worker.wait)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    told = {"match": "was ended, .* the same command goes on"}
    with pytest.raises(KeyboardInterrupt) if interrupted else pytest.raises(InputError, **told):
        demo_module._run_models(None, step)


@pytest.mark.parametrize("ended", [True, False])
def test_a_worker_ends_when_its_pipe_does(ended):
    until, stop = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if not pid:
        stop.close()
        measure.begin_worker(None, until)
        time.sleep(60 if ended else 0.1)
        os._exit(0)
    if ended:
        stop.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == int(ended)
    stop.close()
