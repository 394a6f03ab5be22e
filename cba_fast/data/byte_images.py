"""The study's preprocessing in two halves: resized bytes, and their normalization on the device."""

import torch
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode, PILToTensor, Resize

from ..choices import INPUT_SIZE


def resize_to_bytes(input_size: int = INPUT_SIZE) -> Compose:
    """Return the first half of `study_transform`: PIL RGB image -> (3,S,S) uint8.

    A quarter of the bytes of its float32 result travel from the workers and to the device.
    """
    resize = Resize((input_size, input_size), InterpolationMode.BILINEAR, antialias=True)
    return Compose([resize, PILToTensor(), Tensor.contiguous])


def normalize_bytes(images: Tensor) -> Tensor:
    """Return (N,3,S,S) uint8 images as float32 in [-1, 1]: (x / 255 - 0.5) / 0.5.

    On every device the bits are those of `study_transform`; the memory format stays.
    """
    # By a tensor: a CUDA tensor divided by a number is multiplied by its rounded reciprocal.
    scale = torch.full((), 255.0, device=images.device)
    return images.float().div_(scale).sub_(0.5).div_(0.5)
