"""The settings of ``train-wsol``: checks, names of its files, and what two runs must share."""

import math
from dataclasses import dataclass
from pathlib import Path

from ..data.textlines import shown, unprintable
from ..erf import CHECKPOINTS
from ..errors import InputError
from ..runs.settings import ModelConfig

SCHEDULES = ("constant", "onecycle", "cosine")
AUG_MODES = ("light", "strong")
# Stochastic depth of the study; 0 for the other families.
STUDY_DROP_PATH = {"replknet": 0.3}
SMALLEST_INPUT = 32
# A file name has 255; what is put before and after the name of an experiment takes up to 30.
MOST_NAME_BYTES = 220


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the study's.

    Attributes:
        data_root: holds ``{train,test}/<class>/<image>``.
        epochs, lr, weight_decay, batch_size, input_size: of AdamW and its batches.
        aug_mode: "light" or "strong".
        save_dir: where weights and log go.
        exp_name: their common name; None for ``<family>_r<size>_e<epochs>_lr<lr>_aug<mode>``.
        schedule: "constant", "onecycle" or "cosine", stepped after each batch; `lr` is the peak.
        ls_init: initial layer scale of convnext, slak and slak_flex; None for the model's 1e-6.
        drop_path: stochastic depth of the last block; None for the study's.
        study_softmax: give softmax outputs to the cross-entropy (which takes the softmax of them),
            as the study does for convnext and slak_flex.
        pretrained: start from timm's weights (convnext).
        init_weights: start from a checkpoint; a head of another size is replaced.
        seed: of weights, order, augmentation and stochastic depth.
        cache_images: keep the decoded, resized images in memory.
        checkpoint: recompute activations in the backward pass, with equal results: ``none``,
            ``block``, ``stage``, or ``auto`` where the memory asks for it.
        micro_batch: images that a step computes at a time, their gradients added up; None for all.
            Batch norms then see these parts of a batch.
    """

    data_root: Path
    epochs: int = 100
    lr: float = 1e-4
    weight_decay: float = 1e-4
    batch_size: int = 32
    input_size: int = 384
    aug_mode: str = "light"
    save_dir: Path = Path("weights")
    exp_name: str | None = None
    schedule: str = "constant"
    ls_init: float | None = None
    drop_path: float | None = None
    study_softmax: bool = False
    pretrained: bool = False
    init_weights: Path | None = None
    seed: int = 0
    cache_images: bool = False
    checkpoint: str = "auto"
    micro_batch: int | None = None


def exp_name(model_config: ModelConfig, config: TrainConfig) -> str:
    """Return the name that the run's files have in common."""
    if config.exp_name is not None:
        return config.exp_name
    return (
        f"{model_config.family}_r{config.input_size}_e{config.epochs}_lr{config.lr}"
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
    return STUDY_DROP_PATH.get(model_config.family, 0.0)


def check_config(model_config: ModelConfig, config: TrainConfig) -> None:
    """Refuse values and combinations that cannot be trained.

    Raises:
        InputError: the message names the setting and its value.
    """
    family, name = model_config.family, exp_name(model_config, config)
    name_bytes = len(name.encode(errors="surrogatepass"))
    rules = [
        (config.epochs >= 1, f"`epochs` must be at least 1, got {config.epochs}"),
        (config.batch_size >= 1, f"`batch_size` must be at least 1, got {config.batch_size}"),
        (_positive(config.lr), f"`lr` must be positive and finite, got {config.lr}"),
        (
            config.weight_decay == 0 or _positive(config.weight_decay),
            f"`weight_decay` must be 0 or positive and finite, got {config.weight_decay}",
        ),
        (
            config.input_size >= SMALLEST_INPUT,
            f"`input_size` must be at least {SMALLEST_INPUT}, got {config.input_size}",
        ),
        (config.seed >= 0, f"`seed` must not be negative, got {config.seed}"),
        (config.aug_mode in AUG_MODES, f"`aug_mode` {config.aug_mode!r} is not one of {AUG_MODES}"),
        (config.schedule in SCHEDULES, f"`schedule` {config.schedule!r} is not one of {SCHEDULES}"),
        (
            config.checkpoint in CHECKPOINTS,
            f"`checkpoint` {config.checkpoint!r} is not one of {CHECKPOINTS}",
        ),
        (
            config.micro_batch is None or 1 <= config.micro_batch <= config.batch_size,
            f"`micro_batch` must be in 1 to `batch_size` {config.batch_size}, got "
            f"{config.micro_batch}",
        ),
        (
            config.drop_path is None or 0 <= config.drop_path < 1,
            f"`drop_path` must be in [0, 1), got {config.drop_path}",
        ),
        (
            config.ls_init is None or _positive(config.ls_init),
            f"`ls_init` must be positive and finite, got {config.ls_init}",
        ),
        (
            config.ls_init is None or family != "replknet",
            "`ls_init` belongs to convnext, slak and slak_flex; replknet has no layer scale",
        ),
        (
            not config.pretrained or family == "convnext",
            f"pretrained weights come with convnext alone; give a file of {family} as "
            "`init_weights`",
        ),
        (
            not (config.pretrained and config.init_weights),
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


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
