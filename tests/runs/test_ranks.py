"""Several processes of torchrun write the files of one process, and say which of them died."""

import multiprocessing
import os
import socket
import sys
from pathlib import Path

import pytest
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from data_factory import write_file
from evaluate_setup import IDS, images_and_metadata, model_arguments

import cba_fast.runs.evaluate
import cba_fast.runs.generate  # noqa: F401 (the processes are forked with it)
from cba_fast.cli.main import main
from cba_fast.errors import InputError


def run(count, *args):
    """Run `count` processes of a command as torchrun starts them; return their (status, out, err).

    They are forked from this process, which has imported everything, so that a run takes seconds.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    names = [(f".{rank}.out", f".{rank}.err") for rank in range(count)]
    fork = multiprocessing.get_context("fork")
    processes = []
    for rank, texts in enumerate(names):
        env = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(fork.Process(target=_process, args=(env, texts, [str(a) for a in args])))
        processes[-1].start()
    for process in processes:
        process.join(120)
    texts = [[Path(name).read_text() for name in pair] for pair in names]
    return [(p.exitcode, *both) for p, both in zip(processes, texts, strict=True)]


def _process(env, names, args):
    os.environ.update(env)
    for number, name in zip((1, 2), names, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    main(args)


def files_of(*paths):
    """Return the bytes of files and of all files in folders, by their paths."""
    found = [f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()]
    return {str(f): f.read_bytes() for f in found}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Seven images, of which the third is unreadable, and a model of three classes."""
    root = images_and_metadata(tmp_path_factory.mktemp("ranks"))
    write_file(root / "images" / IDS[2], b"no image")
    make_checkpoint(root / "r.pth", "replknet", SMALL_MODELS["replknet"], num_classes=3)
    before = os.getcwd()
    os.chdir(root)
    yield root
    os.chdir(before)


@pytest.fixture(scope="module")
def common(here):
    return [*model_arguments("r.pth"), "--batch_size", 2]


@pytest.mark.parametrize("count", [2, 3])
def test_evaluate_writes_the_files_of_one_process(here, common, count):
    args = ["evaluate", *common, "--metadata_root", "meta", "--threshold", 0.4]
    args += ["--num_samples", 3, "--json", "s.json", "--predictions", "p.csv"]
    (one,) = run(1, *args)
    assert one[0] == 0, one[2]
    wanted = files_of(here / "s.json", here / "p.csv")
    for path in wanted:
        os.remove(path)
    first, *others = run(count, *args)
    assert first == one
    assert others == [(0, "", "")] * (count - 1)
    assert files_of(here / "s.json", here / "p.csv") == wanted


@pytest.mark.parametrize("where", ["np_h", "store"])
def test_generate_heatmap_writes_the_files_of_one_process(here, common, where):
    args = ["generate-heatmap", *common, "--heatmap_output", "h"]
    args += ["--store", "store"] if where == "store" else []
    (one,) = run(1, *args)
    assert one[0] == 0, one[2]
    wanted = files_of(here / "h", here / where)
    assert len(wanted) == 6 + 1 + (4 if where == "store" else 6 + 1)
    for path in [p for p in wanted if IDS[3].removesuffix(".jpg") in p or "0003" in p]:
        os.remove(path)  # as a killed run leaves it
    for count, more, made in ((2, [], 1), (3, ["--overwrite"], 6)):
        (status, out, err), *others = run(count, *args, *more)
        assert status == 0, err
        assert f"Heatmaps     : {made} made" in out
        assert IDS[2] in err
        assert others == [(0, "", "")] * (count - 1)
        assert files_of(here / "h", here / where) == wanted


def test_a_process_that_ends_early_is_named(here, common):
    args = ["evaluate", *common, "--metadata_root", "meta", "--strict", "--num_samples", 0]
    (status0, _, err0), (status1, _, err1) = run(2, *args, "--json", "never.json")
    assert (status0, status1) == (1, 1)
    assert f"Error (rank 1): {IDS[2]}" in err1
    assert "Error (rank 0): rank 1 of this run has ended early" in err0
    assert not (here / "never.json").exists()


def test_an_erf_that_one_process_cannot_measure_is_a_note_of_all(here, common, monkeypatch):
    def refuse(*args, **options):
        raise InputError("no gradient")  # only the process that has the one image comes here

    monkeypatch.setattr("cba_fast.erf.sizes._gradient", refuse)
    args = ["evaluate", *common, "--metadata_root", "meta", "--num_samples", 1, "--seed", 1]
    first, second = run(2, *args, "--json", "note.json")
    assert first[0] == 0, first[2]
    assert second == (0, "", "")
    assert "the ERF size could not be measured: no gradient" in first[2]
    assert '"erf": null' in (here / "note.json").read_text()


def test_commands_that_cannot_share_say_so(here):
    for status, _, err in run(2, "wsol-eval", "--np_root", "maps"):
        assert status == 1
        assert "wsol-eval runs as one process" in err
