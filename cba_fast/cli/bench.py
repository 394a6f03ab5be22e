"""``cba-fast bench``."""

from pathlib import Path

import click

from .options import POSITIVE, FiniteRange

DIRECTIONS = ("forward", "grad_x", "grad_weight")


@click.command()
@click.option("--model", default="replknet_31b", help="A model of timm's or of the study.")
@click.option("--input_size", type=POSITIVE, default=384, help="Side of the images in pixels.")
@click.option("--batch_size", type=POSITIVE, default=1, help="Images at once.")
@click.option(
    "--what",
    type=click.Choice(["layers", "model"]),
    default="layers",
    help="Each different depthwise convolution, or the whole network at inference.",
)
@click.option(
    "--case",
    "cases",
    multiple=True,
    metavar="NxCxHxW_kKHxKW",
    help="Measure this convolution instead of a model's; may be repeated.",
)
@click.option(
    "--direction",
    "directions",
    type=click.Choice(DIRECTIONS),
    multiple=True,
    default=["forward"],
    help="Of the layers; may be repeated.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Of the layers; bfloat16 with --what model: the forms in both.",
)
@click.option(
    "--algorithm",
    type=click.Choice(["auto", "fft", "direct"]),
    default="auto",
    help="Of our convolution: transforms, tap by tap, or the faster one.",
)
@click.option(
    "--compiled/--no-compiled",
    default=True,
    help="With --what model: whether PyTorch's compiler takes part, which needs some minutes.",
)
@click.option("--seconds", type=FiniteRange(0, 600, min_open=True), default=0.5, help="Per timing.")
@click.option("--threads", type=POSITIVE, help="PyTorch's number if absent.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Add the records here.")
def command(
    model,
    input_size,
    batch_size,
    what,
    cases,
    directions,
    dtype,
    algorithm,
    compiled,
    seconds,
    threads,
    json_path,
):
    """Time depthwise convolutions, or a whole network, against PyTorch's ways to run them.

    Candidates take turns in one process on random data, and their results are checked first.
    Printed are medians in milliseconds with the 20th and 80th percentiles, and ratios; the JSON
    file gets one line per measurement, in place of an older line of the same.
    """
    import torch

    from ..bench import layers_and_models as bench
    from ..bench.dwconv_contest import Case
    from ..bench.records import add_record
    from ..bench.tables import tables

    if threads:
        torch.set_num_threads(threads)
    if what == "model":
        record = bench.bench_model(model, input_size, batch_size, dtype, seconds, compiled)
        found = iter([record])
    else:
        chosen = [Case.parse(c) for c in cases]
        chosen = chosen or bench.layer_cases(model, input_size, batch_size)
        found = bench.bench_layers(chosen, directions, dtype, algorithm, seconds)
    records = []
    for record in found:
        records.append(record)
        click.echo(f"{record['case']} {record.get('direction', '')}", err=True)
        if json_path:
            add_record(json_path, record)
    click.echo(tables(records))
