"""``cba-fast pack-maps``."""

from pathlib import Path

import click

from .options import EVAL_SIZE, clip_option, overwrite_option
from .progress import bar, continuable


@click.command()
@click.option(
    "--np_root",
    type=click.Path(path_type=Path),
    default=Path("np_heatmap_output"),
    help="Folder of .npy maps.",
)
@click.option("--store", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--eval_size", type=EVAL_SIZE, help="Demand maps of this size, e.g. 224.")
@click.option("--resize_maps", is_flag=True, help="Resize maps to --eval_size instead.")
@clip_option()
@overwrite_option("resume")
@click.option("--num_workers", type=click.IntRange(1, 64), default=2, help="Threads that read.")
def command(np_root, store, eval_size, resize_maps, clip, overwrite, num_workers):
    """Pack a folder of score maps into one uint8 array with an index.

    wsol-eval reads the store as it reads the folder, with the same counts, from an eighth of the
    bytes of float64 maps. The files of NP_ROOT are left as they are.
    """
    if resize_maps and eval_size is None:
        raise click.UsageError("--resize_maps needs --eval_size, the side to resize to")
    from ..runs.pack import pack_maps

    with continuable():
        done = pack_maps(
            np_root,
            store,
            eval_size=eval_size,
            resize=resize_maps,
            clip=clip,
            overwrite=overwrite,
            num_workers=num_workers,
            progress=bar("packing"),
        )
    kept = f", {done.kept} were there" if done.kept else ""
    height, width = done.shape
    click.echo(
        f"Score maps   : {done.stored} packed{kept} ({height}x{width}, {done.nbytes / 1e6:.1f} MB)"
    )
    click.echo(f"Store        : {store}")
