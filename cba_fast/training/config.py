"""The settings of ``train-wsol``: checks, names of its files, and what two runs must share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from ..choices import CHECKPOINT, Checkpoint, Family, Preprocess
from ..data.preprocessing import STUDY, Preprocessing
from ..data.textlines import shown, unprintable
from ..errors import InputError
from ..runs.declare import Count, Positive, PositiveNumber, Range, check_values, same, setting
from ..runs.settings import DataConfig, ModelConfig

# Stochastic depth of the study; 0 for the other families.
STUDY_DROP_PATH = {"replknet": 0.3}
# The name of the initial layer scale in the constructor of each family.
LAYER_SCALE = {
    "convnext": "ls_init_value",
    "slak": "layer_scale_init_value",
    "slak_flex": "layer_scale_init_value",
}
# A file name has 255; what is put before and after the name of an experiment takes up to 30.
MOST_NAME_BYTES = 220
Tracker = Literal["wandb", "mlflow"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the study's."""

    group: ClassVar[str] = "Training"

    data_root: Path = setting(
        Path("datasets/cub-200-2011/CUB_200_2011/images_splitted"),
        "Holds {train,test}/<class>/<image>, or is a CUB_200_2011 folder.",
    )
    follow_links: bool = same(DataConfig, "follow_links")
    epochs: Positive = setting(100, "Passes over the training images, such as 10.")
    lr: PositiveNumber = setting(
        1e-4, "Learning rate at the peak of the schedule, which takes a step after each batch."
    )
    weight_decay: Annotated[float, Range(0.0)] = setting(1e-4, "Weight decay of AdamW.")
    batch_size: Positive = setting(
        32, "Images of a step, such as 16; all processes of torchrun share them."
    )
    input_size: Annotated[int, Range(32)] | None = setting(
        None, "Side of the images in pixels.", otherwise="384, timm's for its models"
    )
    preprocess: Preprocess | None = same(DataConfig, "preprocess")
    aug_mode: Literal["light", "strong"] = setting("light", "Augmentation of the images.")
    save_dir: Path = setting(Path("weights"), "Folder of the weights and the log.")
    exp_name: str | None = setting(
        None,
        "Name that the files have in common.",
        otherwise="<family or model>_r<size>_e<epochs>_lr<lr>_aug<mode>",
    )
    schedule: Literal["constant", "onecycle", "cosine"] = setting(
        "constant", "How the learning rate goes over the steps."
    )
    ls_init: PositiveNumber | None = setting(
        None,
        "Initial layer scale of convnext, slak and slak_flex; 1 to train small sets anew.",
        otherwise="the model's 1e-6",
    )
    drop_path: Annotated[float, Range(0, 1, max_open=True)] | None = setting(
        None,
        "Stochastic depth of the last block, such as 0.1.",
        otherwise="0.3 for replknet, else 0",
    )
    study_softmax: bool = setting(
        False,
        "Give softmax outputs to the cross-entropy, which takes the softmax of them, as the study"
        " does for convnext and slak_flex.",
    )
    init_weights: Path | None = setting(
        None, "Start from a checkpoint; a head of other classes is replaced."
    )
    seed: Count = setting(0, "Seed of weights, order, augmentation and stochastic depth.")
    cache_images: bool = setting(False, "Keep the decoded, resized images in memory.")
    checkpoint: Checkpoint = setting(
        CHECKPOINT,
        "Keep no activations within blocks or stages but compute them again in the backward pass"
        " (less memory, a forward pass more time); auto: where memory is short.",
    )
    micro_batch: Positive | None = setting(
        None,
        "Compute so many images of a batch at a time and add up their gradients, for want of"
        " memory; batch norms then see these parts, for example 8; in each process of torchrun.",
        otherwise="the whole batch",
    )
    tracker: Tracker | None = setting(
        None,
        "Also give the figures to Weights & Biases or MLflow; its package must be installed.",
        otherwise="TensorBoard alone",
    )
    preprocessing: Preprocessing = STUDY

    @property
    def side(self) -> int:
        """The input size of settings that are complete."""
        if self.input_size is None:
            raise ValueError("`input_size` is not filled in yet")
        return self.input_size


def exp_name(model_config: ModelConfig, config: TrainConfig) -> str:
    """Return the name that the run's files have in common."""
    if config.exp_name is not None:
        return config.exp_name
    return (
        f"{model_config.title}_r{config.input_size}_e{config.epochs}_lr{config.lr}"
        f"_aug{config.aug_mode}"
    )


def best_path(model_config: ModelConfig, config: TrainConfig) -> Path:
    """Return ``<save_dir>/<exp_name>_best.pth``: the weights of the best test top-1."""
    return Path(config.save_dir) / f"{exp_name(model_config, config)}_best.pth"


def last_path(model_config: ModelConfig, config: TrainConfig) -> Path:
    """Return ``<save_dir>/<exp_name>_last.pth``: the state after the last epoch."""
    return Path(config.save_dir) / f"{exp_name(model_config, config)}_last.pth"


def log_folder(model_config: ModelConfig, config: TrainConfig) -> Path:
    """Return ``<save_dir>/<exp_name>_tb``: the TensorBoard log."""
    return Path(config.save_dir) / f"{exp_name(model_config, config)}_tb"


def drop_path_rate(model_config: ModelConfig, config: TrainConfig) -> float:
    """Return the stochastic depth of the run."""
    if config.drop_path is not None:
        return config.drop_path
    return STUDY_DROP_PATH.get(model_config.family or "", 0.0)


def check_config(model_config: ModelConfig, config: TrainConfig) -> None:
    """Refuse values and combinations that cannot be trained.

    Raises:
        InputError: the message names the setting and its value.
    """
    family, name = model_config.family, exp_name(model_config, config)
    families = get_args(Family)
    name_bytes = len(name.encode(errors="surrogatepass"))
    check_values(config)
    rules = [
        (
            config.micro_batch is None or config.micro_batch <= config.batch_size,
            f"`micro_batch` must be in 1 to `batch_size` {config.batch_size}, got "
            f"{config.micro_batch}",
        ),
        (
            config.ls_init is None or family in LAYER_SCALE,
            "`ls_init` belongs to convnext, slak and slak_flex; "
            + ("replknet has no layer scale" if family == "replknet" else f"not to {family}"),
        ),
        (
            not model_config.pretrained or family == "convnext" or family not in families,
            f"pretrained weights are for timm's models; give a file of {family} as `init_weights`",
        ),
        (
            not (model_config.pretrained and config.init_weights),
            "`pretrained` and `init_weights` are two starts; choose one",
        ),
        (
            not config.study_softmax or family in ("convnext", "slak_flex"),
            f"`study_softmax` belongs to convnext and slak_flex; in the study {family} has none",
        ),
        (
            model_config.weights is None,
            f"training starts from `init_weights`; the model's weights must be None, not "
            f"{model_config.weights}",
        ),
        (
            bool(name) and Path(name).name == name,
            f"`exp_name` must be a file name without folders, got {name!r}",
        ),
        (not unprintable(name), f"`exp_name` {name!r} holds {unprintable(name)}"),
        (
            name_bytes <= MOST_NAME_BYTES,
            f"`exp_name` must have at most {MOST_NAME_BYTES} bytes, as files are named after it, "
            f"got {name_bytes}: {shown(name)}",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise InputError(message)
