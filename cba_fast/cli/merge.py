"""``cba-fast merge``: write a checkpoint whose parallel branches are merged."""

import os

import click

from ..errors import InputError


@click.command("merge")
@click.option(
    "--model_family",
    type=click.Choice(["convnext", "replknet", "slak", "slak_flex"]),
    required=True,
    help="Family of the checkpoint.",
)
@click.option(
    "--fine_tuned_weight_name",
    "weights",
    type=click.Path(),
    required=True,
    help="The checkpoint to merge.",
)
@click.option("--output", type=click.Path(), required=True, help="The file to write.")
@click.option("--model", help="Model name; the family's model of the study by default.")
@click.option("--num_classes", type=click.IntRange(min=1), help="Must be the checkpoint's.")
@click.option("--alpha", type=float, help="slak_flex: weight of the strips, 1 if not given.")
@click.option("--beta", type=float, help="slak_flex: weight of the square kernel, 0 if not given.")
@click.option(
    "--input_size", type=click.IntRange(min=32), default=384, help="Edge of the random inputs."
)
@click.option("--num_samples", type=click.IntRange(min=1), default=2, help="Random inputs.")
@click.option("--seed", type=int, default=0, help="Seed of the random inputs.")
def command(
    model_family,
    weights,
    output,
    model,
    num_classes,
    alpha,
    beta,
    input_size,
    num_samples,
    seed,
):
    """Merge the parallel branches of a checkpoint, and compare the outputs.

    The written file is RepLKNet's official merged layout (lkb_reparam); for slak and slak_flex,
    whose official code has none, a layout of cba_fast. All commands read it in place of the
    original; slak_flex's mixture is then fixed in the weights. Norms outside of the branches stay
    in the file and are folded when a command loads it. The differences printed are those of the
    logits on standard normal inputs, in float32.
    """
    if os.path.exists(output) and os.path.exists(weights) and os.path.samefile(output, weights):
        raise InputError(f"{output}: would replace the checkpoint that it is made from")
    import torch

    from ..models import build_model, mergeable, save_state_dict_file

    original = build_model(
        model_family,
        model=model,
        checkpoint=weights,
        num_classes=num_classes,
        alpha=alpha,
        beta=beta,
    )
    if model_family == "convnext":
        raise InputError(f"{weights}: a convnext checkpoint has no branches to merge")
    if not mergeable(original):
        raise InputError(f"{weights}: the branches are merged already")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_samples, 3, input_size, input_size, generator=generator)
    with torch.inference_mode():
        expected = original(x)
    entries = len(original.state_dict())
    original.structural_reparam()
    save_state_dict_file(original.state_dict(), output)
    del original
    merged = build_model(model_family, model=model, checkpoint=output, num_classes=num_classes)
    with torch.inference_mode():
        difference = (merged(x) - expected).abs().max().item()
    largest = expected.abs().max().item()
    click.echo(f"{entries} entries merged into {len(merged.state_dict())}: {output}")
    click.echo(
        f"Largest difference of the outputs: {difference:.3g} absolute, "
        f"{difference / largest if largest else 0.0:.3g} of the largest output ({largest:.3g})"
    )
