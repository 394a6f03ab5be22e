"""Preprocessing of images, and a Dataset in which an unreadable image does not end a run."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    Normalize,
    PILToTensor,
    Resize,
    ToTensor,
)

from ..choices import INPUT_SIZE
from ..errors import ImageError
from .images import read_image
from .preprocessing import ERF_MAP, STUDY, Preprocessing
from .records import ImageRecord


def transform(input_size: int = INPUT_SIZE, how: Preprocessing = STUDY) -> Compose:
    """Return a preprocessing as one function: PIL RGB image -> (3,S,S) float32.

    Resize to (S, S) without keeping the aspect ratio (antialiased), scale to [0, 1],
    (x - mean) / std.
    """
    return Compose([resize(input_size, how), ToTensor(), Normalize(how.mean, how.std)])


def study_transform(input_size: int = INPUT_SIZE) -> Compose:
    """Return the study's preprocessing: bilinear, mean and std 0.5; values in [-1, 1]."""
    return transform(input_size, STUDY)


def resize(side: int, how: Preprocessing = STUDY) -> Resize:
    """Return the first step: PIL image -> PIL image of side x side."""
    return Resize((side, side), InterpolationMode(how.interpolation), antialias=True)


def resize_to_bytes(input_size: int = INPUT_SIZE, how: Preprocessing = STUDY) -> Compose:
    """Return the first half of `transform`: PIL RGB image -> (3,S,S) uint8.

    Its result is sent from the workers and to the device, with a quarter of the bytes of float32.
    """
    return Compose([resize(input_size, how), PILToTensor(), Tensor.contiguous])


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
    """
    return transform(size, ERF_MAP)


class ImageDataset(Dataset):
    """The preprocessed images of `records`; an unreadable one gives the reason, not an error.

    An item is a dict that the default collate function can batch:
    ``index`` (position in `records`), ``image`` ((3,S,S) float32), ``truncated`` (whether the file
    ended early and was decoded as far as it goes) and ``error`` ("", or why the image cannot be
    read; ``image`` is zero then, and the caller leaves it out). An exception would end the
    DataLoader's worker and with it the run.

    Args:
        records: the images, in the order of the items.
        input_size: S, the side of the tensors that `transform` makes.
        transform: PIL RGB image -> (3,S,S) tensor; default `study_transform(input_size)`.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        input_size: int = INPUT_SIZE,
        transform: Callable | None = None,
    ):
        self.records = tuple(records)
        self.input_size = input_size
        self.transform = study_transform(input_size) if transform is None else transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        try:
            image, truncated = read_image(self.records[index].path)
        except ImageError as e:
            zeros = torch.zeros(3, self.input_size, self.input_size)
            return {"index": index, "image": zeros, "truncated": False, "error": str(e)}
        tensor = self.transform(image)
        return {"index": index, "image": tensor, "truncated": truncated, "error": ""}
