"""The command line ``cba-fast``: one subcommand per file of this folder, imported when called."""

import importlib
import sys
import warnings
from collections.abc import Callable

import click

from .. import __version__
from ..errors import CbaError, CbaWarning, with_flags

# name -> (module, one line of help). `--help` shows these lines and imports no command (no torch).
COMMANDS = {
    "demo": ("demo", "Run the whole study on generated data: no download, no GPU."),
    "generate-heatmap": ("generate_heatmap", "Make CAM or PC1 heatmaps of an image folder."),
    "pack-maps": ("pack_maps", "Pack stored heatmaps into one compact store."),
    "wsol-eval": ("wsol_eval", "Score stored heatmaps: MaxBoxAcc, MaxBoxAccV2, PxAP."),
    "boxes": ("boxes", "Write the boxes of stored heatmaps at a threshold: CSV or COCO JSON."),
    "evaluate": ("evaluate", "Images in, MaxBoxAcc and ERF out, without intermediate files."),
    "erf-compute": ("erf_compute", "Measure the ERF size on sampled images, or the ERF map."),
    "erf-shape": ("erf_shape", "Show what slak_flex's mixture does to the ERF; match another's."),
    "collect-erf-wsol": ("collect_erf_wsol", "Train and score experiments of a YAML file."),
    "analysis-erf-vs-wsol": ("analysis_erf_vs_wsol", "Correlate ERF size and MaxBoxAcc."),
    "plot-erf-vs-wsol": ("plot_erf_vs_wsol", "Plot a CSV of (model, ERF, MaxBoxAcc) points."),
    "synth-cub": ("synth_cub", "Draw a CUB-like data set: animals with boxes, no download."),
    "prepare-cub": ("prepare_cub", "Lay out CUB_200_2011 (.tgz, .zip or folder) for the study."),
    "train-wsol": ("train_wsol", "Train a classifier as the study does; resumable."),
    "merge": ("merge", "Merge the re-parameterized branches of a checkpoint."),
    "bench": ("bench", "Time depthwise layers or whole networks on this machine."),
    "info": ("info", "Show what was built and which backend each op uses, and why."),
}


class LazyGroup(click.Group):
    """A click group that imports a subcommand's module only when that subcommand is called."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, cmd_name):
        cmd_name = cmd_name.replace("_", "-")
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cba_fast.cli.{COMMANDS[cmd_name][0]}")
        return module.command

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


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


def main(args: list[str] | None = None) -> None:
    """Run the command line; user errors are one line on stderr and exit status 1.

    Args:
        args: the arguments; None for those of the process.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", CbaWarning)
            warnings.showwarning = _show(warnings.showwarning)
            cli(args, prog_name="cba-fast")
    except CbaError as e:
        click.echo(f"Error: {with_flags(str(e))}", err=True)
        sys.exit(1)
    except MemoryError as e:
        click.echo(f"Error: out of memory{f': {e}' if str(e) else ''}", err=True)
        sys.exit(1)
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        click.echo(f"Error: {where}{e.strerror or e}", err=True)
        sys.exit(1)
