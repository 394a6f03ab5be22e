"""The study's two augmentations, "light" and "strong", as steps that can be cached and repeated.

First comes `resize`, whose result is the same in every epoch and can be cached. "strong" then
applies `CropAndJitter` to each image, which a seed determines. Last comes `to_floats`, which flips
and scales a whole batch. The study flips before its colour jitter; flipping last gives the same
pixels, because the jitter depends only on single pixels and on the image's mean.
"""

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import ColorJitter, Compose, RandomResizedCrop, Resize

from ..data.preprocessing import STUDY, Preprocessing
from ..data.reading import normalize_bytes
from ..data.reading import resize as resize_to


def resize(input_size: int, aug_mode: str | None = None, how: Preprocessing = STUDY) -> Resize:
    """Return the first step: an antialiased resize, PIL image -> PIL image.

    The result is (S, S) for tests (`aug_mode` None) and "light". For "strong", where a crop
    follows, its side is int(1.1 * S).
    """
    side = int(1.1 * input_size) if aug_mode == "strong" else input_size
    return resize_to(side, how)


class CropAndJitter:
    """The random part of "strong": RandomResizedCrop of 0.6 to 1 of the area, then ColorJitter.

    Brightness, contrast and saturation vary by 0.2, hue by 0.1.

    Args:
        input_size: S, the side of the crop after its resize.
    """

    def __init__(self, input_size: int):
        self._transform = Compose(
            [RandomResizedCrop(input_size, scale=(0.6, 1.0)), ColorJitter(0.2, 0.2, 0.2, 0.1)]
        )

    def __call__(self, image: Image.Image, seed: int) -> Image.Image:
        """Return the augmented image; equal seeds give equal images, in any process.

        torchvision draws from PyTorch's global generator, whose state is restored afterwards.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._transform(image)


def to_floats(pixels: Tensor, flips: Tensor | None = None, how: Preprocessing = STUDY) -> Tensor:
    """Flip some images and scale all: (v / 255 - mean) / std, bit-equal to `transform`.

    Args:
        pixels: (N,S,S,3) uint8.
        flips: (N,) bool, the images to mirror left-right; None for none.

    Returns:
        (N,3,S,S) float32, in channels_last on the device of `pixels`.
    """
    x = pixels.permute(0, 3, 1, 2)
    if flips is not None:
        x = torch.where(flips[:, None, None, None], x.flip(3), x)
    return normalize_bytes(x, how)
