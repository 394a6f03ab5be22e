"""``cba-fast erf-compute``."""

import time
from pathlib import Path

import click

from .options import POSITIVE, SEED, SHARE, data_options, model_options, run_options
from .progress import bar, warn


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
@click.option("--num_samples", type=POSITIVE, default=200, help="Images drawn from the set.")
@click.option(
    "--p",
    "shares",
    multiple=True,
    default=("0.2",),
    callback=_shares,
    help="Share of the gradient inside the ERF; repeat it, or give a comma list, for several.",
)
@click.option("--seed", type=SEED, default=0, help="Of the sample.")
@click.option(
    "--score",
    type=click.Choice(["prob", "logit", "logprob"]),
    default="prob",
    help="Top-1 score whose gradient is taken; prob is the study's.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The .npy file.  [default: erf_sizes_<family>.npy]",
)
@click.option("--resume/--no_resume", default=True, help="Go on where a killed run ended.")
@click.option(
    "--map",
    "map_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also measure the ERF map (RepLKNet's protocol) and write it to this .npy file.",
)
@click.option("--map_images", type=POSITIVE, default=50, help="Images of the ERF map.")
@click.option("--map_input_size", type=POSITIVE, default=1024, help="Image side of the ERF map.")
@click.option(
    "--map_fig", type=click.Path(dir_okay=False, path_type=Path), help="Draw the ERF map here."
)
def command(
    model_config,
    data_config,
    run_config,
    num_samples,
    shares,
    seed,
    score,
    output,
    resume,
    map_path,
    map_images,
    map_input_size,
    map_fig,
):
    """Measure the ERF size on sampled images, and the ERF map if asked.

    The ERF size is the number of pixels that hold the share p of the gradient of the top-1 score.
    The default batch size of 1 is the study's; others are as exact but round differently, which
    moves some sizes by a few pixels.
    """
    from cba_fast.study import erf_runs
    from cba_fast.study.inference import load_model, open_images

    output = _npy(output or Path(f"erf_sizes_{model_config.family}"))
    map_path = map_path and _npy(map_path)
    _check_outputs(output, map_path, map_fig)
    erf_runs.check_precision(run_config)
    start = time.perf_counter()
    images = open_images(data_config)
    model = load_model(model_config, run_config)
    common = (model, images, model_config, data_config, run_config)
    try:
        sizes = erf_runs.compute_sizes(
            *common,
            erf_runs.SizeConfig(num_samples, shares, seed, score),
            output,
            resume=resume,
            progress=bar("ERF sizes"),
        )
        warn(sizes.notes)
        for row in erf_runs.as_rows(sizes.stats):
            click.echo(row)
        if map_path:
            config = erf_runs.ErfMapConfig(map_images, map_input_size)
            _map(common, config, map_path, map_fig, resume)
    except KeyboardInterrupt:
        click.echo("Interrupted: the same command goes on from the finished part.", err=True)
        raise
    click.echo(f"ERF sizes: {output} ({time.perf_counter() - start:.1f} s in all)")


def _map(common, config, map_path: Path, map_fig: Path | None, resume: bool) -> None:
    from cba_fast.study import erf_runs

    found = erf_runs.compute_map(*common, config, map_path, resume=resume, progress=bar("ERF map"))
    warn(found.notes)
    for row in erf_runs.ratio_rows(found.ratios):
        click.echo(row)
    click.echo(f"ERF map: {map_path} ({found.erf.count} images)")
    if map_fig:
        from cba_fast.study.plots import plot_erf_map, save_figure

        save_figure(plot_erf_map(found.erf.map, found.ratios), map_fig)
        click.echo(f"ERF map, drawn: {map_fig}")


def _npy(path: Path) -> Path:
    # As NumPy's save, and with it the study: the ending is added where it is missing.
    return path if path.suffix == ".npy" else path.with_name(f"{path.name}.npy")


def _check_outputs(output: Path, map_path: Path | None, map_fig: Path | None) -> None:
    """Refuse unusable file names before anything runs."""
    from cba_fast.errors import InputError

    if map_path is not None and map_path == output:
        raise InputError(f"{output}: --output and --map name the same file")
    if map_fig is not None:
        from cba_fast.study.plots import check_picture

        if map_path is None:
            raise InputError("--map_fig needs --map")
        check_picture(map_fig)
