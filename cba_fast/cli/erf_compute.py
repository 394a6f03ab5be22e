"""``cba-fast erf-compute``."""

import time
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from .options import (
    POSITIVE,
    SEED,
    SHARE,
    checkpoint_option,
    data_options,
    model_options,
    overwrite_option,
    resolved,
    run_options,
)
from .progress import bar, warn

FILE = click.Path(dir_okay=False, path_type=Path)
MAP_IMAGES, MAP_SIDE = 50, 1024  # RepLKNet's protocol


def _shares(ctx, param, values: tuple[str, ...]) -> tuple[float, ...]:
    """Read ``--p 0.2 --p 0.5`` and ``--p 0.2,0.5`` alike."""
    shares = []
    for text in ",".join(values).split(","):
        share = SHARE.convert(text, param, ctx)
        if share in shares:
            raise click.BadParameter(f"{text} is given twice", ctx, param)
        shares.append(share)
    return tuple(shares)


@click.command()
@model_options(required=True)
@data_options(default="cub-200-2011")
@run_options(batch_size=1)
@checkpoint_option()
@click.option(
    "--definition",
    type=click.Choice(["study", "replknet"]),
    default="study",
    help="study: ERF sizes, from the gradient of the top-1 score; replknet: the ERF map alone, from"
    " that of the central feature, over the first images (defaults then: 50 images of 1024).",
)
@click.option("--num_samples", type=POSITIVE, default=200, help="Images drawn from the set.")
@click.option(
    "--p",
    "shares",
    multiple=True,
    default=("0.2",),
    callback=_shares,
    help="Share of the gradient inside the ERF; repeat it, or give a comma list, for several.",
)
@click.option("--seed", type=SEED, default=0, help="Seed of the sample.")
@click.option(
    "--score",
    type=click.Choice(["prob", "logit", "logprob"]),
    default="prob",
    help="Top-1 score whose gradient is taken; prob is the study's.",
)
@click.option(
    "--output", type=FILE, help="The .npy file of the sizes.  [default: erf_sizes_<family>.npy]"
)
@click.option(
    "--save_map",
    type=FILE,
    help="The .npy file of the map: study: the mean |gradient| of the sampled images, if asked for;"
    " replknet: the ERF map.  [default there: erf_map_<family>.npy]",
)
@overwrite_option("resume", "no_resume")
@click.option(
    "--map",
    "map_path",
    type=FILE,
    help="After the sizes, measure the ERF map of --definition replknet, too, into this .npy file.",
)
@click.option("--map_images", type=POSITIVE, default=MAP_IMAGES, help="Images of --map.")
@click.option(
    "--map_input_size",
    type=POSITIVE,
    help=f"Image side of --map.  [default: --input_size if that is given, else {MAP_SIDE}]",
)
@click.option("--map_fig", type=FILE, help="Picture of the (last) map.  [default: beside it, .png]")
def command(
    model_config,
    data_config,
    run_config,
    checkpoint,
    definition,
    num_samples,
    shares,
    seed,
    score,
    output,
    save_map,
    overwrite,
    map_path,
    map_images,
    map_input_size,
    map_fig,
):
    """Measure the ERF size on sampled images, the ERF map, or both.

    The ERF size is the number of pixels that hold the share p of the gradient of the top-1 score.
    The default batch size of 1 is the study's; others are as exact but round differently, which
    moves some sizes by a few pixels. A map comes with its area ratios and shape descriptors, also
    in a JSON file beside it, and a picture (docs/erf.md has the definitions).
    """
    from ..runs import erf as erf_runs
    from ..runs.inference import load_model, open_images

    _refuse_unused(definition, map_path)
    map_input_size = map_input_size or data_config.input_size or MAP_SIDE
    if definition == "replknet":
        data_config = replace(data_config, input_size=map_input_size)
    model_config, data_config = resolved(model_config, data_config)
    if definition == "replknet":
        map_path = _only_map(model_config.family, output, save_map, map_path)
        save_map = None
        map_images = num_samples if _given("num_samples") else MAP_IMAGES
    output = _npy(output or Path(f"erf_sizes_{model_config.family}"))
    save_map, map_path = save_map and _npy(save_map), map_path and _npy(map_path)
    sizes_path = output if definition == "study" else None
    _check_outputs(sizes_path, save_map, map_path, map_fig)
    erf_runs.check_precision(run_config)
    start = time.perf_counter()
    images = open_images(data_config)
    model = load_model(model_config, run_config)
    common = (model, images, model_config, data_config, run_config)
    options = {"checkpoint": checkpoint, "overwrite": overwrite}
    try:
        if sizes_path:
            config = erf_runs.SizeConfig(num_samples, shares, seed, score)
            _sizes(common, config, sizes_path, save_map, None if map_path else map_fig, options)
        if map_path:
            config = erf_runs.ErfMapConfig(map_images, map_input_size)
            _map(common, config, map_path, map_fig, options)
    except KeyboardInterrupt:
        click.echo("Interrupted: the same command goes on from the finished part.", err=True)
        raise
    what = f"ERF sizes: {output}" if sizes_path else f"ERF map: {map_path}"
    click.echo(f"{what} ({time.perf_counter() - start:.1f} s in all)")


def _sizes(common, config, output, save_map, map_fig, options) -> None:
    from ..runs import erf as erf_runs

    found = erf_runs.compute_sizes(
        *common, config, output, save_map=save_map, progress=bar("ERF sizes"), **options
    )
    warn(found.notes)
    for row in erf_runs.as_rows(found.stats):
        click.echo(row)
    if found.map:
        _show(found.map, save_map, map_fig, common)


def _map(common, config, map_path, map_fig, options) -> None:
    from ..runs import erf as erf_runs

    found = erf_runs.compute_map(*common, config, map_path, progress=bar("ERF map"), **options)
    warn(found.notes)
    _show(found, map_path, map_fig, common)


def _show(found, path: Path, picture: Path | None, common) -> None:
    """Print what is told about a map, and draw it."""
    from ..analysis.plots import save_figure
    from ..analysis.plots_erf import plot_map
    from ..data.textlines import counted
    from ..erf.report import json_beside, map_rows

    for row in map_rows(found):
        click.echo(row)
    height, width = found.erf.map.shape
    images = f"{counted(found.erf.count, 'image')} of {height}x{width}"
    click.echo(f"ERF map: {path} ({images}), {json_beside(path)}")
    picture = picture or path.with_suffix(".png")
    save_figure(plot_map(found, _title(common[2])), picture)
    click.echo(f"ERF map, drawn: {picture}")


def _title(model_config) -> str:
    """Return the model's name, with its mixture if one was given."""
    mixing = {"alpha": model_config.alpha, "beta": model_config.beta}
    parts = [f"{name} {value:g}" for name, value in mixing.items() if value is not None]
    return ", ".join([model_config.name or model_config.family, *parts])


def _given(name: str) -> bool:
    """Say whether an option stands on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not ParameterSource.DEFAULT


def _refuse_unused(definition: str, map_path: Path | None) -> None:
    """Refuse options on the command line that would change nothing."""
    from ..errors import InputError

    def given(*names: str) -> str:
        return " and ".join(f"--{'p' if n == 'shares' else n}" for n in names if _given(n))

    if definition == "replknet":
        unused = given("shares", "seed", "score")
        if unused:
            raise InputError(f"{unused}: for the ERF sizes, not for --definition replknet")
        unused = given("map_images", "map_input_size")
        if unused:
            raise InputError(
                f"{unused}: for --map; --definition replknet takes --num_samples and --input_size"
            )
    elif map_path is None:
        unused = given("map_images", "map_input_size")
        if unused:
            raise InputError(f"{unused}: for the map of --map, which is not given")


def _only_map(family: str, output, save_map, map_path) -> Path:
    """Return where the map of ``--definition replknet`` goes."""
    from ..errors import InputError

    asked = {"--output": output, "--save_map": save_map, "--map": map_path}
    asked = {name: path for name, path in asked.items() if path is not None}
    if len(asked) > 1:
        raise InputError(
            f"{' and '.join(asked)}: --definition replknet writes one map; name it once"
        )
    return next(iter(asked.values()), Path(f"erf_map_{family}"))


def _npy(path: Path) -> Path:
    # As NumPy's save, and with it the study: the ending is added where it is missing.
    return path if path.suffix == ".npy" else path.with_name(f"{path.name}.npy")


def _check_outputs(
    sizes: Path | None, save_map: Path | None, map_path: Path | None, map_fig: Path | None
) -> None:
    """Refuse unusable file names before anything runs."""
    from ..errors import InputError

    named = {"--output": sizes, "--save_map": save_map, "--map": map_path}
    seen: dict[Path, str] = {}
    for option, path in named.items():
        if path is not None and path in seen:
            raise InputError(f"{path}: {seen[path]} and {option} name the same file")
        if path is not None:
            seen[path] = option
    if map_fig is not None:
        from ..analysis.plots import check_picture

        if save_map is None and map_path is None:
            raise InputError("--map_fig needs --map, --save_map or --definition replknet")
        check_picture(map_fig)
