"""From settings to score maps: the one loop behind ``generate-heatmap`` and ``evaluate``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from ..data import ImageDataset, ImageRecord, ImageSet, open_image_set, resolve_test_dataset
from ..data.reading import Report, cut, normalize_bytes, read_batches, resize_to_bytes
from ..errors import ImageError, InputError, ModelError
from ..models.anatomy.parts import named_layer, type_name, unwrapped
from ..shapes import Size, map_shape
from ..stages import stage
from ..wsol import Localization
from ..wsol.device_maps import HostMaps
from ..wsol.localize import localize_on_device
from ..wsol.methods import method_named
from .compiled import compiled_form, hiding_form
from .overlap import ahead
from .runtime import Runtime
from .settings import DataConfig, MapConfig, ModelConfig, RunConfig

# Waits for a batch, in any thread; returns the indices of the images that have a map, and the maps.
WaitForMaps = Callable[[], tuple[list[int], HostMaps]]


def load_model(
    config: ModelConfig,
    run: RunConfig | Runtime,
    input_size: Size = None,
    *,
    keep_layers: bool = False,
) -> nn.Module:
    """Build the model in its `inference_form` for the run's device, precision and memory format.

    Random weights are the same in each run, so that a run can be continued; PyTorch's generators
    stay as they are.

    Args:
        config, run: which model, and how it runs.
        input_size: for networks that are built for one size of images, such as ViT.
        keep_layers: see `Runtime.form_of`.

    Raises:
        InputError: a wrong device, family, name or number of classes.
        CheckpointError: the weights cannot be loaded.
    """
    run = Runtime.of(run)
    with stage("load"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return run.form_of(config.build(input_size=input_size), keep_layers)


def report_on(records: Sequence[ImageRecord], strict: bool) -> Report:
    """Return an empty report that names the images of `records` by their ids."""
    return Report(strict=strict, name=lambda i: records[i].image_id)


def open_images(data: DataConfig) -> ImageSet:
    """Return the images of `data`, sorted by id as class folders are.

    One order for all kinds of data sets keeps the batches, and with them the last bits of the maps,
    equal between commands that list the same images in different ways.

    Raises:
        InputError: no such folder, no images, an empty class, colliding names.
    """
    images = open_image_set(
        resolve_test_dataset(data.test_dataset),
        split=data.split,
        metadata_root=data.metadata_root,
        dataset_name=data.dataset_name,
        follow_links=data.follow_links,
    )
    if images.kind == "imagefolder":
        return images
    records = sorted(images.records, key=lambda r: r.image_id.split("/"))
    return replace(images, records=tuple(records))


def iter_localizations(
    model: nn.Module,
    records: Sequence[ImageRecord],
    data: DataConfig,
    run: RunConfig | Runtime,
    maps: MapConfig,
    report: Report,
    batches: Sequence[Sequence[int]] | None = None,
    decoded: dict[int, np.ndarray] | None = None,
) -> Iterator[tuple[list[int], Localization]]:
    """Make the score maps of `records`, batch by batch, in order.

    The target is checked at once. On a GPU the next batch is computed while the caller has one.

    Args:
        model: from `load_model`.
        records: the images.
        data, run, maps: settings.
        report: gets the truncated images, the unreadable ones and those whose features overflow.
        batches: indices of each batch; None for all records, cut by the batch size.
        decoded: gets the pixels (H,W,3) uint8 of the images, by index, where this process
            reads them and `ImageDataset` keeps them; the caller takes them out.

    Returns:
        An iterator over the indices of the images of a batch that have a map (not empty) and their
        maps. Each step of it raises what its batch raises.

    Raises:
        ImageError: an image that is unreadable or whose features overflow, if `report` is strict.
        InputError: `target` "label" without labels, a target that the model does not have (both
            at once, before the first image), maps that the method cannot make.
    """
    run = Runtime.of(run)
    waits = iter_host_maps(model, records, data, run, maps, report, batches, decoded=decoded)
    depth = 1 if run.device.type == "cuda" else 0
    found = (wait() for wait in ahead(waits, depth))
    return ((indices, _localization(host_maps)) for indices, host_maps in found if indices)


def _localization(host_maps: HostMaps) -> Localization:
    with stage("map"):
        return host_maps.localization()


def iter_host_maps(
    model: nn.Module,
    records: Sequence[ImageRecord],
    data: DataConfig,
    run: RunConfig | Runtime,
    maps: MapConfig,
    report: Report,
    batches: Sequence[Sequence[int]] | None = None,
    *,
    scored: bool = False,
    decoded: dict[int, np.ndarray] | None = None,
) -> Iterator[WaitForMaps]:
    """Make the maps of `records` as bytes, batch by batch, in order, without waiting for a GPU.

    Args:
        model, records, data, run, maps, report, batches, decoded: as for `iter_localizations`.
        scored: make the bytes that the evaluator scores; see `DeviceMaps.send`.

    Returns:
        An iterator whose step ends when the work of a batch is queued. It gives a function that
        waits for the batch, in any thread, and returns the indices of the images that have a map,
        perhaps none, and their maps. Images whose features overflow are reported.

    Raises:
        ImageError, InputError: as `iter_localizations`, at once, by a step, or by its function.
    """
    run = Runtime.of(run)
    check_target(model, records, maps)
    if maps.layer is not None:
        named_layer(unwrapped(model), maps.layer)
    if batches is None:
        batches = cut(range(len(records)), run.config.batch_size)
    if run.config.compile:
        _check_compiled_serves(model, records[0], data, run, maps)
        model = compiled_form(model, run.config.batch_size)
    return _queued(model, records, data, run, maps, report, batches, scored, decoded)


def _check_compiled_serves(
    model: nn.Module, first: ImageRecord, data: DataConfig, run: Runtime, maps: MapConfig
) -> None:
    """Refuse maps that compiled code cannot give, before anything is compiled.

    Raises:
        InputError: compiled code shows neither the output of a layer inside nor its attention.
    """
    if maps.layer is not None or any(
        need.startswith("attention") for need in method_named(maps.method).needs
    ):
        what = "`layer`" if maps.layer is not None else f"`method` {maps.method}"
        raise InputError(f"`compile` cannot be combined with {what}")
    form, sides = hiding_form(model), map_shape(data.input_size)
    x = torch.empty((0, 3, *sides), device=run.device)
    # A black image tells whether a layer inside would be explained.
    with _naming(first.image_id), run.autocast():
        localize_on_device(form, x, method=maps.method)


def check_target(model: nn.Module, records: Sequence[ImageRecord], maps: MapConfig) -> None:
    """Refuse a target that some image or the classifier does not have.

    Raises:
        InputError: the message names the image or the class.
    """
    if maps.target == "predicted":
        return
    classes = _num_classes(model)
    if maps.target != "label":
        if int(maps.target) >= classes:
            raise InputError(f"target {maps.target} is outside the model's {classes} classes")
        return
    for record in records:
        if record.label is None:
            raise InputError(f"target 'label': image {record.image_id} has no label")
        if record.label >= classes:
            raise InputError(
                f"target 'label': image {record.image_id} has label {record.label}, which is "
                f"outside the model's {classes} classes"
            )


def _num_classes(model: nn.Module) -> int:
    known = getattr(model, "description", None)
    if known is not None and known.num_classes is not None:
        return known.num_classes
    if hasattr(model, "get_classifier"):
        return model.get_classifier().out_features
    raise ModelError(f"{type_name(model)} must return (N, K) logits, and returns maps")


def _queued(
    model: nn.Module,
    records: Sequence[ImageRecord],
    data: DataConfig,
    run: Runtime,
    maps: MapConfig,
    report: Report,
    batches: Sequence[Sequence[int]],
    scored: bool,
    decoded: dict[int, np.ndarray] | None,
) -> Iterator[WaitForMaps]:
    size, how = data.input_size, data.preprocessing
    # Many readers feed a GPU, more than one interpreter keeps busy. Few do beside a CPU's model.
    threads = run.device.type == "cpu"
    kept = decoded is not None and (threads or not run.config.num_workers)
    read = read_batches(
        ImageDataset(records, size, resize_to_bytes(size, how), keep=kept),
        batches,
        report,
        num_workers=run.config.num_workers,
        threads=threads,
        device=run.device,
        memory_format=run.memory_format,
        finish=partial(normalize_bytes, how=how),
    )
    for batch in read:
        if batch.images is None:
            continue
        if decoded is not None:
            both = zip(batch.indices, batch.decoded, strict=True)
            decoded.update((i, pixels) for i, pixels in both if pixels is not None)
        first = records[batch.indices[0]].image_id
        target = _target(maps, [records[i] for i in batch.indices])
        with _naming(first), run.autocast():
            found = localize_on_device(
                model,
                batch.images,
                method=maps.method,
                target=target,
                layer=maps.layer,
                map_size=maps.map_size,
                pc1_range=maps.pc1_range,
            )
        yield partial(_wait, batch.indices, first, found.send(scored), report)


def _wait(
    indices: list[int], first: str, wait: Callable[..., HostMaps], report: Report
) -> tuple[list[int], HostMaps]:
    """Wait for a batch that begins with the image `first`; return the indices with maps, and these.

    Images without a map are reported.
    """
    # Where a GPU computes, the work of the model is over only when its results have arrived.
    with stage("model"), _naming(first):
        found = wait(lambda row, why: report.fail(indices[row], why))
    return [indices[row] for row in found.rows], found


@contextmanager
def _naming(first: str) -> Iterator[None]:
    """Name the batch, by the id of its first image, in errors about its values."""
    try:
        yield
    except (ImageError, ModelError):  # not about this batch, or naming its image already
        raise
    except ValueError as e:
        raise InputError(f"in the batch that begins with {first}: {e}") from e


def _target(maps: MapConfig, records: Sequence[ImageRecord]) -> int | torch.Tensor | None:
    if maps.target == "predicted":
        return None
    if maps.target == "label":
        return torch.tensor([record.label for record in records])
    return int(maps.target)
