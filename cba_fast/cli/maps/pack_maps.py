"""``cba-fast pack-maps``."""

import click

from ...runs.settings import BoxConfig
from ..options import (
    PATH,
    config_option,
    np_root_option,
    option,
    overwrite_option,
    threads_option,
)
from ..progress import bar, continuable


@click.command()
@np_root_option("Folder of .npy maps.")
@option("--store", type=PATH, required=True, help="Folder to write.")
@config_option(BoxConfig, "eval_size")
@config_option(BoxConfig, "resize_maps")
@config_option(BoxConfig, "clip")
@overwrite_option("resume")
@threads_option()
def command(np_root, store, eval_size, resize_maps, clip, overwrite, num_workers):
    """Pack a folder of score maps into one uint8 array with an index.

    wsol-eval reads the store as it reads the folder, with the same counts, from an eighth of the
    bytes of float64 maps. The files of NP_ROOT are left as they are.
    """
    if resize_maps and eval_size is None:
        raise click.UsageError("--resize_maps needs --eval_size, the side to resize to")
    from ...runs.pack import pack_maps

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
