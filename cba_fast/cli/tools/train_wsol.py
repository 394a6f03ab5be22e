"""``cba-fast train-wsol``."""

import click

from ...data.textlines import counted
from ...runs.settings import ModelConfig, RunConfig
from ...training.config import TrainConfig, log_folder
from ..options import config_options, overwrite_option
from ..progress import bar, warn


@click.command()
@config_options(
    ModelConfig,
    "model_config",
    *("family", "name", "factory", "pretrained", "alpha", "beta", "output_stride"),
    family={"otherwise": "that of --model or --init_weights"},
    pretrained={"help": "Start from timm's weights of `model` (downloads), with a new head."},
    name={"otherwise": "that of --init_weights, else the family's base model"},
    alpha={"otherwise": "that of --init_weights, else 1"},
    beta={"otherwise": "that of --init_weights, else 0"},
    output_stride={"otherwise": "that of --init_weights, else 32, timm's for its models"},
)
@config_options(TrainConfig, "config")
@config_options(RunConfig, "run_config", without=("batch_size", "compile"))
@overwrite_option("resume")
def command(model_config, config, run_config, overwrite):
    """Train a classifier for localization, as the study does.

    Writes SAVE_DIR/EXP_NAME_best.pth (best test top-1), _last.pth (the state after the last epoch)
    and _tb/ (TensorBoard). The same command, started again, goes on after the last epoch.
    """
    from ...runs import ranks
    from ...training.model import completed
    from ...training.train import train

    model, config = completed(model_config, config)
    result = train(
        model,
        config,
        run_config,
        overwrite=overwrite,
        progress=bar("training"),
        log=click.echo,
        ranks=ranks.join(gradients=True),
    )
    ranks.leave()
    warn(result.notes)
    click.echo(f"Best top-1   : {result.best_top1:.2f}% (epoch {result.best_epoch})")
    click.echo(f"Best weights : {result.best_path}")
    click.echo(f"Last state   : {result.last_path} ({counted(result.epochs, 'epoch')})")
    click.echo(f"Log          : {log_folder(model, config)}")
