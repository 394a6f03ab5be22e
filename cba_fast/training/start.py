"""Before the first epoch: print what will be trained, estimate the memory, refuse what fails."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.textlines import counted
from ..erf.recompute import LEVELS, Kept, kept_in_training
from ..errors import InputError
from ..runs.ranks import ALONE, Ranks
from ..runs.runtime import Runtime
from .augment import resize
from .config import TrainConfig
from .data import Splits, plan_epoch
from .many import parts_of_step, shares, synchronized

# With AdamW, each weight has a gradient and two moments.
_COPIES_OF_WEIGHTS = 4
# A backward pass holds the gradients of a layer's output and input besides what was kept.
_TEMPORARIES = 2
# Estimates do not include what Python, PyTorch and the processes that read images need.
_SHARE_OF_FREE = 0.9


@dataclass(frozen=True)
class Memory:
    """An estimate of the memory that training takes on its device, in bytes.

    Attributes:
        checkpoint: the level of recomputing that it is for.
        state: weights, their gradients, the optimizer's moments, buffers, cached images.
        kept: what a step keeps for its backward pass at the peak.
        temporary: temporary results of single layers.
    """

    checkpoint: str
    state: int
    kept: int
    temporary: int

    @property
    def total(self) -> int:
        return self.state + self.kept + self.temporary


def has_batch_norms(model: nn.Module) -> bool:
    """Say whether the model has batch norms, by which the images of a batch affect each other."""
    return any(isinstance(m, _BatchNorm) for m in model.modules())


def prepare(
    name: str,
    model: nn.Module,
    splits: Splits,
    config: TrainConfig,
    run: Runtime,
    free: int | None,
    log: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> str:
    """Log what will be trained and with how much memory; return the level of recomputing.

    Args:
        name: name of the model.
        model: the model in its training form, in float32.
        splits: the images.
        config, run: settings.
        free: bytes that were free on the device before the model was made; None if unknown.
        log: gets the lines.
        ranks: the processes that train the model together.

    Returns:
        One of `cba_fast.erf.LEVELS`: the setting, or for "auto" the first that fits into `free`.

    Raises:
        InputError: what a step keeps does not fit into `free`, a batch norm would see one value per
            channel, or there are more processes than images in a batch.
    """
    norms, count = has_batch_norms(model), len(splits.train)
    batches = plan_epoch(config.seed, 1, count, config.batch_size, join_last=norms).batches
    parts = _parts(batches, config, norms, ranks)
    classes = len(splits.train.class_names)
    weights = sum(p.numel() for p in model.parameters())
    log(f"Device       : {_described(run)}, {run.config.precision}")
    log(f"Model        : {name}, {weights / 1e6:.2f} M weights, {classes} classes")
    size = config.input_size
    how = ", preprocess model" if config.preprocess == "model" else ""
    log(
        f"Images       : {count} for training, {len(splits.test)} for the test, in batches of "
        f"{config.batch_size} at {size}x{size}{how}{_deviations(config, batches, norms)}"
    )
    if ranks.count > 1:
        _log_processes(config, norms, run, ranks, log)
    if norms and min(parts) == 1 and not synchronized(run.device, ranks):
        _check_norms(model, config, run)
    memory = _fitting(model, splits, config, run, max(parts), free)
    log(f"Memory       : {_sentence(memory, free)}")
    if free is not None and memory.state + memory.kept > free:
        raise InputError(_refusal(memory, config, max(parts), free))
    return memory.checkpoint


def _parts(batches: list, config: TrainConfig, norms: bool, ranks: Ranks) -> list[int]:
    """Return how many images the model gets at a time, in all processes."""
    found = []
    for batch in {len(b): b for b in batches}.values():
        counts = [len(share) for share in shares(batch, ranks.count)]
        for rank in range(ranks.count):
            parts = parts_of_step(counts, rank, config.micro_batch, join_last=norms)
            found += [len(part) for part in parts if len(part)]
    return found


def _log_processes(
    config: TrainConfig, norms: bool, run: Runtime, ranks: Ranks, log: Callable[[str], None]
) -> None:
    size, count = config.batch_size, ranks.count
    if size < count:
        raise InputError(
            f"`batch_size` {size} is the images of a step over all processes, and there are "
            f"{count} of these; take `batch_size` {count} or more"
        )
    each = f"{size // count}{f' or {size // count + 1}' if size % count else ''} images"
    log(f"Processes    : {count}, with {each} of each batch ({distributed.get_backend()})")
    if norms and not synchronized(run.device, ranks):
        log(
            f"Warning: the network has batch norms, and PyTorch has no synchronized ones for CPUs: "
            f"they see the {each} of their process, so the weights depend on the number of "
            "processes; their running statistics are averaged after each epoch"
        )


def _described(run: Runtime) -> str:
    device = run.device
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({counted(run.threads, 'thread')})"


def _deviations(config: TrainConfig, batches: list, norms: bool) -> str:
    text = ""
    if len(batches[-1]) > config.batch_size:
        text += ", the last image joins the batch before it"
    if config.micro_batch is not None and config.micro_batch < config.batch_size:
        text += f", computed in parts of {config.micro_batch}"
        text += ", which is what batch norms see" if norms else ""
    return text


def _check_norms(model: nn.Module, config: TrainConfig, run: Runtime) -> None:
    try:
        _kept(model, config, run, 1, "none")
    except ValueError as e:
        name = "micro_batch" if config.micro_batch == 1 else "batch_size"
        raise InputError(
            f"a batch norm cannot learn from one image whose map is 1x1: `{name}` leaves an image "
            f"alone at `input_size` {config.input_size}; take `{name}` 2 or more, or larger images"
        ) from e


def _kept(model: nn.Module, config: TrainConfig, run: Runtime, images: int, level: str) -> Kept:
    def forward(shadow: nn.Module, x: Tensor) -> Tensor:
        with run.autocast():
            return shadow(x)

    shape = (images, 3, config.side, config.side)
    return kept_in_training(model, shape, level, device=run.device.type, run=forward)


def _fitting(
    model: nn.Module,
    splits: Splits,
    config: TrainConfig,
    run: Runtime,
    images: int,
    free: int | None,
) -> Memory:
    """Return the estimate for the first level that fits, or else for the one that needs least."""
    state = _COPIES_OF_WEIGHTS * sum(p.nbytes for p in model.parameters())
    state += sum(b.nbytes for b in model.buffers())
    if config.cache_images and run.device.type == "cpu":
        for images_of, mode in ((splits.train, config.aug_mode), (splits.test, None)):
            state += 3 * resize(config.side, mode).size[0] ** 2 * len(images_of)
    found = []
    for level in LEVELS if config.checkpoint == "auto" else [config.checkpoint]:
        try:
            kept = _kept(model, config, run, images, level)
        except ValueError as e:
            if level == config.checkpoint or level == "none":
                raise InputError(str(e)) from e
            continue
        found.append(Memory(level, state, kept.peak, _TEMPORARIES * kept.largest))
        if free is None or found[-1].total <= _SHARE_OF_FREE * free:
            return found[-1]
    return min(found, key=lambda memory: memory.total)


def _sentence(memory: Memory, free: int | None) -> str:
    how = "" if memory.checkpoint == "none" else f", recomputed by {memory.checkpoint}"
    available = "" if free is None else f"; {_gib(free)} are free"
    return (
        f"about {_gib(memory.total)}: {_gib(memory.state)} for weights, gradients and AdamW, "
        f"{_gib(memory.kept + memory.temporary)} for activations{how}{available}"
    )


def _refusal(memory: Memory, config: TrainConfig, images: int, free: int) -> str:
    fits = int((free - memory.state) * images / memory.kept)
    ways = [f"`micro_batch` {fits} (batch norms then see these parts)"] if fits >= 1 else []
    if config.checkpoint in ("none", "stage"):
        ways.append("`checkpoint` auto")
    ways.append("a smaller `input_size` or `model`")
    return (
        f"training needs about {_gib(memory.total)} of memory and {_gib(free)} are free; "
        f"try {' or '.join(ways)}"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
