"""The options of the commands, made from the config classes in which the settings are declared.

A decorator such as ``@config_options(RunConfig, "run_config")`` adds an option for each field and
hands the command one config instead of many keywords.
"""

import difflib
import functools
import math
from collections.abc import Callable
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Any

import click

from ..choices import READERS, SCORE_RESAMPLES
from ..errors import InputError, with_flags
from ..runs.declare import MANY, Declared, Range, declared
from ..runs.settings import (
    BoxConfig,
    ClusterConfig,
    DataConfig,
    MapConfig,
    ModelConfig,
    RunConfig,
    Statistics,
)
from ..shapes import MOST, map_shape, point_of, size_word
from ..stages import profiled
from ..training.config import TrainConfig
from .progress import warn

STUDY_WEIGHTS = Path("weights/convnext_base_384_in22ft1k_CUB.pth")
POSITIVE = click.IntRange(min=1)
SIDE = click.IntRange(1, MOST)  # for commands whose images are square
SEED = click.IntRange(0, 2**32 - 1)  # what NumPy's generators take
PATH, FILE = click.Path(path_type=Path), click.Path(dir_okay=False, path_type=Path)
# The order of the groups in a command's help; options of the command alone come last.
GROUPS = ("Model", "Images", "Map", "ERF", "Training", "Score", "Report", "Compute", "Options")


class Option(click.Option):
    """An option that knows its group in the help, and the config field that it was made from."""

    def __init__(self, *args, group: str = GROUPS[-1], setting: tuple | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.group, self.setting = group, setting


def option(*names: str, group: str = GROUPS[-1], **kwargs) -> Callable:
    """Return `click.option`'s decorator for an option of a group."""
    return click.option(*names, cls=Option, group=group, **kwargs)


class FiniteRange(click.FloatRange):
    """A number in a range; click's own range lets NaN pass, of which no comparison is true."""

    def convert(self, value, param, ctx):
        """Return the number; text, NaN and numbers outside the range are refused."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return super().convert(number, param, ctx)


class SizeType(click.ParamType):
    """The size of maps: ``N``, ``HxW``, or, where there is an input, ``input``."""

    def __init__(self, of_input: int | None = None):
        self.of_input = of_input
        self.name = "N|HxW" if of_input is None else "N|HxW|input"

    def convert(self, value, param, ctx):
        """Return a side as a number, other sizes as their text."""
        try:
            shape = map_shape(value, self.of_input, param.name)
        except InputError:
            self.fail(f"{value!r} is not a size of 1 to {MOST} ({self.name})", param, ctx)
        return value if value == "input" else size_word(shape)


class TargetType(click.ParamType):
    """``predicted``, ``label`` or a class index."""

    name = "predicted|label|INDEX"

    def convert(self, value, param, ctx):
        """Return `value` unchanged if it is one of the three forms."""
        if value in ("predicted", "label") or value.isdecimal():
            return value
        self.fail(f"{value!r} is not 'predicted', 'label' or a class index", param, ctx)


class PointType(click.ParamType):
    """A position of a feature map: ``ROW,COLUMN`` or two shares of its sides."""

    name = "ROW,COLUMN"

    def convert(self, value, param, ctx):
        """Return the text, which can be read as two numbers."""
        try:
            point_of(value)
        except InputError as e:
            self.fail(str(e).replace("`point` ", ""), param, ctx)
        return value


class ChoiceOf(click.Choice):
    """One of the values of a `Literal`, which may be numbers."""

    def __init__(self, values: tuple):
        super().__init__([str(v) for v in values])
        self.values = {str(v): v for v in values}

    def convert(self, value, param, ctx):
        """Return the value itself, not its text."""
        return self.values[super().convert(str(value), param, ctx)]

    def get_invalid_choice_message(self, value, ctx):
        """Return the error with the choices as the documentation writes them, with hyphens."""
        near = difflib.get_close_matches(str(value), self.values, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"{value!r} is not one of {', '.join(self.values)}.{hint}"


_MARKED = {
    "size": SizeType(),
    "size or input": SizeType(of_input=1),
    "target": TargetType(),
    "point": PointType(),
}


def type_of(found: Declared) -> click.ParamType | type:
    """Return the type of the option of a declared setting."""
    for mark in found.marks:
        if isinstance(mark, Range):
            ends: tuple = (mark.min, mark.max, mark.min_open, mark.max_open)
            return FiniteRange(*ends) if found.kind is float else click.IntRange(*ends)
        if mark in _MARKED:
            return _MARKED[mark]
    if found.choices:
        return ChoiceOf(found.choices)
    return PATH if found.kind is Path else found.kind


def config_option(config: Any, name: str, called: str | None = None, **changes: Any) -> Callable:
    """Return the decorator of the option for one field of a config class.

    Args:
        config, name: the class and its field.
        called: the name of the option; None for the declared one.
        changes: arguments of `click.option` that stand before what is declared; `otherwise` before
            that of the declaration.
    """
    found = declared(config)[name]
    otherwise = changes.pop("otherwise", found.text["otherwise"])
    text = changes.pop("help", found.text["help"])
    text += f"  [default: {otherwise}]" if otherwise else ""
    options = {"help": with_flags(text), "group": config.group, "setting": (config, name)}
    names = (called,) if called else found.text["option"] or (name,)
    flag, *others = [f"--{n}" for n in names]
    if found.kind is bool:
        flag += f"/--no_{name}" if found.default else ""
        options |= {"is_flag": True, "default": found.default}
    else:
        options |= {"type": type_of(found), "multiple": MANY in found.marks}
        if found.default is MISSING:
            options["required"] = True
        elif found.default is not None and not otherwise:
            options["default"] = found.default
    if "default" in changes:
        options.pop("required", None)
    return option(flag, *others, names[0], **{**options, **changes})


def config_options(
    config: type,
    keyword: str,
    *names: str,
    without: tuple[str, ...] = (),
    make: Callable | None = None,
    **changes: dict,
) -> Callable:
    """Return a decorator: add an option for each field, and hand over ``keyword=config(...)``.

    Args:
        config: the class.
        keyword: the command's argument.
        names: the fields; all of them if there are none. Others keep their defaults.
        without: fields to leave out.
        make: called with the fields instead of `config`; refuses what does not go together.
        changes: by field: what `config_option` shall change.
    """
    fields = {n: declared(config)[n].option for n in names or declared(config) if n not in without}

    def decorate(command):
        @functools.wraps(command)
        def wrapper(*args, **kwargs):
            values = {field: kwargs.pop(option) for field, option in fields.items()}
            return command(*args, **{keyword: (make or config)(**values)}, **kwargs)

        for field in reversed(fields):
            wrapper = config_option(config, field, **changes.get(field, {}))(wrapper)
        return wrapper

    return decorate


def comma_lists(config: type, *names: str) -> dict[str, Any]:
    """Return `changes` for `config_options`: these settings may be given as ``--x a,b``, too."""
    return {name: {"type": str, "callback": _parser(declared(config)[name])} for name in names}


def _parser(found: Declared) -> Callable:
    kind = click.types.convert_type(type_of(found))

    def parse(ctx, param, given: tuple[str, ...]) -> tuple:
        values = []
        for text in ",".join(given).split(",") if given else ():
            value = kind.convert(text.strip(), param, ctx)
            if value in values:
                raise click.BadParameter(f"{text} is given twice", ctx, param)
            values.append(value)
        return tuple(values)

    return parse


_INSTEAD = {
    "resume": "is what happens anyway: the same command goes on where it was",
    "no_resume": "is called --overwrite now",
    "redo": "is called --overwrite now",
}


def overwrite_option(
    *earlier: str, help: str = "Start anew and replace what an earlier run of this command wrote."
) -> Callable:
    """Hands over `overwrite`; `earlier` are the flags of the last release, still understood."""

    def decorate(command):
        @functools.wraps(command)
        def wrapper(*args, overwrite: bool, **kwargs):
            for name in earlier:
                if kwargs.pop(name):
                    click.echo(f"Warning: --{name} {_INSTEAD[name]}", err=True)
                    overwrite |= name != "resume"
            return command(*args, overwrite=overwrite, **kwargs)

        for name in earlier:
            wrapper = click.option(f"--{name}", is_flag=True, hidden=True)(wrapper)
        return option("--overwrite", is_flag=True, help=help)(wrapper)

    return decorate


def model_options(default: Path | None = STUDY_WEIGHTS) -> Callable:
    """Which model: hands over `model_config`. Without a model and weights it is `default`.

    Args:
        default: a checkpoint; None demands that a model or weights are given.
    """

    def make(**values) -> ModelConfig:
        config = ModelConfig(**values)
        if config.weights or config.name or config.factory or config.pretrained:
            return config
        if default is None:
            raise click.UsageError(
                "give --weights FILE, or --model NAME or --model_factory for random weights"
            )
        return replace(config, weights=default)

    known = f"{default}, unless a model is named" if default else None
    weights = {"otherwise": known}
    return config_options(ModelConfig, "model_config", make=make, weights=weights)


def family_options() -> Callable:
    """Which checkpoint of the study's families: hands over `model_config`."""
    without, weights = ("factory", "pretrained"), {"required": True}
    return config_options(ModelConfig, "model_config", without=without, weights=weights)


def data_options(
    default: str = "sample_data", without: tuple[str, ...] = (), **changes: Any
) -> Callable:
    """Which images: hands over `data_config`, with the options of all fields but `without`."""
    changes["test_dataset"] = {"default": default}
    return config_options(DataConfig, "data_config", without=without, **changes)


def resolved(
    model_config: ModelConfig, data_config: DataConfig, **options
) -> tuple[ModelConfig, DataConfig]:
    """Return the settings, completed by what the checkpoint says, and tell them in one line."""
    from ..runs.resolve import resolve

    if model_config.weights == STUDY_WEIGHTS and not STUDY_WEIGHTS.exists():
        raise InputError(
            f"there is no {STUDY_WEIGHTS}, which is the default: give a checkpoint as `weights`, or"
            " `model` or `model_factory` for random weights"
        )
    found = resolve(model_config, data_config, **options)
    click.echo(found.line, err=True)
    warn([found.warning] if found.warning else [])
    return found.model, found.data


def tell_advice(model_config: ModelConfig, data_config: DataConfig, run_config: RunConfig) -> None:
    """Tell, before a run on a CPU, whether compiling pays, if `cba-fast bench` has timed it."""
    from ..bench.advice import advice
    from ..runs.runtime import Runtime

    found = advice(model_config, data_config, run_config)
    if found and Runtime.of(run_config).device.type == "cpu":
        click.echo(f"compute: {with_flags(found)}", err=True)


def run_options(batch_size: int = RunConfig.batch_size, with_compile: bool = False) -> Callable:
    """How to compute: hands over `run_config`; `with_compile` adds the option of that name."""
    left = () if with_compile else ("compile",)
    changed = {"default": batch_size}
    return config_options(RunConfig, "run_config", without=left, batch_size=changed)


def cluster_options(without: tuple[str, ...] = ()) -> Callable:
    """Where it runs: hands over `cluster_config`, with the options of all fields but `without`."""

    def make(**values) -> ClusterConfig:
        config, others = ClusterConfig(**values), ClusterConfig()
        given = [name for name, value in values.items() if value != getattr(others, name)]
        if config.engine == "local" and given:
            raise click.UsageError(f"--{given[0]} belongs to --engine ray")
        return config

    return config_options(ClusterConfig, "cluster_config", without=without, make=make)


def checkpoint_option() -> Callable:
    """Whether input gradients recompute activations: hands over `checkpoint`."""
    return config_option(TrainConfig, "checkpoint", group="Compute")


def erf_options(
    model: Callable | None = None, without: tuple[str, ...] = (), **changes: dict
) -> Callable:
    """Model, images and how to compute, for the commands of the ERF.

    Args:
        model: decorator of the model's options; None for those of any model.
        without, changes: of the images, as for `data_options`.
    """

    def decorate(command):
        # The study takes one image at a time.
        for options in (
            checkpoint_option(),
            run_options(batch_size=1),
            data_options("cub-200-2011", ("classes", *without), **changes),
            model or model_options(default=None),
        ):
            command = options(command)
        return command

    return decorate


def np_root_option(help: str = "Folder of maps, or a store of them.") -> Callable:
    """Where the maps of an earlier run are: hands over `np_root`."""
    default = Path("np_heatmap_output")
    return option("--np_root", type=PATH, default=default, help=help, group="Map")


def threads_option() -> Callable:
    """How many threads read files: hands over `num_workers`."""
    kind, text = click.IntRange(1, 64), "Threads that read, such as 4."
    return option("--num_workers", type=kind, default=READERS, help=text, group="Compute")


def threshold_from_option() -> Callable:
    """Which run's thresholds are taken, too: hands over `threshold_from`."""
    text = "Also score at the thresholds that this JSON file of another run found best."
    return option("--threshold_from", type=PATH, help=text, group="Score")


def json_option(help: str = "Write everything to this JSON file.") -> Callable:
    """Where the results go: hands over `json_path`."""
    return option("--json", "json_path", type=FILE, help=help)


def tables_option() -> Callable:
    """Where the tables go, for papers: hands over `tables`."""
    kind = click.Path(file_okay=False, path_type=Path)
    text = "Write each table here as CSV, Markdown and LaTeX (booktabs, graphicx), such as tables."
    return option("--tables", type=kind, metavar="DIR", help=text)


def images_option() -> Callable:
    """Where the images of stored maps are: hands over `images`."""
    text = "Folder of the images, below which they lie under their ids; for pictures of a report."
    text += "  [default: those of --cub_root; else the pictures show the maps alone]"
    return option("--images", type=PATH, group="Images", help=text)


def report_option() -> Callable:
    """Where a report goes: hands over `report_path`."""
    text = "Write a page as `report` does: an HTML file, or a folder for report.html."
    return option("--report", "report_path", type=PATH, metavar="FILE|DIR", help=text)


def sheets_option() -> Callable:
    """Where contact sheets go: hands over `sheets`."""
    kind = click.Path(file_okay=False, path_type=Path)
    text = "Write pictures of the best, worst and most changed images here, such as sheets."
    return option("--sheets", type=kind, metavar="DIR", help=text)


def profile_option() -> Callable:
    """Whether the command ends with where its time went; a JSON file of its results has it, too."""
    text = "End with the shares of the time: model, map, sweep, overlay, write, waiting for data."

    def decorate(command):
        @functools.wraps(command)
        def wrapper(*args, profile: bool, **kwargs):
            if not profile:
                return command(*args, **kwargs)
            with profiled() as found:
                done = command(*args, **kwargs)
            for line in found.lines():
                click.echo(line)
            return done

        return option("--profile", is_flag=True, help=text, group="Compute")(wrapper)

    return decorate


def map_options() -> Callable:
    """Which map: hands over `map_config`."""
    return config_options(MapConfig, "map_config")


def box_options(with_metadata: bool, contours: bool, scored: bool = True) -> Callable:
    """Which boxes and protocol: hands over `box_config`.

    Args:
        with_metadata: add the metadata options (commands that have `data_options` share those).
        contours: add the option of that name; else both modes are run.
        scored: the boxes are scored; else they are only predicted.
    """
    metadata = ("metadata_root", "dataset_name", "split", "clip")
    left: tuple[str, ...] = () if with_metadata else metadata
    left += () if scored else ("missing_as_miss", "threshold")
    left += () if contours else ("contours",)
    changes = {} if scored else {"contours": {"type": click.Choice(["largest", "all"])}}
    return config_options(BoxConfig, "box_config", without=left, make=sized(BoxConfig), **changes)


def sized(config: type) -> Callable:
    """Return a maker of a config that refuses to resize maps to no size."""

    def make(**values):
        if values["resize_maps"] and values["eval_size"] is None:
            raise click.UsageError("--resize_maps needs --eval_size, the side to resize to")
        return config(**values)

    return make


def statistics_options() -> Callable:
    """What is told beside the scores: hands over `statistics`."""
    return config_options(
        Statistics, "statistics", make=_statistics, num_resamples={"metavar": "N"}
    )


def _statistics(num_resamples: int | None, **values) -> Statistics:
    if values["compare"] is None and values["compare_predictions"] is not None:
        raise click.UsageError("--compare_predictions needs --compare")
    if values["compare"] is not None and num_resamples == 0:
        raise click.UsageError("--compare needs resamples: give --bootstrap more than 1")
    if num_resamples == 1:
        raise click.UsageError("--bootstrap needs at least 2 resamples")
    if num_resamples is None:
        num_resamples = 0 if values["compare"] is None else SCORE_RESAMPLES
    return Statistics(num_resamples=num_resamples, **values)
