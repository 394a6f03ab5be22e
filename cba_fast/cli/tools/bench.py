"""``cba-fast bench``."""

import click

from ...choices import INPUT_SIZE
from ..options import POSITIVE, FiniteRange, json_option, option

DIRECTIONS = ("forward", "grad_x", "grad_weight")


@click.command()
@option("--model", default="replknet_31b", help="A model of timm's or of the study.")
@option(
    "--model_factory",
    metavar="PLACE:FUNCTION",
    help="Function that makes a network of yours instead, such as package.module:make or"
    " mine.py:make; its weights are replaced by random ones.",
)
@option("--input_size", type=POSITIVE, default=INPUT_SIZE, help="Side of the images.")
@option("--batch_size", type=POSITIVE, default=1, help="Images at once.")
@option(
    "--what",
    type=click.Choice(["layers", "model"]),
    default="layers",
    help="Each different depthwise convolution, or the whole network at inference.",
)
@option(
    "--case",
    "cases",
    multiple=True,
    metavar="NxCxHxW_kKHxKW",
    help="Measure this convolution instead of a model's; may be repeated.",
)
@option(
    "--direction",
    "directions",
    type=click.Choice(DIRECTIONS),
    multiple=True,
    default=["forward"],
    help="Pass of the layers that is timed; may be repeated.",
)
@option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Numbers of the layers; bfloat16 with --what model: the forms in both.",
)
@option(
    "--algorithm",
    type=click.Choice(["auto", "fft", "direct"]),
    default="auto",
    help="Algorithm of our convolution: transforms, tap by tap, or the faster one.",
)
@option(
    "--compiled/--no-compiled",
    default=True,
    help="With --what model: whether PyTorch's compiler takes part, which needs some minutes.",
)
@option(
    "--seconds",
    type=FiniteRange(0, 600, min_open=True),
    default=0.5,
    help="Seconds of each timing, such as 2.",
)
@option("--threads", type=POSITIVE, help="PyTorch's number if absent.")
@json_option("Add the records to this JSON file.")
def command(
    model,
    model_factory,
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
    file gets one line per measurement, in place of an older line of the same. What was found for a
    whole network is kept for `evaluate` and `generate-heatmap`, which say whether --compile pays.
    """
    import torch

    from ...bench import advice
    from ...bench import layers_and_models as bench
    from ...bench.dwconv_contest import Case
    from ...bench.model_contest import create
    from ...bench.records import add_record
    from ...bench.tables import tables

    if threads:
        torch.set_num_threads(threads)
    name = model_factory or model
    if what == "model":
        network = create(model, factory=model_factory)
        record = bench.bench_model(name, network, input_size, batch_size, dtype, seconds, compiled)
        advice.keep(record)
        found = iter([record])
    else:
        chosen = [Case.parse(c) for c in cases]
        if not chosen:
            network = create(model, factory=model_factory)
            chosen = bench.layer_cases(name, network, input_size, batch_size)
        found = bench.bench_layers(chosen, directions, dtype, algorithm, seconds)
    records = []
    for record in found:
        records.append(record)
        click.echo(f"{record['case']} {record.get('direction', '')}", err=True)
        if json_path:
            add_record(json_path, record)
    click.echo(tables(records))
