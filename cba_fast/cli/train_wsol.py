"""``cba-fast train-wsol``."""

from pathlib import Path

import click

from ..runs.settings import ModelConfig
from ..training.config import AUG_MODES, SCHEDULES, TrainConfig, log_folder
from .options import (
    FAMILIES,
    POSITIVE,
    checkpoint_option,
    output_stride_option,
    overwrite_option,
    run_options,
)
from .progress import bar, warn

PATH = click.Path(path_type=Path)
STUDY_DATA = "datasets/cub-200-2011/CUB_200_2011/images_splitted"


@click.command()
@click.option(
    "--model_family",
    type=click.Choice(FAMILIES),
    help="Family to train.  [default: that of --init_weights]",
)
@click.option("--model", "model_name", help="Model name; the family's base model if absent.")
@click.option("--alpha", type=float, help="slak_flex: weight of the strips, 1 if absent.")
@click.option("--beta", type=float, help="slak_flex: weight of the square kernel, 0 if absent.")
@output_stride_option("that of --init_weights, else 32")
@click.option(
    "--data_root",
    type=PATH,
    default=STUDY_DATA,
    help="Holds {train,test}/<class>/<image>, or is a CUB_200_2011 folder.",
)
@click.option("--epochs", type=POSITIVE, default=100, help="Passes over the training images.")
@click.option("--lr", type=float, default=1e-4, help="Peak of the schedule.")
@click.option("--weight_decay", type=float, default=1e-4, help="Of AdamW.")
@run_options(batch_size=32)
@click.option("--input_size", type=POSITIVE, default=384, help="Side of the images in pixels.")
@click.option("--aug_mode", type=click.Choice(AUG_MODES), default="light", help="Augmentation.")
@click.option("--save_dir", type=PATH, default="weights", help="Folder of the files below.")
@click.option(
    "--exp_name",
    help="Name of the files.  [default: <family>_r<size>_e<epochs>_lr<lr>_aug<mode>]",
)
@click.option(
    "--schedule", type=click.Choice(SCHEDULES), default="constant", help="Of the learning rate."
)
@click.option(
    "--ls_init", type=float, help="Initial layer scale, 1e-6 if absent; 1 to train small sets anew."
)
@click.option("--drop_path", type=float, help="Stochastic depth; 0.3 for replknet, else 0.")
@click.option(
    "--study_softmax", is_flag=True, help="Softmax before the cross-entropy, as in the study."
)
@click.option("--pretrained", is_flag=True, help="convnext: start from timm's weights (downloads).")
@click.option("--init_weights", type=PATH, help="Start from a checkpoint; its head may differ.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of all that is random.")
@click.option("--cache_images", is_flag=True, help="Keep the decoded, resized images in memory.")
@checkpoint_option()
@click.option(
    "--micro_batch",
    type=POSITIVE,
    help="Compute so many images of a batch at a time and add up their gradients, for want of"
    " memory; batch norms then see these parts, for example 8.  [default: the whole batch]",
)
@overwrite_option("resume")
def command(run_config, model_family, model_name, alpha, beta, output_stride, overwrite, **fields):
    """Train a classifier for localization, as the study does.

    Writes SAVE_DIR/EXP_NAME_best.pth (best test top-1), _last.pth (the state after the last epoch)
    and _tb/ (TensorBoard). The same command, started again, goes on after the last epoch.
    """
    from ..training.train import train

    if model_family is None:
        model_family = _family_of(fields["init_weights"])
    model = ModelConfig(
        model_family, name=model_name, alpha=alpha, beta=beta, output_stride=output_stride
    )
    config = TrainConfig(batch_size=run_config.batch_size, **fields)
    result = train(
        model, config, run_config, overwrite=overwrite, progress=bar("training"), log=click.echo
    )
    warn(result.notes)
    click.echo(f"Best top-1   : {result.best_top1:.2f}% (epoch {result.best_epoch})")
    click.echo(f"Best weights : {result.best_path}")
    click.echo(f"Last state   : {result.last_path} ({result.epochs} epochs)")
    click.echo(f"Log          : {log_folder(model, config)}")


def _family_of(init_weights: Path | None) -> str:
    from ..models import read_checkpoint
    from ..models.resolve import resolve_description

    if init_weights is None:
        raise click.UsageError("give --model_family, or --init_weights to go on from")
    return resolve_description(read_checkpoint(init_weights, mapped=True)).description.family
