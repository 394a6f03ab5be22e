"""Settings: each is declared once, and options, keys of plan files and checks are made from it."""

import ast
from collections import defaultdict
from dataclasses import MISSING, fields, replace
from pathlib import Path

import click
import pytest
import torch
from cli_runner import run_cli
from pydantic import TypeAdapter, ValidationError

import cba_fast
from cba_fast.cli.main import COMMANDS, LazyGroup
from cba_fast.cli.options import GROUPS, Option, type_of
from cba_fast.errors import InputError
from cba_fast.experiments import settings as experiments
from cba_fast.experiments.plan import load_experiments
from cba_fast.runs import settings as runs
from cba_fast.runs.declare import MANY, Range, check_values, declared
from cba_fast.runs.runtime import Runtime
from cba_fast.training.config import TrainConfig

CONFIGS = [c for n, c in vars(runs).items() if n.endswith("Config") or n == "Statistics"]
CONFIGS.append(TrainConfig)
NAMES = {name for config in CONFIGS for name in declared(config)}
NAMES |= {found.option for config in CONFIGS for found in declared(config).values()}
ROOT = Path(cba_fast.__file__).parent
UPPER = ("runs", "training", "analysis", "experiments", "cli")
COMMAND = {name: LazyGroup().get_command(None, name) for name in COMMANDS}

# Settings that have one name and more than one default, and why.
WRITTEN_AGAIN = {
    "batch_size": "of inference 8, of training 32, of a timing 1",
    "num_images": "the ERF map's protocol has 50, a sweep of many maps 4, interventions score 200",
    "num_samples": "merge compares two random inputs",
    "seed": "each command draws something else, and begins with 0",
}
# Options whose default is not that of their field, by option; None stands for all commands.
OTHER_DEFAULT = {
    "weights": "the study's checkpoint, which Python does not assume",
    "test_dataset": "the study's sample images, or its data set",
    "batch_size": "1, the study's, for ERF sizes",
    "input_size": "erf-map has its protocol's 1024",
    "num_samples": "analysis-per-image takes the file's",
    "seed": "analysis-per-image takes the file's",
    "p": "evaluate has one share",
}


def defaults(path: Path):
    """Yield the names and defaults that a file writes: parameters, fields and options."""
    for node in ast.walk(ast.parse(path.read_text())):
        found = []
        if isinstance(node, ast.FunctionDef):
            names = [*node.args.posonlyargs, *node.args.args]
            found += zip(names[len(names) - len(node.args.defaults) :], node.args.defaults)
            found += zip(node.args.kwonlyargs, node.args.kw_defaults)
            found = [(name.arg, value) for name, value in found]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            value = node.value
            if isinstance(value, ast.Call) and value.args:  # setting(default, ...)
                value = value.args[0]
            found = [(node.target.id, value)]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = str(node.args[0].value).removeprefix("--")
            found = [(name, k.value) for k in node.keywords if k.arg == "default"]
        for name, value in found:
            # None and False say that something is not asked for; that is no choice.
            if isinstance(value, ast.Constant) and not any(value.value is v for v in (None, False)):
                yield name, value.value


def written_twice(files) -> dict[str, list]:
    """Return the names of settings whose defaults are written in more than one place."""
    found = defaultdict(list)
    for path in files:
        for name, value in defaults(path):
            if name in NAMES:
                found[name].append((path.name, value))
    return {name: places for name, places in found.items() if len(places) > 1}


def test_no_default_is_written_twice():
    files = [p for floor in UPPER for p in (ROOT / floor).rglob("*.py")]
    found = written_twice(files)
    assert found.keys() <= WRITTEN_AGAIN.keys(), found
    assert found.keys() >= WRITTEN_AGAIN.keys(), "an exception that nothing needs"


@pytest.mark.parametrize(
    "line",
    [
        "def f(*, epochs=100): pass",
        "class C:\n    epochs: int = setting(100)",
        "option('--epochs', default=100)(f)",
        "class C:\n    epochs: int = 0",
    ],
)
def test_a_default_that_is_written_twice_is_seen(tmp_path, line):
    (tmp_path / "a.py").write_text(line)
    again = [ROOT / "training" / "config.py", tmp_path / "a.py"]
    assert "epochs" in written_twice(again)
    assert "epochs" not in written_twice(again[:1])


def options():
    """Return each command's name and its options that were made from settings."""
    return [
        pytest.param(option, id=f"{name} {option.opts[0]}")
        for name, command in COMMAND.items()
        for option in command.params
        if isinstance(option, Option) and option.setting
    ]


@pytest.mark.parametrize("option", options())
def test_an_option_has_the_default_of_its_setting(option):
    config, name = option.setting
    found = declared(config)[name]
    wanted = None if found.default is MISSING else found.default
    own = option.get_default(click.Context(click.Command("x")), call=False)
    own = None if option.required or "UNSET" in repr(own) else own
    assert own == wanted or found.option in OTHER_DEFAULT or found.text["otherwise"]


def test_every_setting_has_an_option_and_a_help_text():
    made = {o.values[0].setting for o in options()}
    made.add((runs.ErfMapConfig, "input_size"))  # as that of all images
    for config in CONFIGS:
        for name, found in declared(config).items():
            assert (config, name) in made, f"{config.__name__}.{name} has no option"
            assert found.text["help"].endswith((".", "?")), found.text["help"]


def test_plan_files_have_the_types_and_defaults_of_the_settings():
    changed = {"model_family", "input_size", "output_stride", "test_dataset", "p"}
    for key, (config, name) in experiments._KEYS.items():
        field = experiments.Settings.model_fields[key]
        assert key in changed or field.default == declared(config)[name].default, key
    assert experiments._CHANGED.keys() == changed


def test_plan_files_may_say_weights(tmp_path):
    path = tmp_path / "x.yaml"
    entry = "model_family: slak, weights: a.pth"
    path.write_text(f"experiments: [{{{entry}}}]")
    assert load_experiments(path).experiments[0].settings.weight_path == Path("a.pth")
    path.write_text(f"experiments: [{{{entry}, weight_path: b.pth}}]")
    with pytest.raises(InputError, match="two names of one setting"):
        load_experiments(path)


RANGED = [
    pytest.param(config, name, id=f"{config.__name__}.{name}")
    for config in CONFIGS
    for name, found in declared(config).items()
    if found.range and MANY not in found.marks
]


@pytest.mark.parametrize(("config", "name"), RANGED)
def test_command_plan_and_python_refuse_the_same_numbers(config, name):
    found = declared(config)[name]
    kind, limits = found.kind, found.range
    required = {f.name: "x" for f in fields(config) if f.default is MISSING}
    adapter = TypeAdapter(experiments._typed(found)[0])
    steps = (-1, 0, 1) if kind is int else (-1e-9, 0, 1e-9)
    ends = [e for e in (limits.min, limits.max) if e is not None]
    for value in [kind(end + step) for end in ends for step in steps]:
        answers = []
        for check, error in (
            (lambda v: check_values(config(**{**required, name: v})), InputError),
            (lambda v: type_of(found).convert(str(v), None, None), click.UsageError),
            (adapter.validate_python, ValidationError),
        ):
            try:
                check(value)
                answers.append(True)
            except error:
                answers.append(False)
        assert answers == 3 * [limits.holds(value)], value


def test_ranges_are_told_in_words():
    words = {
        "at least 1": Range(1),
        "0 or more": Range(0),
        "positive and finite": Range(0.0, min_open=True),
        "in [0, 1)": Range(0, 1, max_open=True),
        "in (0, 1]": Range(0, 1, min_open=True),
    }
    assert list(words) == [str(r) for r in words.values()]
    assert not Range(0.0).holds(float("nan"))
    assert not Range(0.0).holds(float("inf"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": -1.0}, "`lr` must be positive and finite, got -1.0"),
        ({"aug_mode": "hard"}, "`aug_mode` 'hard' is not one of"),
        ({"micro_batch": 0}, "`micro_batch` must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_named(values, message):
    with pytest.raises(InputError, match=message):
        check_values(replace(TrainConfig(), **values))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_grouped(capsys, name):
    text = run_cli(capsys, name, "--help").out
    at = [text.find(f"\n{group}:\n") for group in GROUPS]
    assert [i for i in at if i >= 0] == sorted(i for i in at if i >= 0)
    assert at[-1] > 0
    for option in COMMAND[name].params:
        assert getattr(option, "group", GROUPS[-1]) in GROUPS


def test_a_runtime_is_made_once():
    run = runs.RunConfig(device="cpu", precision="bf16", channels_last=False)
    made = Runtime.of(run)
    assert Runtime.of(made) is made
    assert (made.device.type, made.dtype) == ("cpu", torch.bfloat16)
    assert made.memory_format == torch.contiguous_format
    assert made.threads == torch.get_num_threads()
    with made.autocast():
        assert torch.is_autocast_enabled("cpu")
    exact = Runtime.of(run.for_erf())
    assert (exact.dtype, exact.config.batch_size) == (torch.float32, 1)
    with exact.autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_devices_are_chosen_in_one_place():
    floors = ("runs", "training", "analysis", "experiments")
    files = [path for floor in floors for path in (ROOT / floor).rglob("*.py")]
    words = ("cuda.is_available(", "torch.device(")
    found = sorted(p.name for p in files if any(w in p.read_text() for w in words))
    assert found == ["runtime.py"]
