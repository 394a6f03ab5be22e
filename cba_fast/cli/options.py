"""Options that several commands share, each group collected into one config object.

A decorator such as ``@model_options(...)`` adds its options and hands the command one keyword
(``model_config``) instead of many.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import click

from ..data.records import MAP_NAMES
from ..errors import InputError
from ..runs.settings import BoxConfig, DataConfig, MapConfig, ModelConfig, RunConfig
from ..shapes import MOST, map_shape

FAMILIES = ("convnext", "replknet", "slak", "slak_flex")
STUDY_WEIGHTS = "weights/convnext_base_384_in22ft1k_CUB.pth"
POSITIVE = click.IntRange(min=1)
SEED = click.IntRange(0, 2**32 - 1)  # what NumPy's generators take


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
        return value if value == "input" or shape[0] != shape[1] else shape[0]


MAP_SIZE, EVAL_SIZE = SizeType(of_input=1), SizeType()
SHARE = FiniteRange(0, 1, min_open=True)
INTERVAL = FiniteRange(1e-5, 1)  # 100,000 thresholds
CONFIDENCE = FiniteRange(0, 1, min_open=True, max_open=True)


def _collect(
    keyword: str,
    config: Callable,
    fields: dict[str, str],
    options: list,
    check: Callable = lambda config: None,
) -> Callable:
    """Return a decorator: add `options`, hand over ``keyword=config(...)``.

    `fields` maps the parameter names of the options to the config's field names; `check` is called
    with the config and refuses options that do not go together.
    """

    def decorate(command):
        @functools.wraps(command)
        def wrapper(*args, **kwargs):
            values = {field: kwargs.pop(name) for name, field in fields.items()}
            made = config(**values)
            check(made)
            return command(*args, **{keyword: made}, **kwargs)

        for option in reversed(options):
            wrapper = option(wrapper)
        return wrapper

    return decorate


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
        return click.option("--overwrite", is_flag=True, help=help)(wrapper)

    return decorate


def output_stride_option(otherwise: str) -> Callable:
    """The resolution of the last feature maps; `otherwise` says what holds if it is not given."""
    return click.option(
        "--output_stride",
        type=click.Choice(["32", "16"]),
        callback=lambda ctx, param, value: value and int(value),
        help="16: feature maps at 1/16 of the input, for small inputs; as in the training."
        f"  [default: {otherwise}]",
    )


def model_options(required: bool = False) -> Callable:
    """Which model: hands over `model_config`. Not `required`: the study's checkpoint."""
    weights = {"required": True} if required else {"default": STUDY_WEIGHTS}
    options = [
        click.option(
            "--weights",
            "--fine_tuned_weight_name",
            "weights",
            type=click.Path(path_type=Path),
            help="Checkpoint file. One of train-wsol says all that the following options say.",
            **weights,
        ),
        click.option(
            "--model_family",
            type=click.Choice(FAMILIES),
            help="Family of the checkpoint.  [default: the checkpoint's]",
        ),
        click.option(
            "--model",
            "model_name",
            help="Model name, such as replknet_31b.  [default: the checkpoint's, else the family's"
            " base model]",
        ),
        click.option("--num_classes", type=POSITIVE, help="Checked against the checkpoint's head."),
        click.option(
            "--alpha",
            type=float,
            help="slak_flex: weight of the strips.  [default: the checkpoint's, else 1]",
        ),
        click.option(
            "--beta",
            type=float,
            help="slak_flex: weight of the square kernel.  [default: the checkpoint's, else 0]",
        ),
        output_stride_option("the checkpoint's, else 32"),
    ]
    fields = {
        "model_family": "family",
        "weights": "weights",
        "model_name": "name",
        "num_classes": "num_classes",
        "alpha": "alpha",
        "beta": "beta",
        "output_stride": "output_stride",
    }
    return _collect("model_config", ModelConfig, fields, options)


_METADATA_OPTIONS = [
    click.option(
        "--metadata_root",
        type=click.Path(path_type=Path),
        help="wsolevaluation metadata: the folder with image_ids.txt, or the root above it.",
    ),
    click.option("--dataset_name", help="Folder below the metadata root, e.g. CUB."),
    click.option(
        "--split",
        help="Split of CUB_200_2011 (train, test or all), or folder below the metadata root, such"
        " as val.  [default: test, or the split whose folder --metadata_root is]",
    ),
]


def input_size_option() -> Callable:
    """The side of the images that the model gets."""
    return click.option(
        "--input_size",
        type=click.IntRange(1, 8192),
        help="Side to which images are resized, e.g. 384.  [default: the checkpoint's, else 384]",
    )


def data_options(default: str, with_classes: bool = False) -> Callable:
    """Which images: hands over `data_config`; `with_classes` adds the option of that name."""
    options = [
        click.option(
            "--test_dataset",
            default=default,
            help="Images: a name below datasets/ or a folder, of class folders or CUB_200_2011.",
        ),
        *_METADATA_OPTIONS,
        input_size_option(),
    ]
    names = ["test_dataset", "metadata_root", "dataset_name", "split", "input_size"]
    if with_classes:
        text = "File that names the model's classes in the order of their labels, one per line."
        options.append(click.option("--classes", type=click.Path(path_type=Path), help=text))
        names.append("classes")
    return _collect("data_config", DataConfig, {k: k for k in names}, options)


def resolved(
    model_config: ModelConfig, data_config: DataConfig, **options
) -> tuple[ModelConfig, DataConfig]:
    """Return the settings, completed by what the checkpoint says, and tell them in one line."""
    from ..runs.resolve import resolve

    found = resolve(model_config, data_config, **options)
    click.echo(found.line, err=True)
    return found.model, found.data


def run_options(batch_size: int = 8, with_compile: bool = False) -> Callable:
    """How to compute: hands over `run_config`; `with_compile` adds the option of that name."""
    options = [
        click.option("--batch_size", type=POSITIVE, default=batch_size, help="Images at once."),
        click.option(
            "--num_workers",
            type=click.IntRange(min=0),
            default=2,
            help="Processes that read images; 0: none beside this one.",
        ),
        click.option("--device", help="cpu, cuda, cuda:1, ...; CUDA where available if absent."),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "bf16", "fp16"]),
            default="fp32",
            help="bf16 and fp16: autocast. On CPUs without bf16 instructions, bf16 is far slower.",
        ),
        click.option(
            "--channels_last/--no_channels_last", default=True, help="Memory format of the model."
        ),
        click.option("--strict", is_flag=True, help="End at the first unreadable image."),
    ]
    names = ["batch_size", "num_workers", "device", "precision", "channels_last", "strict"]
    if with_compile:
        text = "Compile the model with torch.compile; on a GPU it runs as one CUDA graph."
        options.append(click.option("--compile", is_flag=True, help=text))
        names.append("compile")
    return _collect("run_config", RunConfig, {k: k for k in names}, options)


def checkpoint_option() -> Callable:
    """Whether input gradients recompute activations: hands over `checkpoint`."""
    return click.option(
        "--checkpoint",
        type=click.Choice(["auto", "none", "block", "stage"]),
        default="auto",
        help="Keep no activations within blocks or stages but compute them again in the backward"
        " pass (less memory, a forward pass more time); auto: where memory is short.",
    )


def clip_option() -> Callable:
    """Whether stored maps may leave [0, 1] by a rounding error: hands over `clip`."""
    return click.option(
        "--clip",
        type=FiniteRange(0, 0.01),
        default=0.0,
        help="Clip values that leave [0, 1] by no more than this, e.g. 1e-5; others are refused.",
    )


class TargetType(click.ParamType):
    """``predicted``, ``label`` or a class index."""

    name = "predicted|label|INDEX"

    def convert(self, value, param, ctx):
        """Return `value` unchanged if it is one of the three forms."""
        if value in ("predicted", "label") or value.isdecimal():
            return value
        self.fail(f"{value!r} is not 'predicted', 'label' or a class index", param, ctx)


def map_options() -> Callable:
    """Which map: hands over `map_config`."""
    options = [
        click.option(
            "--localization_method",
            type=click.Choice(["cam", "pc1"]),
            default="cam",
            help="Class activation map, or first principal component of its parts.",
        ),
        click.option(
            "--target",
            type=TargetType(),
            default="predicted",
            help="Class to explain: the top-1, the image's label, or a 0-based index.",
        ),
        click.option(
            "--map_size",
            type=MAP_SIZE,
            default="input",
            help="Size of the maps in pixels, e.g. 224 or 224x320 (height x width); input: that of"
            " --input_size.",
        ),
        click.option(
            "--pc1_range",
            type=click.Choice(["wrap", "clip", "minmax"]),
            default="wrap",
            help="PC1 values outside [0, 1]: wrap as the study's code does, clip, or rescale.",
        ),
        click.option(
            "--map_names",
            type=click.Choice(MAP_NAMES),
            help="Names of the maps: study, <class>/<name up to its first dot>, or official, the"
            " whole image id.  [default: study, unless two images would get the same name]",
        ),
    ]
    fields = {
        "localization_method": "method",
        "target": "target",
        "map_size": "map_size",
        "pc1_range": "pc1_range",
        "map_names": "map_names",
    }
    return _collect("map_config", MapConfig, fields, options)


def box_options(with_metadata: bool, contours: str | None, scored: bool = True) -> Callable:
    """Which boxes and protocol: hands over `box_config`.

    Args:
        with_metadata: add the metadata options (commands that have `data_options` share those).
        contours: default of ``--contours``; None for commands that always run both modes.
        scored: the boxes are scored; else they are only predicted.
    """
    options = [
        click.option("--cub_root", type=click.Path(path_type=Path), help="CUB_200_2011 folder."),
        *(_METADATA_OPTIONS if with_metadata else []),
        click.option(
            "--iou_thr", type=SHARE, default=0.5, help="IoU from which a box counts as right."
        ),
        click.option(
            "--cam_curve_interval",
            type=INTERVAL,
            default=0.01,
            help="Step between score thresholds; 0.001 in the paper's runs.",
        ),
        click.option("--eval_size", type=EVAL_SIZE, help="Demand maps of this size, e.g. 224."),
        click.option("--resize_maps", is_flag=True, help="Resize maps to --eval_size instead."),
        click.option(
            "--allow_boxes_beyond",
            is_flag=True,
            help="Go on where more than a tenth of the boxes lie outside of their images.",
        ),
    ]
    names = ["cub_root", "iou_thr", "cam_curve_interval", "eval_size", "resize_maps"]
    if scored:
        text = "Count images without a map as misses."
        options.append(click.option("--missing_as_miss", is_flag=True, help=text))
        text = "Also score at this share of each map's maximum, e.g. 0.15."
        share = FiniteRange(0, 1, max_open=True)
        options.append(click.option("--threshold", type=share, help=text))
        names += ["missing_as_miss", "threshold"]
    if with_metadata:
        options.append(clip_option())
        names += ["clip", "metadata_root", "dataset_name", "split"]
    if contours is not None:
        kind = click.Choice(["largest", "all", *(["both"] if scored else [])])
        text = "Boxes of the largest contour (MaxBoxAcc), of all (MaxBoxAccV2), or both."
        options.append(click.option("--contours", type=kind, default=contours, help=text))
        names.append("contours")
    fields = {k: k for k in names} | {"allow_boxes_beyond": "allow_beyond"}
    return _collect("box_config", BoxConfig, fields, options, _check_boxes)


def _check_boxes(config: BoxConfig) -> None:
    if config.resize_maps and config.eval_size is None:
        raise click.UsageError("--resize_maps needs --eval_size, the side to resize to")


def statistics_options() -> Callable:
    """What is told beside the scores: hands over `statistics`."""
    options = [
        click.option(
            "--predictions",
            type=click.Path(path_type=Path),
            help="CSV or JSON of ranked classes: adds top-1 and top-5 localization.",
        ),
        click.option("--per_class", is_flag=True, help="Add the figures of each class to --json."),
        click.option(
            "--bootstrap",
            type=click.IntRange(min=0),
            metavar="N",
            help="Confidence intervals from N resamples of the images  [1000 with --compare]",
        ),
        click.option("--confidence", type=CONFIDENCE, default=0.95, help="Of the intervals."),
        click.option("--seed", type=SEED, default=0, help="Seed of the resamples."),
        click.option(
            "--compare",
            type=click.Path(path_type=Path),
            help="Maps of another run over the same images: is this run really better?",
        ),
        click.option(
            "--compare_predictions",
            type=click.Path(path_type=Path),
            help="The other run's --predictions.",
        ),
    ]
    names = ("predictions", "per_class", "confidence", "seed", "compare", "compare_predictions")
    fields = {k: k for k in names} | {"bootstrap": "num_resamples"}
    return _collect("statistics", _statistics, fields, options)


def _statistics(num_resamples: int | None, **values):
    """Return the `Statistics`, which need torch: imported when a command runs, not for its help."""
    from ..runs.score_statistics import Statistics

    if values["compare"] is None and values["compare_predictions"] is not None:
        raise click.UsageError("--compare_predictions needs --compare")
    if values["compare"] is not None and num_resamples == 0:
        raise click.UsageError("--compare needs resamples: give --bootstrap more than 1")
    if num_resamples == 1:
        raise click.UsageError("--bootstrap needs at least 2 resamples")
    if num_resamples is None:
        num_resamples = 0 if values["compare"] is None else 1000
    return Statistics(num_resamples=num_resamples, **values)
