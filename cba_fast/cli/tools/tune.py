"""``cba-fast tune``: measure which convolution kernels are fastest on this device."""

import click
from rich import box

from ..options import FILE, POSITIVE, FiniteRange, option
from ..progress import bar, continuable
from ..tables import new_table, print_tables

DIRECTIONS = ("forward", "grad_x", "grad_weight")
DTYPES = ("float32", "bfloat16")
SHARE = 0.97  # of the best method's speed, which the automatic choice must reach


@click.command()
@option(
    "--model",
    "models",
    multiple=True,
    help="Measure the convolutions of this model of timm's or of the study; may be repeated. "
    "Default: the study's four families.",
)
@option(
    "--model_factory",
    metavar="PLACE:FUNCTION",
    help="Function that makes a network of yours, such as package.module:make or mine.py:make, "
    "whose convolutions are measured too.",
)
@option(
    "--case",
    "cases",
    multiple=True,
    metavar="NxCxHxW_kKHxKW",
    help="Measure this convolution, such as 1x128x96x96_k31x31; may be repeated.",
)
@option(
    "--input_size",
    "input_sizes",
    type=POSITIVE,
    multiple=True,
    default=[384, 224],
    help="Side of the model's images; may be repeated.",
)
@option(
    "--batch_size",
    "batch_sizes",
    type=POSITIVE,
    multiple=True,
    default=[1, 8, 64],
    help="Images at once, the smallest number first; may be repeated.",
)
@option(
    "--direction",
    "directions",
    type=click.Choice(DIRECTIONS),
    multiple=True,
    default=DIRECTIONS,
    help="The convolution or one of its gradients; may be repeated.",
)
@option(
    "--dtype",
    "dtypes",
    type=click.Choice(DTYPES),
    multiple=True,
    default=DTYPES,
    help="Numbers of the tensors; may be repeated. On GPUs float16 follows bfloat16.",
)
@option("--device", help="cpu or cuda, such as cuda:1. Default: the GPU if there is one.")
@option(
    "--seconds",
    type=FiniteRange(0, min_open=True),
    help="Time after which no further case is begun, such as 600; the same command goes on. "
    "Default: 60 for each model.",
)
@option("--threads", type=POSITIVE, help="PyTorch's number if absent; a table is for one number.")
@option("--table", "path", type=FILE, help="File of the table. Default: one in your cache folder.")
@option("--overwrite", is_flag=True, help="Measure again what the table holds.")
@option(
    "--verify",
    is_flag=True,
    help=f"Only measure whether the automatic choice has at least {SHARE} times the speed of the "
    "best method in each case; exit with 1 if not.",
)
def command(
    models, model_factory, cases, path, overwrite, verify, threads, seconds, device, **chosen
):
    """Measure which kernels compute a model's depthwise convolutions fastest here, and use them.

    Every kernel's result is checked first; then it takes turns with PyTorch's ways. From then on
    the convolution takes what was fastest for tensors on this device, with this number of threads
    and these versions. `cba-fast info` says which table is used. Measure on a machine that does
    nothing else.
    """
    import torch

    from ...bench import tune

    if threads:
        torch.set_num_threads(threads)
    if model_factory:
        from ...bench.model_contest import create

        models = [*models, create("", factory=model_factory)]
    models = models or None
    if verify:
        if not _verify(models, cases, device, tune.seconds_for(models, cases, seconds), chosen):
            raise SystemExit(1)
        return
    with continuable():
        tuned = tune.tune(
            models,
            cases=cases,
            path=path,
            overwrite=overwrite,
            device=device,
            seconds=seconds,
            progress=bar("Measuring"),
            **chosen,
        )
    print_tables(*_results(tuned), width=140)
    if tuned.left:
        click.echo(f"{tuned.left} cases are not measured yet: the same command goes on.")
    click.echo(f"Table: {tuned.table.path}")


def _results(tuned) -> list:
    """Return the table of all jobs, what won and by how much, and its summary."""
    from ...bench.tables import geometric_mean
    from ...bench.tune_measure import LAYOUTS, RIVALS
    from ...ops.choice_table import METHODS

    columns = ("case", "pass", "dtype", "layout", "fastest", "PyTorch's fastest")
    rows = new_table(*columns, right=["ms", "times"], box=box.SIMPLE_HEAD)
    ratios: dict[tuple, list[float]] = {}
    for job in tuned.jobs:
        for layout in LAYOUTS:
            ms = tuned.table.cases[str(job.call(layout))]
            ours = min((m for m in ms if m in METHODS), key=ms.get, default=None)
            # PyTorch's bfloat16 convolutions that might hang are not called: "torch" does without.
            known = [m for m in ms if m in RIVALS] or [m for m in ms if m == "torch"]
            theirs = min(known, key=ms.get, default=None)
            cells = [str(job.case), job.direction, job.dtype, layout, ours or "none right"]
            if ours is None or theirs is None:
                rows.add_row(*cells, theirs or "far slower", f"{ms[ours]:.4g}" if ours else "", "")
                continue
            ratio = ms[theirs] / ms[ours]
            ratios.setdefault((job.direction, job.dtype, layout), []).append(ratio)
            loss = " (loss)" if ratio < 1 else ""
            best = f"{theirs} {ms[theirs]:.4g}"
            rows.add_row(*cells, best, f"{ms[ours]:.4g}", f"{ratio:.2f}{loss}")
    figures = ["cases", "times", "least", "losses"]
    means = new_table("pass", "dtype", "layout", right=figures, box=box.SIMPLE_HEAD)
    for key, found in ratios.items():
        losses = sum(r < 1 for r in found)
        mean = f"{geometric_mean(found):.2f}"
        means.add_row(*key, str(len(found)), mean, f"{min(found):.2f}", str(losses))
    rows.title = "Fastest method, and the fastest of PyTorch's ways on any layout (ms)"
    means.title = "How many times as fast as the fastest of PyTorch's ways (geometric mean)"
    return [rows, means]


def _verify(models, cases, device, seconds, chosen) -> bool:
    """Print the share of the best method's speed that each choice has; say whether all suffice."""
    from ...bench import tune

    device = tune.device_of(device)
    jobs = tune.jobs(models, cases, **chosen)
    rows = new_table("case", right=["share", "ms", "best ms"], title=f"Below {SHARE}")
    shares = []
    for job in bar("Verifying")(tune.in_time(jobs, seconds), len(jobs)):
        for layout, (share, ms) in tune.verify(job, device, 2 * tune.EACH, SHARE).items():
            shares.append(share)
            if share < SHARE:
                automatic = ms[tune.AUTOMATIC]
                best = f"{share * automatic:.4g}"
                rows.add_row(str(job.call(layout)), f"{share:.3f}", f"{automatic:.4g}", best)
    if rows.row_count:
        print_tables(rows, width=100)
    click.echo(
        f"{len(shares)} of {2 * len(jobs)} cases measured, {rows.row_count} below {SHARE}, the "
        f"least is {min(shares, default=1):.3f}"
    )
    return rows.row_count == 0
