"""The command line ``cba-fast``: a file for each command, imported when it is called."""

import contextlib
import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator

import click

from .. import __version__, locks, process
from ..errors import CbaError, CbaWarning, InputError, with_flags
from .grouped import with_example
from .moved import of_today

# folder of commands -> its title in `--help`.
TITLES = {
    "maps": "Heatmaps, boxes and scores",
    "erf": "Effective receptive fields",
    "studies": "Whole studies",
    "tools": "Data sets, weights and this machine",
}
# name -> (folder, one line of help). `--help` shows these lines and imports no command (no torch).
COMMANDS = {
    "demo": ("studies", "Run the whole study on generated data: no download, no GPU."),
    "generate-heatmap": ("maps", "Make CAM or PC1 heatmaps of an image folder."),
    "pack-maps": ("maps", "Pack stored heatmaps into one compact store."),
    "wsol-eval": ("maps", "Score stored heatmaps against boxes: MaxBoxAcc, MaxBoxAccV2."),
    "pixel-eval": ("maps", "Score stored heatmaps against pixel masks: PxAP."),
    "boxes": ("maps", "Write the boxes of stored heatmaps at a threshold: CSV or COCO JSON."),
    "report": ("maps", "Show stored heatmaps on one HTML page: scores, failures, gallery."),
    "evaluate": ("maps", "Images in, MaxBoxAcc and ERF out, without intermediate files."),
    "erf-compute": ("erf", "Measure the ERF size on sampled images."),
    "erf-map": ("erf", "Measure the ERF map, its area ratios and its shape."),
    "erf-shape": ("erf", "Show what slak_flex's mixture does to the ERF; match another's."),
    "erf-intervene": ("erf", "Change a network's ERF, and look what localization does."),
    "collect-erf-wsol": ("studies", "Train and score experiments of a YAML file."),
    "analysis-erf-vs-wsol": ("studies", "Correlate ERF size and MaxBoxAcc."),
    "analysis-per-image": ("studies", "Ask image by image: the ERF, or the maps?"),
    "plot-erf-vs-wsol": ("studies", "Plot a CSV of (model, ERF, MaxBoxAcc) points."),
    "synth-cub": ("tools", "Draw a CUB-like data set: animals with boxes, no download."),
    "prepare-cub": ("tools", "Lay out CUB_200_2011 (.tgz, .zip or folder) for the study."),
    "train-wsol": ("tools", "Train a classifier as the study does; resumable."),
    "merge": ("tools", "Merge the re-parameterized branches of a checkpoint."),
    "bench": ("tools", "Time depthwise layers or whole networks on this machine."),
    "tune": ("tools", "Measure which convolution kernels are fastest here, and use them."),
    "info": ("tools", "Show what was built and which backend each op uses, and why."),
}
# The arguments of the example that ends each command's help.
EXAMPLES = {
    "demo": "--quick --output my_demo",
    "generate-heatmap": "--weights w.pth --test_dataset my_images --method cam",
    "pack-maps": "--np_root np_heatmap_output --store maps_store",
    "wsol-eval": "--np_root np_heatmap_output --cub_root CUB_200_2011 --bootstrap 1000",
    "pixel-eval": "--np_root maps --metadata_root metadata/OpenImages/test --mask_root OpenImages",
    "boxes": "--np_root np_heatmap_output --threshold 0.2 --output boxes.csv",
    "report": "--scoremaps CAM=np_cam --scoremaps PC1=np_pc1 --cub_root CUB_200_2011",
    "evaluate": "--weights w.pth --test_dataset CUB_200_2011 --json scores.json",
    "erf-compute": "--weights w.pth --test_dataset my_images --num_samples 200 --p 0.2,0.5",
    "erf-map": "--weights w.pth --test_dataset my_images --input_size 384 --output map.npy",
    "erf-shape": "--weights slak_flex.pth --test_dataset my_images --match replknet.pth",
    "erf-intervene": "--weights w.pth --test_dataset CUB_200_2011 --kinds outer,inner",
    "collect-erf-wsol": "--config experiments.yaml --dry_run",
    "analysis-erf-vs-wsol": "--config models.json --save_fig erf_vs_wsol.png",
    "analysis-per-image": "--config experiments.yaml --output per_image",
    "plot-erf-vs-wsol": "--csv points.csv --save_fig scatter.png",
    "synth-cub": "--root synth --classes 10",
    "prepare-cub": "--source CUB_200_2011.tgz --output datasets/cub-200-2011",
    "train-wsol": "--model_family replknet --data_root images_splitted --exp_name my_run",
    "merge": "--weights w.pth --output merged.pth",
    "bench": "--model replknet_31b --what model",
    "tune": "--model replknet_31b",
    "info": "--json",
}
# The commands that several processes of ``torchrun`` share.
SHARED = ("generate-heatmap", "evaluate", "erf-compute", "analysis-per-image", "train-wsol")


class LazyGroup(click.Group):
    """A click group that imports a subcommand's module only when that subcommand is called."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, cmd_name):
        cmd_name = cmd_name.replace("_", "-")
        if cmd_name not in COMMANDS:
            return None
        if process.started()[1] > 1 and cmd_name not in SHARED:
            raise InputError(
                f"{cmd_name} runs as one process; torchrun can start several of {', '.join(SHARED)}"
            )
        module = f"cba_fast.cli.{COMMANDS[cmd_name][0]}.{cmd_name.replace('-', '_')}"
        return with_example(importlib.import_module(module).command, cmd_name, EXAMPLES[cmd_name])

    def invoke(self, ctx):
        with process.ending():  # inside of click, which would print "Aborted!" and exit with 1
            return super().invoke(ctx)

    def resolve_command(self, ctx, args):
        name = args[0].replace("_", "-")
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"Did you mean {near[0]}?" if near else "`cba-fast --help` lists all."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, of_today([name, *args[1:]]))

    def format_commands(self, ctx, formatter):
        for folder, title in TITLES.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name, text) for name, (at, text) in COMMANDS.items() if at == folder]
                )


@click.group(
    cls=LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda s: s.replace("-", "_"),
        "show_default": True,
    },
)
@click.version_option(__version__, prog_name="cba-fast")
def cli():
    """CAM, MaxBoxAcc and effective receptive fields of large-kernel CNNs, fast.

    Options are written with underscores; hyphens are accepted too.
    """


def _show(otherwise: Callable) -> Callable:
    """Return a ``warnings.showwarning`` that prints the package's own warnings in one line."""

    def show(message, category, *where, **options):
        if issubclass(category, CbaWarning):
            click.echo(f"Warning: {with_flags(str(message))}", err=True)
        else:
            otherwise(message, category, *where, **options)

    return show


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """Let only the first of several processes print; errors pass, so that each can say its own."""
    if process.started()[0] == 0:
        yield
        return
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def main(args: list[str] | None = None) -> None:
    """Run the command line; user errors are one line on stderr and exit status 1.

    Args:
        args: the arguments; None for those of the process.
    """
    error = "Error"
    try:
        rank, count = process.started()
        process.keep_freed_memory()
        if count > 1:
            error = f"Error (rank {rank})"
            process.end_with_parent()
        with locks.released(), _one_voice(), warnings.catch_warnings():
            warnings.simplefilter("always", CbaWarning)
            warnings.showwarning = _show(warnings.showwarning)
            cli(args, prog_name="cba-fast")
    except CbaError as e:
        click.echo(f"{error}: {with_flags(str(e))}", err=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as e:
        # PyTorch's own: the one of a GPU has a type, which needs its import, the one of a CPU none.
        of_torch = type(e).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(e)
        reader_died = str(e).startswith("DataLoader worker")
        if not (of_torch or reader_died or isinstance(e, MemoryError)):
            raise
        what = "a process that reads images has died, perhaps for lack of memory (fewer "
        what = f"{what}--num_workers take less)" if reader_died else "out of memory"
        click.echo(f"{error}: {what}{f': {e}' if str(e) else ''}", err=True)
        sys.exit(1)
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        click.echo(f"{error}: {where}{e.strerror or e}", err=True)
        sys.exit(1)
