"""From settings to score maps: the one loop behind ``generate-heatmap`` and ``evaluate``."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.data import DataLoader

from cba_fast.data import ImageDataset, ImageRecord, ImageSet, open_image_set, resolve_test_dataset
from cba_fast.errors import ImageError, InputError
from cba_fast.models import build_model, merge
from cba_fast.wsol import Localization, localize

from .config import DataConfig, MapConfig, ModelConfig, RunConfig

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(run: RunConfig) -> torch.device:
    """Return the device of a run.

    Raises:
        InputError: the device is unknown or not there, or cannot compute in `run.precision`.
    """
    name = run.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise InputError(f"device {name!r} cannot be used: {str(e).splitlines()[0]}") from e
    if device.type == "cpu" and run.precision == "fp16":
        raise InputError("precision fp16 needs a GPU; on CPUs use fp32 or bf16")
    return device


def load_model(config: ModelConfig, run: RunConfig) -> nn.Module:
    """Build the model in its inference form: merged, frozen, in eval mode, on the run's device.

    Raises:
        InputError: a wrong device, family, name or number of classes.
        CheckpointError: the weights cannot be loaded.
    """
    device = choose_device(run)
    model = build_model(
        config.family,
        model=config.name,
        checkpoint=config.weights,
        num_classes=config.num_classes,
        alpha=config.alpha,
        beta=config.beta,
    )
    model = merge(model).requires_grad_(False).to(device)
    return model.to(memory_format=torch.channels_last) if run.channels_last else model


def autocast(run: RunConfig) -> AbstractContextManager:
    """Return the autocast context of the run's precision."""
    dtype = PRECISIONS[run.precision]
    if dtype is None:
        return nullcontext()
    return torch.autocast(choose_device(run).type, dtype=dtype)


def open_images(data: DataConfig) -> ImageSet:
    """Return the images of `data`.

    Raises:
        InputError: no such folder, no images, an empty class, colliding names.
    """
    return open_image_set(
        resolve_test_dataset(data.test_dataset),
        split=data.split,
        metadata_root=data.metadata_root,
        dataset_name=data.dataset_name,
    )


@dataclass
class Problems:
    """What a run met and went on from; `lines` gives it for the end of the run."""

    unreadable: dict[str, str] = field(default_factory=dict)
    truncated: list[str] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return one line for each kind of problem, and one for each unreadable image."""
        out = []
        if self.constant:
            out.append(
                f"{len(self.constant)} constant maps were stored as zeros: {_some(self.constant)}"
            )
        if self.truncated:
            out.append(
                f"{len(self.truncated)} truncated images were decoded as far as they go: "
                f"{_some(self.truncated)}"
            )
        if self.unreadable:
            out.append(f"{len(self.unreadable)} images could not be read and have no map:")
            out += [f"  {error}" for error in self.unreadable.values()]
        return out


def _some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def batches_of(count: int, batch_size: int) -> list[list[int]]:
    """Cut ``range(count)`` into batches. A resumed run keeps them: a map's last bits can depend on
    which images share its batch."""
    return [list(range(i, min(i + batch_size, count))) for i in range(0, count, batch_size)]


def iter_localizations(
    model: nn.Module,
    records: Sequence[ImageRecord],
    data: DataConfig,
    run: RunConfig,
    maps: MapConfig,
    problems: Problems,
    skip: Collection[int] = (),
) -> Iterator[tuple[list[int], Localization]]:
    """Yield the maps of `records`, batch by batch, in order.

    Args:
        model: from `load_model`.
        records: the images; batch b holds ``records[b * batch_size : (b + 1) * batch_size]``.
        data, run, maps: settings.
        problems: filled on the way.
        skip: numbers of batches that need not be made.

    Yields:
        The indices of the readable images of a batch (not empty), and their maps.

    Raises:
        ImageError: an unreadable image, with `run.strict`.
        InputError: ``--target label`` without labels, a target that the model does not have.
    """
    _check_target(maps, records)
    device = choose_device(run)
    batches = batches_of(len(records), run.batch_size)
    loader = DataLoader(
        ImageDataset(records, input_size=data.input_size),
        batch_sampler=[b for n, b in enumerate(batches) if n not in set(skip)],
        num_workers=run.num_workers,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        good = _readable(batch, records, run, problems)
        if not good:
            continue
        indices = [int(batch["index"][i]) for i in good]
        x = batch["image"][good].to(device, non_blocking=True)
        if run.channels_last:
            x = x.to(memory_format=torch.channels_last)
        target: int | torch.Tensor | None = None
        if maps.target == "label":
            target = torch.tensor([records[i].label for i in indices])
        elif maps.target != "predicted":
            target = int(maps.target)
        with autocast(run):
            try:
                found = localize(
                    model,
                    x,
                    method=maps.method,
                    target=target,
                    map_size=maps.map_size,
                    pc1_range=maps.pc1_range,
                )
            except ValueError as e:
                raise InputError(f"{records[indices[0]].image_id} and its batch: {e}") from e
        problems.constant += [records[i].image_id for i, c in zip(indices, found.constant) if c]
        yield indices, found


def _check_target(maps: MapConfig, records: Sequence[ImageRecord]) -> None:
    if maps.target == "label":
        unlabelled = [r.image_id for r in records if r.label is None]
        if unlabelled:
            raise InputError(f"target 'label': image {unlabelled[0]} has no label")


def _readable(batch: dict, records: Sequence[ImageRecord], run: RunConfig, problems: Problems):
    """Return the positions of the readable images in `batch`; note the others."""
    good = []
    for position, index in enumerate(batch["index"].tolist()):
        error = batch["error"][position]
        if error and run.strict:
            raise ImageError(error)
        if error:
            problems.unreadable[records[index].image_id] = error
            continue
        if batch["truncated"][position]:
            problems.truncated.append(records[index].image_id)
        good.append(position)
    return good


def check_some_read(count: int, problems: Problems) -> None:
    """Raise an `ImageError` where no image could be read (`count` maps were made)."""
    if count == 0 and problems.unreadable:
        first = next(iter(problems.unreadable.values()))
        raise ImageError(f"none of the {len(problems.unreadable)} images could be read: {first}")
