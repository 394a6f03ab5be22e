"""``cba-fast merge``: write a checkpoint whose parallel branches are merged."""

import os
from dataclasses import replace

import click

from ...errors import InputError
from ...runs.settings import DataConfig
from ...shapes import MOST, map_shape
from ..options import FILE, POSITIVE, config_option, family_options, option


@click.command()
@family_options()
@option("--output", type=FILE, required=True, help="The file to write.")
@config_option(
    DataConfig,
    "input_size",
    type=click.IntRange(32, MOST),
    help="Side of the random inputs, such as 384.",
)
@option("--num_samples", type=POSITIVE, default=2, help="Random inputs, such as 4.")
@option("--seed", type=int, default=0, help="Seed of the random inputs.")
def command(model_config, output, input_size, num_samples, seed):
    """Merge the parallel branches of a checkpoint, and compare the outputs.

    The written file is RepLKNet's official merged layout (lkb_reparam); for slak and slak_flex,
    whose official code has none, a layout of cba_fast. All commands read it in place of the
    original; slak_flex's mixture is then fixed in the weights. Norms outside of the branches stay
    in the file and are folded when a command loads it. The differences printed are those of the
    logits on standard normal inputs of side --input_size, in float32.
    """
    weights = model_config.weights
    if os.path.exists(output) and os.path.exists(weights) and os.path.samefile(output, weights):
        raise InputError(f"{output}: would replace the checkpoint that it is made from")
    import torch

    from ...models import mergeable, save_state_dict_file
    from ...runs.resolve import resolve

    found = resolve(model_config, DataConfig(""))
    click.echo(found.line, err=True)
    model_config, side = found.model, input_size or found.data.input_size
    original = model_config.build()
    if model_config.family not in ("replknet", "slak", "slak_flex"):
        raise InputError(f"{weights}: a {model_config.family} checkpoint has no branches to merge")
    if not mergeable(original):
        raise InputError(f"{weights}: the branches are merged already")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_samples, 3, *map_shape(side), generator=generator)
    with torch.inference_mode():
        expected = original(x)
    entries = len(original.state_dict())
    original.structural_reparam()
    description = replace(found.known, alpha=None, beta=None)
    save_state_dict_file(original.state_dict(), output, description)
    del original
    merged = replace(model_config, weights=output, alpha=None, beta=None).build()
    with torch.inference_mode():
        difference = (merged(x) - expected).abs().max().item()
    largest = expected.abs().max().item()
    click.echo(f"{entries} entries merged into {len(merged.state_dict())}: {output}")
    click.echo(
        f"Largest difference of the outputs: {difference:.3g} absolute, "
        f"{difference / largest if largest else 0.0:.3g} of the largest output ({largest:.3g})"
    )
