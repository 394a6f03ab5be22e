"""The command line itself: what it imports, how it spells options, how it refuses."""

import ast
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import torch
from cli_runner import run_cli
from rich.console import Console

import cba_fast
from cba_fast.cli.main import COMMANDS, EXAMPLES, LazyGroup
from cba_fast.cli.moved import of_today
from cba_fast.cli.progress import bar, continuable
from cba_fast.errors import InputError, with_flags

NO_TORCH = """
import sys
import cba_fast
assert "numpy" not in sys.modules, "import cba_fast is not cheap"
from cba_fast.cli.main import main
try:
    main([{args}])
except SystemExit as e:
    assert not e.code, e.code
assert "torch" not in sys.modules, "torch was imported"
assert "timm" not in sys.modules, "timm was imported"
"""


@pytest.mark.parametrize(
    "args", ["'--help'", "'generate-heatmap', '--help'", "'train-wsol', '--help'", "'--version'"]
)
def test_help_imports_no_torch(args):
    code = NO_TORCH.format(args=args)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command(capsys):
    done = run_cli(capsys, "--help")
    assert done.status == 0
    for name in COMMANDS:
        assert name in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys, name):
    done = run_cli(capsys, name, "--help")
    assert done.status == 0
    assert "Usage: cba-fast" in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_an_example_that_is_understood(capsys, monkeypatch, name):
    example = run_cli(capsys, name, "--help").out.splitlines()[-1].split()
    assert example == ["cba-fast", name, *EXAMPLES[name].split()]
    command = LazyGroup().get_command(None, name)
    for param in command.params:
        if isinstance(param.type, click.Path):  # the files of an example are not here
            monkeypatch.setattr(param.type, "exists", False)
    command.make_context(name, example[2:])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_each_option_once(capsys, name):
    text = re.split(r"^\w.*:$", run_cli(capsys, name, "--help").out, maxsplit=1, flags=re.M)[1]
    for param in LazyGroup().get_command(None, name).params:
        assert len(re.findall(rf"^  {param.opts[0]}\b", text, re.M)) == (not param.hidden), param


def test_many_options_are_grouped(capsys):
    def titles(name):
        return re.findall(r"^(\w.*):$", run_cli(capsys, name, "--help").out, re.M)

    computing = ["Compute", "Options"]
    assert titles("erf-compute") == ["Model", "Images", "ERF", *computing]
    assert titles("generate-heatmap") == ["Model", "Images", "Map", *computing]
    assert titles("wsol-eval") == ["Images", "Map", "Score", *computing]
    assert titles("info") == ["Options"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("wsol-evla", "Did you mean wsol-eval?"),
        ("erf_compote", "Did you mean erf-compute?"),
        ("no-such-thing", "`cba-fast --help` lists all."),
    ],
)
def test_a_mistyped_command_gets_a_suggestion(capsys, name, hint):
    done = run_cli(capsys, name)
    assert done.status == 2
    assert f"Error: No such command '{name}'. {hint}" in done.err


@pytest.mark.parametrize(
    ("line", "today"),
    [
        ("wsol-eval --mask-root=m --json r", "pixel-eval --mask_root m --json r"),
        ("analysis-erf-vs-wsol --per_image --seed 1", "analysis-per-image --seed 1"),
        (
            "erf-compute --definition=replknet --num_samples=2 --map m --map-fig f",
            "erf-map --num_images 2 --output m --save_fig f",
        ),
        ("erf-compute --definition study --p 1", "erf-compute --p 1"),
        ("erf-compute --num-samples=2", "erf-compute --num-samples=2"),
        ("evaluate --per_image", "evaluate --per_image"),
    ],
)
def test_earlier_modes_become_commands(capsys, line, today):
    assert of_today(line.split()) == today.split()
    told = capsys.readouterr().err
    assert told.endswith(f"is now: cba-fast {today}\n") if line != today else not told


def test_earlier_options_that_name_one_output_twice_are_refused(capsys):
    done = run_cli(capsys, "erf-compute", "--definition", "replknet", "--map=m", "--output", "o")
    assert done.status == 2
    assert "--definition replknet: give --output once" in done.err


def test_tables_are_made_in_one_place():
    root = Path(cba_fast.__file__).parent
    made = [p.name for p in root.rglob("*.py") if "rich.table" in p.read_text()]
    assert made == ["tables.py"]


def texts(path):
    """Return the line and text of each string of a file that is no docstring."""
    tree = ast.parse(path.read_text())
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield f"{path.name}:{node.lineno}", node.value


def test_python_speaks_of_arguments_and_the_commands_of_flags(capsys):
    root, cli = Path(cba_fast.__file__).parent, LazyGroup()
    commands = [cli.get_command(None, name) for name in COMMANDS]
    known = {flag for c in commands for p in c.params for flag in p.opts}
    for path in root.rglob("*.py"):
        if "cli" in path.relative_to(root).parts:
            continue
        for where, text in texts(path):
            assert not re.search(r"(?<![\w-])--[a-z]", text), f"{where} speaks of a flag: {text}"
            for flag in re.findall(r"--\w+", with_flags(text)):
                assert flag in known, f"{where}: {flag} is no flag of any command"
    from cba_fast.runs.scoring.boxes import open_boxes
    from cba_fast.runs.settings import BoxConfig

    with pytest.raises(InputError, match="either `cub_root` or `metadata_root`"):
        open_boxes(BoxConfig())
    assert (
        "either --cub_root or --metadata_root" in run_cli(capsys, "wsol-eval", "--np_root", ".").err
    )


@pytest.mark.parametrize("name", ["evaluate", "generate-heatmap"])
def test_a_first_call_without_weights_is_told_what_to_give(capsys, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_cli(capsys, name, "--test_dataset", ".")
    assert done.status == 1
    assert "CUB.pth, which is the default: give a checkpoint as --weights, or --model" in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate-heatmap", "--model_family", "vgg"], "vgg"),
        (
            ["generate-heatmap", "--localization_method", "gradcam"],
            "chefer. Did you mean grad-cam?",
        ),
        (["wsol-eval", "--np_root", ".", "--json", "."], "File '.' is a directory"),
        (["merge", "--weights", "w.pth", "--output", "."], "File '.' is a directory"),
        (["generate-heatmap", "--target", "first"], "'first' is not"),
        (["generate-heatmap", "--target", "-1"], "'-1' is not"),
        (["generate-heatmap", "--pc1_range", "cut"], "cut"),
        (["generate-heatmap", "--precision", "int8"], "int8"),
        (["generate-heatmap", "--batch_size", "0"], "0"),
        (["generate-heatmap", "--nonsense", "1"], "nonsense"),
        (["wsol-eval", "--contours", "biggest"], "biggest"),
        (["wsol-eval", "--iou_thr", "1.5"], "1.5"),
        (["wsol-eval", "--cam_curve_interval", "0"], "0"),
        (["wsol-eval", "--cam_curve_interval", "1e-11"], "1e-11"),
        (["wsol-eval", "--cam_curve_interval", "nan"], "'nan' is not a number"),
        (["wsol-eval", "--iou_thr", "nan"], "'nan' is not a number"),
        (["wsol-eval", "--resize_maps"], "--resize_maps needs --eval_size"),
        (["evaluate", "--resize_maps"], "--resize_maps needs --eval_size"),
        (["evaluate", "--p", "nan"], "'nan' is not a number"),
        (["evaluate", "--p", "x"], "'x' is not a number"),
        (["evaluate", "--seed", "-1"], "-1"),
        (["evaluate", "--seed", str(2**32)], str(2**32)),
        (["generate-heatmap", "--map_size", "40000"], "40000"),
        (["generate-heatmap", "--map_size", "9x"], "'9x' is not a size"),
        (["wsol-eval", "--eval_size", "input"], "'input' is not a size"),
        (["erf-compute", "--p", "nan"], "'nan' is not a number"),
        (["erf-compute"], "--weights"),
        (["no-such-command"], "No such command"),
    ],
)
def test_bad_options_are_named(capsys, args, message):
    done = run_cli(capsys, *args)
    assert done.status == 2
    assert message in done.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "Error: out of memory\n"),
        (MemoryError("Unable to allocate 9 TiB"), "Error: out of memory: Unable to allocate 9 TiB"),
        (torch.OutOfMemoryError("CUDA, 9 TiB"), "Error: out of memory: CUDA, 9 TiB\n"),
        (
            RuntimeError("DefaultCPUAllocator: can't"),
            "Error: out of memory: DefaultCPUAllocator: can't",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "Error: a process that reads images has died, perhaps for lack of memory (fewer --num",
        ),
        (OSError(28, "No space left on device", "x.npy"), "Error: x.npy: No space left on device"),
    ],
)
def test_errors_of_the_machine_are_one_line(capsys, monkeypatch, tmp_path, error, message):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("cba_fast.runs.scoring.boxes.score_folder", fails)
    done = run_cli(capsys, "wsol-eval", "--np_root", tmp_path)
    assert done.status == 1
    assert done.err.startswith(message)
    assert len(done.err.splitlines()) == 1


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch, capsys, tmp_path):
    def fails(*args, **kwargs):
        raise RuntimeError("a fault")

    monkeypatch.setattr("cba_fast.runs.scoring.boxes.score_folder", fails)
    with pytest.raises(RuntimeError, match="a fault"):
        run_cli(capsys, "wsol-eval", "--np_root", tmp_path)


def test_hyphens_and_underscores_are_the_same(capsys, tmp_path):
    for spelling in ("--np_root", "--np-root"):
        done = run_cli(capsys, "wsol_eval", spelling, tmp_path / "nowhere")
        assert done.status == 1
        assert "nowhere: no such folder" in done.err


def test_commands_that_go_on_say_so_when_interrupted(capsys):
    with pytest.raises(KeyboardInterrupt), continuable():
        raise KeyboardInterrupt
    assert "the same command goes on from the finished part" in capsys.readouterr().err
    with pytest.raises(InputError), continuable():
        raise InputError("x")
    assert not capsys.readouterr().err


def test_a_bug_report_can_be_pasted(capsys, monkeypatch):
    monkeypatch.setenv("CBA_ISA", "avx2")
    monkeypatch.setenv("HOME", "/nobody")
    monkeypatch.setenv("CBA_CACHE_DIR", "/nobody/tables")
    done = run_cli(capsys, "info", "--bug-report")
    facts = json.loads(re.search(r"```json\n(.*)\n```", done.out, re.DOTALL)[1])
    assert facts["environment"]["CBA_ISA"] == "avx2"
    assert facts["versions"]["cba_fast"] == cba_fast.__version__
    assert facts["environment"]["CBA_CACHE_DIR"] == "~/tables"


def test_a_bar_tells_rate_and_time_left(monkeypatch):
    shown = io.StringIO()
    screen = Console(file=shown, force_terminal=True, width=100)
    monkeypatch.setattr("cba_fast.cli.progress.Console", lambda **_: screen)
    for _ in bar("maps [x] {y}")(range(30), 30):
        time.sleep(0.01)
    assert re.search(r"maps \[x\] \{y\} .*30/30.*/s.*0:00:00", shown.getvalue())


def test_no_bar_where_it_is_no_terminal(capsys):
    assert list(bar("maps")(range(3), 3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
