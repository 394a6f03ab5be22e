"""Preprocess images and read them in batches; unusable ones are reported and do not end a run."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from ..choices import INPUT_SIZE
from ..errors import ImageError
from ..process import end_worker_with_parent
from ..shapes import Size, map_shape
from ..short import Short
from ..stages import WAITING, beside, staged
from ..threads import prefetch
from .images import read_image
from .preprocessing import ERF_MAP, STUDY, Preprocessing
from .records import ImageRecord
from .textlines import counted, some

# Decoded images are kept up to so many times the bytes of what the model gets, so that those which
# wait for their turn take a memory that does not depend on the files.
MOST_KEPT = 8
# (error, truncated) of each item, the readable images as one array, what was decoded, the seconds.
_Batch = tuple[list, np.ndarray | None, list, float]
Indices = TypeVar("Indices", Sequence[int], np.ndarray)
MOST_LISTED = 20  # failed images listed in a report; a missing folder can make thousands fail


def transform(input_size: Size = INPUT_SIZE, how: Preprocessing = STUDY) -> Compose:
    """Return a preprocessing as one function: PIL RGB image -> (3,H,W) float32.

    Resize to (H, W), which `input_size` means (see `map_shape`), without keeping the aspect ratio
    (antialiased), scale to [0, 1], (x - mean) / std.
    """
    return Compose([resize(input_size, how), ToTensor(), Normalize(how.mean, how.std)])


def study_transform(input_size: Size = INPUT_SIZE) -> Compose:
    """Return the study's preprocessing: bilinear, mean and std 0.5; values in [-1, 1].

    Example:
        >>> from PIL import Image
        >>> from cba_fast.data import study_transform
        >>> x = study_transform((64, 96))(Image.new("RGB", (300, 200), "white"))
        >>> x.shape, x.max().item()
        (torch.Size([3, 64, 96]), 1.0)
    """
    return transform(input_size, STUDY)


def resize(size: Size, how: Preprocessing = STUDY) -> Resize:
    """Return the first step: PIL image -> PIL image of that size."""
    shape = map_shape(size, name="input_size")
    return Resize(shape, InterpolationMode(how.interpolation), antialias=True)


def resize_to_bytes(input_size: Size = INPUT_SIZE, how: Preprocessing = STUDY) -> Compose:
    """Return the first half of `transform`: PIL RGB image -> (3,H,W) uint8.

    Its result is sent from the workers and to the device, with a quarter of the bytes of float32.
    """
    return Compose([resize(input_size, how), _planes])


def _planes(image: Image.Image) -> Tensor:
    """Return the pixels as (3,H,W) uint8.

    NumPy copies them, because each thread in which PyTorch does so has further threads for it.
    """
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def normalize_bytes(images: Tensor, how: Preprocessing = STUDY) -> Tensor:
    """Apply the second half of `transform` to a batch: (x / 255 - mean) / std.

    Args:
        images: (N,3,S,S) uint8, on any device.
        how: gives mean and std.

    Returns:
        (N,3,S,S) float32 on the same device and in the same memory format. The bits are those of
        `transform`, on every device.
    """
    # Divided by a tensor, because CUDA multiplies by the rounded reciprocal of a number instead.
    scale = torch.full((), 255.0, device=images.device)
    # Filled on the device, because a copy to it would wait for the work that is queued there.
    mean, std = (
        torch.stack([torch.full((1, 1), v, device=images.device) for v in values])
        for values in (how.mean, how.std)
    )
    return images.float().div_(scale).sub_(mean).div_(std)


def erf_map_transform(size: int = 1024) -> Compose:
    """Return the preprocessing of RepLKNet's ERF script: PIL RGB image -> (3,size,size) float32.

    Resize to (size, size) (bicubic, antialiased), scale to [0, 1], ImageNet mean and std.

    Source: DingXiaoH/RepLKNet-pytorch, erf/visualize_erf.py.

    Example:
        >>> from PIL import Image
        >>> from cba_fast.data import erf_map_transform
        >>> erf_map_transform(64)(Image.new("RGB", (300, 200))).shape
        torch.Size([3, 64, 64])
    """
    return transform(size, ERF_MAP)


class ImageDataset(Dataset):
    """The preprocessed images of `records`; an unreadable one gives the reason, not an error.

    An item is a dict that the default collate function can batch:
    ``index`` (position in `records`), ``image`` ((3,H,W) float32), ``truncated`` (whether the file
    ended early and was decoded as far as it goes) and ``error`` ("", or why the image cannot be
    read; ``image`` is zero then, and the caller leaves it out). An exception would end the
    DataLoader's worker and with it the run.

    Args:
        records: the images, in the order of the items.
        input_size: the size (H, W) of the tensors that `transform` makes, or their side.
        transform: PIL RGB image -> (3,H,W) tensor; default `study_transform(input_size)`.
        keep: add ``decoded`` to the items of images with at most `MOST_KEPT` times the pixels of
            `input_size`: the image's own pixels (H,W,3) uint8.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from cba_fast.data import ImageDataset, open_image_set
        >>> dataset = ImageDataset(open_image_set("CUB_200_2011").records, input_size=64)
        >>> batch = next(iter(DataLoader(dataset, batch_size=4)))
        >>> batch["image"].shape, batch["index"], batch["error"]
        (torch.Size([4, 3, 64, 64]), tensor([0, 1, 2, 3]), ['', '', '', ''])
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        input_size: Size = INPUT_SIZE,
        transform: Callable | None = None,
        keep: bool = False,
    ):
        self.records = tuple(records)
        self.shape = map_shape(input_size, name="input_size")
        self.transform = study_transform(input_size) if transform is None else transform
        self.most_kept = MOST_KEPT * math.prod(self.shape) if keep else 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        try:
            image, truncated = read_image(self.records[index].path)
        except ImageError as e:
            zeros = torch.zeros(3, *self.shape)
            return {"index": index, "image": zeros, "truncated": False, "error": str(e)}
        tensor = self.transform(image)
        item = {"index": index, "image": tensor, "truncated": truncated, "error": ""}
        if image.width * image.height <= self.most_kept:
            item["decoded"] = np.asarray(image)
        return item


@dataclass(repr=False)
class Report(Short):
    """The images of a run that gave no result, or whose files were truncated.

    Attributes:
        failed: (data set index, reason) of each image without a result, in the run's order.
        truncated: data set indices of the truncated images, decoded as far as they go.
        strict: raise an error at the first failed image instead of noting it.
        name: function from an image's data set index to its name.
    """

    failed: list[tuple[int, str]] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    strict: bool = False
    name: Callable[[int], str] = str

    def fail(self, index: int, reason: str) -> None:
        """Note that an image gave no result; in a strict run, raise an `ImageError`."""
        if self.strict:
            raise ImageError(f"{self.name(index)}: {reason}")
        self.failed.append((index, reason))

    def check_any(self, count: int) -> None:
        """Raise an `ImageError` if `count`, the number of results, is 0 and images failed."""
        if count == 0 and self.failed:
            index, reason = self.failed[0]
            images = counted(len(self.failed), "image")
            raise ImageError(f"none of the {images} could be used; {self.name(index)}: {reason}")

    def first_failure(self) -> str:
        """Return name and reason of the first image that gave no result, or ""."""
        return "".join(f"{self.name(i)}: {reason}" for i, reason in self.failed[:1])

    def lines(self) -> list[str]:
        """Return the lines to print at the end of a run; none if all images were whole."""
        out = []
        if self.truncated:
            names = some([self.name(i) for i in self.truncated])
            count = counted(len(self.truncated), "truncated image")
            out.append(f"decoded {count} to where the data ends: {names}")
        if self.failed:
            count = counted(len(self.failed), "image")
            out.append(f"{count} could not be used, without a result:")
            out += [f"  {self.name(i)}: {reason}" for i, reason in self.failed[:MOST_LISTED]]
            if len(self.failed) > MOST_LISTED:
                out.append(f"  and {len(self.failed) - MOST_LISTED} more")
        return out

    def dumps(self) -> str:
        """Return the report as JSON, for :meth:`loads`."""
        return json.dumps({"failed": self.failed, "truncated": self.truncated})

    def loads(self, *texts: str) -> None:
        """Take over what :meth:`dumps` returned in other parts of the run, in this order."""
        parts = [json.loads(text) for text in texts]
        self.failed = [(index, reason) for part in parts for index, reason in part["failed"]]
        self.truncated = [index for part in parts for index in part["truncated"]]


@dataclass(repr=False)
class ImageBatch(Short):
    """The readable images of one batch.

    Attributes:
        number: the batch's position among the batches asked for.
        indices: the data set indices of its readable images.
        images: (N,3,S,S), one per index; None where none is readable.
        decoded: for each index the image's own pixels (H,W,3) uint8, or None where the data set
            does not keep them.
    """

    number: int
    indices: list[int]
    images: Tensor | None
    decoded: list[np.ndarray | None]


def read_batches(
    dataset: Dataset,
    batches: Sequence[Sequence[int]],
    report: Report,
    *,
    num_workers: int = 0,
    threads: bool = False,
    device: str | torch.device = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[ImageBatch]:
    """Yield batches of images in order, sent to a device without waiting for the copy.

    Args:
        dataset: items are dicts with ``image`` (3,S,S), ``truncated`` (bool) and ``error`` ("", or
            why the image cannot be read), as `ImageDataset` gives them.
        batches: data set indices of each batch. The caller cuts them, so that a continued run sees
            the batches of an uninterrupted one: the last bits of a result can depend on the other
            images of its batch.
        report: gets the failed and truncated images.
        num_workers: processes that read images; 0 reads in this thread.
        threads: let threads of this process read, instead of processes. They need not send what
            they read (1 MB took 3 to 4 ms of a busy machine's processor), but share Python's
            interpreter, so that few of them gain. The data set's items should not use PyTorch to
            compute.
        device: where the images go.
        memory_format: memory format of the image batches.
        finish: the rest of the preprocessing, applied to each batch on `device`.

    Raises:
        ImageError: an unreadable image, if `report` is strict.

    Example:
        >>> from cba_fast.data import ImageDataset, Report, open_image_set, read_batches
        >>> dataset = ImageDataset(open_image_set("CUB_200_2011").records, input_size=64)
        >>> report = Report()
        >>> for batch in read_batches(dataset, [[0, 1, 2, 3], [4, 5]], report):
        ...     print(batch.indices, tuple(batch.images.shape))
        [0, 1, 2, 3] (4, 3, 64, 64)
        [4, 5] (2, 3, 64, 64)
        >>> report.failed
        []
    """
    timed, lists = _Timed(dataset), [[int(i) for i in batch] for batch in batches]
    loader: Iterable[_Batch]
    if threads and num_workers:
        loader = prefetch(lambda some: _collate(timed.__getitems__(some)), lists, num_workers)
    else:
        loader = DataLoader(
            timed,
            batch_sampler=lists,
            num_workers=num_workers,
            collate_fn=_collate,  # type: ignore[arg-type]  # gets what `__getitems__` returns
            worker_init_fn=end_worker_with_parent,
        )
    read = staged(WAITING if num_workers else "decode", loader)
    for number, (batch, (states, pixels, decoded, seconds)) in enumerate(
        zip(batches, read, strict=True)
    ):
        if num_workers:
            beside("decode", seconds)
        indices, images = [], None
        for index, (error, truncated) in zip(batch, states, strict=True):
            if error:
                report.fail(int(index), error)
                continue
            if truncated:
                report.truncated.append(int(index))
            indices.append(int(index))
        if pixels is not None:
            images = to_device(torch.from_numpy(pixels), device).to(memory_format=memory_format)
            images = finish(images) if finish else images
        yield ImageBatch(number, indices, images, decoded)


class _Timed(Dataset):
    """A data set of batches: the items of the indices, and the seconds that reading them took."""

    def __init__(self, items: Dataset):
        self._items = items

    def __getitems__(self, indices: list[int]) -> tuple[list[dict], float]:
        """Return the items of a batch, as the loader asks for it."""
        start = time.perf_counter()
        return [self._items[i] for i in indices], time.perf_counter() - start


def _collate(batch: tuple[list[dict], float]) -> _Batch:
    """Return (error, truncated) of each item, the readable images as one array, what was decoded.

    The seconds come last.

    An array travels from a worker to the run through a pipe. A tensor would travel in a shared
    memory file; where that cannot be made (a file size limit, a full /dev/shm), the error stays in
    the worker's sending thread and the run waits for ever. The loader pins tensors only, so memory
    is pinned in `to_device`.
    """
    items, seconds = batch
    states = [(item["error"], bool(item["truncated"])) for item in items]
    items = [item for item in items if not item["error"]]
    images = [item["image"].numpy() for item in items]
    decoded = [item.get("decoded") for item in items]
    return states, np.stack(images) if images else None, decoded, seconds


def to_device(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Return a host tensor on `device`, without waiting for a copy to a GPU.

    Such a copy goes through pinned memory, which PyTorch keeps until the GPU has read it.
    """
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def cut(indices: Indices, batch_size: int) -> list[Indices]:
    """Cut `indices` into batches of `batch_size`; the last may be shorter."""
    return [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
