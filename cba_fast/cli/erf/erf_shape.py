"""``cba-fast erf-shape``."""

import time
from pathlib import Path

import click

from ...runs.settings import ErfMapConfig, ModelConfig, SweepConfig
from ..options import (
    FILE,
    PATH,
    SIDE,
    config_option,
    config_options,
    erf_options,
    family_options,
    json_option,
    option,
    overwrite_option,
    resolved,
)
from ..progress import bar, continuable, warn
from .erf_map import title_of


@click.command()
@erf_options(family_options(), without=("preprocess",), input_size={"type": SIDE})
@config_options(SweepConfig, "config")
@option(
    "--match",
    group="ERF",
    type=PATH,
    help="Search the mixture nearest to this ERF: a saved map (.npy), or the checkpoint of"
    " another model.",
)
@config_option(
    ModelConfig,
    "family",
    called="match_family",
    help="Family of the checkpoint --match.",
    group="ERF",
)
@config_option(
    ModelConfig,
    "name",
    called="match_model",
    help="Model name of the checkpoint --match.",
    group="ERF",
)
@option(
    "--output",
    type=FILE,
    default=Path("erf_shape.npy"),
    help="The .npy file of the sweep's maps (steps, S, S).",
)
@json_option("Everything else.  [default: beside --output]")
@option("--save_fig", type=FILE, help="The picture.  [default: beside --output, .png]")
@overwrite_option("resume", "no_resume")
def command(
    model_config,
    data_config,
    run_config,
    checkpoint,
    config,
    match,
    match_family,
    match_model,
    output,
    json_path,
    save_fig,
    overwrite,
):
    """Show how slak_flex's ERF goes from cross to round, and match another model's.

    alpha = 1 - s and beta = s, with s from 0 (SLaK's cross) to 1 (RepLKNet's square kernel); only
    beta / (alpha + beta) counts, since a norm follows the mixture. Each mixture's ERF map is that
    of `erf-map` at --input_size, with the weights as they are.
    """
    from ...data.textlines import counted
    from ...experiments import erf_shape
    from ...runs.inference import open_images

    output = output if output.suffix == ".npy" else output.with_name(f"{output.name}.npy")
    json_path = json_path or output.with_suffix(".json")
    save_fig = save_fig or output.with_suffix(".png")
    _check(match, match_family, match_model, save_fig)
    start = time.perf_counter()
    erf_shape.check_unmixed(model_config)
    model_config, data_config = resolved(model_config, data_config, swept=True)
    images = open_images(data_config)
    model = erf_shape.load_mixable(model_config)
    options = {"checkpoint": checkpoint, "overwrite": overwrite}
    target = None
    with continuable():
        if match is not None:
            used = (images, data_config, run_config)
            target = _target(
                match, match_family, match_model, used, config.num_images, output, options
            )
        found = erf_shape.compute_sweep(
            model,
            images,
            model_config,
            data_config,
            run_config,
            config,
            output,
            target=target,
            target_name=str(match or ""),
            json_path=json_path,
            progress=bar("ERF map"),
            **options,
        )
    images = counted(config.num_images, "image")
    size = data_config.input_size
    title = f"{title_of(model_config)}, {size} x {size} pixels, {images}"
    _show(found, match, target, save_fig, title)
    click.echo(
        f"ERF maps: {output}, {json_path}, {save_fig} ({time.perf_counter() - start:.1f} s in all)"
    )


def _show(found, match: Path | None, target, save_fig: Path, title: str) -> None:
    """Print the table of a sweep, and draw it."""
    from ...analysis.plots import save_figure
    from ...experiments.erf_shape import table
    from ...experiments.plots_mixtures import plot_mixtures

    warn(found.notes)
    for row in table(found.mixtures):
        click.echo(row)
    if found.best is not None:
        click.echo(f"Nearest to {match}, of {len(found.mixtures) + len(found.tried)} mixtures:")
        click.echo(table([found.best])[1])
    save_figure(plot_mixtures(found.mixtures, found.best, target, title), save_fig)


def _check(match: Path | None, family: str | None, name: str | None, save_fig: Path) -> None:
    """Refuse options that do not go together, before anything runs."""
    from ...analysis.plots import check_picture
    from ...errors import InputError

    check_picture(save_fig)
    is_map = match is not None and match.suffix == ".npy"
    if (family or name) and (match is None or is_map):
        raise InputError("--match_family and --match_model describe a checkpoint: --match FILE")


def _target(match, family, name, used, num_samples, output: Path, options):
    """Return the ERF map to match: that of the file, or of the checkpoint on the same images."""
    from ...erf.report import MapRun
    from ...experiments import erf_shape
    from ...runs.erf.maps import compute_map
    from ...runs.inference import load_model

    if match.suffix == ".npy":
        return erf_shape.load_target(match)
    images, data_config, run_config = used
    config, data_config = resolved(ModelConfig(family, match, name), data_config)
    found = compute_map(
        load_model(config, run_config, data_config.input_size),
        images,
        config,
        data_config,
        run_config,
        ErfMapConfig(num_samples, data_config.input_size),
        output.with_name(f"{output.stem}_target.npy"),
        progress=bar("ERF map to match"),
        **options,
    )
    warn(found.notes)
    assert isinstance(found, MapRun)  # of one layer
    return found.erf.map
